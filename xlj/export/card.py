"""`README.md`: what an exported model is, made from what its run has left.

It begins with the fields that model hubs read. What a run cannot know, such as
who may use the model for what, is left to be filled in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xlj.report import recorded

FILE = "README.md"
FILL_IN = "FILL IN"
_OF_DATA = {  # what a config knows of its data: field to words
  "data.num_rows": "training rows",
  "data.num_features": "features",
  "data.num_labels": "labels",
  "data.features_per_row": "features of a row, on average",
  "data.weighting": "weighting of features",
  "data.l2": "rows of length 1",
  "data.validation": "share of the training rows that was held out",
  "data.fingerprint": "fingerprint of the training data",
}
_OF_MODEL = (
  "family",
  "encoder.type",
  "encoder.dim",
  "encoder.hidden",
  "head.type",
  "head.loss",
  "head.wide",
  "head.transitions",
  "neighbours.count",
  "predict.propensity_power",
  "train.epochs",
  "train.num_steps",
  "train.batch_size",
  "seed",
)
_BY_FREQUENCY = ("labels", "P@1", "P@5", "MacroRecall@5", "Coverage@5")
_INPUTS = {
  "texts": "texts",
  "sparse": "sparse features",
  "items": "sequences of items",
  "dense": "dense features",
  "images": "images",
}
_EXAMPLES = {
  "texts": '["a text"]',
  "sparse": "[{3: 1.0, 17: 0.5}]  # from feature to value",
  "items": '[{"items": [31, 4, 159]}]  # oldest first',
  "dense": "features  # [n, F]",
  "images": "images  # [n, height, width, channels]",
}


def text(run: recorded.Recorded, manifest: Mapping[str, Any]) -> str:
  """The card of a model.

  Args:
    run: What the run has left.
    manifest: Of the exported model, but for its files.

  Returns:
    Markdown.
  """
  name = run.data_name or run.directory.name
  parts = [
    f"---\nlibrary_name: xlj\nlicense: {FILL_IN}\n"
    "tags:\n- extreme-classification\n- multi-label\n---",
    f"# {name}",
    _summary(manifest),
    "## Use",
    _use(manifest),
    f"Intended use: {FILL_IN}",
    f"Not intended for: {FILL_IN}",
    "## Figures",
    *_figures(run, manifest),
    "## Data",
    f"Where the data are from, and under which licence: {FILL_IN}",
    _list(manifest["config"], _OF_DATA),
    "## Training",
    *_training(run),
    _list(manifest["config"], dict(zip(_OF_MODEL, map(_code, _OF_MODEL)))),
    "All fields of the config are in `manifest.json`.",
    "## Licence",
    f"Licence of the model: {FILL_IN}",
  ]
  return "\n\n".join(filter(None, parts)) + "\n"


def _summary(manifest: Mapping[str, Any]) -> str:
  """What it is, in a sentence or two."""
  kind = {
    "linear": "A linear model",
    "network": "A network on a bag of features",
  }.get(manifest["kind"], "A model")
  what = _INPUTS[manifest["input"]]
  return (
    f"{kind} that ranks {manifest['num_labels']:,} labels, exported by xlj"
    f" {manifest['xlj']} on {manifest['made'][:10]}. It reads {what}"
    f" ({manifest['num_features']:,} features), and its weights are"
    f" {manifest['dtype']}."
  )


def _use(manifest: Mapping[str, Any]) -> str:
  """How to ask it."""
  rows = _EXAMPLES[manifest["input"]]
  lines = (
    "import xlj",
    "",
    "model = xlj.load(DIR)  # this directory",
    f"rows = {rows}",
    "scores, ids = model.topk(rows, k=5)",
    "names = model.names(ids)",
  )
  return "\n".join(("```python", *lines, "```"))


def _figures(
  run: recorded.Recorded, manifest: Mapping[str, Any]
) -> Iterable[str]:
  """How good it is, as far as that was measured."""
  evaluation = run.evaluation
  if measured := manifest["measured"]:
    yield (
      f"On {measured['rows']:,} rows of {measured['of']} that it was not"
      " trained on, percent:"
    )
    before, after = measured["before"], measured["after"]
    yield _table(
      ["", *before],
      [
        ["the run", *map(_number, before.values())],
        ["this model", *map(_number, after.values())],
      ],
    )
  metrics = evaluation["metrics"]
  if metrics:
    split = evaluation.get("split", "test")
    unit, digits = run.unit
    yield f"The run on the {split} split, {unit}:"
    ks = sorted({int(name.split("@")[1]) for name in metrics})
    yield _table(
      ["", *(f"@{k}" for k in ks)],
      [
        [name, *(_number(metrics.get(f"{name}@{k}"), digits) for k in ks)]
        for name in dict.fromkeys(name.split("@")[0] for name in metrics)
      ],
    )
  deciles = [
    row for row in evaluation["deciles"] if set(_BY_FREQUENCY) <= row.keys()
  ]
  if deciles:
    yield (
      "By label frequency: each decile of labels, from frequent to rare, has a"
      " tenth of all labels of the training rows. P@k is its part of that of"
      " all; recall and coverage are means over its labels."
    )
    yield _table(
      ["decile", "training rows", *_BY_FREQUENCY],
      [
        [
          str(row["decile"]),
          f"{row.get('min_count', '')} to {row.get('max_count', '')}",
          *(_number(row[name]) for name in _BY_FREQUENCY),
        ]
        for row in deciles
      ],
    )
  if not measured and not metrics:
    yield (
      "Nothing was measured. `xlj evaluate --workdir=WD` before"
      " the export fills this in."
    )


def _training(run: recorded.Recorded) -> Iterable[str]:
  """How long it took, and on what."""
  machine, clock = run.machine, run.clock()
  if machine.get("devices"):
    seconds = f", {clock[-1]:,.0f} s" if clock and clock[-1] else ""
    yield (
      f"Trained on {machine['devices']} ({machine.get('cpu', '')},"
      f" {machine.get('cores', '')} cores){seconds}."
    )


def _list(config: Mapping[str, Any], fields: Mapping[str, str]) -> str:
  """Fields and values."""
  return "\n".join(
    f"- {words}: {_value(config[field])}"
    for field, words in fields.items()
    if config.get(field) not in (None, "")
  )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table of Markdown."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: Any, digits: int = 2) -> str:
  if value is None:
    return ""
  return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _value(value: Any) -> str:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return str(value)
  return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _code(field: str) -> str:
  return f"`{field}`"
