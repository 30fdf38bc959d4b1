"""A memory of centroids beside the rows of labels: `head.type` "oltr"."""

import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import families
from xlj.config import optim
from xlj.config import options
from xlj.config import training
from xlj.config.heads import dense
from xlj.heads.oltr import head as oltr
from xlj.heads.oltr import meta_embedding


def _fields() -> options.Fields:
  return {
    "oltr.tied": False,  # label rows are the memory
    # Labels have keys that are trained; or else the memory is its own key
    "oltr.own_keys": True,
    "oltr.attend_to": 0,  # the best so many keys; 0 for all
    # Of cosine logits; by default by the number of labels
    "oltr.scale": config_dict.placeholder(float),
    "oltr.reach": 10.0,  # factor of the inverse distance to the memory
    # Of the loss that draws embeddings to their centroids
    "oltr.centre_weight": 0.01,
    "oltr.centre_rate": 0.01,  # of the memory's steps to its examples
    # Epochs after which the memory is set to all examples' means; 0 for never
    "oltr.recentre_every": 0.0,
    # Within that loss, of the hinge on distances to other centroids
    "oltr.repel_weight": 0.01,
    "oltr.margin": 10.0,  # mean squared distance from which on the hinge is 0
  }


RANGES: checks.Ranges = {
  "oltr.attend_to": checks.Range(0),
  "oltr.scale": checks.Range(0, 1e6, above=True),
  "oltr.reach": checks.Range(0, 1e6, above=True),
  "oltr.centre_weight": checks.Range(0, 1e6),
  "oltr.centre_rate": checks.SHARE,
  "oltr.recentre_every": checks.Range(0),
  "oltr.repel_weight": checks.Range(0, 1e6),
  "oltr.margin": checks.Range(0, 1e6),
}


def _rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  del config
  return {
    "head.order": "frequency",
    "oltr.scale": meta_embedding.cosine_scale(facts.num_labels),
  }


def _check(config: ml_collections.ConfigDict) -> None:
  head, settings = config.head, config.oltr
  if settings.tied and head.dtype != "float32":
    raise checks.ConfigError(
      f"oltr.tied is True and head.dtype is {head.dtype!r}; set it to 'float32'"
    )
  if settings.tied and settings.recentre_every:
    raise checks.ConfigError(
      f"oltr.recentre_every is {settings.recentre_every}, which would replace"
      " the label rows where oltr.tied is True; set one of them"
    )


def _make(config: ml_collections.ConfigDict) -> oltr.OltrHead:
  settings = config.oltr
  return oltr.OltrHead(
    dense.label_rows(config),
    optim.transformation(config, config.optim.head),
    settings.scale,
    tied=settings.tied,
    own_keys=settings.own_keys,
    attend_to=settings.attend_to,
    reach=settings.reach,
    centre_weight=settings.centre_weight,
    centre_rate=settings.centre_rate,
    repel_weight=settings.repel_weight,
    margin=settings.margin,
  )


def recentre_every(config: ml_collections.ConfigDict) -> int:
  """Steps after which the memory of "oltr" is recomputed; 0 for never."""
  epochs = config.oltr.recentre_every
  if not epochs:
    return 0
  return max(1, round(epochs * training.steps_per_epoch(config)))


OPTION = options.Option(
  _make,
  reads=(
    *dense.ROWS,
    *dense.STORED,
    "head.blocks",
    "head.kahan_labels",
    *_fields(),
  ),
  fields=_fields,
  rules=_rules,
  only={
    "head.wide": False,
    "head.loss": "softmax",
    "head.cosine": True,
    "head.use_bias": False,
  },
  losses=("softmax",),
  check=_check,
)
# Rows that are the memory move by their gradient.
SWITCHES = (options.unless("oltr.tied", True, "oltr.centre_rate"),)
