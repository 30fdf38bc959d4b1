"""Lines of JSON that tell what the server does, and hold no one up.

They have no texts of users: what is logged says who asked what of which model,
by the names that the server knows, and what became of it.
"""

import collections
import contextlib
import datetime
import sys
import threading
import time
from typing import Any, IO

from xlj.serving.packages import msgspec

_MOST = 10_000  # that wait for whoever reads them
_SECONDS = 0.1  # that they wait, so that many are written at a time
_CLOSE_SECONDS = 5.0


class Lines:
  """Writes lines from a thread of its own.

  Where they are read more slowly than they come, the newest are left out, and
  a line says how many.
  """

  def __init__(self, output: IO[str] | None = None):
    """Starts the thread.

    Args:
      output: Where they go; by default standard output.
    """
    self._output = sys.stdout if output is None else output
    self._waiting: collections.deque[dict[str, Any]] = collections.deque()
    self._left_out = 0
    self._closing = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def __call__(self, **fields: Any) -> None:
    """Writes a line, with the time before its fields."""
    if len(self._waiting) < _MOST:
      self._waiting.append({"time": time.time(), **fields})
    else:
      self._left_out += 1

  def close(self) -> None:
    """Ends the thread, once all is written, or nobody reads it."""
    self._closing.set()
    self._thread.join(_CLOSE_SECONDS)

  def _run(self) -> None:
    while not self._closing.wait(_SECONDS):
      self._write()
    self._write()

  def _write(self) -> None:
    """Writes all that waits."""
    found = []
    while self._waiting:
      line = self._waiting.popleft()
      at = datetime.datetime.fromtimestamp(line["time"], datetime.UTC)
      line["time"] = at.isoformat(timespec="milliseconds")
      if self._left_out:
        line["lines_left_out"], self._left_out = self._left_out, 0
      found.append(msgspec.json.encode(line).decode())
    if found:
      with contextlib.suppress(OSError, ValueError):  # the reader has left
        self._output.write("\n".join(found) + "\n")
        self._output.flush()
