"""The sections `train`, `eval`, `checkpoint`, `predict` and `mesh`."""

from collections.abc import Sequence
import math
from typing import Any

import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import data as data_config
from xlj.config import families
from xlj.config import options
from xlj.ops import precision

# Of sparse features, that linear weights are trained on in a few seconds.
_FEW_ENTRIES = 10**6
_MOST_OF_FEW = 100  # cut-offs where there are fewer labels than that
_MOST_IN_BATCH = 2**14  # where there are fewer rows than that
# What is computed at each cut-off; `xlj.evaluation.metrics` says how.
FIGURES = {
  "classification": (
    "P",
    "nDCG",
    "PSP",
    "PSnDCG",
    "Recall",
    "Coverage",
    "MacroF1",
  ),
  "recommendation": ("Recall", "nDCG", "HR", "MRR", "CatalogCoverage", "ARP"),
}
# That need how many training rows each label has.
_OF_COUNTS = ("PSP", "PSnDCG", "Coverage", "MacroF1", "CatalogCoverage", "ARP")
CHOICES: dict[str, tuple[str, ...]] = {
  "train.precision": precision.PRECISIONS,
  "eval.figures": tuple(FIGURES),
}
SWITCHES = ()


def fields() -> options.Fields:
  """All fields, with None for "decide from the data"."""
  auto = config_dict.placeholder
  return {
    "train.batch_size": auto(int),  # examples of a step, over all processes
    # Passes over the training rows; 0: the run is complete as it starts
    "train.epochs": auto(float),
    "train.num_steps": auto(int),  # if given it decides, and epochs follow
    # Steps of the run that this one began with, by --from; not in epochs
    "train.steps_before": 0,
    # Added to the seed for the order of batches and dropout: another run from
    # the same start, for averages; see xlj.averaging.soups.
    "train.shuffle": 0,
    # Working directory of a run whose encoder (and, for "oltr", rows) to start
    # with: a first stage.
    "train.start_from": "",
    # Batches of rows of about the same length; for encoders whose cost is that
    # of the longest row of a batch
    "train.by_length": auto(bool),
    # How steps multiply float32 arrays on accelerators, which are faster if
    # factors are rounded; searches and losses of validation multiply all of
    # float32. See docs/accelerators.md
    "train.precision": "tensorfloat32",
    "train.log_every": 20,  # steps between lines of metrics.jsonl
    # Batches that may be left out because their loss is not finite
    "train.skip_nonfinite": 0,
    # Refuse what memory or disk cannot hold before any of it is taken
    "train.check_room": True,
    "eval.every": auto(int),  # steps between validations
    "eval.batch_size": 512,  # examples that are scored at a time
    "eval.ks": (1, 3, 5),  # cut-offs of the metrics
    # The metrics: of "classification" in percent, or of "recommendation" as
    # fractions; see docs/recommendation.md
    "eval.figures": "classification",
    "eval.metric": "P@1",  # one of the metrics; the best checkpoint has most
    "checkpoint.every": auto(int),  # steps between checkpoints
    "checkpoint.keep": 2,  # newest ones kept, besides the best
    "checkpoint.keep_every": 0,  # steps of those always kept; 0 for none
    # Directory or bucket (gs://, s3://); empty: in the working directory
    "checkpoint.dir": "",
    # Adds power * log(1 / propensity) to logits
    "predict.propensity_power": auto(float),
    # Features of a row are no answers, where features and labels are the same
    # things with the same ids: what a user has is not recommended again
    "predict.exclude_seen": False,
    # Devices along the axes data and label; empty: all devices
    "mesh.shape": (),
  }


RANGES: checks.Ranges = {
  "train.batch_size": checks.Range(1, 2**20),
  "train.epochs": checks.Range(0, 1e6),
  "train.num_steps": checks.Range(0),
  "train.steps_before": checks.Range(0),
  "train.shuffle": checks.Range(0),
  "train.log_every": checks.Range(1),
  "train.skip_nonfinite": checks.Range(0),
  "eval.every": checks.Range(1),
  "eval.batch_size": checks.Range(1, 2**20),
  "eval.ks": checks.Range(1),
  "checkpoint.every": checks.Range(1),
  "checkpoint.keep": checks.Range(1),
  "checkpoint.keep_every": checks.Range(0),
  "predict.propensity_power": checks.Range(-100, 100),
  "mesh.shape": checks.Range(1),
}


def rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  """Values for fields that are left open."""
  rows = facts.num_rows
  by_example = bool(config.head.by_example)
  batch_size, epochs = {
    "network": (
      _power_of_two(rows / 50, 64, 1024),
      min(20.0, max(3.0, 20.0 * (25_000 / rows) ** 0.5)),
    ),
    "linear": (_power_of_two(rows / 20, 64, 4096) if by_example else 64, 2.0),
    "embedding": (512, 4.0),
    "image": (128, 30.0),
    "text": (512, 6.0),
  }[config.family]
  train = config.train
  steps = train.num_steps
  batch = batch_size if train.batch_size is None else train.batch_size
  if steps is None:
    wanted = epochs if train.epochs is None else train.epochs
    steps = _steps(config, wanted, batch)
  else:
    epochs = _epochs(config, steps, batch)
  power = 0.5
  if by_example or config.family in ("image", "text"):
    power = 0.0  # Steps by example do rare labels justice.
  elif config.family == "network" and facts.labels_per_row < 5:
    power = 1.0
  # Saving linear weights often would take longer than training them.
  saves = 5
  if config.family == "linear":
    saves = 1 if rows * facts.features_per_row < _FEW_ENTRIES else 2
  every = max(1, -(-steps // saves))
  return {
    "train.batch_size": batch_size,
    "train.epochs": epochs,
    "train.num_steps": steps,
    "eval.every": every,
    "checkpoint.every": every,
    "predict.propensity_power": power,
  }


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses values that cannot be used.

  Raises:
    ConfigError: Naming the field.
  """
  if len(config.mesh.shape) not in (0, 2):
    raise checks.ConfigError(
      f"mesh.shape is {tuple(config.mesh.shape)}; give two numbers, or none to"
      " use all devices"
    )
  if not config.eval.ks:
    raise checks.ConfigError(
      f"eval.ks is {config.eval.ks}; give cut-offs from 1 up"
    )
  check_cutoffs(config.eval.ks, config.data.num_labels)
  most = max(config.data.num_rows, _MOST_IN_BATCH)
  for name in ("train.batch_size", "eval.batch_size"):
    if checks.value_of(config, name) > most:
      raise checks.ConfigError(
        f"{name} is {checks.value_of(config, name)} for {config.data.num_rows}"
        f" rows; give at most {most}"
      )
  kinds = FIGURES[config.eval.figures]
  others = "eval.ks or eval.figures"
  if config.head.order == "none":
    kinds = tuple(kind for kind in kinds if kind not in _OF_COUNTS)
    others += ", or a head.order that counts labels"
  names = [f"{kind}@{k}" for kind in kinds for k in config.eval.ks]
  if config.eval.metric not in names:
    raise checks.ConfigError(
      f"eval.metric is {config.eval.metric!r}; use one of {', '.join(names)},"
      f" or another {others}"
    )
  if config.predict.exclude_seen:
    _check_ids_are_shared(config)
  if config.head.order == "none" and config.predict.propensity_power:
    raise checks.ConfigError(
      "predict.propensity_power needs counts of labels, and head.order is"
      " 'none'; set it to 0"
    )


def reopened(
  config: ml_collections.ConfigDict, begun: ml_collections.ConfigDict
) -> tuple[ml_collections.ConfigDict, ml_collections.ConfigDict]:
  """The configs with an open length, where another one is asked for.

  Args:
    config: A config, which may be the run's own with a field changed.
    begun: That of the run that goes on.

  Returns:
    The two. If `train.num_steps` is new it decides, otherwise `train.epochs`.
  """
  steps, epochs = (
    new not in (None, old)
    for new, old in (
      (config.train.num_steps, begun.train.num_steps),
      (config.train.epochs, begun.train.epochs),
    )
  )
  if not (steps or epochs):
    return config, begun
  config, begun = (
    ml_collections.ConfigDict(c.to_dict()) for c in (config, begun)
  )
  if not steps:
    config.train.num_steps = None
  elif not epochs:
    config.train.epochs = None
  begun.train.num_steps = begun.train.epochs = None
  return config, begun


def check_cutoffs(ks: Sequence[Any], num_labels: int) -> None:
  """Refuses cut-offs that `eval.ks` cannot have.

  Args:
    ks: The cut-offs.
    num_labels: How many labels there are.

  Raises:
    ConfigError: Naming them, and the greatest that will do.
  """
  values = {"eval.ks": tuple(ks)}
  checks.each(values, {"eval.ks": tuple}, {}, RANGES)
  most = max(num_labels, _MOST_OF_FEW)
  if max(ks, default=0) > most:
    raise checks.ConfigError(
      f"eval.ks is {tuple(ks)} for {num_labels} labels; give at most {most}"
    )


def _check_ids_are_shared(config: ml_collections.ConfigDict) -> None:
  """Refuses `predict.exclude_seen` where features cannot be labels."""
  data = config.data
  for field in ("dense", "text", "context", "renumber"):
    if data[field]:
      raise checks.ConfigError(
        "predict.exclude_seen needs sparse features with the ids of labels, and"
        f" data.{field} is {data[field]!r}; leave one of them out"
      )


def steps_per_epoch(config: ml_collections.ConfigDict) -> int:
  """Steps in which as many examples are seen as there are to train on."""
  rows = data_config.train_rows(config)
  return max(1, round(rows / config.train.batch_size))


def num_epochs(config: ml_collections.ConfigDict) -> float:
  """How often a run sees its training rows, whatever `train.epochs` says."""
  train = config.train
  if _steps(config, train.epochs, train.batch_size) == train.num_steps:
    return train.epochs
  return _epochs(config, train.num_steps, train.batch_size)


def _steps(
  config: ml_collections.ConfigDict, epochs: float, batch_size: int
) -> int:
  steps = round(epochs * data_config.train_rows(config) / max(batch_size, 1))
  return config.train.steps_before + max(min(1, math.ceil(epochs)), steps)


def _epochs(
  config: ml_collections.ConfigDict, steps: int, batch_size: int
) -> float:
  examples = (steps - config.train.steps_before) * batch_size
  epochs = examples / max(data_config.train_rows(config), 1)
  return float(f"{epochs:.5g}")


def _power_of_two(value: float, low: int, high: int) -> int:
  """The power of two nearest to `value` within the bounds."""
  return min(high, max(low, 2 ** round(math.log2(max(value, 1)))))
