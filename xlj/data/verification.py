"""Compares large memory maps with their checksums while they are used.

Small ones are compared whenever they are opened. Larger ones would delay the
start; they are read by a thread of their own, that rests as long as it works.
"""

from __future__ import annotations

from collections.abc import Mapping
import pathlib
import threading
import time
from typing import Any

from absl import logging

from xlj.data import errors
from xlj.data import mapped


class Verification:
  """Compares the arrays of an entry with their checksums, in the background."""

  def __init__(self, entry: pathlib.Path, arrays: Mapping[str, Any]):
    """Starts.

    Args:
      entry: directory of the arrays.
      arrays: description of each, by name.
    """
    self._entry, self._arrays = entry, arrays
    self._error: errors.DataError | None = None
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  @property
  def done(self) -> bool:
    """Whether all has been read, or damage was found."""
    return not self._thread.is_alive()

  def check(self) -> None:
    """Raises as soon as damage has been found; costs nothing.

    Raises:
      DataError: naming the file, and what to do.
    """
    if self._error is not None:
      raise self._error

  def wait(self) -> None:
    """Returns when all has been read.

    Raises:
      DataError: if something is damaged.
    """
    self._thread.join()
    self.check()

  def _run(self) -> None:
    begun, size = time.monotonic(), 0
    for name, facts in self._arrays.items():
      try:
        mapped.check_array(self._entry / f"{name}.npy", facts, rest=time.sleep)
      except errors.DataError as error:
        logging.error("The data is damaged: %s", error)
        self._error = error
        return
      except OSError as error:  # it is gone: a reader will notice
        logging.warning("The data could not be verified: %s", error)
        return
      size += mapped.array_bytes(facts)
    logging.info(
      "Verified %.1f GB of data in %.0f s",
      size / 1e9,
      time.monotonic() - begun,
    )
