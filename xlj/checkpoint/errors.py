"""What can be wrong with checkpoints."""

import re

# Where tensorstore says what it was asked, and where in its source it failed.
_DETAILS = re.compile(r" \[(tensorstore_spec|source)")
# Where it says why the operating system did not do something.
_OF_SYSTEM = re.compile(r"(?:.*: )?(.*) \[os_error_code=")


class CheckpointError(ValueError):
  """A checkpoint cannot be used, or the newest state cannot be saved."""


def reason(error: BaseException) -> str:
  """What an error says, on one line, without details for programmers."""
  lines = _DETAILS.split(str(error))[0].splitlines()
  return lines[0] if lines else type(error).__name__


def reason_of_failed_save(error: BaseException) -> str:
  """The same, without names of temporary files."""
  text = reason(error)
  found = _OF_SYSTEM.match(text)
  return found[1] if found else text
