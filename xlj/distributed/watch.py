"""Notices lost and stuck processes, and ends this one with their names.

JAX ends a process too when another is gone, but not when one is stuck, and
says neither which nor where. So each process leaves a sign of life every few
seconds in the key-value store of JAX's coordination service, which process 0
keeps: what it is about, since which step. Process 0 judges them all, and leaves
its verdict there; the others judge process 0.

This is the only module that ends the process by itself: threads cannot raise
errors in the main thread when that waits for devices.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
from typing import Any

import jax

from xlj.distributed import exchange
from xlj.distributed import exit_status
from xlj.distributed import rendezvous

_SIGNS = "xlj/signs"
_VERDICT = "xlj/verdict"
# What JAX's errors say when it is another process that failed.
_OF_OTHERS = re.compile(
  "gloo|nccl|collective|barrier|coordination|unavailable|deadline|aborted"
  "|connection|socket",
  re.IGNORECASE,
)
# An array whose computation failed raises a ValueError with a status, as in
# "UNKNOWN: Gloo all-reduce failed"; TensorStore has such errors about files.
_STATUS = re.compile(r"[A-Z_]+: (?!.*\[(tensorstore_spec|source))", re.DOTALL)
_the_watch: _Watch | None = None


@dataclasses.dataclass
class Sign:
  """A sign of life.

  Attributes:
    who: Host and process id.
    doing: What the process is about.
    timed: Whether it is stuck if that lasts too long.
    position: How often that changed. All processes do the same things, so who
      is held up has the least.
    count: Of its signs; other attributes may stay the same.
    ended: Whether it has done its work.
  """

  who: str
  doing: str = "starting"
  timed: bool = False
  position: int = 0
  count: int = 0
  ended: bool = False

  @classmethod
  def parsed(cls, text: str) -> Sign | None:
    """What a process has left; None if it is no sign of life."""
    like = dataclasses.asdict(cls(""))
    try:
      found = json.loads(text)
    except (ValueError, RecursionError):
      return None
    if not isinstance(found, dict) or found.keys() != like.keys():
      return None
    if any(type(found[name]) is not type(like[name]) for name in like):
      return None
    return cls(**found)


def start(address: str, peer_timeout: float, stall_timeout: float) -> None:
  """Begins to watch; JAX's processes have to be connected.

  Args:
    address: `host:port` of the coordinator.
    peer_timeout: Seconds without a sign of life until a process is lost.
    stall_timeout: Seconds without a step until the job is stuck.
  """
  global _the_watch
  _the_watch = _Watch(address, peer_timeout, stall_timeout)
  _the_watch.start()


def note(doing: str, *, timed: bool = True) -> None:
  """Notes what this process is about to do; cheap.

  Args:
    doing: As in "reading the batch of step 7". All processes have to note the
      same things in the same order.
    timed: False if it may take as long as it likes.
  """
  if _the_watch is not None:
    own = _the_watch.own
    own.doing, own.timed, own.position = doing, timed, own.position + 1


def end() -> None:
  """Notes that this process has done its work and is about to leave."""
  if _the_watch is not None:
    _the_watch.own.ended = True
    _the_watch.exchange()


def is_watching() -> bool:
  """Whether this is one of several processes."""
  return _the_watch is not None


def is_about_others(error: BaseException) -> bool:
  """Whether JAX raised an error, or its cause, as another process failed."""
  text, cause = str(error), error.__cause__
  if cause is None and not error.__suppress_context__:
    cause = error.__context__
  plain = type(error) in (ValueError, RuntimeError)
  of_jax = isinstance(error, jax.errors.JaxRuntimeError)
  if (of_jax or plain and _STATUS.match(text)) and _OF_OTHERS.search(text):
    return True
  return cause is not None and is_about_others(cause)


def fail(error: BaseException, status: int) -> None:
  """Ends this process because of an error; alone, it does nothing.

  The others are told. If they are the reason, it ends with the name of the
  process that was lost, as soon as that is known.

  Args:
    error: The error.
    status: Exit status, if it is not the other processes' fault.
  """
  if _the_watch is not None:
    _the_watch.fail(error, status)


class _Watch:
  """The signs of life of a job, seen from one of its processes."""

  def __init__(self, address: str, peer_timeout: float, stall_timeout: float):
    self.own = Sign(rendezvous.who())
    self._address = address
    self._patience = peer_timeout
    self._peer_timeout = peer_timeout
    self._stall_timeout = stall_timeout
    self._interval = min(3.0, max(0.1, peer_timeout / 20))
    self._me = exchange.process_id()
    self._signs: dict[int, Sign] = {}
    self._seen: dict[int, float] = {}  # when a sign was last a new one
    now = time.monotonic()
    self._answered = now  # when process 0 did
    self._ending = False  # because of an error that is known here
    self._moved: tuple[Any, float] = (None, now)  # positions, and since when

  def start(self) -> None:
    """Starts the threads."""
    self.exchange()
    _delay_aborts()
    for loop, seconds in (
      (self.exchange, self._interval),
      (self._judge, min(self._interval, 0.5)),
    ):
      threading.Thread(
        target=self._repeat, args=(loop, seconds), daemon=True
      ).start()

  def fail(self, error: BaseException, status: int) -> None:
    """See `fail`."""
    if is_about_others(error):
      # The thread that judges ends this process if it finds a reason.
      self._patience = min(self._patience, 4 * self._interval)
      time.sleep(self._patience + 4 * self._interval)
    text = " ".join(str(error).split()) or type(error).__name__
    self._announce(f"process {self._me} ({self.own.who}) failed: {text}")
    self._leave(status)

  def exchange(self) -> None:
    """Leaves a sign of life, and reads those of others."""
    service = exchange.client()
    try:
      self.own.count += 1
      sign = json.dumps(dataclasses.asdict(self.own))
      service.key_value_set(f"{_SIGNS}/{self._me}", sign, True)
      if self._me == 0:
        found = service.key_value_dir_get(_SIGNS)
      else:
        found = [(f"{_SIGNS}/0", service.key_value_try_get(f"{_SIGNS}/0"))]
      for _, verdict in service.key_value_dir_get(_VERDICT):
        self._obey(verdict)
    except Exception:  # whatever is wrong, process 0 did not answer
      return
    now = time.monotonic()
    self._answered = now
    for key, text in found:
      process, sign = int(key.rpartition("/")[2]), Sign.parsed(text)
      if sign and sign != self._signs.get(process):
        self._signs[process], self._seen[process] = sign, now

  def _repeat(self, loop: Any, seconds: float) -> None:
    while not self.own.ended:
      loop()
      time.sleep(seconds)

  def _judge(self) -> None:
    """Ends this process if another is lost, or all are stuck."""
    verdict = self._verdict()
    if verdict and not self.own.ended and not self._ending:
      self._announce(verdict)
      print(f"error: {verdict}", file=sys.stderr, flush=True)
      self._leave(exit_status.LOST)

  def _verdict(self) -> str:
    """What is wrong; empty if nothing is."""
    now = time.monotonic()
    if self._me and (why := self._silence(now - self._answered)):
      who = self._signs[0].who if 0 in self._signs else "never seen"
      return (
        f"process 0 ({who}), the coordinator at {self._address}, is lost: {why}"
      )
    for process, seen in sorted(self._seen.items()):
      sign = self._signs[process]
      late = now - seen > self._patience
      if late and not sign.ended and process != self._me:
        return (
          f"process {process} ({sign.who}) is lost: no sign of life for"
          f" {now - seen:.0f} s; it was {sign.doing}"
        )
    return self._stuck(now) if self._me == 0 else ""

  def _silence(self, seconds: float) -> str:
    """Why process 0 is lost, after some seconds without an answer, or empty."""
    if seconds > self._patience:
      return f"it has not answered for {seconds:.0f} s"
    late = seconds > self._interval + 0.5
    if late and _is_aborting() and not _answers(self._address):
      return "nothing answers there"
    return ""

  def _stuck(self, now: float) -> str:
    """Who holds up the others; empty if something happened lately."""
    signs = {i: sign for i, sign in self._signs.items() if not sign.ended}
    positions = {i: sign.position for i, sign in signs.items()}
    timed = all(sign.timed for sign in signs.values())
    if positions != self._moved[0] or not timed:
      self._moved = (positions, now)
    seconds = now - self._moved[1]
    if seconds < self._stall_timeout:
      return ""
    last = min(positions.values())
    held = [
      f"process {i} ({sign.who}), {sign.doing}"
      for i, sign in sorted(signs.items())
      if sign.position == last
    ]
    return f"stuck for {seconds:.0f} s: {'; '.join(held)}"

  def _announce(self, verdict: str) -> None:
    """Leaves the reason for the others, unless there is one."""
    self._ending = True
    if self._me and _is_aborting():
      return  # nothing can be left with process 0 any more, not even in vain

    def leave() -> None:
      with contextlib.suppress(Exception):  # there is one, or process 0 is gone
        exchange.client().key_value_set(f"{_VERDICT}/0", verdict)

    # A frozen process 0 never answers.
    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    leaving.join(4 * self._interval)

  def _obey(self, verdict: str) -> None:
    """Ends this process for the reason that another one left."""
    if not self._ending:
      self._ending = True
      print(f"error: {verdict}", file=sys.stderr, flush=True)
      self._leave(exit_status.LOST)

  def _leave(self, status: int) -> None:
    """Leaves at once; an ordinary end would wait for the other processes."""
    if self._me == 0:
      time.sleep(4 * self._interval)  # until they have read the verdict
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _answers(address: str) -> bool:
  host, _, port = address.rpartition(":")
  try:
    with socket.create_connection((host.strip("[]"), int(port)), 1.0):
      return True
  except OSError:
    return False


def _delay_aborts() -> None:
  """Gives the thread that judges some seconds before this process is aborted.

  JAX's client aborts as soon as the coordinator is gone, without its name. A
  handler of signals can call nothing of Python and little of C. It can call
  `sleep`, which takes the number of the signal, 6, for the seconds.
  """
  libc = ctypes.CDLL(None)
  libc.signal(signal.SIGABRT, libc.sleep)


def _is_aborting() -> bool:
  """Whether a thread is in that handler, where Linux blocks the signal.

  A thread that blocks SIGSEGV as well blocks all signals all the time: those of
  an allocator do, as polars has.
  """
  aborts, faults = 1 << signal.SIGABRT - 1, 1 << signal.SIGSEGV - 1
  for status in pathlib.Path("/proc/self/task").glob("*/status"):
    with contextlib.suppress(OSError):  # the thread has ended
      found = re.search(r"^SigBlk:\s*(\w+)$", status.read_text(), re.MULTILINE)
      blocked = int(found[1], 16) if found else 0
      if blocked & aborts and not blocked & faults:
        return True
  return False
