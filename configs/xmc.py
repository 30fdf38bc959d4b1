"""Extreme multi-label classification of sparse (or dense) features.

Any data set:

  xlj train --config=xmc --config.data.dir=DIR \\
    --workdir=WD

One of the sets below, whose settings were chosen on a held-out part of its
training file and then used to train on all of it:

  xlj train --config=xmc:bibtex \\
    --config.data.dir=DIR --workdir=WD

Append `,objective=psp` to weight rare labels more when predicting, and
`,head=mhc`, `mhs`, `oltr`, `spherical` or (one label an example) `mhp` for
another head than the dense one, after a bag of features 256 wide;
`,family=embedding` does the same with the dense head. Remedies:
where labels are missing, `,missing=ll_r` (or `ll_ct`, `ll_cp`, `wan`, `lsan`,
`iu`, `role`); where they are wrong, `,noisy=elr` (or `ps_kd`), after a bag of
features.
"""

from typing import Any

import ml_collections

from xlj import config as config_lib
from xlj.config import families
from xlj.config import heads
from xlj.config import remedies

# Fields beside the defaults of the family that `xlj.config` picks, and what of
# `data` and `train` other heads take over.
_SETS: dict[str, dict[str, Any]] = {
  # 159 labels, 2 per point: a network.
  "bibtex": {"train.epochs": 20.0},
  # 983 labels, 19 per point: a network.
  "delicious": {"train.epochs": 20.0},
  # 19,766 labels, nearly one per point: linear.
  "wordnet_hypernym": {},
  # 46,405 labels, 11 per point: linear.
  "citeulike_tags": {},
  # 97,275 labels, the median has one point: linear.
  "acl_authors": {},
  # Made by xlj demo: 131,072 labels.
  "demo": {
    "data.validation": 0.05,
    "optim.wide.learning_rate": 4.0,
    "train.epochs": 1.0,
  },
}

_NETWORKS = ("bibtex", "delicious")
# With the cascade, where the rules of `xlj.config` are not the best.
_CASCADES: dict[str, dict[str, Any]] = {
  "wordnet_hypernym": {"head.groups": (1024,), "head.candidates": 96},
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """The config of a set, or of any set when no name is given.

  Args:
    arg: Name of a set, `objective=psp` to serve rare labels, `head`, `family`
      and remedies.

  Returns:
    The config; set `data.dir`.
  """
  chosen = config_lib.parse_arg(
    arg,
    tuple(_SETS),
    objective=("precision", "psp"),
    head=tuple(heads.HEADS),
    family=("", *families.FAMILIES),
    missing=tuple(remedies.MISSING),
    noisy=tuple(remedies.NOISY),
  )
  config = config_lib.base()
  fields = dict(_SETS.get(chosen["name"], {}))
  if chosen["name"] and chosen["name"] != "demo":
    fields["data.validation"] = 0.0
  if chosen["head"] != "dense" or chosen["family"]:
    fields = {"head.type": chosen["head"], **_of_head(fields, chosen["head"])}
  if chosen["family"]:
    fields["family"] = chosen["family"]
  if chosen["head"] == "mhc":
    fields |= _CASCADES.get(chosen["name"], {})
  if chosen["objective"] == "psp":
    # Of held-out rows; linear weights serve rare labels by themselves.
    linear = chosen["name"] not in _NETWORKS and "head.type" not in fields
    fields["predict.propensity_power"] = 0.5 if linear else 2.0
  if chosen["missing"] != "an":
    fields |= {"missing.method": chosen["missing"], "head.loss": "bce"}
  if chosen["noisy"] != "none":
    fields = {
      "noisy.method": chosen["noisy"],
      "family": "embedding",
      "head.loss": "softmax",
      **_of_head(fields, "dense"),
    }
  config.update_from_flattened_dict(fields)
  return config


def _of_head(fields: dict[str, Any], head: str) -> dict[str, Any]:
  """What is left of a set's fields with a head or family of another kind."""
  kept = {
    name: value
    for name, value in fields.items()
    if name.startswith(("data.", "train."))
  }
  if head == "mhp":  # one label per example
    kept |= {"data.max_labels": 1, "predict.propensity_power": 0.0}
  return kept
