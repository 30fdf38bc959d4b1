"""Ctrl-C at any time: one line and an exit status, instead of a traceback.

To be imported before what takes seconds to import. While a run trains,
`xlj.distributed.stopping` takes Ctrl-C.
"""

import os
import signal
import sys
import threading
from types import TracebackType
from typing import Any

from xlj.distributed import exit_status

TEXT = "error: interrupted by Ctrl-C"
_happened = False


def happened() -> bool:
  """Whether Ctrl-C has come; libraries may make another error of it."""
  return _happened


def _take(number: int, frame: Any) -> None:
  global _happened
  _happened = True
  raise KeyboardInterrupt


def _end(
  kind: type[BaseException],
  error: BaseException,
  trace: TracebackType | None,
) -> None:
  """Takes the place of `sys.excepthook`."""
  if not _happened:
    sys.__excepthook__(kind, error, trace)
    return
  print(TEXT, file=sys.stderr, flush=True)
  os._exit(exit_status.INTERRUPTED)


def _ignore(unraisable: Any) -> None:
  """Takes the place of `sys.unraisablehook`: some callback was interrupted."""
  if not _happened:
    sys.__unraisablehook__(unraisable)


# Who ignores Ctrl-C, as jobs in the background do, still does.
if (
  threading.current_thread() is threading.main_thread()
  and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
  signal.signal(signal.SIGINT, _take)
  sys.excepthook = _end
  sys.unraisablehook = _ignore
