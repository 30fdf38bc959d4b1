"""Where the processes of a job wait for each other, before JAX starts.

JAX's own start waits in silence, and takes the first process with a number for
the right one. So they meet at the coordinator's address first: process 0
listens there, the others call and say who they are, and all are told who is
still missing. When all are there, the port is free again for JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import selectors
import socket
import threading
import time
from typing import Any

from absl import logging

from xlj.distributed import addresses
from xlj.distributed import calls
from xlj.distributed import errors
from xlj.distributed import exchange

_FIRST_WORD_S = 3.0  # of waiting, before the first message about it
_NEXT_WORD_S = 10.0
_RETRY_S = 0.2
_CALL_S = 5.0  # for a connection to come about


@dataclasses.dataclass(frozen=True)
class Place:
  """A process's place in a job.

  Attributes:
    address: `host:port` of the coordinator.
    num_processes: Processes of the job.
    process_id: Number of this one.
    timeout: Seconds to wait for the others.
  """

  address: str
  num_processes: int
  process_id: int
  timeout: float

  @property
  def host(self) -> str:
    """The coordinator's host."""
    return self.address.rpartition(":")[0].strip("[]")

  @property
  def port(self) -> int:
    """The coordinator's port."""
    return int(self.address.rpartition(":")[2])


def who() -> str:
  """This process, for people."""
  return f"{socket.gethostname()}, pid {os.getpid()}"


def meet(place: Place) -> None:
  """Returns when all processes of the job are there.

  Args:
    place: This process's place.

  Raises:
    StartError: If another process has the same number (a second coordinator,
      above all), the number of processes differs, or the port is taken.
    LostPeerError: If some are not there in time; it names them.
  """
  deadline = time.monotonic() + place.timeout
  if place.process_id:
    _Guest(place, deadline).wait()
    return
  _Host(place, _listen(place), deadline).wait()


# --- process 0 ---------------------------------------------------------------


class _Host:
  """Process 0: lets the others in."""

  def __init__(
    self, place: Place, listeners: list[socket.socket], deadline: float
  ):
    self._place = place
    self._listeners = listeners
    self._deadline = deadline
    self._calls: dict[socket.socket, calls.Call] = {}
    # What is said at the address that the others call; None: nothing yet.
    self._said: str | None = None

  def wait(self) -> None:
    """Returns when all are there."""
    threading.Thread(target=self._call_address, daemon=True).start()
    try:
      self._wait()
    except (errors.StartError, errors.LostPeerError) as error:
      again = isinstance(error, errors.LostPeerError)
      self._tell_all(calls.Answer(error=str(error), again=again))
      raise
    finally:
      for sock in (*self._listeners, *self._calls):
        sock.close()

  def _call_address(self) -> None:
    """Whoever answers there: if it is not this process, there are two."""
    self._said = _say_hello(self._place, self._place.host)

  def _wait(self) -> None:
    place, words = self._place, _Words(self._deadline)
    with selectors.DefaultSelector() as selector:
      for listener in self._listeners:
        selector.register(listener, selectors.EVENT_READ)
      while self._missing():
        if self._said:
          raise errors.StartError(self._said)
        if time.monotonic() > self._deadline:
          raise errors.LostPeerError(self._who_did_not_come())
        if words.due():
          text = exchange.processes(self._missing())
          words.say(f"Waiting for {text} of {place.num_processes}")
          self._tell_all(calls.Answer(self._missing()))
        for key, _ in selector.select(_RETRY_S):
          self._serve(key.fileobj, selector)
        self._close_the_silent(selector)
      # JAX listens there as soon as the others go on.
      for listener in self._listeners:
        listener.close()
      self._tell_all(calls.Answer(go=True))

  def _missing(self) -> list[int]:
    everybody, present = range(self._place.num_processes), self._present()
    return [i for i in everybody if i not in present]

  def _present(self) -> dict[int, str]:
    """Who is there, by number."""
    hellos = [call.hello for call in self._calls.values() if call.hello]
    return {**{hello.process: hello.who for hello in hellos}, 0: who()}

  def _who_did_not_come(self) -> str:
    place = self._place
    text = _did_not_come(self._missing(), place)
    if self._said is None:
      text += (
        f"; nothing answers there from process 0 either: is it an address of"
        f" {socket.gethostname()}?"
      )
    return text

  def _serve(self, sock: Any, selector: selectors.BaseSelector) -> None:
    if sock in self._listeners:
      with contextlib.suppress(OSError):
        new, _ = sock.accept()
        new.settimeout(_CALL_S)
        self._calls[new] = calls.Call(new, calls.HELLO_BYTES)
        selector.register(new, selectors.EVENT_READ)
      return
    try:
      for message in self._calls[sock].read():
        self._admit(self._calls[sock], message)
    except (OSError, ValueError):  # gone, refused, or a stranger
      self._close(sock, selector)

  def _close_the_silent(self, selector: selectors.BaseSelector) -> None:
    """Closes the calls that have not said hello in time."""
    limit = time.monotonic() - _CALL_S
    for sock, call in list(self._calls.items()):
      if call.hello is None and call.since < limit:
        self._close(sock, selector)

  def _close(
    self, sock: socket.socket, selector: selectors.BaseSelector
  ) -> None:
    selector.unregister(sock)
    del self._calls[sock]
    sock.close()

  def _admit(self, call: calls.Call, message: dict[str, Any]) -> None:
    """Takes in who says hello; ValueError if it is not let in."""
    if call.hello is not None:
      raise ValueError("it has said hello")
    hello = calls.Hello.of(message)
    process, count, name = hello.process, hello.count, hello.who
    there = self._present().get(process)
    said = ""
    if count != self._place.num_processes:
      said = (
        f"process {process} ({name}) was started for {count} processes, process"
        f" 0 ({who()}) for {self._place.num_processes}; give all the same"
        " --num_processes"
      )
    elif there is not None and there != name:
      what = "a second coordinator" if process == 0 else "one too many"
      said = (
        f"process {process} is there twice, {what}: {there}, and {name}; give"
        " each process a --process_id of its own, or this job another port in"
        " --coordinator_address"
      )
    if said:
      logging.warning("Refused: %s", said)
      call.send(calls.Answer(error=said))
      raise ValueError(said)
    call.hello = hello
    call.send(calls.Answer(self._missing()))

  def _tell_all(self, answer: calls.Answer) -> None:
    for call in self._calls.values():
      if call.hello is not None:
        with contextlib.suppress(OSError):
          call.send(answer)


def _listen(place: Place) -> list[socket.socket]:
  """Listens at the coordinator's address, and at no other one of this host."""
  own = addresses.own(place.host)
  if not own:
    logging.info(
      "%s is not known here as an address of this host, so process 0 listens at"
      " port %d of all its addresses",
      place.host,
      place.port,
    )
  return [_listen_at(place, address) for address in own or [""]]


def _listen_at(place: Place, address: str) -> socket.socket:
  """Listens at the coordinator's port; "" is all addresses of this host."""
  both = not address and socket.has_dualstack_ipv6()
  try:
    return socket.create_server(
      (address, place.port),
      family=socket.AF_INET6 if both or ":" in address else socket.AF_INET,
      dualstack_ipv6=both,
      backlog=min(place.num_processes, 4096),
    )
  except OSError as error:
    if error.errno != errno.EADDRINUSE:
      raise
  # Perhaps by a coordinator that will say who it is.
  raise errors.StartError(
    _say_hello(place, address or "localhost")
    or f"port {place.port} of process 0 ({who()}) is taken by another program;"
    " give another one in --coordinator_address"
  )


def _say_hello(place: Place, host: str) -> str | None:
  """Calls as process 0; what is objected to that, None if nobody answers."""
  with contextlib.suppress(OSError, ValueError):
    with socket.create_connection((host, place.port), _CALL_S) as sock:
      call = calls.Call(sock, _answer_bytes(place))
      call.send(_hello(place))
      for message in call.read():
        return calls.Answer.of(message).error
  return None


# --- the others --------------------------------------------------------------


class _Guest:
  """Any other process: calls until it is let in."""

  def __init__(self, place: Place, deadline: float):
    self._place = place
    self._deadline = deadline
    self._words = _Words(deadline)
    self._trouble = "nothing answers"
    self._missing: list[int] = []

  def wait(self) -> None:
    """Returns when all are there."""
    while time.monotonic() < self._deadline:
      try:
        if self._call():
          return
      except (OSError, ValueError) as error:  # not there yet, or a stranger
        self._trouble = getattr(error, "strerror", None) or str(error)
      if self._words.due():
        self._words.say(
          f"Waiting for process 0 at {self._place.address}: {self._trouble}"
        )
      time.sleep(_RETRY_S)
    if self._missing:
      raise errors.LostPeerError(_did_not_come(self._missing, self._place))
    raise errors.LostPeerError(
      f"process 0, the coordinator, is not at {self._place.address} after"
      f" {self._place.timeout:.0f} s: {self._trouble}"
    )

  def _call(self) -> bool:
    """Waits at the rendezvous; False if process 0 left it."""
    place = self._place
    with socket.create_connection((place.host, place.port), _CALL_S) as sock:
      call = calls.Call(sock, _answer_bytes(place))
      call.send(_hello(place))
      sock.settimeout(1.0)
      while time.monotonic() < self._deadline + _CALL_S:
        try:
          messages = list(call.read())
        except TimeoutError:
          continue
        for message in messages:
          answer = calls.Answer.of(message)
          if answer.error:
            again = answer.again
            kind = errors.LostPeerError if again else errors.StartError
            raise kind(answer.error)
          if answer.go:
            return True
          self._missing = answer.missing
          others = [i for i in self._missing if i != place.process_id]
          if others and self._words.due():
            text = exchange.processes(others)
            self._words.say(f"Waiting for {text} of {place.num_processes}")
    return False


# --- both --------------------------------------------------------------------


class _Words:
  """Says what is waited for, but not all the time."""

  def __init__(self, deadline: float):
    self._deadline = deadline
    self._next = time.monotonic() + _FIRST_WORD_S

  def due(self) -> bool:
    """Whether it is time for a message."""
    return time.monotonic() >= self._next

  def say(self, text: str) -> None:
    """Logs a message, with the time that is left."""
    now = time.monotonic()
    self._next = now + _NEXT_WORD_S
    logging.info("%s (%.0f s left)", text, max(0, self._deadline - now))


def _did_not_come(missing: list[int], place: Place) -> str:
  return (
    f"{exchange.processes(missing)} of {place.num_processes} did not come to"
    f" {place.address} within {place.timeout:.0f} s"
  )


def _hello(place: Place) -> calls.Hello:
  return calls.Hello(place.process_id, place.num_processes, who())


def _answer_bytes(place: Place) -> int:
  """At most, of a line of process 0: it may name every process."""
  return 4096 + 16 * place.num_processes
