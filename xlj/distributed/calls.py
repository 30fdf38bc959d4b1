"""What the processes of a job say to each other at the rendezvous.

A JSON object per line: a `Hello` from those that arrive, an `Answer` from
process 0. Any program may call there, so nothing that it sends does more than
end the call.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import json
import socket
import time
from typing import Any

HELLO_BYTES = 4096  # at most, of a line
_JOB = "xlj"
_WHO_CHARS = 300


@dataclasses.dataclass(frozen=True)
class Hello:
  """What a process says of itself.

  Attributes:
    process: Its number.
    count: How many processes it thinks there are.
    who: Host and process id, for people.
  """

  process: int
  count: int
  who: str
  job: str = _JOB

  @classmethod
  def of(cls, message: dict[str, Any]) -> Hello:
    """Reads a message; ValueError if it is that of a stranger."""
    names = ("process", "count", "who", "job")
    process, count, who, job = (message.get(name) for name in names)
    if (
      job == _JOB
      and type(process) is int  # True is an instance of int
      and type(count) is int
      and 0 <= process < count
      and isinstance(who, str)
      and len(who) <= _WHO_CHARS
      and who.isprintable()
    ):
      return cls(process, count, who)
    raise ValueError("a stranger")


@dataclasses.dataclass(frozen=True)
class Answer:
  """What process 0 says.

  Attributes:
    missing: Numbers of those that are not there yet.
    error: Why the job does not start; empty if it may.
    again: Whether starting again may help.
    go: Whether all are there.
  """

  missing: list[int] = dataclasses.field(default_factory=list)
  error: str = ""
  again: bool = False
  go: bool = False

  @classmethod
  def of(cls, message: dict[str, Any]) -> Answer:
    """Reads a message; ValueError if it is that of a stranger."""
    names = ("missing", "error", "again", "go")
    missing, error, again, go = (message.get(name) for name in names)
    if (
      isinstance(missing, list)
      and all(type(number) is int for number in missing)
      and isinstance(error, str)
      and isinstance(again, bool)
      and isinstance(go, bool)
    ):
      return cls(missing, error, again, go)
    raise ValueError("it is not process 0 of a job")


class Call:
  """A connection with a message per line.

  Attributes:
    since: When it began, in seconds of `time.monotonic`.
    hello: What the other one has said of itself; None before that.
  """

  def __init__(self, sock: socket.socket, max_bytes: int):
    """Begins; no line of the other one may be longer than `max_bytes`."""
    self._sock = sock
    self._max_bytes = max_bytes
    self._rest = b""
    self.since = time.monotonic()
    self.hello: Hello | None = None

  def read(self) -> Iterator[dict[str, Any]]:
    """Yields the messages that have come.

    Raises:
      OSError: The other one left.
      ValueError: It sends something else.
    """
    data = self._sock.recv(4096)
    if not data:
      raise ConnectionError("it closed the connection")
    *lines, self._rest = (self._rest + data).split(b"\n")
    if max(map(len, (*lines, self._rest))) > self._max_bytes:
      raise ValueError("too long a line")
    for line in lines:
      try:
        message = json.loads(line)
      except RecursionError as error:
        raise ValueError("too many brackets") from error
      if not isinstance(message, dict):
        raise ValueError("not a message")
      yield message

  def send(self, message: Hello | Answer) -> None:
    """Sends a message."""
    line = json.dumps(dataclasses.asdict(message))
    self._sock.sendall(line.encode() + b"\n")
