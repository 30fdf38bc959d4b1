"""Label rows in factored form: `head.type` "spherical"."""

import ml_collections

from xlj.config import checks
from xlj.config import families
from xlj.config import losses
from xlj.config import options
from xlj.config.heads import dense
from xlj.heads.spherical import head as spherical


def _fields() -> options.Fields:
  return {
    # Steps after which V is multiplied out at the latest
    "head.refactor_every": 1000,
    # Share that a step has in the running mean of Gram matrices; 1: it alone
    "head.curvature_rate": 1.0,
  }


RANGES: checks.Ranges = {
  "head.refactor_every": checks.Range(1),
  "head.curvature_rate": checks.Range(0, 1, above=True),
}


def _rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  del facts
  loss = config.head.loss or "z_loss"
  return {
    "head.order": "frequency",
    "head.loss": loss,
    "head.init": "normal",
    "head.init_scale": 0.05,
    # The gradient of the Z-loss is small where rows are large.
    "optim.head.learning_rate": 30.0 if loss == "z_loss" else 1.0,
  }


def _make(config: ml_collections.ConfigDict) -> spherical.SphericalHead:
  head = config.head
  return spherical.SphericalHead(
    dense.label_rows(config), head.refactor_every, head.curvature_rate
  )


OPTION = options.Option(
  _make,
  reads=(
    *dense.ROWS,
    "head.blocks",
    "head.refactor_every",
    "head.curvature_rate",
  ),
  fields=_fields,
  rules=_rules,
  # Whose steps cost nothing per label only so.
  only={
    "head.wide": False,
    "head.cosine": False,
    "head.use_bias": False,
    "optim.head.name": "sgd",
  },
  losses=tuple(losses.SPHERICAL),
)
