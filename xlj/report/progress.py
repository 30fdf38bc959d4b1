"""What a run tells while it is under way: a progress display and its metrics.

`Progress` shows loss, speed and time left: a bar on a terminal, a line every
few seconds elsewhere. `MetricWriter` appends to `metrics.jsonl` and to
TensorBoard event files, and continues both where a killed run left off.
"""

from collections.abc import Callable, Mapping
import json
import math
import os
import pathlib
import sys
import time
from typing import Any, SupportsFloat, TextIO

from absl import logging
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto import summary_pb2
from tensorboard.summary.writer import event_file_writer
import tqdm

from xlj import files

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIR = "tensorboard"
_RESERVED = ("step", "time", "kind")

# Protocol buffer classes come into being at import, out of a checker's sight.
_Event: Any = event_pb2.Event  # pyrefly: ignore[missing-attribute]
_SessionLog: Any = event_pb2.SessionLog  # pyrefly: ignore[missing-attribute]
_Summary: Any = summary_pb2.Summary  # pyrefly: ignore[missing-attribute]


class Progress:
  """Shows how far a loop is, as a context manager.

  Log messages of absl that come up meanwhile are printed above the bar.

  Args:
    total_steps: the step at which the loop ends.
    initial_step: the step at which it begins; above 0 when a run continues.
    examples_per_step: examples of a step, over all processes.
    interval: seconds between lines where there is no terminal.
    name: what is going on, e.g. `train`.
    goodput: gives the share of the time that is spent in steps, to show it.
    fetch: brings the figures of an update to the host, all at once.
    enabled: False shows nothing (every process but the first).
    stream: where to show it; None is stderr.
    clock: seconds that only grow; for tests.

  Example:
    >>> with Progress(1000, examples_per_step=64, enabled=False) as progress:
    ...   for step in range(1, 1001):
    ...     progress.update(step, {"loss": 1 / step})
  """

  def __init__(
    self,
    total_steps: int,
    *,
    initial_step: int = 0,
    examples_per_step: int = 1,
    interval: float = 10.0,
    name: str = "train",
    goodput: Callable[[], float] | None = None,
    fetch: Callable[[Any], Any] = dict,
    enabled: bool = True,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Shows nothing yet; see the class."""
    stream = stream or sys.stderr
    on_terminal = enabled and _has_room(stream)
    self._total_steps = total_steps
    self._examples_per_step = examples_per_step
    self._name = name
    self._goodput = goodput
    self._fetch = fetch
    self._enabled = enabled
    self._stream = stream
    self._clock = clock
    # Often enough for the eye, too seldom to slow the loop down.
    self._interval = 0.2 if on_terminal else interval
    self._shown = (initial_step, clock())  # step and time of the last display
    self._latest: tuple[int, Mapping[str, SupportsFloat]] | None = None
    self._speed = 0.0  # steps/s, smoothed
    self._bar = _bar(name, initial_step, total_steps, stream, on_terminal)
    self._log_stream: TextIO | None = None

  def __enter__(self) -> "Progress":
    """Starts the clock."""
    self._shown = (self._shown[0], self._clock())
    if self._bar is not None:
      self._log_stream = _redirect_logs(_AboveBar(self._stream))
    return self

  def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
    """Shows the last update, however recent, and closes the bar."""
    if error is None and self._latest is not None:
      self._show(*self._latest)
    if self._bar is not None:
      self._bar.close()
    if self._log_stream is not None:
      _redirect_logs(self._log_stream)

  def update(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
    """Notes that a step is done; shows it if the last display is old enough.

    Args:
      step: steps done in all, those of earlier runs included.
      metrics: figures to show, such as the loss. They become floats only when
        shown, so that a device is not waited for at every step.
    """
    if not self._enabled:
      return
    self._latest = (step, metrics)
    if self._clock() - self._shown[1] >= self._interval:
      self._show(step, metrics)

  def _show(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
    found = self._fetch(metrics)
    figures = {name: f"{float(v):.4g}" for name, v in found.items()}
    now = self._clock()
    last_step, last_time = self._shown
    speed = (step - last_step) / max(now - last_time, 1e-9)
    # Half of the old speed evens out evaluations and checkpoints.
    self._speed = (self._speed + speed) / 2 if self._speed else speed
    self._shown, self._latest = (step, now), None
    figures["examples/s"] = f"{self._speed * self._examples_per_step:,.0f}"
    if self._goodput is not None:
      figures["goodput"] = f"{self._goodput():.0%}"
    left = (self._total_steps - step) / self._speed if self._speed else math.inf
    text = ", ".join(f"{name} {value}" for name, value in figures.items())
    text += f", {duration(left)} left"
    if self._bar is not None:
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.n = step
      self._bar.refresh()
    else:
      share = step / max(self._total_steps, 1)
      self._stream.write(
        f"{self._name} {step}/{self._total_steps} ({share:.0%}): {text}\n"
      )
      self._stream.flush()


class MetricWriter:
  """Appends metrics to `metrics.jsonl` and TensorBoard events, in a workdir.

  Each line of `metrics.jsonl` is one object: `step`, `time` (seconds since
  1970), `kind` ("train", "eval", ...) and the values by name; a value that is
  not finite is null. Every line is handed to the operating system whole, so
  that a killed run loses none. A full disk does not end the run: lines are
  missing until there is room again, and TensorBoard's files end.

  Args:
    workdir: the folder of the run, made if missing.
    resume_step: the step the run continues from. Lines of later steps, which
      the run is about to write again, are removed, and so is a last line that
      was cut off. 0 for a new run.
    enabled: False writes nothing (every process but the first).

  Example:
    >>> with MetricWriter("/tmp/run", enabled=False) as writer:
    ...   writer.write(100, "train", {"loss": 0.5})
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    resume_step: int = 0,
    enabled: bool = True,
  ):
    """Opens the files; see the class."""
    self._lines: _Lines | None = None
    self._events: event_file_writer.EventFileWriter | None = None
    self._last_step: dict[str, int] = {}
    if not enabled:
      return
    path = pathlib.Path(workdir) / METRICS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    for record in _drop_after(path, resume_step):
      self._last_step[record["kind"]] = record["step"]
    self._lines = _Lines(path)
    self._events = event_file_writer.EventFileWriter(
      str(path.parent / TENSORBOARD_DIR), flush_secs=30
    )
    # TensorBoard hides what an earlier, killed run wrote from this step on.
    start = _SessionLog(status=_SessionLog.START)
    self._add_event(step=resume_step + 1, session_log=start)

  def __enter__(self) -> "MetricWriter":
    """Returns itself."""
    return self

  def __exit__(self, *_: object) -> None:
    """Closes the files."""
    self.close()

  def write(
    self, step: int, kind: str, values: Mapping[str, SupportsFloat]
  ) -> None:
    """Appends one line, unless this kind has one of this or a later step.

    A continued run evaluates its first step once more; that repeat is the one
    left out.

    Args:
      step: steps done when the values were taken.
      kind: what they describe, e.g. "train" or "eval".
      values: numbers by name.

    Raises:
      ValueError: a value is named `step`, `time` or `kind`.
    """
    if self._lines is None or step <= self._last_step.get(kind, -1):
      return
    if clash := set(_RESERVED) & set(values):
      raise ValueError(f"values may not be named {sorted(clash)}")
    self._last_step[kind] = step
    numbers = {name: float(value) for name, value in values.items()}
    record = {"step": step, "time": round(time.time(), 3), "kind": kind}
    record |= {n: v if math.isfinite(v) else None for n, v in numbers.items()}
    self._lines.append(json.dumps(record, allow_nan=False))
    scalars = [
      _Summary.Value(tag=f"{kind}/{name}", simple_value=value)
      for name, value in numbers.items()
    ]
    self._add_event(step=step, summary=_Summary(value=scalars))

  def flush(self) -> None:
    """Has TensorBoard events on disk; `metrics.jsonl` always is."""
    self._tell_events(lambda events: events.flush())

  def close(self) -> None:
    """Closes the files; later writes do nothing."""
    if self._lines is not None:
      self._lines.close()
    self._tell_events(lambda events: events.close())
    self._lines = self._events = None

  def _add_event(self, **fields: Any) -> None:
    event = _Event(wall_time=time.time(), **fields)
    self._tell_events(lambda events: events.add_event(event))

  def _tell_events(
    self, tell: Callable[[event_file_writer.EventFileWriter], None]
  ) -> None:
    """Writes to TensorBoard's file; after an error, no more of this run."""
    if self._events is None:
      return
    try:
      tell(self._events)
    except OSError as error:
      self._events = None
      logging.warning(
        "%s ends here, without the rest of this run: %s",
        TENSORBOARD_DIR,
        error,
      )


class _Lines:
  """A file to append whole lines to, which may lose some to a full disk."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._file = open(path, "ab", buffering=0)
    self._torn = False  # whether the last line lacks its end
    self._lost = 0  # lines in a row

  def append(self, line: str) -> None:
    """Appends a line, or warns."""
    data = b"\n" * self._torn + line.encode() + b"\n"
    written, reason = 0, "there is no room"
    try:
      written = self._file.write(data) or 0
    except OSError as error:
      reason = str(error)
    if written == len(data):
      self._torn, self._lost = False, 0
      return
    self._torn |= bool(written)
    self._lost += 1
    if self._lost == 1:
      logging.warning("%s misses lines: %s", self._path, reason)

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads a `metrics.jsonl`, also while a run appends to it.

  Args:
    path: the file; one that does not exist has no lines.

  Returns:
    One dict per line, in order; lines that are cut off or damaged are left out
    and counted in the log.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    return []
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  records = [record for record in map(_parsed, lines) if record is not None]
  if len(records) < len(lines):
    logging.warning(
      "%s: left out %d unreadable lines", path, len(lines) - len(records)
    )
  return records


def _parsed(line: str) -> dict[str, Any] | None:
  try:
    record = json.loads(line)
  except (ValueError, RecursionError):
    return None
  whole = (
    isinstance(record, dict)
    and isinstance(record.get("kind"), str)
    and isinstance(record.get("step"), int)
    and all(is_number(record.get(key)) for key in ("step", "time"))
  )
  return record if whole else None


def is_number(value: object) -> bool:
  """Whether a value read from JSON is a number that can be shown."""
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and abs(value) < 1e30  # NaN is not
  )


def _drop_after(path: pathlib.Path, step: int) -> list[dict[str, Any]]:
  """Rewrites the file without later or damaged lines; returns the others."""
  kept = [r for r in read_metrics(path) if r["step"] <= step]
  if path.exists():
    text = "".join(json.dumps(record) + "\n" for record in kept)
    files.write_text(path, text)
  return kept


class _AboveBar:
  """A stream that clears the bar, writes, and draws the bar again."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def write(self, text: str) -> int:
    with tqdm.tqdm.external_write_mode(file=self._stream):
      return self._stream.write(text)

  def flush(self) -> None:
    self._stream.flush()


def _redirect_logs(stream: Any) -> TextIO:
  """Sends absl's messages to `stream`; returns where they went before."""
  handler = logging.get_absl_handler().python_handler
  before = handler.stream
  handler.setStream(stream)
  return before


def _has_room(stream: TextIO) -> bool:
  """Whether the stream is a terminal with a size; some report 0 x 0."""
  try:
    return stream.isatty() and min(os.get_terminal_size(stream.fileno())) > 0
  except (OSError, ValueError):
    return False


def _bar(
  name: str, initial: int, total: int, stream: TextIO, shown: bool
) -> tqdm.tqdm | None:
  if not shown:
    return None
  return tqdm.tqdm(
    desc=name,
    initial=initial,
    total=total,
    file=stream,
    dynamic_ncols=True,
    bar_format="{desc} {percentage:3.0f}%|{bar}| {n}/{total}{postfix}",
  )


def duration(seconds: float) -> str:
  """A time as h:mm:ss, or m:ss below an hour."""
  if not math.isfinite(seconds):
    return "?"
  minutes, second = divmod(round(seconds), 60)
  hour, minute = divmod(minutes, 60)
  return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
