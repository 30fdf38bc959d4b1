"""What a run has left in its folder, read for those who show it.

Each file counts only as far as it is there and whole:

* `metrics.jsonl`: lines with `step`, `time`, `kind` and values by name;
  `train` lines hold a `loss`, `eval` lines metrics such as `P@1`
* `config.json`: the resolved config, nested
* `evaluation.json`: `metrics` and, optionally, `split`, `step`, `deciles` (rows
  as of `metrics.Ranking.deciles`), `baselines` (name to metrics)
* `machine.json`: what `machine.facts` returns
* `goodput.json`: `step`, and `seconds` by phase, as of `goodput.PHASES`
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import json
import os
import pathlib
import re
from typing import Any

from xlj.report import figures
from xlj.report import goodput
from xlj.report import progress

CONFIG_FILE = "config.json"
EVALUATION_FILE = "evaluation.json"
MACHINE_FILE = "machine.json"

Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Recorded:
  """The files of a run.

  Attributes:
    directory: That of the run.
    config: Nested; empty if there is none, like the others.
    evaluation: `metrics`, `baselines`, `deciles`, and `split` and `step` where
      it says them.
    records: Lines of `metrics.jsonl`.
    machine: What the run ran on.
    seconds: Where its time went, by phase; empty if that is not told.
  """

  directory: pathlib.Path
  config: Values
  evaluation: Values
  records: Sequence[Values]
  machine: Values
  seconds: Mapping[str, float]

  @property
  def unit(self) -> tuple[str, int]:
    """Of metrics, and their digits; see `unit`."""
    return unit(mapping(self.config.get("eval")).get("figures", ""))

  @property
  def data_name(self) -> str:
    """Name of the directory of the data; empty if it is not known."""
    directory = mapping(self.config.get("data")).get("dir")
    return pathlib.Path(directory).name if isinstance(directory, str) else ""

  @property
  def total_steps(self) -> int | None:
    """How many steps it is to take."""
    total = mapping(self.config.get("train")).get("num_steps")
    return total if _is_count(total) else None

  @property
  def last_step(self) -> int:
    """How many it has taken and told of."""
    return max((record["step"] for record in self.records), default=0)

  @property
  def state(self) -> str:
    """How far it has come, in a few words."""
    last, total = self.last_step, self.total_steps
    if not last:
      return "not started"
    if total is None:
      return f"step {last:,}"
    return "complete" if last >= total else f"at step {last:,} of {total:,}"

  @property
  def speed(self) -> float | None:
    """Median examples/s between training records; pauses do not count."""
    batch_size = mapping(self.config.get("train")).get("batch_size")
    train = [r for r in self.records if r["kind"] == "train"]
    speeds = sorted(
      (after["step"] - before["step"]) / (after["time"] - before["time"])
      for before, after in zip(train, train[1:])
      if after["time"] > before["time"]
    )
    if not _is_count(batch_size) or not speeds:
      return None
    return batch_size * speeds[len(speeds) // 2]

  def clock(self) -> list[float]:
    """Seconds from the first record to each, without pauses of the run.

    A pause is longer than a minute, and than ten times what is usual between
    records.
    """
    times = [record["time"] for record in self.records]
    gaps = [max(0.0, b - a) for a, b in zip(times, times[1:])]
    longest = max(60.0, 10 * sorted(gaps)[len(gaps) // 2]) if gaps else 0.0
    spent = [gap if gap <= longest else 0.0 for gap in gaps]
    return list(itertools.accumulate(spent, initial=0.0))[: len(times)]

  def series(self, kind: str, name: str) -> figures.Line:
    """Steps and values of what it has recorded by a name."""
    points = [
      (record["step"], record[name])
      for record in self.records
      if record["kind"] == kind and progress.is_number(record.get(name))
    ]
    return [x for x, _ in points], [y for _, y in points]


def unit(figures: str) -> tuple[str, int]:
  """What metrics are told in, and with how many digits behind the point.

  Args:
    figures: Which they are; the field `eval.figures`.
  """
  return ("fractions", 4) if figures == "recommendation" else ("percent", 2)


def read(directory: str | os.PathLike[str]) -> Recorded:
  """Reads what a run has left so far.

  Args:
    directory: That of the run.

  Returns:
    The files.
  """
  directory = pathlib.Path(directory)
  return Recorded(
    directory,
    read_json(directory / CONFIG_FILE),
    _read_evaluation(directory / EVALUATION_FILE),
    progress.read_metrics(directory / progress.METRICS_FILE),
    read_json(directory / MACHINE_FILE),
    _read_seconds(directory / goodput.GOODPUT_FILE),
  )


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file; an empty one where it is missing or half written."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError):
    return {}
  return mapping(value)


def _read_evaluation(path: pathlib.Path) -> dict[str, Any]:
  """What is shown of an evaluation; of something else, nothing."""
  value = read_json(path)
  deciles = value.get("deciles")
  rows = map(_numbers, deciles if isinstance(deciles, list) else [])
  baselines = mapping(value.get("baselines"))
  found: dict[str, Any] = {
    "metrics": metrics(value.get("metrics")),
    "baselines": {name: metrics(of) for name, of in baselines.items()},
    "deciles": [row for row in rows if "decile" in row],
  }
  if isinstance(value.get("split"), str):
    found["split"] = value["split"]
  if _is_count(value.get("step")):
    found["step"] = value["step"]
  return found


def _read_seconds(path: pathlib.Path) -> dict[str, float]:
  """Seconds by phase; of a damaged file, none."""
  seconds = goodput.seconds_of(read_json(path))
  return seconds if any(seconds.values()) else {}


def mapping(value: Any) -> dict[str, Any]:
  """The value if it is an object; else an empty one."""
  return value if isinstance(value, dict) else {}


def _numbers(value: Any) -> dict[str, Any]:
  """Those values of an object that are numbers."""
  return {k: v for k, v in mapping(value).items() if progress.is_number(v)}


def metrics(value: Any) -> dict[str, Any]:
  """Numbers by name and cut-off, such as P@1."""
  found = _numbers(value).items()
  return {k: v for k, v in found if re.fullmatch(r"[^@]+@[0-9]{1,9}", k)}


def _is_count(value: Any) -> bool:
  return progress.is_number(value) and isinstance(value, int)
