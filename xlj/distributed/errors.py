"""What can go wrong between processes."""


class StartError(RuntimeError):
  """The processes were not started as one job; starting again will not help."""


class LostPeerError(RuntimeError):
  """A process is missing, gone or stuck; starting again may help."""
