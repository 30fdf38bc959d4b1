"""A row for each value of a digit of labels: `head.type` "mhp"."""

import math

import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import data as data_config
from xlj.config import encoders
from xlj.config import families
from xlj.config import optim
from xlj.config import options
from xlj.heads.product import head as product
from xlj.heads.product import mixed_radix


def _fields() -> options.Fields:
  auto = config_dict.placeholder
  return {
    # Digits of a label; 2 if their lengths are not given
    "head.digits": auto(int),
    "head.lengths": auto(tuple),  # numbers of values of the digits
    "head.components": 1,  # products that are mixed
  }


RANGES: checks.Ranges = {
  "head.digits": checks.Range(1, 64),
  "head.lengths": checks.Range(1),
  "head.components": checks.Range(1, 2**16),
}


def _rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  digits, lengths = config.head.digits, config.head.lengths
  if digits is None:
    digits = len(lengths or (1, 1))
  if lengths is None:
    lengths = mixed_radix.balanced_lengths(facts.num_labels, digits)
  return {
    "head.order": "clusters",
    "head.digits": digits,
    "head.lengths": lengths,
    "head.loss": "softmax",
  }


def _check(config: ml_collections.ConfigDict) -> None:
  head = config.head
  if len(head.lengths) != head.digits:
    raise checks.ConfigError(
      f"head.lengths is {tuple(head.lengths)} and head.digits {head.digits};"
      " set one of them"
    )
  count = config.data.num_labels
  if max(head.lengths) > count or math.prod(head.lengths) < count:
    raise checks.ConfigError(
      f"head.lengths is {tuple(head.lengths)} for {count} labels; give numbers"
      f" up to {count} whose product is not less, or head.digits alone"
    )
  if head.components > 1 and not head.init_scale:
    raise checks.ConfigError(
      f"head.init_scale is 0 and head.components {head.components}: all would"
      " stay the same; set head.init_scale"
    )
  if head.components > 1 and head.loss != "softmax":
    raise checks.ConfigError(
      f"head.components is {head.components}, and head.loss {head.loss!r} is of"
      " one product; set head.loss=softmax"
    )
  if config.predict.propensity_power:
    raise checks.ConfigError(
      "predict.propensity_power shifts the score of each label, which 'mhp'"
      " never forms; set it to 0"
    )
  if not data_config.has_one_label(config):
    raise checks.ConfigError(
      "head.type is 'mhp', which is for one label per example, and some"
      " rows have more; set data.max_labels=1 to train with the first of each"
    )


def _make(config: ml_collections.ConfigDict) -> product.ProductHead:
  head = config.head
  return product.ProductHead(
    num_labels=config.data.num_labels,
    dim=encoders.width(config),
    lengths=tuple(head.lengths),
    optimizer=optim.transformation(config, config.optim.head),
    components=head.components,
    loss=head.loss,
    use_bias=head.use_bias,
    init_scale=head.init_scale,
    blocks=head.blocks,
  )


OPTION = options.Option(
  _make,
  reads=(
    "head.blocks",  # of what is kept of each label
    "head.use_bias",
    "head.digits",
    "head.lengths",
    "head.components",
  ),
  fields=_fields,
  rules=_rules,
  only={"head.wide": False},
  losses=product.LOSSES,
  check=_check,
)
