"""Starts the processes of a job, waits for them, and leaves none behind.

Each process leads a session of its own: Ctrl-C reaches the launcher alone,
which passes it on as SIGTERM, and whatever a process has started ends with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import ctypes
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time

from xlj.distributed import exit_status
from xlj.distributed.local import view as view_lib

_TICK_S = 0.05
# Who fails because of another process may be noticed first.
_SETTLE_S = 1.0
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, see prctl(2)


class CommandError(ValueError):
  """The command cannot be run."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a job ended.

  Attributes:
    status: Exit status: 0, that of the process that failed first, or 143 if
      the job was told to stop.
    text: What went wrong; empty if nothing did.
  """

  status: int
  text: str = ""


@dataclasses.dataclass(eq=False)
class _Process:
  """A process of the job; `status` is None while it runs."""

  number: int
  popen: subprocess.Popen[bytes]
  status: int | None = None

  def look(self) -> bool:
    """Whether it has ended since the last look."""
    if self.status is not None or self.popen.poll() is None:
      return False
    self.status = self.popen.returncode
    self.kill()  # what it has left behind
    return True

  def tell(self) -> None:
    """Tells it to stop, also if it is frozen."""
    if self.status is None:
      self.popen.send_signal(signal.SIGTERM)
      self.popen.send_signal(signal.SIGCONT)

  def kill(self) -> None:
    """Kills it, and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self.popen.pid, signal.SIGKILL)


def run(
  commands: Sequence[Sequence[str]],
  environments: Sequence[dict[str, str]],
  *,
  grace: float,
  told: Callable[[], int],
) -> Outcome:
  """Runs a job to its end; no process is left.

  Call it in the main thread: on Linux processes die with the thread that
  started them, however that ended.

  Args:
    commands: What to run, by process.
    environments: Their environment variables.
    grace: Seconds between SIGTERM and SIGKILL.
    told: Returns how often this process was told to stop; from the second time
      on nobody gets any grace.

  Returns:
    How it ended.

  Raises:
    CommandError: If a command cannot be run.
  """
  processes: list[_Process] = []
  with view_lib.View() as view:
    try:
      for number, command in enumerate(commands):
        popen = _start(number, command, environments[number], view)
        processes.append(_Process(number, popen))
      failed = _wait(processes, view, grace, told)
    finally:
      for process in processes:
        if process.status is None:
          process.kill()
          process.popen.wait()
    view.drain()
    return _outcome(processes, failed, view, told())


def _start(
  number: int,
  command: Sequence[str],
  environment: dict[str, str],
  view: view_lib.View,
) -> subprocess.Popen[bytes]:
  stdout, stderr = view.open(number)
  try:
    return subprocess.Popen(
      command,
      env=environment,
      stdin=subprocess.DEVNULL if number else None,
      stdout=stdout,
      stderr=stderr,
      start_new_session=True,
      preexec_fn=_dying_with(os.getpid()) if _PRCTL else None,
    )
  except OSError as error:
    raise CommandError(f"cannot run {shlex.join(command)}: {error}") from error
  finally:
    for stream in (stdout, stderr):
      if stream is not None:
        os.close(stream)


# Loaded before there is a process that could not.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def _dying_with(parent: int) -> Callable[[], None]:
  """What a new process does to be killed when its parent is gone."""

  def prepare() -> None:
    assert _PRCTL is not None
    _PRCTL(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # gone before that
      os._exit(1)

  return prepare


def _wait(
  processes: Sequence[_Process],
  view: view_lib.View,
  grace: float,
  told: Callable[[], int],
) -> list[_Process]:
  """Waits for all, ends all when one fails.

  Returns:
    The processes that failed by themselves, in order.
  """
  failed: list[_Process] = []
  failed_at = told_at = None
  while any(process.status is None for process in processes):
    view.relay(_TICK_S)
    ended = [process for process in processes if process.look()]
    now = time.monotonic()
    if told_at is None:
      failed += [process for process in ended if process.status]
      if failed and failed_at is None:
        failed_at = now
      if told() or (failed_at is not None and now - failed_at > _SETTLE_S):
        told_at = now
        for process in processes:
          process.tell()
    elif now - told_at > grace or told() > 1:
      for process in processes:
        if process.status is None:
          process.kill()
  return failed


def _outcome(
  processes: Sequence[_Process],
  failed: Sequence[_Process],
  view: view_lib.View,
  told: int,
) -> Outcome:
  if not any(process.status for process in processes):
    return Outcome(0)
  if told:
    well = (exit_status.DONE, exit_status.STOPPED, -signal.SIGTERM)
    bad = [process for process in processes if process.status not in well]
    return Outcome(exit_status.STOPPED, _describe(bad[0], view) if bad else "")
  # Those who lost a peer are not the reason.
  reasons = [
    process for process in failed if process.status != exit_status.LOST
  ]
  first = (reasons or failed)[0]
  status = first.status or 0
  return Outcome(128 - status if status < 0 else status, _describe(first, view))


def _describe(process: _Process, view: view_lib.View) -> str:
  status, last = process.status or 0, view.last_line(process.number)
  if status >= 0:
    end = f": {last}" if last else ", without a word"
    return f"process {process.number} exited with status {status}{end}"
  try:
    name = f" ({signal.Signals(-status).name})"
  except ValueError:
    name = ""
  end = f"; its last line: {last}" if last else ""
  return f"process {process.number} was killed by signal {-status}{name}{end}"
