"""A causal transformer over sequences of items: `encoder.type` "causal"."""

from flax import nnx
import ml_collections

from xlj.config import checks
from xlj.config import families
from xlj.config import options
from xlj.encoders import causal


def _make(
  config: ml_collections.ConfigDict, rngs: nnx.Rngs
) -> causal.CausalTransformer:
  encoder = config.encoder
  return causal.CausalTransformer(
    config.data.num_features,
    encoder.dim,
    depth=encoder.depth,
    heads=encoder.heads,
    positions=encoder.sizes.positions,
    tied=encoder.tied,
    hidden_dropout=encoder.hidden_dropout,
    embedding_dropout=encoder.embedding_dropout,
    rngs=rngs,
  )


def _rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  del config, facts
  return {
    "encoder.dim": 64,
    "encoder.depth": 2,
    "encoder.sizes.positions": 50,
    "encoder.embedding_dropout": 0.0,
    # An item counts as it stands.
    "data.weighting": "none",
    "data.l2": False,
    "optim.encoder.learning_rate": 1e-3,
    "optim.head.learning_rate": 1e-3,
    "train.by_length": True,
  }


def _check(config: ml_collections.ConfigDict) -> None:
  """Refuses sequences that are none, and what does not go with them."""
  encoder = config.encoder
  if not config.data.sequences:
    raise checks.ConfigError(
      "encoder.type is 'causal', which reads sequences of items, and"
      " data.sequences names no file of them; set it, or encoder.type=bag"
    )
  check_in_order(config, "items")
  if encoder.tied:
    _check_tied(config)
  if not encoder.dim or encoder.dim % encoder.heads:
    raise checks.ConfigError(
      f"encoder.dim is {encoder.dim} and encoder.heads {encoder.heads}; set a"
      " width that the heads divide"
    )


def _check_tied(config: ml_collections.ConfigDict) -> None:
  """Refuses label rows that an encoder cannot read while they are trained."""
  for name, wanted in (
    ("head.type", "dense"),
    ("head.prototypes", 1),
    ("head.dtype", "float32"),
    ("noisy.method", "none"),
    ("data.renumber", False),
  ):
    value = checks.value_of(config, name)
    if value != wanted:
      raise checks.ConfigError(
        f"encoder.tied reads the rows of labels, and {name} is {value!r}; set"
        f" it to {wanted!r}, or encoder.tied=False"
      )
  if config.head.sampled and config.head.loss != "softmax":
    raise checks.ConfigError(
      f"head.sampled is {config.head.sampled}, and the loss"
      f" {config.head.loss!r} is of all labels; set head.loss=softmax, or"
      " head.sampled=0"
    )


def check_in_order(config: ml_collections.ConfigDict, what: str) -> None:
  """Refuses what does not go with features whose order counts.

  Args:
    config: A config.
    what: Features are.

  Raises:
    ConfigError: Naming the field.
  """
  data, kind = config.data, config.encoder.type
  if data.weighting not in (None, "none") or data.l2:
    raise checks.ConfigError(
      f"data.weighting is {data.weighting!r} and data.l2 {data.l2}, of {what}"
      f" that encoder.type={kind!r} reads as they stand; leave them out"
    )
  if config.head.wide or config.neighbours.count:
    raise checks.ConfigError(
      f"head.wide is {config.head.wide} and neighbours.count"
      f" {config.neighbours.count}, which are of features that have no order,"
      f" and encoder.type={kind!r} reads {what} that do; leave them out"
    )


OPTION = options.Option(
  _make,
  reads=(
    "encoder.depth",
    "encoder.heads",
    "encoder.hidden_dropout",
    "encoder.sizes.positions",
    "encoder.tied",
    "train.by_length",
  ),
  rules=_rules,
  check=_check,
)
