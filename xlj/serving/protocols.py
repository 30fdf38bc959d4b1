"""Questions and answers in the words of other servers.

The Open Inference Protocol, version 2 (KServe, Triton): a tensor "text" of
BYTES, or "features" of numbers `[n, F]`, or of BYTES that hold a row in JSON
each, as `requests.Row`. And the form that Annif's backend `http` sends.
"""

from typing import Any

import numpy as np

from xlj.serving import answers
from xlj.serving import models as models_lib
from xlj.serving import requests
from xlj.serving.packages import msgspec

Refused = requests.Refused
_LOWEST = float(np.finfo(np.float32).min)  # JSON has no infinity
Scalar = str | int | float | bool


class Parameters(msgspec.Struct, forbid_unknown_fields=True):
  """As in `requests.Predict`."""

  k: int | None = None
  allow: list[int] | None = None
  deny: list[int] = []
  threshold: float | None = None
  min_probability: float | None = None


class Input(msgspec.Struct, forbid_unknown_fields=True):
  """A tensor, flat or nested."""

  name: str
  shape: list[int]
  datatype: str
  data: list[str | float | list[str | float]]
  parameters: dict[str, Scalar] = {}


class Output(msgspec.Struct, forbid_unknown_fields=True):
  """One that is asked for."""

  name: str
  parameters: dict[str, Scalar] = {}


class Infer(msgspec.Struct, forbid_unknown_fields=True):
  """A question."""

  inputs: list[Input]
  id: str | None = None
  parameters: Parameters = msgspec.field(default_factory=Parameters)
  outputs: list[Output] | None = None


_decode_row = requests.Decoder(requests.Row)


def rows(asked: Infer) -> list[Any]:
  """The rows of a tensor.

  Raises:
    Refused: 422, it is none of those above.
  """
  if len(asked.inputs) != 1:
    raise Refused(422, f"inputs has {len(asked.inputs)} tensors; give one")
  (tensor,) = asked.inputs
  name = tensor.name[:40]
  is_bytes = tensor.datatype == "BYTES"
  if name not in ("text", "features") or name == "text" and not is_bytes:
    raise Refused(
      422,
      f"the input is {name!r} of {tensor.datatype[:40]}; give 'text' of BYTES,"
      " or 'features' of FP32 [n, F], or of BYTES with a row in JSON each",
    )
  flat: list[Any] = []
  for cell in tensor.data:
    flat.extend(cell if isinstance(cell, list) else [cell])
  wanted = str if is_bytes else float
  if not all(isinstance(value, wanted) for value in flat):
    raise Refused(422, f"the data of {name!r} is not {tensor.datatype[:40]}")
  shape = tensor.shape
  ends = shape[1:] in ([], [1]) if is_bytes else len(shape) == 2
  count = int(np.prod([min(max(s, 0), 2**31) for s in shape[:2]]))
  if not shape or not ends or count != len(flat):
    raise Refused(
      422,
      f"the shape of {name!r} is {str(shape)[:80]}, and its data has"
      f" {len(flat)} values; give [n]{'' if is_bytes else ', [n, F]'}",
    )
  if is_bytes:
    if name == "text":
      return flat
    return [_decode_row(value.encode()) for value in flat]
  if not flat:
    return []
  return [flat[i : i + shape[1]] for i in range(0, len(flat), shape[1])]


def tensors(
  asked: Infer, answer: answers.Answer, model: models_lib.Model
) -> dict[str, Any]:
  """An answer; past the end of a row are -1 and the least score.

  Raises:
    Refused: 422, another output was asked for.
  """
  found: dict[str, tuple[str, np.ndarray]] = {
    "labels": ("INT64", answer.ids),
    "scores": ("FP32", np.maximum(answer.scores, _LOWEST)),
  }
  names = model.names(answer.ids)
  if names is not None:
    found["names"] = ("BYTES", np.array(names, object))
  if answer.probabilities is not None:
    found["probabilities"] = ("FP32", answer.probabilities)
  wanted = found
  if asked.outputs is not None:
    wanted = [output.name for output in asked.outputs]
    for name in wanted:
      if name not in found:
        raise Refused(
          422, f"there is no output {name[:40]!r}; there are {', '.join(found)}"
        )
  shape = list(answer.ids.shape)
  return {
    "model_name": model.name,
    **({} if asked.id is None else {"id": asked.id}),
    "outputs": [
      {
        "name": name,
        "shape": shape,
        "datatype": found[name][0],
        "data": _flat(found[name][1]),
      }
      for name in wanted
    ],
  }


def _flat(values: np.ndarray) -> list[Any]:
  return ["" if v is None else v for v in values.ravel().tolist()]


def metadata(model: models_lib.Model) -> dict[str, Any]:
  """What a model takes and gives."""
  inputs = []
  if model.input == "texts":
    inputs.append({"name": "text", "datatype": "BYTES", "shape": [-1]})
  else:
    shape = [-1, model.num_features]
    inputs.append({"name": "features", "datatype": "FP32", "shape": shape})
  outputs = [("labels", "INT64"), ("scores", "FP32")]
  if model.answers.label_names is not None:
    outputs.append(("names", "BYTES"))
  if model.calibration is not None:
    outputs.append(("probabilities", "FP32"))
  return {
    "name": model.name,
    "versions": [],
    "platform": "xlj",
    "inputs": inputs,
    "outputs": [
      {"name": name, "datatype": kind, "shape": [-1, -1]}
      for name, kind in outputs
    ],
  }


# --- Annif --------------------------------------------------------------------


def annif_project(model: models_lib.Model) -> dict[str, Any]:
  """What Annif asks of a project."""
  return {
    "project_id": model.name,
    "name": model.name,
    "is_trained": True,
    "modification_time": model.loaded,
  }


def annif_question(
  fields: dict[str, str], model: models_lib.Model
) -> tuple[str, Parameters]:
  """The text of a form, and how many labels; all where there are fewer.

  Raises:
    Refused: 422, something is missing.
  """
  if "text" not in fields:
    raise Refused(422, "the form has no field text")
  limit = fields.get("limit", "10")
  if not (limit.isascii() and limit.isdecimal() and len(limit) < 10):
    raise Refused(
      422, f"limit is {limit[:40]!r}; give a whole number from 1 on"
    )
  k = min(int(limit), model.num_labels)
  return fields["text"], Parameters(k=k)


def suggestions(
  answer: answers.Answer, model: models_lib.Model
) -> list[dict[str, Any]]:
  """The labels of a text, each with a score from 0 to 1.

  That is its probability where the model is calibrated, or else the logistic
  function of its score. The URI is the name of a label, or its id without.
  """
  shares = answer.probabilities
  if shares is None:
    with np.errstate(over="ignore"):
      shares = 1 / (1 + np.exp(-answer.scores.astype(np.float64)))
  names = model.names(answer.ids)
  return [
    {
      "uri": str(label) if names is None else names[0][i],
      "label": str(label) if names is None else names[0][i],
      "score": score,
    }
    for i, (label, score) in enumerate(
      zip(answer.ids[0].tolist(), shares[0].tolist())
    )
    if label != -1
  ]
