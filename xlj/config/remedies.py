"""Remedies: sections `missing`, `noisy`, `tail` and `range`."""

import functools
import math
from typing import Any

import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import data as data_config
from xlj.config import families
from xlj.config import losses
from xlj.config import options
from xlj.config import training
from xlj.losses import assume_negative
from xlj.losses import large_loss
from xlj.losses import logit_adjustment
from xlj.losses import remembered
from xlj.losses import role
from xlj.losses import weighted_bce
from xlj.ops import loss as loss_lib


def fields() -> options.Fields:
  """All fields, with None for "decide from the data"."""
  return {
    # Where labels are missing: what an unobserved one counts for
    "missing.method": "an",
    # Labels to modify in a step, of each example and grown with each epoch
    "missing.per_example": 0.2,
    # In place of that, of all labels of a batch; 0 for none
    "missing.share": 0.0,
    # In place of both, the loss from which on labels are modified; 0 for none
    "missing.threshold": 0.0,
    "missing.decay": 0.0,  # by which the threshold falls with each epoch
    "missing.smoothing": 0.1,  # how far targets are from 0 and 1
    # Positives of an example on average, observed or not
    "missing.positives": 0.0,
    # Estimates kept of each example; by default as many as positives
    "missing.remembered": config_dict.placeholder(int),
    "missing.rate": 10.0,  # learning rate of the estimates
    # Where labels are wrong: what is held against them; see
    # xlj.losses.remembered
    "noisy.method": "none",
    "noisy.remembered": 16,  # labels kept of each training example
    "noisy.strength": 3.0,  # weight of the term beside the loss
    "noisy.momentum": 0.7,  # of what is remembered
    "noisy.last": 0.8,  # share of what was predicted, in the last epoch
    # Where labels are rare: how examples are drawn
    "tail.sampler": "instance",
    "tail.weights": "none",  # of positives
    # More than 1 / (1 - beta) examples weigh no less
    "tail.beta": 0.9,
    "tail.adjustment": 0.0,  # of logits, by so many times the log prior
    # Terms on the embeddings of a batch, see xlj.losses.range_loss:
    "range.intra": 0.0,  # weight of the widest pairs of each label
    "range.inter": 0.0,  # weight of the two nearest labels
    "range.margin": 1.0,  # squared distance of those
    "range.farthest": 2,  # pairs of a label
  }


RANGES: checks.Ranges = {
  "missing.per_example": checks.Range(0),
  "missing.share": checks.SHARE,
  "missing.threshold": checks.Range(0, 1e4),
  "missing.decay": checks.Range(0, 1e4),
  "missing.smoothing": checks.SHARE,
  "missing.positives": checks.Range(0),
  "missing.remembered": checks.Range(1),
  "missing.rate": checks.Range(0, 1e6),
  "noisy.remembered": checks.Range(1),
  "noisy.strength": checks.Range(0, 1e6),
  "noisy.momentum": checks.RATE,
  "noisy.last": checks.SHARE,
  "tail.beta": checks.RATE,
  "tail.adjustment": checks.Range(0, 100),
  "range.intra": checks.Range(0, 1e6),
  "range.inter": checks.Range(0, 1e6),
  "range.margin": checks.Range(0, 1e6),
  "range.farthest": checks.Range(1),
}


def rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  """Values for fields that are left open."""
  del facts
  return {"missing.remembered": max(1, math.ceil(config.missing.positives))}


def make_loss(config: ml_collections.ConfigDict) -> loss_lib.Loss:
  """Builds the loss, with what is done about labels.

  Args:
    config: A resolved config whose head has one of `losses.LOSSES`.

  Returns:
    The loss of `head.loss`, or what a remedy has in its place.
  """
  loss = losses.make(config)
  for method, table in (
    (config.missing.method, MISSING),
    (config.noisy.method, NOISY),
    (config.tail.weights, WEIGHTS),
  ):
    if table[method] is not _NOTHING:
      loss = table[method].make(config)
  if config.tail.adjustment:
    loss = logit_adjustment.LogitAdjustment(config.tail.adjustment, loss)
  return loss


def num_remembered(config: ml_collections.ConfigDict) -> int:
  """How many labels of each training example the loss remembers."""
  if config.noisy.method != "none":
    return config.noisy.remembered
  if config.missing.method != "role":
    return 0
  return min(config.missing.remembered, config.data.num_labels)


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses remedies that do not go with the head, the loss or each other.

  Raises:
    ConfigError: Naming the field.
  """
  missing, noisy, tail = config.missing, config.noisy, config.tail
  kind, loss = config.head.type, config.head.loss
  needs = (
    ("missing.method", missing.method, "an", "bce"),
    ("noisy.method", noisy.method, "none", "softmax"),
    ("tail.weights", tail.weights, "none", "bce"),
  )
  chosen = []
  for name, value, nothing, wanted in needs:
    if value == nothing:
      continue
    chosen.append(f"{name}={value}")
    if loss != wanted or kind == "mhp":
      raise checks.ConfigError(
        f"{name} is {value!r}, but head.loss is {loss!r} and head.type is"
        f" {kind!r}; set head.loss={wanted} and another type than mhp"
      )
  if len(chosen) > 1:
    raise checks.ConfigError(
      f"{' and '.join(chosen)} do not go together; set one"
    )
  if missing.method.startswith("ll_"):
    _check_large_loss(config)
  if missing.method == "role":
    if kind != "dense":
      raise checks.ConfigError(
        f"missing.method is 'role' and head.type is {kind!r}; it needs dense"
      )
    count = config.data.num_labels
    if not 0 < missing.positives <= count:
      raise checks.ConfigError(
        f"missing.positives is {missing.positives}; set it above 0 and to at"
        f" most {count}: positives that an example has on average, observed or"
        " not"
      )
  if noisy.method != "none":
    if kind != "dense":
      raise checks.ConfigError(
        f"noisy.method is {noisy.method!r}, which needs head.type=dense"
      )
    most = max(config.data.num_labels, fields()["noisy.remembered"])
    if noisy.remembered > most:
      raise checks.ConfigError(
        f"noisy.remembered is {noisy.remembered} for {config.data.num_labels}"
        f" labels; give at most {most}"
      )
  if tail.weights != "none" or tail.adjustment:
    if config.head.order == "none":
      raise checks.ConfigError(
        "tail.weights and tail.adjustment need counts of labels, and head.order"
        " is 'none'; set them to none and 0"
      )
    if kind != "dense":
      raise checks.ConfigError(
        f"tail.weights is {tail.weights!r} and tail.adjustment"
        f" {tail.adjustment}, which need head.type=dense"
      )
  if config.range.intra or config.range.inter:
    _check_range(config)


def _check_large_loss(config: ml_collections.ConfigDict) -> None:
  missing, kind = config.missing, config.head.type
  given = [n for n in ("share", "threshold") if missing[n] > 0]
  if len(given) > 1:
    raise checks.ConfigError(
      "missing.share and missing.threshold: set one of them"
    )
  if kind != "dense" and not missing.threshold > 0:
    raise checks.ConfigError(
      f"missing.method is {missing.method!r} and head.type is {kind!r}, which"
      " sees a part of the labels; set missing.threshold"
    )
  if not (given or missing.per_example > 0):
    raise checks.ConfigError(
      f"missing.per_example is {missing.per_example}; it must be above 0"
    )


def _check_range(config: ml_collections.ConfigDict) -> None:
  """Refuses a range loss of what has no embeddings, or no one label."""
  values = config.range
  if not config.encoder.dim:
    raise checks.ConfigError(
      f"range.intra is {values.intra} and range.inter {values.inter}, which"
      " need embeddings, and encoder.dim is 0; set it"
    )
  if not data_config.has_one_label(config):
    raise checks.ConfigError(
      f"range.intra is {values.intra} and range.inter {values.inter}, which are"
      " for one label per example, and some rows have more; set"
      " data.max_labels=1 to train with the first of each"
    )


def _num_epochs(config: ml_collections.ConfigDict) -> int:
  return -(-config.train.num_steps // training.steps_per_epoch(config))


def _large_loss(
  scheme: str, config: ml_collections.ConfigDict
) -> large_loss.LargeLoss:
  missing = config.missing
  ways = ("threshold", "share", "per_example")
  way = next((w for w in ways if missing[w] > 0), ways[-1])
  schedule = large_loss.Schedule(
    training.steps_per_epoch(config),
    _num_epochs(config),
    **{way: missing[way]},
    decay=missing.decay,
    grows=scheme != "correct_forever",
  )
  return large_loss.LargeLoss(schedule, config.data.num_labels, scheme)


def _weak_negatives(
  config: ml_collections.ConfigDict,
) -> assume_negative.AssumeNegative:
  weight = 1 / max(1, config.data.num_labels - 1)
  return assume_negative.AssumeNegative(weight)


def _role(config: ml_collections.ConfigDict) -> role.OnlineEstimation:
  return role.OnlineEstimation(
    config.data.num_labels,
    config.missing.positives,
    num_remembered(config),
    rate=config.missing.rate,
  )


def _early_learning(
  config: ml_collections.ConfigDict,
) -> remembered.EarlyLearning:
  noisy = config.noisy
  return remembered.EarlyLearning(
    noisy.remembered, noisy.strength, noisy.momentum
  )


def _self_distillation(
  config: ml_collections.ConfigDict,
) -> remembered.SelfDistillation:
  return remembered.SelfDistillation(
    config.noisy.remembered,
    config.noisy.last,
    training.steps_per_epoch(config),
    _num_epochs(config),
  )


def _weighted(_: Any) -> weighted_bce.WeightedBinaryCrossEntropy:
  return weighted_bce.WeightedBinaryCrossEntropy()


_NOTHING = options.Option(losses.make)
_WAYS = ("missing.per_example", "missing.share")
_FALLING = ("missing.threshold", "missing.decay")
# Tables of remedies: losses in the place of `head.loss`.
MISSING = {
  "an": _NOTHING,
  "wan": options.Option(_weak_negatives),
  "lsan": options.Option(
    lambda c: assume_negative.AssumeNegative(smoothing=c.missing.smoothing),
    reads=("missing.smoothing",),
  ),
  "iu": options.Option(lambda _: assume_negative.AssumeNegative(0.0)),
  "ll_r": options.Option(
    functools.partial(_large_loss, "reject"), reads=_WAYS + _FALLING
  ),
  "ll_ct": options.Option(
    functools.partial(_large_loss, "correct"), reads=_WAYS + _FALLING
  ),
  "ll_cp": options.Option(
    functools.partial(_large_loss, "correct_forever"), reads=_WAYS
  ),
  "role": options.Option(
    _role,
    reads=("missing.positives", "missing.remembered", "missing.rate"),
  ),
}
NOISY = {
  "none": _NOTHING,
  "elr": options.Option(
    _early_learning,
    reads=("noisy.remembered", "noisy.strength", "noisy.momentum"),
  ),
  "ps_kd": options.Option(
    _self_distillation, reads=("noisy.remembered", "noisy.last")
  ),
}
WEIGHTS = {
  "none": _NOTHING,
  "propensity": options.Option(_weighted),
  "class_balanced": options.Option(_weighted, reads=("tail.beta",)),
}
CHOICES = {
  "missing.method": tuple(MISSING),
  "noisy.method": tuple(NOISY),
  "tail.sampler": ("instance", "class_aware", "square_root"),
  "tail.weights": tuple(WEIGHTS),
}
SWITCHES = (
  options.by_table("missing.method", MISSING),
  options.by_table("noisy.method", NOISY),
  options.by_table("tail.weights", WEIGHTS),
  options.unless("range.intra", 0, "range.farthest"),
  options.unless("range.inter", 0, "range.margin"),
)
