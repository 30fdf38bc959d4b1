"""The losses that `head.loss` may name, and the fields that are theirs."""

from collections.abc import Callable

import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import families
from xlj.config import options
from xlj.heads.product import head as product
from xlj.losses import asymmetric
from xlj.losses import bce
from xlj.losses import decoupled_softmax
from xlj.losses import focal
from xlj.losses import softmax
from xlj.losses import spherical
from xlj.losses import squared_hinge
from xlj.ops import loss as loss_lib


def fields() -> options.Fields:
  """All fields, with None for "decide from the data"."""
  auto = config_dict.placeholder
  return {
    # How sharp the threshold is; see xlj.losses.spherical
    "head.z_sharpness": 1.0,
    # Deviations that a positive has to reach; by default those that 5 normal
    # ones of all labels exceed
    "head.z_threshold": auto(float),
    "head.gramian_weight": 10.0,  # of the mean squared logit of all labels
  }


RANGES: checks.Ranges = {
  "head.z_sharpness": checks.Range(0, 1e3, above=True),
  "head.z_threshold": checks.Range(-1e4, 1e4),
  "head.gramian_weight": checks.Range(0, 1e6),
}


def rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  """Values for fields that are left open."""
  del config
  threshold = spherical.threshold_of(facts.num_labels)
  return {"head.z_threshold": threshold}


def make(config: ml_collections.ConfigDict) -> loss_lib.Loss:
  """Builds the loss of `head.loss`, for heads that have one of `LOSSES`."""
  return LOSSES[config.head.loss].make(config)


def _spherical(
  make_sums: Callable[[ml_collections.ConfigDict], spherical.FunctionOfSums],
  *reads: str,
) -> options.Option:
  return options.Option(
    lambda config: spherical.Spherical(make_sums(config)), reads
  )


# Of nothing but the logits and the positives.
PLAIN = {
  "softmax": options.Option(lambda _: softmax.Softmax()),
  "bce": options.Option(lambda _: bce.BinaryCrossEntropy()),
  "decoupled_softmax": options.Option(
    lambda _: decoupled_softmax.DecoupledSoftmax()
  ),
  "focal": options.Option(lambda _: focal.Focal()),
  "asymmetric": options.Option(lambda _: asymmetric.Asymmetric()),
  "squared_hinge": options.Option(lambda _: squared_hinge.SquaredHinge()),
}
# Of the positives' logits and sums over all.
SPHERICAL = {
  "z_loss": _spherical(
    lambda c: spherical.ZLoss(
      c.data.num_labels, c.head.z_threshold, c.head.z_sharpness
    ),
    "head.z_sharpness",
    "head.z_threshold",
  ),
  "spherical_softmax": _spherical(
    lambda c: spherical.SphericalSoftmax(c.data.num_labels)
  ),
  "taylor_softmax": _spherical(
    lambda c: spherical.TaylorSoftmax(c.data.num_labels)
  ),
  "squared_error": _spherical(lambda _: spherical.SquaredError()),
  "gramian": _spherical(
    lambda c: spherical.Gramian(c.data.num_labels, c.head.gramian_weight),
    "head.gramian_weight",
  ),
}
LOSSES = PLAIN | SPHERICAL
SWITCHES = (
  options.by_name(
    "head.loss",
    dict.fromkeys(product.LOSSES, ())
    | {name: loss.reads for name, loss in LOSSES.items()},
  ),
)
