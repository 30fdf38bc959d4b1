"""How many processors there are."""

import os


def usable() -> int:
  """How many processors this process may use, at least 1."""
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
