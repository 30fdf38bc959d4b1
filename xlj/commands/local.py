"""Runs a command as several processes on this machine.

They appear as one: process 0 speaks for all, and all end when one fails. With
--restarts they start again, and continue from the last checkpoint.

  xlj local --processes=2 [--devices=4] [--restarts=3] \\
    -- xlj train --config=xmc --workdir=DIR
"""

from collections.abc import Iterator, Sequence
import contextlib
import signal
import socket
import sys
from typing import Any, NoReturn

from absl import app
from absl import flags

from xlj import shell
from xlj.commands import helping
from xlj.distributed import exit_status
from xlj.distributed.local import devices as devices_lib
from xlj.distributed.local import job

_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes.", 1)
_DEVICES = flags.DEFINE_integer(
  "devices",
  None,
  "Simulated CPU devices of each process; by default it gets an equal share of"
  " the machine's GPUs.",
  1,
)
_RESTARTS = flags.DEFINE_integer(
  "restarts", 0, "How often to start again after a failure.", 0
)
_RESTART_PROCESSES = flags.DEFINE_integer(
  "restart_processes", None, "How many processes then, if not as many.", 1
)
_GRACE = flags.DEFINE_float(
  "grace", 30, "Seconds to end in after SIGTERM, before SIGKILL.", 0
)
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(command: Sequence[str]) -> int:
  """Runs the command; returns an exit status."""
  count = _PROCESSES.value
  if count is None:
    _refuse("how many processes? Give --processes")
  counts = [count] + [_RESTART_PROCESSES.value or count] * _RESTARTS.value
  try:
    # All before anything runs: a restart at night is no time for a refusal.
    return _run(
      command, [devices_lib.environments(n, _DEVICES.value) for n in counts]
    )
  except (devices_lib.DevicesError, job.CommandError) as error:
    _refuse(str(error))


def _run(
  command: Sequence[str], shares: Sequence[Sequence[dict[str, str]]]
) -> int:
  """Runs the command with each share of the devices, until it ends well."""
  outcome = job.Outcome(0)
  with _told_to_stop() as signals:
    for attempt, share in enumerate(shares):
      if attempt:
        size = "1 process" if len(share) == 1 else f"{len(share)} processes"
        _say(
          f"restart {attempt} of {_RESTARTS.value}, as {size}: {outcome.text}"
        )
      outcome = job.run(
        _commands(command, len(share)),
        share,
        grace=_GRACE.value,
        told=lambda: len(signals),
      )
      if signals or outcome.status in (exit_status.DONE, exit_status.REFUSED):
        break
  if outcome.text:
    _say(f"error: {outcome.text}")
  elif signals and outcome.status:
    _say(f"stopped by {signal.Signals(signals[0]).name}")
  return outcome.status


def _commands(command: Sequence[str], count: int) -> list[list[str]]:
  """The command of each process, with its place in the job."""
  with socket.create_server(("127.0.0.1", 0)) as listener:
    port = listener.getsockname()[1]  # free, as soon as this one is closed
  return [
    [
      *shell.started(command),
      f"--coordinator_address=127.0.0.1:{port}",
      f"--num_processes={count}",
      f"--process_id={process}",
    ]
    for process in range(count)
  ]


@contextlib.contextmanager
def _told_to_stop() -> Iterator[list[int]]:
  """Collects the signals to stop."""
  signals: list[int] = []

  def take(number: int, frame: Any) -> None:
    signals.append(number)

  for number in _STOPS:
    if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
      signal.signal(number, take)
  yield signals


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses the flags; returns the command after them."""
  own, command = list(argv), []
  if "--" in own:
    place = own.index("--")
    own, command = own[:place], own[place + 1 :]
  helping.help_if_asked(own)
  try:
    left = flags.FLAGS(own)[1:]
  except flags.Error as error:
    _refuse(str(error).removesuffix("."))
  if left:
    _refuse(f"unexpected arguments: {' '.join(left)}; the command follows --")
  if not command:
    _refuse("there is no command; give one after --, as in -- xlj train")
  return command


def _refuse(text: str) -> NoReturn:
  _say(f"error: {text}")
  sys.exit(exit_status.REFUSED)


def _say(text: str) -> None:
  print(" ".join(text.split()), file=sys.stderr, flush=True)


def run() -> None:
  """Runs the command."""
  app.run(main, flags_parser=_parse)
