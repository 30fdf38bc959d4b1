"""Processors: how many there are, and loops that are compiled for them."""

from collections.abc import Callable
import os
from typing import Any


def usable() -> int:
  """How many processors this process may use, at least 1."""
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def compiled(function: Callable[..., Any]) -> Any:
  """A loop over arrays, compiled when it is called first.

  It is kept on disk for the next process where that can be, and lets other
  threads run.
  """
  import numba  # takes most of a second

  options: Any = {"nogil": True, "error_model": "numpy"}
  try:
    return numba.njit(cache=True, **options)(function)
  except RuntimeError:  # neither the package nor the home can be written to
    return numba.njit(**options)(function)
