"""`report.html`: a run on one page that needs no other file and no network.

Reads what a run leaves in its folder, each part only if it is there:

* `metrics.jsonl`: lines with `step`, `time`, `kind` and values by name;
  `train` lines hold a `loss`, `eval` lines metrics such as `P@1`
* `config.json`: the resolved config, nested
* `evaluation.json`: `metrics` and, optionally, `split`, `step`, `deciles` (rows
  as of `metrics.Ranking.deciles`), `baselines` (name to metrics)
* `machine.json`: what `machine.facts` returns
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import json
import os
import pathlib
import re
from typing import Any

from xlj import files
from xlj.report import figures
from xlj.report import page
from xlj.report import progress

REPORT_FILE = "report.html"
EVALUATION_FILE = "evaluation.json"
MACHINE_FILE = "machine.json"
_CONFIG_FILE = "config.json"
_DECILE_CHARTS = {  # axis: name in the legend to name in the rows
  "part of P@k, points": {f"P@{k}": f"P@{k}" for k in (1, 3, 5)},
  "mean over labels, %": {
    "precision@5": "MacroPrecision@5",
    "recall@5": "MacroRecall@5",
    "F1@5": "MacroF1@5",
    "coverage@5": "Coverage@5",
  },
}
_DECILE_AXIS = (
  "decile of labels, from frequent to rare (training points per label below)"
)
_DECILE_NOTE = (
  "Labels are ordered by frequency and cut so that each decile holds about a"
  " tenth of all occurrences of labels in the training points. First chart:"
  " what each decile adds to the overall P@k. Second chart: averages over the"
  " labels of a decile that occur in the split."
)
_METRICS_NOTE = (
  "P: share of the top k that is right. nDCG: the same, with more weight on"
  " the first places. PSP, PSnDCG: hits on rare labels count more (propensity"
  " scored). Recall: share of a point's labels found in its top k. Coverage:"
  " share of the labels found for at least one point. MacroF1: F1 averaged"
  " over labels."
)
_CARDS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@5", "nDCG@5")

Values = Mapping[str, Any]


def write_report(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes `report.html` from what the run has left so far.

  Args:
    workdir: the folder of the run.

  Returns:
    The path of the report.
  """
  workdir = pathlib.Path(workdir)
  config = _read_json(workdir / _CONFIG_FILE)
  evaluation = _read_evaluation(workdir / EVALUATION_FILE)
  records = progress.read_metrics(workdir / progress.METRICS_FILE)
  machine = _read_json(workdir / MACHINE_FILE)
  name = _name(config) or workdir.resolve().name
  body = [
    _summary(name, config, evaluation, records, machine),
    _curves(records),
    _by_frequency(evaluation["deciles"]),
    _results(evaluation),
    _config(config),
    _machine(machine),
  ]
  path = workdir / REPORT_FILE
  files.write_text(path, page.html(name, body))
  return path


def _summary(
  name: str,
  config: Values,
  evaluation: Values,
  records: Sequence[Values],
  machine: Values,
) -> str:
  sentences = [
    _what(name, config, records, machine),
    _how_good(evaluation),
  ]
  cards = [
    (metric, f"{evaluation['metrics'][metric]:.2f}")
    for metric in _CARDS
    if metric in evaluation["metrics"]
  ]
  text = " ".join(filter(None, sentences)) or "Nothing is recorded yet."
  return page.header(name, _state(config, records), text, cards)


def _state(config: Values, records: Sequence[Values]) -> str:
  last, total = _last_step(records), _total_steps(config)
  if not last:
    return "not started"
  if total is None:
    return f"step {last:,}"
  return "complete" if last >= total else f"at step {last:,} of {total:,}"


def _what(
  name: str, config: Values, records: Sequence[Values], machine: Values
) -> str:
  data = _mapping(config.get("data"))
  parts = [f"A classifier for {name}"]
  if isinstance(data.get("num_labels"), int):
    parts.append(f"with {data['num_labels']:,} labels")
  if isinstance(data.get("num_rows"), int):
    parts.append(f"from {data['num_rows']:,} training points")
  if last := _last_step(records):
    parts.append(f"trained for {last:,} steps")
  if speed := _speed(config, records):
    parts.append(f"at {speed:,.0f} examples/s")
  devices = machine.get("devices")
  if devices and isinstance(devices, str):
    on_cpu = devices.startswith("cpu") and machine.get("cores")
    parts.append(
      f"on {machine['cores']} CPU cores" if on_cpu else f"on {devices}"
    )
  return ", ".join(parts) + "." if len(parts) > 1 else ""


def _how_good(evaluation: Values) -> str:
  metrics = evaluation["metrics"]
  shown = [f"P@{k}" for k in (1, 3, 5) if f"P@{k}" in metrics]
  if not shown:
    return ""
  split = evaluation.get("split", "evaluation")
  values = " / ".join(f"{metrics[m]:.2f}" for m in shown)
  text = (
    f"On the {split} split {' / '.join(shown)} is {values}\N{NO-BREAK SPACE}%"
  )
  others = [
    f"{other} {values['P@1']:.2f}"
    for other, values in evaluation["baselines"].items()
    if "P@1" in values
  ]
  return (
    f"{text} (P@1 for comparison: {', '.join(others)})."
    if others
    else (text + ".")
  )


def _curves(records: Sequence[Values]) -> str:
  loss = _series(records, "train", "loss")
  names = [f"P@{k}" for k in (1, 3, 5)]
  validation = {name: _series(records, "eval", name) for name in names}
  validation = {name: line for name, line in validation.items() if line[0]}
  charts = []
  if loss[0]:
    charts.append(
      figures.line_chart(
        "loss", {"loss": loss}, x_label="step", y_label="training loss"
      )
    )
  if validation:
    charts.append(
      figures.line_chart(
        "validation", validation, x_label="step", y_label="validation, %"
      )
    )
  return page.section(
    "Learning curves", page.figures(charts), "No step is recorded yet."
  )


def _by_frequency(deciles: Sequence[Values]) -> str:
  charts = [
    figures.bar_chart(
      f"deciles{i}",
      [_decile_label(row) for row in deciles],
      {
        label: [row[metric] for row in deciles]
        for label, metric in bars.items()
      },
      x_label=_DECILE_AXIS,
      y_label=y_label,
    )
    for i, (y_label, bars) in enumerate(_DECILE_CHARTS.items())
    if deciles and all(set(bars.values()) <= row.keys() for row in deciles)
  ]
  return page.section(
    "By label frequency",
    page.figures(charts, _DECILE_NOTE, wide=True),
    "Not evaluated by label frequency yet.",
  )


def _decile_label(row: Values) -> str:
  if not {"min_count", "max_count"} <= row.keys():
    return str(row["decile"])
  low, high = _short(row["min_count"]), _short(row["max_count"])
  span = low if low == high else f"{low}\N{EN DASH}{high}"
  return f"{row['decile']}\n{span}"


def _short(count: int) -> str:
  """The number in at most five characters, for narrow places."""
  for limit, unit in ((10**6, "M"), (10**4, "k")):
    if count >= limit:
      # 10,718 is 10.7k, 1,071,800 is 1.07M.
      return f"{count / (10**6 if unit == 'M' else 10**3):.3g}{unit}"
  return str(count)


def _results(evaluation: Values) -> str:
  columns = {"this run": evaluation["metrics"], **evaluation["baselines"]}
  names = list(columns["this run"])
  families = list(dict.fromkeys(name.split("@")[0] for name in names))
  ks = sorted({int(name.split("@")[1]) for name in names})
  rows = [
    [family]
    + [
      f"{values[name]:.2f}" if (name := f"{family}@{k}") in values else ""
      for values in columns.values()
      for k in ks
    ]
    for family in families
  ]
  table = page.grouped_table(list(columns), [f"@{k}" for k in ks], rows)
  table += page.note(_METRICS_NOTE)
  where = f"{evaluation.get('split', 'evaluation')} split"
  if "step" in evaluation:
    where += f", step {evaluation['step']:,}"
  return page.section(
    f"Metrics, % ({where})" if rows else "Metrics",
    table if rows else "",
    "Not evaluated yet: launch/evaluate.py adds this part.",
  )


def _config(config: Values) -> str:
  rows = [(name, _shown(value)) for name, value in _flatten(config)]
  return page.section(
    "Config", page.facts(rows), "The folder holds no config.json."
  )


def _machine(machine: Values) -> str:
  rows = [
    (name.removeprefix("versions.").replace("_", " "), str(value))
    for name, value in _flatten(machine)
  ]
  return page.section(
    "Machine", page.facts(rows), "The folder holds no machine.json."
  )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file; an empty one where it is missing or half written."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError):
    return {}
  return _mapping(value)


def _read_evaluation(path: pathlib.Path) -> dict[str, Any]:
  """What is shown of an evaluation; of something else, nothing."""
  value = _read_json(path)
  deciles = value.get("deciles")
  rows = map(_numbers, deciles if isinstance(deciles, list) else [])
  baselines = _mapping(value.get("baselines"))
  found: dict[str, Any] = {
    "metrics": _metrics(value.get("metrics")),
    "baselines": {name: _metrics(of) for name, of in baselines.items()},
    "deciles": [row for row in rows if "decile" in row],
  }
  if isinstance(value.get("split"), str):
    found["split"] = value["split"]
  if _is_count(value.get("step")):
    found["step"] = value["step"]
  return found


def _mapping(value: Any) -> dict[str, Any]:
  return value if isinstance(value, dict) else {}


def _numbers(value: Any) -> dict[str, Any]:
  """Those values of an object that are numbers."""
  return {k: v for k, v in _mapping(value).items() if progress.is_number(v)}


def _metrics(value: Any) -> dict[str, Any]:
  """Numbers by name and cut-off, such as P@1."""
  found = _numbers(value).items()
  return {k: v for k, v in found if re.fullmatch(r"[^@]+@[0-9]{1,9}", k)}


def _is_count(value: Any) -> bool:
  return progress.is_number(value) and isinstance(value, int)


def _name(config: Values) -> str:
  directory = _mapping(config.get("data")).get("dir")
  return pathlib.Path(directory).name if isinstance(directory, str) else ""


def _total_steps(config: Values) -> int | None:
  total = _mapping(config.get("train")).get("num_steps")
  return total if _is_count(total) else None


def _last_step(records: Iterable[Values]) -> int:
  return max((record["step"] for record in records), default=0)


def _speed(config: Values, records: Sequence[Values]) -> float | None:
  """Median examples/s between training records; pauses do not count."""
  batch_size = _mapping(config.get("train")).get("batch_size")
  train = [r for r in records if r["kind"] == "train"]
  speeds = sorted(
    (after["step"] - before["step"]) / (after["time"] - before["time"])
    for before, after in zip(train, train[1:])
    if after["time"] > before["time"]
  )
  if not _is_count(batch_size) or not speeds:
    return None
  return batch_size * speeds[len(speeds) // 2]


def _series(records: Iterable[Values], kind: str, name: str) -> figures.Line:
  points = [
    (record["step"], record[name])
    for record in records
    if record["kind"] == kind and progress.is_number(record.get(name))
  ]
  return [x for x, _ in points], [y for _, y in points]


def _flatten(values: Values, prefix: str = "") -> Iterator[tuple[str, Any]]:
  for name, value in values.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


def _shown(value: Any) -> str:
  """A config value for reading: text without quotes, a dash for nothing."""
  if value in (None, "", [], ()):
    return "\N{EN DASH}"
  return value if isinstance(value, str) else json.dumps(value)
