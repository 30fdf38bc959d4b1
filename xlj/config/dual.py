"""The section `dual`: an encoder that learns from texts of labels, too."""

import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import families
from xlj.config import options

_TRIPLET = ("dual.margin", "dual.least_margin", "dual.hardest")
_LOSSES = {
  "none": (),
  "softmax": ("dual.correct",),
  "decoupled_softmax": (),
  "triplet": _TRIPLET,
}
_SELF = (
  "dual.self_temperature",
  "dual.self_labels",
  "dual.self_masks",
  "dual.self_dropout",
)


def fields() -> options.Fields:
  """All fields, with None for "decide from the data"."""
  auto = config_dict.placeholder
  return {
    # Loss of examples and texts of labels, of cosines; see
    # xlj.losses.contrastive
    "dual.loss": "none",
    "dual.weight": 1.0,  # of that loss beside the head's
    # Whether the head learns, too; otherwise its rows are embedded label texts
    "dual.head": True,
    "dual.temperature": auto(float),  # that cosines are divided by
    "dual.correct": False,  # less for labels that are often candidates
    # Greatest margin between a positive and a negative
    "dual.margin": 0.3,
    # Above 0 margins are the distance of the pair, and at least this
    "dual.least_margin": 0.0,
    "dual.hardest": 10,  # negatives of an example that count
    "dual.queries": 0.0,  # weight of the same loss from labels to examples
    # Labels of high score that an example lacks: candidates, too
    "dual.negatives": 0,
    # Steps after which they are looked for again; 0 for those of an epoch
    "dual.refresh": 0,
    # Weight of the loss on two views of texts of labels; see xlj.model.dual
    "dual.self_weight": 0.0,
    "dual.self_temperature": 0.07,  # that cosines are divided by there
    # Texts drawn for a step, all with equal chances; 0 for as many as examples
    "dual.self_labels": 0,
    # How features are dealt out to views: each by itself, or "correlated" ones
    # together
    "dual.self_masks": "random",
    "dual.self_dropout": 0.0,  # of the features of a view
  }


RANGES: checks.Ranges = {
  "dual.weight": checks.Range(0, 1e6),
  "dual.temperature": checks.Range(1e-4, 1e4),
  "dual.margin": checks.Range(0, 2),
  "dual.least_margin": checks.Range(0, 2),
  "dual.hardest": checks.Range(1),
  "dual.queries": checks.Range(0, 1e6),
  "dual.negatives": checks.Range(0, 1024),
  "dual.refresh": checks.Range(0),
  "dual.self_weight": checks.Range(0, 1e6),
  "dual.self_temperature": checks.Range(1e-4, 1e4),
  "dual.self_labels": checks.Range(0, 2**20),
  "dual.self_dropout": checks.RATE,
}
CHOICES = {
  "dual.loss": tuple(_LOSSES),
  "dual.self_masks": ("random", "correlated"),
}
SWITCHES = (
  options.unless("dual.loss", "none", *(set(fields()) - {"dual.loss"})),
  options.by_name("dual.loss", _LOSSES),
  options.unless("dual.negatives", 0, "dual.refresh"),
  options.unless("dual.self_weight", 0, *_SELF),
)


def has_learned_rows(config: ml_collections.ConfigDict) -> bool:
  """Whether label rows are learned, and not embedded texts of labels."""
  return config.dual.loss == "none" or config.dual.head


def num_negatives(config: ml_collections.ConfigDict) -> int:
  """How many hard negatives are kept of each training example."""
  return 0 if config.dual.loss == "none" else config.dual.negatives


def rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  """Values for fields that are left open."""
  del facts
  if config.dual.loss == "none":
    return {}
  triplet = config.dual.loss == "triplet"
  values: options.Fields = {
    "dual.temperature": 0.1 if triplet else 0.05,
    "head.init": "label_text",
  }
  if not has_learned_rows(config):
    # Scores are cosines, which nothing is to be added to.
    values |= {
      "head.prior_bias": False,
      "head.bias": 0.0,
      "predict.propensity_power": 0.0,
      "neighbours.count": 0,
    }
  return values


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses values that cannot be used.

  Raises:
    ConfigError: Naming the field.
  """
  dual, head = config.dual, config.head
  if dual.loss == "none":
    return
  if not config.data.text:
    raise checks.ConfigError(
      f"dual.loss is {dual.loss!r}, and the data are no texts (data.text); it"
      " needs texts of labels, so leave it out"
    )
  if not config.encoder.dim:
    raise checks.ConfigError(
      f"dual.loss is {dual.loss!r}, and there is no encoder; set encoder.dim"
    )
  if dual.least_margin > dual.margin:
    raise checks.ConfigError(
      f"dual.least_margin is {dual.least_margin}; it must be at most"
      f" dual.margin, {dual.margin}"
    )
  if not dual.head and (head.type != "dense" or head.prototypes != 1):
    raise checks.ConfigError(
      "dual.head is False, and labels are not one row each; it needs"
      " head.type='dense' and head.prototypes=1"
    )
