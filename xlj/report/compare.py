"""Runs and exported models side by side, on one page without other files.

What is shown is what they have left (see `xlj.report.recorded`, and of exported
models `manifest.json`); nothing is computed anew. What one lacks is said in its
place, with the command that brings it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

from xlj import files
from xlj import shell
from xlj.report import figures
from xlj.report import page
from xlj.report import progress
from xlj.report import recorded

_MANIFEST = "manifest.json"  # of an exported model
_METRICS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5")
_DECILE_CHARTS = {  # axis: name in the rows
  "part of P@5, points": "P@5",
  "recall@5, mean over labels, %": "MacroRecall@5",
}
_DECILE_NOTE = (
  "Deciles of labels, from the most frequent to the rarest: each holds about a"
  " tenth of all occurrences of labels in the training points. First chart:"
  " what a decile adds to P@5. Second chart: recall, averaged over those of its"
  " labels that occur in the split."
)
_COST_NOTE = (
  "Training: between the first line of metrics.jsonl and the last, without"
  " pauses of over a minute. Memory: the most that the process of training has"
  " had. Size: arrays that prediction needs, or all files of an exported model."
)
_NOTHING = "\N{EN DASH}"


@dataclasses.dataclass(frozen=True)
class _Side:
  """A run or an exported model.

  Attributes:
    name: Short, and no other's.
    number: Of its line in charts.
    run: What is recorded.
    manifest: Of an exported model; empty for a run.
  """

  name: str
  number: int
  run: recorded.Recorded
  manifest: Mapping[str, Any]

  @property
  def metrics(self) -> Mapping[str, float]:
    """Of an exported model those that its export has measured."""
    if not self.manifest:
      return self.run.evaluation["metrics"]
    measured = recorded.mapping(self.manifest.get("measured"))
    return recorded.metrics(measured.get("after"))

  @property
  def rows(self) -> str:
    """What the metrics are of."""
    split, step = (self.run.evaluation.get(name) for name in ("split", "step"))
    if self.manifest:
      measured = recorded.mapping(self.manifest.get("measured"))
      rows, of = measured.get("rows"), measured.get("of")
      return f"{_number(rows)} rows of {_text(of)}" if measured else _NOTHING
    parts = [split, None if step is None else f"step {step:,}"]
    return ", ".join(part for part in parts if part) or _NOTHING


def write(
  directories: Sequence[str | os.PathLike[str]],
  output: str | os.PathLike[str],
  benchmarks: Sequence[str | os.PathLike[str]] = (),
) -> pathlib.Path:
  """Writes the page.

  Args:
    directories: Of runs, at any stage, and of exported models.
    output: The page, ending in `.html`.
    benchmarks: JSON files with measured times, sizes and scores, as the
      programs in `benchmarks` write them: `rows`, a list of objects, or such a
      list alone.

  Returns:
    Its path.

  Raises:
    ValueError: A directory holds neither a run nor a model, or a file no rows.
    OSError: A file cannot be read or written.
  """
  paths = list(dict.fromkeys(pathlib.Path(d).absolute() for d in directories))
  if not paths:
    raise ValueError("--runs names no directory; give those of runs, by commas")
  names = _short_names(paths)
  sides = [_read(p, n, i) for i, (p, n) in enumerate(zip(paths, names))]
  measured = [(str(path), _rows(path)) for path in benchmarks]
  groups = _by_data(sides)
  body = [
    _head(sides, groups),
    page.section("Accuracy, %", _accuracy(groups), ""),
    page.section(
      "By label frequency",
      _by_frequency(groups),
      "None is evaluated by label frequency yet.",
    ),
    page.section(
      "Learning curves", _curves(groups), "No step is recorded yet."
    ),
    page.section("Time, memory, size", _costs(sides), ""),
  ]
  if measured:
    content = "".join(_benchmark(path, rows) for path, rows in measured)
    body.append(page.section("Measured", content, "No rows."))
  body.append(page.section("All metrics, %", _all(groups), "None yet."))
  output = pathlib.Path(output)
  files.write_text(output, page.html(f"{len(sides)} runs", body))
  return output


# --- reading -----------------------------------------------------------------


def _read(path: pathlib.Path, name: str, number: int) -> _Side:
  run = recorded.read(path)
  if run.config:
    return _Side(name, number, run, {})
  manifest = recorded.read_json(path / _MANIFEST)
  if not manifest:
    raise ValueError(
      f"--runs names {path}, which holds neither a run"
      f" ({recorded.CONFIG_FILE}) nor an exported model ({_MANIFEST})"
    )
  config = _nested(recorded.mapping(manifest.get("config")))
  return _Side(name, number, dataclasses.replace(run, config=config), manifest)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  """`{"a": {"b": 1}}` of `{"a.b": 1}`."""
  found: dict[str, Any] = {}
  for name, value in flat.items():
    *sections, field = name.split(".")
    section = found
    for part in sections:
      section = section.setdefault(part, {})
      if not isinstance(section, dict):
        break
    else:
      section[field] = value
  return found


def _short_names(paths: Sequence[pathlib.Path]) -> list[str]:
  """The last parts of paths, of each as many as no other one has."""

  def short(path: pathlib.Path) -> str:
    size = 1
    while sum(p.parts[-size:] == path.parts[-size:] for p in paths) > 1:
      size += 1
    return str(pathlib.Path(*path.parts[-size:]))

  return list(map(short, paths))


def _by_data(sides: Sequence[_Side]) -> dict[str, list[_Side]]:
  """Those of the same data together; others are not to be compared."""
  names = {}
  for side in sides:
    data = recorded.mapping(side.run.config.get("data"))
    if side.run.data_name:
      names.setdefault(str(data.get("fingerprint")), side.run.data_name)
  found: dict[str, list[_Side]] = {}
  for side in sides:
    data = recorded.mapping(side.run.config.get("data"))
    name = side.run.data_name or names.get(str(data.get("fingerprint")))
    found.setdefault(name or "unknown data", []).append(side)
  return found


def _rows(path: str | os.PathLike[str]) -> Sequence[Mapping[str, Any]]:
  """The rows of a benchmark's file."""
  try:
    value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is no JSON ({error})") from None
  rows: Any = value
  if isinstance(value, dict):
    rows = value.get("rows")
  if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
    raise ValueError(
      f"{path} holds no rows; give what a benchmark has written with --json"
    )
  headings = [
    str(c[0]) for c in recorded.mapping(value).get("columns", ()) if c
  ]
  if headings:
    rows = [dict(zip(headings, row.get("cells", ()))) for row in rows]
  return rows


def _size(side: _Side) -> int | None:
  """Bytes of the model."""
  if side.manifest:
    listed = recorded.mapping(side.manifest.get("files")).values()
    sizes = [recorded.mapping(file).get("bytes") for file in listed]
    return sum(s for s in sizes if isinstance(s, int)) or None
  place = recorded.mapping(side.run.config.get("checkpoint")).get("dir")
  root = pathlib.Path(place or side.run.directory / "checkpoints")
  if "://" in str(place) or not root.is_dir():
    return None
  steps = [p for p in root.iterdir() if p.name.isdecimal()]
  if not steps:
    return None
  newest = max(steps, key=lambda step: int(step.name)) / "model"
  return sum(p.stat().st_size for p in newest.rglob("*") if p.is_file()) or None


# --- parts of the page -------------------------------------------------------


def _head(sides: Sequence[_Side], groups: Mapping[str, Sequence[_Side]]) -> str:
  kinds = [
    f"{count} {name if count == 1 else name + 's'}"
    for name, count in (
      ("run", sum(not side.manifest for side in sides)),
      ("exported model", sum(bool(side.manifest) for side in sides)),
    )
    if count
  ]
  text = f"{' and '.join(kinds)} on {', '.join(groups)}."
  if len(groups) > 1:
    text += " Figures of different data are not to be compared."
  rows = []
  for side in sides:
    config = side.run.config
    data = recorded.mapping(config.get("data"))
    family = config.get("family")
    rows.append(
      [
        side.name,
        _state(side),
        _text(family),
        _number(data.get("num_labels")),
        _number(data.get("num_rows")),
      ]
    )
  columns = ("", "state", "family", "labels", "training points")
  table = page.table(columns, rows, [side.number for side in sides])
  places = page.facts([(s.name, str(s.run.directory)) for s in sides])
  head = page.header("Runs side by side", " and ".join(kinds), text, [])
  return head + table + places


def _state(side: _Side) -> str:
  if side.manifest:
    parts = [side.manifest.get(name) for name in ("kind", "dtype")]
    return ", ".join(["exported", *(p for p in parts if isinstance(p, str))])
  state = side.run.state
  if _is_complete(side):
    return state
  under_way = any(side.run.directory.glob("owner-*.json"))
  return f"{state}, {'under way' if under_way else 'stopped'}"


def _is_complete(side: _Side) -> bool:
  return bool(side.manifest) or side.run.state == "complete"


def _accuracy(groups: Mapping[str, Sequence[_Side]]) -> str:
  def content(name: str, sides: Sequence[_Side]) -> str:
    several = sum(bool(side.metrics) for side in sides) > 1
    rows: list[list[page.Cell]] = []
    for side in sides:
      cells: list[page.Cell] = []
      for metric in _METRICS if side.metrics else ():
        value = side.metrics.get(metric)
        text = _NOTHING if value is None else f"{value:.2f}"
        others = [s.metrics.get(metric, -1.0) for s in _comparable(side, sides)]
        is_best = value is not None and others and value >= max(others)
        cells.append(page.Best(text) if is_best else text)
      cells = cells or [_gap(side, len(_METRICS))]
      rows.append([side.name, *cells, side.rows])
    columns = ("", *_METRICS, "on")
    table = page.table(columns, rows, [side.number for side in sides])
    shown = [m for m in _METRICS if any(m in side.metrics for side in sides)]
    bars = {
      side.name: [side.metrics.get(metric, 0.0) for metric in shown]
      for side in sides
      if side.metrics
    }
    if not several:
      return table
    chart = figures.bar_chart(
      f"accuracy{name}", shown, bars, x_label="", y_label="%", key=_key(sides)
    )
    return table + page.figures([chart], wide=True)

  return _each(groups, content)


def _comparable(side: _Side, sides: Sequence[_Side]) -> list[_Side]:
  """The others that have metrics of the same split, or of as many rows."""
  split = side.run.evaluation.get("split") or side.rows
  return [
    other
    for other in sides
    if other is not side
    and other.metrics
    and (other.run.evaluation.get("split") or other.rows) == split
  ]


def _gap(side: _Side, width: int) -> page.Gap:
  """What brings an evaluation."""
  if side.manifest:
    return page.Gap(
      "Its export has measured nothing, as its run held out no rows; to name"
      " some:",
      "xlj export --workdir=RUN --output=DIR --rows=FILE",
      width,
    )
  if not _is_complete(side):
    command = shell.command("train", workdir=side.run.directory)
    return page.Gap(
      f"Not evaluated; training is {side.run.state}. To go on, if it has"
      " stopped:",
      command,
      width,
    )
  command = shell.command("evaluate", workdir=side.run.directory)
  return page.Gap("Not evaluated; to do so:", command, width)


def _by_frequency(groups: Mapping[str, Sequence[_Side]]) -> str:
  def content(name: str, sides: Sequence[_Side]) -> str:
    charts = []
    for axis, metric in _DECILE_CHARTS.items():
      lines = {}
      for side in sides:
        rows = [r for r in side.run.evaluation["deciles"] if metric in r]
        if rows:
          lines[side.name] = (
            [r["decile"] for r in rows],
            [r[metric] for r in rows],
          )
      if lines:
        chart = f"deciles{metric}{name}", lines, axis
        charts.append(_lines(*chart, "decile of labels", sides))
    return _charts(charts, sides)

  found = _each(groups, content)
  return found and page.note(_DECILE_NOTE) + found


def _curves(groups: Mapping[str, Sequence[_Side]]) -> str:
  def content(name: str, sides: Sequence[_Side]) -> str:
    loss = {side.name: side.run.series("train", "loss") for side in sides}
    scores = {side.name: side.run.series("eval", "P@1") for side in sides}
    by_time = {side.name: _by_time(side.run, "P@1") for side in sides}
    charts = [
      _lines(f"{kind}{name}", found, y_label, x_label, sides)
      for kind, lines, y_label, x_label in (
        ("loss", loss, "training loss", "step"),
        ("score", scores, "P@1 of held-out rows, %", "step"),
        ("time", by_time, "P@1 of held-out rows, %", "seconds of training"),
      )
      if (found := {n: line for n, line in lines.items() if line[0]})
    ]
    return _charts(charts, sides)

  return _each(groups, content)


def _by_time(run: recorded.Recorded, name: str) -> figures.Line:
  """Seconds and values of what validations have found."""
  points = [
    (second, record[name])
    for second, record in zip(run.clock(), run.records)
    if record["kind"] == "eval" and progress.is_number(record.get(name))
  ]
  return [x for x, _ in points], [y for _, y in points]


def _costs(sides: Sequence[_Side]) -> str:
  rows = []
  for side in sides:
    spent, size = side.run.clock(), _size(side)
    peak = side.run.machine.get("peak_memory_gib")
    cores, devices = (side.run.machine.get(n) for n in ("cores", "devices"))
    on = f"{cores} CPU cores" if str(devices).startswith("cpu") else devices
    rows.append(
      [
        side.name,
        progress.duration(spent[-1]) if len(spent) > 1 else _NOTHING,
        f"{side.run.speed:,.0f}" if side.run.speed else _NOTHING,
        f"{peak:,.2f} GiB" if progress.is_number(peak) else _NOTHING,
        f"{size / 1e6:,.1f} MB" if size else _NOTHING,
        _text(on),
      ]
    )
  columns = ("", "training", "examples/s", "memory", "size", "on")
  keys = [side.number for side in sides]
  return page.table(columns, rows, keys) + page.note(_COST_NOTE)


def _benchmark(path: str, rows: Sequence[Mapping[str, Any]]) -> str:
  columns = list(dict.fromkeys(name for row in rows for name in row))
  cells = [[_measured(row.get(name)) for name in columns] for row in rows]
  return page.heading(path) + page.table(columns, cells)


def _measured(value: Any) -> str:
  """A figure, several, or a text."""
  if isinstance(value, dict):
    value = value.get("values")
  if isinstance(value, list):
    return " / ".join(map(_measured, value))
  if isinstance(value, float):
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
  return _number(value) if progress.is_number(value) else _text(value)


def _all(groups: Mapping[str, Sequence[_Side]]) -> str:
  def content(name: str, sides: Sequence[_Side]) -> str:
    del name
    sides = [side for side in sides if side.metrics]
    metrics = dict.fromkeys(m for side in sides for m in side.metrics)
    rows = [
      [
        metric,
        *(
          f"{side.metrics[metric]:.2f}" if metric in side.metrics else _NOTHING
          for side in sides
        ),
      ]
      for metric in metrics
    ]
    columns = ["", *(side.name for side in sides)]
    return page.table(columns, rows) if rows else ""

  return _each(groups, content)


def _each(
  groups: Mapping[str, Sequence[_Side]],
  content: Callable[[str, Sequence[_Side]], str],
) -> str:
  """The same of each data set; letters tell their charts apart."""
  found = ""
  for i, (name, sides) in enumerate(groups.items()):
    part = content(f"set{i}", sides)
    if part:
      found += (page.heading(name) if len(groups) > 1 else "") + part
  return found


def _lines(
  name: str,
  lines: Mapping[str, figures.Line],
  y_label: str,
  x_label: str,
  sides: Sequence[_Side],
) -> str:
  name = "".join(letter for letter in name if letter.isalnum())
  key = _key(sides)
  return figures.line_chart(
    name, lines, x_label=x_label, y_label=y_label, key=key
  )


def _key(sides: Iterable[_Side]) -> dict[str, int]:
  return {side.name: side.number for side in sides}


def _charts(charts: Sequence[str], sides: Sequence[_Side]) -> str:
  """Charts below what their lines stand for."""
  if not charts:
    return ""
  names, numbers = zip(*_key(sides).items())
  return page.key(names, numbers) + page.figures(charts)


def _number(value: Any) -> str:
  return f"{value:,}" if progress.is_number(value) else _NOTHING


def _text(value: Any) -> str:
  return value if isinstance(value, str) and value else _NOTHING
