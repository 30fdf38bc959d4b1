"""Lines of JSON that tell what the server does, and hold no one up.

They have no texts of users: what is logged says who asked what of which model,
by the names that the server knows, and what became of it.
"""

import datetime
import queue
import sys
import threading
from typing import Any, IO

from xlj.serving.packages import msgspec

_MOST = 10_000  # that wait for whoever reads them
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
    self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_MOST)
    self._left_out = 0
    self._thread = threading.Thread(target=self._write, daemon=True)
    self._thread.start()

  def __call__(self, **fields: Any) -> None:
    """Writes a line, with the time before its fields."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    try:
      self._queue.put_nowait({"time": now, **fields})
    except queue.Full:
      self._left_out += 1

  def close(self) -> None:
    """Ends the thread, once all is written."""
    try:
      self._queue.put(None, timeout=_CLOSE_SECONDS)
      self._thread.join(_CLOSE_SECONDS)
    except queue.Full:
      pass  # nobody reads

  def _write(self) -> None:
    while (line := self._queue.get()) is not None:
      if self._left_out:
        line["lines_left_out"], self._left_out = self._left_out, 0
      try:
        self._output.write(msgspec.json.encode(line).decode() + "\n")
        if self._queue.empty():
          self._output.flush()
      except (OSError, ValueError):
        pass  # whoever read them has left
    try:
      self._output.flush()
    except (OSError, ValueError):
      pass
