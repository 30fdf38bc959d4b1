"""What can be wrong with checkpoints."""

import re

# Where tensorstore says what it was asked, and where in its source it failed.
_DETAILS = re.compile(r" \[(tensorstore_spec|source)")


class CheckpointError(ValueError):
  """A checkpoint cannot be used, or the newest state cannot be saved."""


def reason(error: BaseException) -> str:
  """What an error says, on one line, without details for programmers."""
  lines = _DETAILS.split(str(error))[0].splitlines()
  return lines[0] if lines else type(error).__name__
