"""The section `neighbours`: training rows that predictions listen to."""

import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import families
from xlj.config import options

_MOST_ROWS = 50_000  # with which an example is compared unasked
CHOICES: dict[str, tuple[str, ...]] = {}
SWITCHES = (
  options.unless(
    "neighbours.count", 0, "neighbours.weight", "neighbours.temperature"
  ),
)


def fields() -> options.Fields:
  """All fields, with None for "decide from the data"."""
  return {
    # Training rows nearest to an example, whose labels gain; 0 for none. See
    # xlj.model.neighbours
    "neighbours.count": config_dict.placeholder(int),
    "neighbours.weight": 0.3,  # what their labels gain is multiplied by
    "neighbours.temperature": 0.05,  # that cosines are divided by
  }


RANGES: checks.Ranges = {
  "neighbours.count": checks.Range(0),
  "neighbours.weight": checks.Range(0),
  "neighbours.temperature": checks.Range(0, above=True),
}


def rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  """Values for fields that are left open.

  Held-out rows of bibtex and delicious (4 seeds each) gained 0.1 and 0.6 points
  of P@1, P@3 and P@5 by 32 rows, and no more by 64 or 100.
  """
  few = facts.num_rows <= _MOST_ROWS and not facts.dense
  known = config.family == "network" and _has_rows(config)
  return {"neighbours.count": 32 if known and few else 0}


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses values that cannot be used.

  Raises:
    ConfigError: Naming the field.
  """
  if config.neighbours.count and config.data.dense:
    raise checks.ConfigError(
      f"neighbours.count is {config.neighbours.count} and the features are"
      " dense; only sparse rows are compared, so leave it out"
    )
  if config.neighbours.count and not _has_rows(config):
    raise checks.ConfigError(
      f"neighbours.count is {config.neighbours.count}, and labels are not one"
      " row each; it needs head.type='dense' and head.prototypes=1"
    )


def _has_rows(config: ml_collections.ConfigDict) -> bool:
  """Whether each label is one row, whose logit can gain by an example."""
  return config.head.type == "dense" and config.head.prototypes == 1
