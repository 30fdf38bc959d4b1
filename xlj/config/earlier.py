"""Configs that were saved by earlier versions, in the form of this one."""

from typing import Any

# Version 1 said "decide from the data" by these values, too.
_OPEN = {
  "encoder.image": (),
  "encoder.depth": 0,
  "encoder.patch": 0,
  "head.groups": (),
  "head.candidates": 0,
  "head.sample_groups": 0,
  "head.lengths": (),
  "head.prototype_labels": 0,
  "head.z_threshold": 0,
  "oltr.scale": 0,
  "missing.remembered": 0,
  "predict.beam": 0,
}

# What runs do that do not say whether they do more.
WITHOUT = {
  "neighbours.count": 0,
  "data.text": "",
  "data.named_labels": False,
  "encoder.init": "normal",
  "encoder.fixed_scale": False,
}


def renamed(saved: dict[str, Any], version: int) -> dict[str, Any]:
  """The fields of an earlier version, by dotted name, as they are spelled now.

  Args:
    saved: Dotted name to value.
    version: Which.

  Returns:
    The same with what had another name, and None where a field was open.
  """
  values = dict(saved)
  # Of linear weights; runs that have those are not read.
  values.pop("head.wide_labels", None)
  values["optim.decay_to"] = 0.0
  if version > 1:
    return values
  if "head.beam" in values:
    values["predict.beam"] = values.pop("head.beam")
  for name, value in _OPEN.items():
    if name in values and values[name] == value:
      values[name] = None
  # It counted where the lengths were not given, and was not read otherwise.
  values.pop("head.digits", None)
  return values
