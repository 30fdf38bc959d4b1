"""A row for each label: `head.type` "dense", and what others share of it."""

import dataclasses
from typing import Any

import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import encoders
from xlj.config import families
from xlj.config import losses
from xlj.config import optim
from xlj.config import options
from xlj.config import remedies
from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib
from xlj.heads.dense import wide as wide_lib
from xlj.heads.prototypes import head as prototypes
from xlj.losses import prototype_softmax
from xlj.ops import platform
from xlj.ops import row_format
from xlj.ops import row_optimizer

_MOST_BLOCKS = 1024  # of fewer labels than that
# What rows of labels read in every head that has them.
ROWS = (
  "head.init",
  "head.chunk_bytes",
  "head.cosine",
  "head.use_bias",
)
# Of rows that a step updates, in whatever format they are stored.
STORED = (
  "head.dtype",
  "head.rounding",
  "head.correction",
  "head.max_norm",
  "head.keep_logits",
  "head.skip_below",
)
# Of rows that may have a bias.
BIAS = ("head.prior_bias", "head.bias")
_WIDE = (
  "head.wide_pairs",
  "head.wide_work",
  "head.wide_evidence",
  "head.wide_per_feature",
  "head.wide_per_label",
  "optim.wide.learning_rate",
)
_BY_EXAMPLE = ("head.by_example", "head.negligible", "optim.wide.count_power")
_RIDGE = ("head.ridge", "head.ridge_power", "head.ridge_least_squares")
_TRANSITIONS = (
  "head.transitions_decay",
  "head.transitions_smoothing",
  "head.transition_pairs",
)
_TIED = ("head.sampled", "head.transitions", *_TRANSITIONS)
_PROTOTYPES = ("head.prototypes", "head.prototype_labels")


def fields() -> options.Fields:
  """All fields, with None for "decide from the data"."""
  auto = config_dict.placeholder
  return {
    "head.cosine": auto(bool),  # label rows count by their direction alone
    # Where label rows start; "ridge": with the bag and linear weights, at a
    # regression in closed form, see xlj.training.closed_form
    "head.init": auto(str),
    "head.ridge": 0.6,  # its penalty on squared weights
    # Its labels are divided by this power of how many rows have them
    "head.ridge_power": 0.2,
    # Weight of the least squares in the first directions, half as many then as
    # encoder.dim, added to it; 0 for none
    "head.ridge_least_squares": 0.0,
    "head.use_bias": auto(bool),  # whether labels have a bias
    "head.prior_bias": auto(bool),  # biases start at the labels' log odds
    "head.bias": auto(float),  # where they start otherwise
    # Pairs of a feature and a label that meet, of the block of labels with
    # most; found in the data
    "head.wide_pairs": auto(int),
    # Pairs that a pass may visit before any is dropped
    "head.wide_work": 20_000_000_000,
    # Beyond that, pairs are kept with at least such a sum of the feature's
    # squared values over the label's rows, where the mean row has length 1
    "head.wide_evidence": auto(float),
    # Most pairs of a feature, those with most evidence; 0 for all
    "head.wide_per_feature": 0,
    "head.wide_per_label": 0,  # most pairs of a label, likewise
    # A step of linear weights by each example, in place of one by the batch; by
    # default on CPUs, since accelerators would go through examples one by one
    "head.by_example": auto(bool),
    # Probability up to which a step leaves a label alone that an example lacks
    "head.negligible": auto(float),
    # Labels that a step draws for the softmax, beside those of its batch, where
    # the encoder reads their rows (encoder.tied); 0 for all
    "head.sampled": 0,
    # Beside such an encoder, weights of the labels that came after an item in
    # training are multiplied by this and added; 0 for none. They are counted,
    # not trained: see xlj.data.transitions
    "head.transitions": 0.0,
    # What an item of a sequence counts there, over what the one after it does
    "head.transitions_decay": 0.8,
    # More of it trusts rare items less
    "head.transitions_smoothing": 50.0,
    # Like head.wide_pairs
    "head.transition_pairs": auto(int),
    # Blocks of label rows; devices hold whole ones, and threads of a CPU share
    # those of steps by example
    "head.blocks": auto(int),
    "head.dtype": "float32",  # of the label rows
    "head.rounding": "stochastic",  # of narrow rows
    # Of rounding: "kahan" keeps what it took off, "master" keeps float32 rows
    # beside the narrow ones
    "head.correction": "none",
    "head.kahan_labels": 0,  # for the most frequent ones alone; 0 for all
    "head.max_norm": 0.0,  # greatest length of a label row; 0 for none
    "head.chunk_bytes": 0,  # of temporaries of a step; 0 for the default
    # Chunks of labels whose gradients are all smaller are left out
    "head.skip_below": 0.0,
    # "auto" for kernels on CUDA devices where they apply, not yet measured
    # there; "never" for XLA alone; "interpret" to try them anywhere
    "head.kernels": "never",
    # Logits are kept between the passes of a step; "" to form them again
    "head.keep_logits": "",
    # Rows of each of the first labels, the most frequent ones; see
    # xlj.heads.prototypes
    "head.prototypes": 1,
    "head.prototype_labels": auto(int),  # how many labels; a tenth of them
  }


RANGES: checks.Ranges = {
  "head.bias": checks.Range(-1e4, 1e4),
  "head.ridge": checks.Range(0, checks.LARGEST, above=True),
  "head.ridge_power": checks.Range(-2, 2),
  "head.ridge_least_squares": checks.Range(0, checks.LARGEST),
  "head.wide_pairs": checks.Range(0, 2**62),
  "head.wide_work": checks.Range(0, 2**62),
  "head.wide_evidence": checks.Range(0, checks.LARGEST),
  "head.wide_per_feature": checks.Range(0),
  "head.wide_per_label": checks.Range(0),
  "head.negligible": checks.RATE,
  "head.blocks": checks.Range(1),
  "head.sampled": checks.Range(0),
  "head.transitions": checks.Range(0, checks.LARGEST),
  "head.transition_pairs": checks.Range(0, 2**62),
  "head.transitions_decay": checks.Range(0, 1, above=True, below=True),
  "head.transitions_smoothing": checks.Range(0, checks.LARGEST, above=True),
  "head.kahan_labels": checks.Range(0),
  "head.max_norm": checks.Range(0, checks.LARGEST),
  "head.chunk_bytes": checks.Range(0, 2**62),
  "head.skip_below": checks.RATE,
  "head.prototypes": checks.Range(1, 1024),
  "head.prototype_labels": checks.Range(1),
}


def rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  """Values for fields that are left open, of all heads with label rows."""
  single = facts.labels_per_row <= 1
  cosine, init, init_scale, prior_bias, bias = {
    "network": (False, "normal", 0.02, True, 0.0),
    "linear": (False, "normal", 0.0, False, -6.0),
    "embedding": (True, "centroid", 1.0, False, 0.0),
    "image": (False, "normal", 0.02, not single, 0.0),
    "text": (
      *(True, "label_text" if facts.label_text else "centroid", 1.0),
      *(False, 0.0),
    ),
  }[config.family]
  return {
    "head.cosine": cosine,
    "head.init": init,
    "head.init_scale": init_scale,
    "head.use_bias": config.family != "text",
    "head.prior_bias": prior_bias,
    "head.bias": bias,
    "head.wide_pairs": 0,
    "head.transition_pairs": 0,
    "head.blocks": 64,
  }


def measured(config: ml_collections.ConfigDict) -> options.Fields:
  """Values for the rest of them, when features have been measured."""
  return {"head.wide_evidence": 0.09 / config.data.effective_features}


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses what no head with label rows can use.

  Raises:
    ConfigError: Naming the field.
  """
  most = max(config.data.num_labels, _MOST_BLOCKS)
  if (config.head.blocks or 0) > most:
    raise checks.ConfigError(
      f"head.blocks is {config.head.blocks} for {config.data.num_labels}"
      f" labels; give at most {most}"
    )
  if config.head.init == "label_text" and not config.data.text:
    raise checks.ConfigError(
      "head.init is 'label_text', and the data are no texts (data.text); use"
      " 'centroid'"
    )
  if config.head.init == "ridge":
    _check_ridge(config)
  if config.head.wide and config.data.dense:
    raise checks.ConfigError(
      "head.wide needs sparse features, and these are dense; set"
      " head.wide=False"
    )


def _check_ridge(config: ml_collections.ConfigDict) -> None:
  """Refuses what is not linear in the features, or has no such start."""
  for name, wanted in (
    ("data.dense", False),
    ("encoder.type", "bag"),
    ("encoder.hidden", ()),
    ("encoder.activation", ""),
    ("encoder.scale", 0.0),
    ("head.type", "dense"),
    ("head.cosine", False),
    ("head.prototypes", 1),
  ):
    value = checks.value_of(config, name)
    if value != wanted:
      raise checks.ConfigError(
        "head.init is 'ridge', which is of linear models of sparse features,"
        f" and {name} is {value!r}; set it to {wanted!r}, or head.init=normal"
      )
  if config.head.ridge_least_squares and config.encoder.dim % 2:
    raise checks.ConfigError(
      f"encoder.dim is {config.encoder.dim}, of which head.ridge_least_squares"
      " take half; give an even number"
    )


def label_rows(config: ml_collections.ConfigDict) -> dense.DenseHead:
  """Builds a head with a row for each label, without linear weights.

  Args:
    config: A resolved config.

  Returns:
    The head.
  """
  head = config.head
  rows = rows_lib.Rows(
    num_labels=config.data.num_labels,
    dim=encoders.width(config),
    optimizer=_row_optimizer(config),
    blocks=head.blocks,
    use_bias=head.use_bias,
    kahan_labels=head.kahan_labels,
    sampled=head.sampled,
    init_scale=head.init_scale or 0.0,
    init_bias=head.bias or 0.0,
    cosine=bool(head.cosine),
    memory=head.chunk_bytes or None,
    keep_logits=head.keep_logits or None,
    skip_below=head.skip_below,
  )
  loss = remedies.make_loss(config)
  return dense.DenseHead(rows, loss, kernels=head.kernels)


def with_rows(labels: dense.DenseHead, **fields: Any) -> dense.DenseHead:
  """A dense head with other fields of what it stores of labels."""
  rows = dataclasses.replace(labels.label_rows, **fields)
  return dataclasses.replace(labels, label_rows=rows)


def _make(
  config: ml_collections.ConfigDict,
) -> dense.DenseHead | prototypes.PrototypeHead:
  head, labels = config.head, label_rows(config)
  if head.transitions:
    return with_rows(
      labels,
      wide_features=config.data.num_features,
      wide_pairs=head.transition_pairs,
    )
  if head.wide:
    rate = optim.schedule_of(config, config.optim.wide)
    labels = with_rows(
      labels,
      wide_features=config.data.num_features,
      wide_pairs=head.wide_pairs,
    )
    if head.by_example:
      bias = optim.schedule_of(config, config.optim.head)
      by_example = wide_lib.ByExample(bias, head.negligible)
      return dataclasses.replace(
        labels, wide_learning_rate=rate, by_example=by_example
      )
    # The head's loss is a mean; this rate is for the sum over the batch.
    return dataclasses.replace(
      labels,
      wide_learning_rate=lambda step: config.train.batch_size * rate(step),
    )
  if head.prototypes == 1:
    return labels
  decoupled = head.loss == "decoupled_softmax"
  num_labels = config.data.num_labels
  more = head.prototype_labels * (head.prototypes - 1)
  by_row = dataclasses.replace(
    with_rows(labels, num_labels=num_labels + more),
    loss=prototype_softmax.PrototypeSoftmax(head.prototypes, decoupled),
  )
  return prototypes.PrototypeHead(by_row, num_labels)


def _row_optimizer(
  config: ml_collections.ConfigDict,
) -> row_optimizer.RowOptimizer:
  """How label rows are stored and updated."""
  head, settings = config.head, config.optim.head
  plain = None
  if settings.name == "sgd":
    schedule = optim.schedule_of(config, settings)
    plain = row_optimizer.Sgd(schedule, settings.weight_decay)
  return row_optimizer.RowOptimizer(
    optim.transformation(config, settings),
    dtype=head.dtype,
    rounding=head.rounding,
    correction=head.correction,
    max_norm=head.max_norm or None,
    seed=config.seed,
    plain=plain,
  )


def _rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  by_example = config.head.by_example
  if by_example is None:  # examples, one after another, are a CPU's
    by_example = not _not_alone(config) and platform.current() == "cpu"
  return {
    "head.order": "frequency",
    "head.by_example": by_example,
    "head.blocks": _blocks(facts.num_labels) if by_example else 64,
    # Eight times where labels start, with a bias of -6.
    "head.negligible": 0.02,
    "head.prototype_labels": max(1, facts.num_labels // 10),
  }


def _blocks(num_labels: int) -> int:
  """Blocks of steps by example.

  An example takes a while for every block, however few its pairs; but threads
  share them out, and rows should be few enough for numbers of 16 bits.
  """
  least = 8 if num_labels < 2**15 else 16
  return max(least, 1 << ((num_labels - 1) >> 16).bit_length())


# What a step by example goes with: labels learn from an example without looking
# at others. None is decided later, in its favour.
_ALONE: dict[str, tuple[Any, ...]] = {
  "head.wide": (True, None),
  "encoder.dim": (0,),
  "head.use_bias": (True, None),
  "head.loss": ("bce", None),
  "missing.method": ("an",),
  "noisy.method": ("none",),
  "tail.weights": ("none",),
  "tail.adjustment": (0.0,),
}


def _not_alone(config: ml_collections.ConfigDict) -> list[str]:
  """The fields that steps by example do not go with."""
  found = [
    name
    for name, values in _ALONE.items()
    if checks.value_of(config, name) not in values
  ]
  # Rates go by the counts of labels.
  return [*found, *(["head.order"] if config.head.order == "none" else [])]


def _check_by_example(config: ml_collections.ConfigDict) -> None:
  """Refuses what does not go with a step by each example."""
  if not config.head.by_example:
    return
  for name in _not_alone(config):
    raise checks.ConfigError(
      "head.by_example needs linear weights (head.wide) and biases alone,"
      " counts of labels, the loss 'bce' and no remedy, and does not go with"
      f" {name} {checks.value_of(config, name)!r}; set head.by_example=False"
    )


def _check(config: ml_collections.ConfigDict) -> None:
  """Refuses what does not go with several rows of a label."""
  _check_by_example(config)
  head, count = config.head, config.data.num_labels
  if head.prototypes == 1:
    return
  for name, value, wanted in (
    ("head.loss", head.loss, ("softmax", "decoupled_softmax")),
    ("head.wide", head.wide, (False,)),
    ("noisy.method", config.noisy.method, ("none",)),
    ("tail.adjustment", config.tail.adjustment, (0.0,)),
  ):
    if value not in wanted:
      raise checks.ConfigError(
        f"head.prototypes is {head.prototypes}, which does not go with {name}"
        f" {value!r}; use {' or '.join(map(repr, wanted))}, or"
        " head.prototypes=1"
      )
  if head.prototype_labels > count:
    raise checks.ConfigError(
      f"head.prototype_labels is {head.prototype_labels}; it must be in [1,"
      f" {count}]"
    )


OPTION = options.Option(
  _make,
  reads=(
    *ROWS,
    *STORED,
    *BIAS,
    *_WIDE,
    *_PROTOTYPES,
    *_TIED,
    "head.blocks",
    "head.kahan_labels",
    "head.kernels",
    *_BY_EXAMPLE,
  ),
  fields=fields,
  rules=_rules,
  losses=tuple(losses.LOSSES),
  check=_check,
)
CHOICES = {
  "head.init": ("normal", "centroid", "label_text", "ridge"),
  "head.dtype": row_format.DTYPES,
  "head.rounding": row_optimizer.ROUNDINGS,
  "head.correction": row_optimizer.CORRECTIONS,
  "head.kernels": ("never", "auto", "interpret"),
  "head.keep_logits": ("", "float16", "bfloat16", "float32"),
}
SWITCHES = (
  options.unless("head.wide", False, *_WIDE),
  options.unless("head.by_example", False, *_BY_EXAMPLE[1:]),
  options.unless("head.use_bias", False, *BIAS),
  options.unless("encoder.tied", False, *_TIED),
  options.unless("head.transitions", 0.0, *_TRANSITIONS),
  options.unless("head.prototypes", 1, "head.prototype_labels"),
  options.by_name(
    "head.init",
    {
      "normal": (),
      "centroid": (),
      "label_text": (),
      "ridge": _RIDGE,
    },
  ),
  options.unless("head.dtype", "float32", "head.rounding", "head.correction"),
  options.by_name(
    "head.correction",
    {"none": (), "kahan": ("head.kahan_labels",), "master": ()},
  ),
  # A linear model has no rows of embeddings.
  options.unless(
    "encoder.dim",
    0,
    "head.init",
    "head.init_scale",
    *_RIDGE,
    "head.cosine",
    "head.dtype",
    "head.max_norm",
  ),
)
