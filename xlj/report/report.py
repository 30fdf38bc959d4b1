"""`report.html`: a run on one page that needs no other file and no network.

It shows what a run has left in its folder (see `xlj.report.recorded`), each
part only if it is there.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import os
import pathlib
from typing import Any

from xlj import files
from xlj.report import figures
from xlj.report import goodput
from xlj.report import page
from xlj.report import progress
from xlj.report import recorded

REPORT_FILE = "report.html"
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
_NOTE_OF_FRACTIONS = (
  "Recall: share of a point's labels found in its top k. nDCG: the same, with"
  " more weight on the first places. HR: points with a hit. MRR: 1 / place"
  " of the first hit. CatalogCoverage: share of all labels that any point is"
  " shown. ARP: training points of the labels that a point is shown."
)
_CARDS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@5", "nDCG@5")

Values = recorded.Values


def write_report(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes `report.html` from what the run has left so far.

  Args:
    workdir: the folder of the run.

  Returns:
    The path of the report.
  """
  run = recorded.read(workdir)
  name = run.data_name or run.directory.resolve().name
  body = [
    _summary(name, run),
    _curves(run),
    _by_frequency(run.evaluation["deciles"]),
    _results(run),
    _time(run.seconds),
    _config(run.config),
    _machine(run.machine),
  ]
  path = run.directory / REPORT_FILE
  files.write_text(path, page.html(name, body))
  return path


def _summary(name: str, run: recorded.Recorded) -> str:
  metrics = run.evaluation["metrics"]
  sentences = [_what(name, run), _how_good(run.evaluation)]
  unit, digits = run.unit
  names = _CARDS if unit == "percent" else [*metrics][: len(_CARDS)]
  cards = [
    (name, f"{metrics[name]:.{digits}f}") for name in names if name in metrics
  ]
  text = " ".join(filter(None, sentences)) or "Nothing is recorded yet."
  return page.header(name, run.state, text, cards)


def _what(name: str, run: recorded.Recorded) -> str:
  data, machine = recorded.mapping(run.config.get("data")), run.machine
  parts = [f"A classifier for {name}"]
  if isinstance(data.get("num_labels"), int):
    parts.append(f"with {data['num_labels']:,} labels")
  if isinstance(data.get("num_rows"), int):
    parts.append(f"from {data['num_rows']:,} training points")
  if run.last_step:
    parts.append(f"trained for {run.last_step:,} steps")
  if run.speed:
    parts.append(f"at {run.speed:,.0f} examples/s")
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


def _curves(run: recorded.Recorded) -> str:
  loss = run.series("train", "loss")
  unit, _ = run.unit
  names = [f"P@{k}" for k in (1, 3, 5)]
  if unit == "fractions":
    names = [recorded.mapping(run.config.get("eval")).get("metric", "")]
  validation = {name: run.series("eval", name) for name in names}
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
        *("validation", validation),
        x_label="step",
        y_label=f"validation, {'%' if unit == 'percent' else unit}",
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


def _results(run: recorded.Recorded) -> str:
  evaluation, (unit, digits) = run.evaluation, run.unit
  columns = {"this run": evaluation["metrics"], **evaluation["baselines"]}
  names = list(columns["this run"])
  families = list(dict.fromkeys(name.split("@")[0] for name in names))
  ks = sorted({int(name.split("@")[1]) for name in names})
  rows = [
    [family]
    + [
      f"{values[name]:.{digits}f}"
      if (name := f"{family}@{k}") in values
      else ""
      for values in columns.values()
      for k in ks
    ]
    for family in families
  ]
  table = page.grouped_table(list(columns), [f"@{k}" for k in ks], rows)
  is_percent = unit == "percent"
  table += page.note(_METRICS_NOTE if is_percent else _NOTE_OF_FRACTIONS)
  where = f"{evaluation.get('split', 'evaluation')} split"
  if "step" in evaluation:
    where += f", step {evaluation['step']:,}"
  return page.section(
    f"Metrics, {'%' if is_percent else unit} ({where})" if rows else "Metrics",
    table if rows else "",
    "Not evaluated yet: xlj evaluate adds this part.",
  )


def _time(seconds: Mapping[str, float]) -> str:
  total = sum(seconds.values())
  rows = [
    (text, f"{progress.duration(spent)}, {spent / total:.1%}")
    for phase, text in goodput.PHASES.items()
    if (spent := seconds.get(phase))
  ]
  note = (
    f"Goodput, the share of the time that went into steps, is"
    f" {goodput.share(seconds):.1%}. The time between a stop and the next start"
    " does not count."
    if rows
    else ""
  )
  return page.section(
    "Where the time went",
    (page.note(note) + page.facts(rows)) if rows else "",
    f"The folder holds no {goodput.GOODPUT_FILE}.",
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
