"""What can be wrong with checkpoints."""


class CheckpointError(ValueError):
  """A checkpoint cannot be used, or the newest state cannot be saved."""
