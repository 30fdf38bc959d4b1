"""One view of what several processes print.

Process 0 speaks as if it were alone, with a terminal of its own for its
progress bar if ours is one. Lines of the others begin with their number, as in
`[1] `.
"""

from __future__ import annotations

import collections
import dataclasses
import fcntl
import os
import re
import selectors
import sys
import termios
from typing import BinaryIO

_CHUNK = 65536
_TAIL = 8192  # bytes of stderr that are kept for the last line
_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
_LINE = re.compile(rb"[^\n]*\n")
_CLEAR_LINE = b"\r\x1b[K"


@dataclasses.dataclass(eq=False)
class _Source:
  """What comes from a stream of a process."""

  process: int
  stream: int  # file descriptor to read from
  target: BinaryIO
  rest: bytes = b""  # of a line without its end, as yet


class View:
  """Passes on what the processes of a job print, as a context manager.

  Example:
    >>> with View() as view:
    ...   stdout, stderr = view.open(process=0)
    ...   # start the process with these, then close them
    ...   view.relay(seconds=0.1)
  """

  def __init__(self) -> None:
    """Shows nothing yet."""
    self._selector = selectors.DefaultSelector()
    self._tails: dict[int, bytes] = collections.defaultdict(bytes)
    self._on_terminal = sys.stderr.isatty()
    self._terminal: int | None = None  # our side of the one of process 0
    self._at_start = True  # whether process 0's last line has its end

  def __enter__(self) -> View:
    """Returns itself."""
    return self

  def __exit__(self, *_: object) -> None:
    """Shows what is left and closes the streams."""
    self.drain()
    for key in list(self._selector.get_map().values()):
      self._close(key.data)
    self._selector.close()

  def open(self, process: int) -> tuple[int | None, int]:
    """Makes streams for a process to write to.

    Args:
      process: Its number.

    Returns:
      File descriptors for its stdout, None for ours (a terminal), and for its
      stderr; the caller closes them when the process has them.
    """
    stdout = None
    if process or not sys.stdout.isatty():
      stdout = self._pipe(process, sys.stdout.buffer)
    if process == 0 and self._on_terminal:
      return stdout, self._open_terminal()
    return stdout, self._pipe(process, sys.stderr.buffer)

  def relay(self, seconds: float) -> bool:
    """Passes on what comes within some time.

    Args:
      seconds: How long to wait for something.

    Returns:
      Whether something came.
    """
    self._copy_size()
    found = self._selector.select(seconds)
    for key, _ in found:
      self._read(key.data)
    return bool(found)

  def drain(self) -> None:
    """Passes on what is there already."""
    while self._selector.get_map() and self.relay(0):
      pass
    for key in list(self._selector.get_map().values()):
      self._end_line(key.data)

  def last_line(self, process: int) -> str:
    """The last line that a process wrote to stderr, above all of an error.

    Args:
      process: Its number.

    Returns:
      The line; empty if there is none.
    """
    tail = _CONTROL.sub(b"", self._tails[process])
    lines = [line.strip() for line in re.split(rb"[\r\n]+", tail)]
    lines = [line.decode(errors="replace") for line in lines if line]
    # Libraries may have more to say after the error.
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]

  def _pipe(self, process: int, target: BinaryIO) -> int:
    reader, writer = os.pipe()
    self._register(_Source(process, reader, target))
    return writer

  def _open_terminal(self) -> int:
    """A terminal that changes nothing of what is written to it."""
    ours, theirs = os.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    self._terminal = ours
    self._copy_size()
    self._register(_Source(0, ours, sys.stderr.buffer))
    return theirs

  def _copy_size(self) -> None:
    """Gives the terminal of process 0 the size of ours."""
    if self._terminal is not None:
      size = fcntl.ioctl(sys.stderr, termios.TIOCGWINSZ, bytes(8))
      fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)

  def _register(self, source: _Source) -> None:
    self._selector.register(source.stream, selectors.EVENT_READ, source)

  def _read(self, source: _Source) -> None:
    try:
      data = os.read(source.stream, _CHUNK)
    except OSError:  # how a terminal says that nobody has it any more
      data = b""
    if not data:
      self._end_line(source)
      self._close(source)
      return
    if source.target is sys.stderr.buffer:
      tail = self._tails[source.process] + data
      self._tails[source.process] = tail[-_TAIL:]
      if source.process == 0:  # at once, for its bar
        self._write(source.target, data)
        self._at_start = data.endswith(b"\n")
        return
    # Whole lines, so that those of processes do not mix.
    whole, end, source.rest = (source.rest + data).rpartition(b"\n")
    if end:
      self._write_lines(source, whole + end)

  def _end_line(self, source: _Source) -> None:
    if source.rest:
      end = b"\n" if source.process else b""
      self._write_lines(source, source.rest + end)
      source.rest = b""

  def _write_lines(self, source: _Source, lines: bytes) -> None:
    if source.process:
      prefix = b"[%d] " % source.process
      lines = b"".join(prefix + x for x in _LINE.findall(lines))
      if not self._at_start:
        # Process 0 draws its bar again soon.
        clear = _CLEAR_LINE if self._on_terminal else b"\n"
        self._write(sys.stderr.buffer, clear)
        self._at_start = True
    self._write(source.target, lines)

  def _write(self, target: BinaryIO, data: bytes) -> None:
    try:
      target.write(data)
      target.flush()
    except BrokenPipeError:
      # The job goes on without whoever read this; what is left in the buffer
      # would fail again when we end.
      with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), target.fileno())

  def _close(self, source: _Source) -> None:
    self._selector.unregister(source.stream)
    os.close(source.stream)
    if source.stream == self._terminal:
      self._terminal = None
