"""Processors: how many there are, and loops that are compiled for them."""

from collections.abc import Callable
import functools
import os
from typing import Any


def usable() -> int:
  """How many processors this process may use, at least 1."""
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def compiled(
  function: Callable[..., Any] | None = None, *, any_order: bool = False
) -> Any:
  """A loop over arrays, compiled when it is called first.

  It is kept on disk for the next process where that can be, and lets other
  threads run.

  Args:
    function: The loop; if left out, what is returned is to be called with it.
    any_order: Whether sums may be taken in another order than they are written
      in, as it takes to compute several terms at once.
  """
  if function is None:
    return functools.partial(compiled, any_order=any_order)
  import numba  # takes most of a second

  options: Any = {"nogil": True, "error_model": "numpy"}
  if any_order:
    options["fastmath"] = {"reassoc", "contract", "nsz"}
  try:
    return numba.njit(cache=True, **options)(function)
  except RuntimeError:  # neither the package nor the home can be written to
    return numba.njit(**options)(function)
