"""Goodput: the share of its time that a run spends in steps of training.

`Clock` adds up where the time goes, in one phase at a time. It runs on the
host, which asks for a step and goes on while devices are at it; it waits for
nothing that the host would not wait for.
"""

from collections.abc import Callable, Mapping
import json
import os
import pathlib
import time
from typing import Any

from absl import logging

from xlj import files
from xlj.report import progress

GOODPUT_FILE = "goodput.json"
PHASES = {  # names in the file, and for people
  "steps": "steps of training",
  "start": "start: data, model, checkpoint",
  "compilation": "compiling steps",
  "input": "waiting for input",
  "evaluation": "validation",
  "checkpoints": "saving checkpoints",
  "lost": "steps taken again after a restart",
}
_INTERVAL = 10.0  # seconds between records, but for those with a checkpoint


def seconds_of(record: Mapping[str, Any]) -> dict[str, float]:
  """Seconds by phase of a record; 0 where it says no number."""
  found: Any = record.get("seconds")
  found = found if isinstance(found, Mapping) else {}
  values: dict[str, Any] = {phase: found.get(phase) for phase in PHASES}
  return {
    phase: max(0.0, value) if progress.is_number(value) else 0.0
    for phase, value in values.items()
  }


def share(seconds: Mapping[str, float]) -> float:
  """The goodput, in [0, 1]; 0 before there is any time."""
  return seconds["steps"] / (sum(seconds.values()) or 1.0)


def after_restart(
  seconds: Mapping[str, float], done: int, step: int
) -> dict[str, float]:
  """What it comes to when a run goes back to a checkpoint.

  Args:
    seconds: By phase.
    done: Steps that were taken.
    step: That of the checkpoint, from which they are taken again.

  Returns:
    The same, with as much as those steps took, if all take the same, as lost.
  """
  lost = seconds["steps"] * max(0, done - step) / max(1, done)
  moved = {"steps": seconds["steps"] - lost, "lost": seconds["lost"] + lost}
  return {**seconds, **moved}


def idle(begin: float, end: float, busy_until: float, ready: bool) -> float:
  """How long devices had nothing to do while the host waited for input.

  Args:
    begin: When the wait began.
    end: When it ended.
    busy_until: When devices were through with the last step, as far as known.
    ready: Whether they were, at the end.

  Returns:
    Seconds.
  """
  return max(0.0, end - max(begin, busy_until)) if ready else 0.0


class Clock:
  """Adds up where the time of a run goes, from now on: the start.

  Args:
    record: Of `goodput.json`, by what has run before; empty if nothing has.
    clock: Seconds that only grow; for tests.
  """

  def __init__(
    self,
    record: Mapping[str, Any],
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts; see the class."""
    self._seconds = seconds_of(record)
    step: Any = record.get("step")
    self._step: int = step if progress.is_number(step) else 0
    self._clock = clock
    self._phase, self._since = "start", clock()
    self._written = -_INTERVAL
    self._loss: Any = None  # of the step that devices were given last
    self._given = 0.0  # when they were
    self._was_idle = False  # whether they had nothing to do then
    self._step_seconds = 0.0  # what a step takes them, once it is known

  def enter(self, phase: str) -> None:
    """Ends a phase, and begins another one."""
    now = self._clock()
    self._seconds[self._phase] += now - self._since
    self._phase, self._since = phase, now

  def go_back(self, step: int) -> None:
    """Counts the steps after this one, if any were taken, as lost."""
    self._seconds = after_restart(self._seconds, self._step, step)
    self._step, self._loss = step, None

  def input_came(self) -> None:
    """Ends a wait for input; while devices had work it was none."""
    begin = self._since
    self.enter("steps")
    self._was_idle = self._loss is None or self._loss.is_ready()
    busy_until = self._given + self._step_seconds
    waited = idle(begin, self._since, busy_until, self._was_idle)
    self._seconds["input"] -= self._since - begin - waited
    self._seconds["steps"] += self._since - begin - waited

  def gave(self, step: int, loss: Any) -> None:
    """Notes that devices were given a step, with an array that ends it.

    Args:
      step: Steps so far, this one included.
      loss: Of the step; None if it was left out.
    """
    self.enter("steps")
    self._step, self._loss, self._given = step, loss, self._since

  def caught_up(self) -> None:
    """Notes that devices are through with the last step."""
    if self._was_idle:  # and so began at once
      self._step_seconds = self._clock() - self._given

  def share(self) -> float:
    """The goodput so far."""
    self.enter(self._phase)
    return share(self._seconds)

  def write(self, workdir: str | os.PathLike[str], at_once: bool) -> None:
    """Writes `goodput.json`; a run does not end for want of it.

    Args:
      workdir: That of the run.
      at_once: Otherwise only if the last one is old enough.
    """
    self.enter(self._phase)
    if not at_once and self._since - self._written < _INTERVAL:
      return
    self._written = self._since
    seconds = {phase: round(value, 3) for phase, value in self._seconds.items()}
    record = {"step": self._step, "seconds": seconds}
    path = pathlib.Path(workdir) / GOODPUT_FILE
    try:
      files.write_text(path, json.dumps(record, indent=2) + "\n")
    except OSError as error:
      logging.log_first_n(logging.WARNING, "No %s: %s", 1, path, error)
