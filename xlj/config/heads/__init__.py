"""The section `head`, and the heads that it makes."""

import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import families
from xlj.config import losses
from xlj.config import options
from xlj.config.heads import cascade
from xlj.config.heads import dense
from xlj.config.heads import oltr
from xlj.config.heads import product
from xlj.config.heads import spherical
from xlj.heads import head as head_lib

# By `head.type`; made of a resolved config.
HEADS = {
  "dense": dense.OPTION,
  "mhc": cascade.MHC,
  "mhs": cascade.MHS,
  "mhp": product.OPTION,
  "oltr": oltr.OPTION,
  "spherical": spherical.OPTION,
}
CHOICES = {"head.type": tuple(HEADS), **dense.CHOICES}
SWITCHES = (
  options.by_table("head.type", HEADS),
  *dense.SWITCHES,
  *oltr.SWITCHES,
  *losses.SWITCHES,
)

ORDERS = ("frequency", "clusters", "identity", "none")  # others are files


def fields() -> options.Fields:
  """All fields, with None for "decide from the data"."""
  auto = config_dict.placeholder
  found: options.Fields = {
    "head.type": "dense",  # what makes scores of embeddings
    # How labels are numbered for the head: "frequency", "clusters", "identity",
    # "none" (identity, and nothing is kept of each label), or a file with one
    # label of the data set in each line
    "head.order": auto(str),
    "head.loss": auto(str),  # what a step lowers
    "head.wide": auto(bool),  # add linear weights from features to labels
    "head.init_scale": auto(float),  # deviation, or length, of new label rows
  }
  for option in HEADS.values():
    found |= option.fields()
  found |= losses.fields()
  return found


RANGES: checks.Ranges = {
  "head.init_scale": checks.Range(0, 1e6),
  **dense.RANGES,
  **cascade.RANGES,
  **product.RANGES,
  **oltr.RANGES,
  **spherical.RANGES,
  **losses.RANGES,
}


def make(config: ml_collections.ConfigDict) -> head_lib.Head:
  """Builds the head, with its loss and optimizers.

  Args:
    config: A resolved config (`xlj.config.resolve`).

  Returns:
    The head of `head.type`.
  """
  return HEADS[config.head.type].make(config)


def rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  """Values for fields that are left open."""
  option = HEADS[config.head.type]
  loss = {
    "network": "decoupled_softmax",
    "linear": "bce",
    "embedding": "softmax",
    "text": "softmax",
    "image": "softmax" if facts.labels_per_row <= 1 else "bce",
  }[config.family]
  return {
    "head.loss": loss,
    "head.wide": config.family == "linear",
    **losses.rules(config, facts),
    **dense.rules(config, facts),
    **option.rules(config, facts),
    **option.only,
  }


measured = dense.measured


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses values that cannot be used.

  Raises:
    ConfigError: Naming the field.
  """
  kind, option = config.head.type, HEADS[config.head.type]
  if "head.wide" in option.only and (
    config.head.wide or not config.encoder.dim
  ):
    raise checks.ConfigError(
      f"head.type is {kind!r}, which needs embeddings and has no linear"
      " weights; set head.wide=False and encoder.dim, or family='embedding'"
    )
  for name, wanted in option.only.items():
    value = checks.value_of(config, name)
    if value != wanted:
      raise checks.ConfigError(
        f"{name} is {value!r} and head.type is {kind!r}; set it to {wanted!r}"
      )
  checks.choices(config, {"head.loss": option.losses})
  dense.check(config)
  option.check(config)
