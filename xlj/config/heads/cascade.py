"""Labels in groups: `head.type` "mhc" and "mhs"."""

import dataclasses

import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import families
from xlj.config import losses
from xlj.config import options
from xlj.config.heads import dense
from xlj.heads.cascade import head as cascade
from xlj.heads.dense import head as dense_head


def _fields() -> options.Fields:
  auto = config_dict.placeholder
  return {
    # Nodes of each level above the labels; multiples of the number of devices
    "head.groups": auto(tuple),
    # Groups whose labels an example is trained with
    "head.candidates": auto(int),
    # Groups whose labels prediction scores; by default as many
    "predict.beam": auto(int),
    "head.sample_groups": auto(int),  # groups that a step visits
    "head.hard_groups": 0,  # of those, chosen as hard negatives
  }


RANGES: checks.Ranges = {
  "head.groups": checks.Range(1),
  "head.candidates": checks.Range(1),
  "predict.beam": checks.Range(1),
  "head.sample_groups": checks.Range(1),
  "head.hard_groups": checks.Range(0),
}


def _rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  head = config.head
  groups = head.groups or (_num_groups(facts.num_labels),)
  # At most a tenth of the labels, where there are many.
  candidates = min(32, max(4, groups[-1] // 16), groups[-1])
  return {
    "head.order": "clusters",
    "head.groups": groups,
    "head.candidates": candidates,
    "predict.beam": candidates if head.candidates is None else head.candidates,
    "head.sample_groups": max(1, groups[-1] // 4),
  }


def _num_groups(num_labels: int) -> int:
  """About 80 labels a group, but not fewer groups than labels in one."""
  count = max(num_labels / 80, num_labels**0.5)
  unit = 64 if count >= 64 else 16
  # Common numbers of devices divide it.
  return min(num_labels, unit * max(1, round(count / unit)))


def _check(config: ml_collections.ConfigDict) -> None:
  head = config.head
  if not head.groups:
    raise checks.ConfigError(
      f"head.groups is {tuple(head.groups)}; give numbers"
    )
  if head.groups[-1] > config.data.num_labels:
    raise checks.ConfigError(
      f"head.groups is {tuple(head.groups)} for {config.data.num_labels}"
      " labels; use fewer groups"
    )


def _check_cascade(config: ml_collections.ConfigDict) -> None:
  _check(config)
  if config.head.correction == "kahan":
    raise checks.ConfigError(
      "head.correction is 'kahan', which head.type='mhc' does not have; set it"
      " to 'none' or 'master'"
    )


def _check_sampled(config: ml_collections.ConfigDict) -> None:
  _check(config)
  head = config.head
  if head.hard_groups > head.sample_groups:
    raise checks.ConfigError(
      f"head.hard_groups is {head.hard_groups}; it must be at least 0 and at"
      f" most head.sample_groups, {head.sample_groups}"
    )


def _make_cascade(config: ml_collections.ConfigDict) -> cascade.CascadeHead:
  head = config.head
  labels = dense.label_rows(config)
  sizes = (*head.groups, config.data.num_labels)
  above = (head.blocks, *head.groups)
  levels = tuple(
    dense.with_rows(labels, num_labels=size, blocks=blocks)
    for size, blocks in zip(sizes, above)
  )
  return cascade.CascadeHead(levels, head.candidates, config.predict.beam)


def _make_sampled(config: ml_collections.ConfigDict) -> dense_head.DenseHead:
  head = config.head
  return dataclasses.replace(
    dense.with_rows(dense.label_rows(config), blocks=head.groups[-1]),
    sample_blocks=head.sample_groups,
    hard_blocks=head.hard_groups,
  )


_READS = (*dense.ROWS, *dense.STORED, *dense.BIAS, "head.groups")
MHC = options.Option(
  _make_cascade,
  reads=(
    *_READS,
    "head.blocks",
    "head.kernels",
    "head.candidates",
    "predict.beam",
  ),
  fields=_fields,
  rules=_rules,
  only={"head.wide": False},
  losses=tuple(losses.PLAIN),
  check=_check_cascade,
)
MHS = options.Option(
  _make_sampled,
  reads=(*_READS, "head.sample_groups", "head.hard_groups"),
  fields=_fields,
  rules=_rules,
  only={"head.wide": False},
  losses=("softmax", "decoupled_softmax"),
  check=_check_sampled,
)
