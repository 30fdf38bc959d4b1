"""Families of models, and the settings each takes from facts about the data.

"network" is for few labels, "linear" for many, "embedding" for so many, or so
many features, that linear weights do not fit, "image" for encoders of images.
The figures are those that validation splits preferred on several data sets. All
families but the last add the log of the inverse propensity to the logits when
they predict, which serves rare labels.
"""

import dataclasses
import math
from typing import Any

from xlj.heads.product import mixed_radix

WIDE_BYTES = 4 << 30  # what the linear weights may take if not told otherwise
FEW_LABELS = 2048  # up to here a network is the default
_LARGE_IMAGE = 128  # pixels of the shorter side, from which patches are large


@dataclasses.dataclass(frozen=True)
class DataFacts:
  """What the rules below need to know about a training split.

  Attributes:
    num_rows: Training examples.
    num_features: F.
    num_labels: L.
    labels_per_row: Mean number of labels of an example.
    features_per_row: Mean number of non-zero features of an example.
    dense: Whether the features are a dense matrix.
    kind: "binary", "counts", "weighted", "normalised" or "dense".
    fingerprint: Hash of the training files.
    image: Height, width and channels where rows are images; else nothing.
  """

  num_rows: int
  num_features: int
  num_labels: int
  labels_per_row: float
  features_per_row: float
  dense: bool
  kind: str
  fingerprint: str
  image: tuple[int, ...] = ()


def choose(facts: DataFacts, head: str = "dense", encoder: str = "bag") -> str:
  """Name of the family that suits a data set.

  Args:
    facts: About its training split.
    head: Type of the head; only the dense one has linear weights.
    encoder: Type of the encoder.

  Returns:
    A key of `FAMILIES`.
  """
  if encoder != "bag":
    return "image"
  if facts.num_labels <= FEW_LABELS:
    return "network"
  fits = 4 * facts.num_features * facts.num_labels <= 4 * WIDE_BYTES
  linear = fits and not facts.dense and head == "dense"
  return "linear" if linear else "embedding"


def encoder_rules(facts: DataFacts, encoder: Any) -> dict[str, Any]:
  """Values for fields of the encoder that are left open, by its type.

  Args:
    facts: About the training split.
    encoder: The section `encoder` of a config.

  Returns:
    Field to value.
  """
  if encoder.type == "bag":
    return {}
  shape = tuple(encoder.image) or facts.image
  large = len(shape) == 3 and min(shape[:2]) >= _LARGE_IMAGE
  if encoder.type == "resnet":
    return {"image": shape, "depth": 2, "patch": 4 if large else 1}
  return {"image": shape, "depth": 6, "patch": 16 if large else 4}


def head_rules(facts: DataFacts, head: Any) -> dict[str, Any]:
  """Values for fields of the head that are left open, by its type.

  Args:
    facts: About the training split.
    head: The section `head` of a config.

  Returns:
    Field to value.
  """
  if head.type == "dense":
    several = head.prototypes > 1
    return {
      "order": "frequency",
      "prototype_labels": max(1, facts.num_labels // 10) if several else 0,
    }
  if head.type == "mhp":
    lengths = mixed_radix.balanced_lengths(facts.num_labels, head.digits)
    return {
      "order": "clusters",
      "lengths": lengths,
      "loss": "softmax",
      "wide": False,
      "cosine": False,
      "init": "normal",
      "prior_bias": False,
    }
  if head.type == "spherical":
    return {
      "order": "frequency",
      "loss": "z_loss",
      "wide": False,
      "cosine": False,
      "init": "normal",
      "init_scale": 0.05,
      "prior_bias": False,
    }
  if head.type == "oltr":
    return {
      "order": "frequency",
      "loss": "softmax",
      "wide": False,
      "cosine": True,
      "prior_bias": False,
    }
  groups = head.groups or (_num_groups(facts.num_labels),)
  # At most a tenth of the labels, where there are many.
  candidates = min(32, max(4, groups[-1] // 16), groups[-1])
  return {
    "order": "clusters",
    "wide": False,
    "groups": groups,
    "candidates": candidates,
    "sample_groups": max(1, groups[-1] // 4),
  }


def _num_groups(num_labels: int) -> int:
  """About 80 labels a group, but not fewer groups than labels in one."""
  count = max(num_labels / 80, num_labels**0.5)
  unit = 64 if count >= 64 else 8
  return min(num_labels, max(8, unit * round(count / unit)))


def rules(facts: DataFacts, family: str) -> dict[str, dict[str, Any]]:
  """Values for the fields of a config that are left open.

  Args:
    facts: About the training split.
    family: A key of `FAMILIES`.

  Returns:
    Field to value, by (dotted) section of the config.
  """
  chosen = FAMILIES[family](facts)
  chosen["data"] = {"weighting": "auto"} | chosen.get("data", {})
  chosen["optim.wide"] = {
    "learning_rate": 8.0 if facts.labels_per_row < 5 else 4.0
  }
  return chosen


def _network(facts: DataFacts) -> dict[str, dict[str, Any]]:
  """One wide hidden layer with strong dropout: for few labels."""
  return {
    "data": {"weighting": "none" if facts.kind == "binary" else "auto"},
    "encoder": {
      "dim": 1024,
      "embedding_dropout": 0.8,
      "activation": "relu",
      "scale": 0.0,
    },
    "head": {
      "loss": "decoupled_softmax",
      "wide": False,
      "wide_labels": 0,
      "cosine": False,
      "init": "normal",
      "init_scale": 0.02,
      "prior_bias": True,
      "bias": 0.0,
    },
    "optim": {"warmup": 0.05, "decay": "cosine"},
    "optim.encoder": {"name": "adam", "learning_rate": 5e-3},
    "optim.head": {"name": "adam", "learning_rate": 5e-3},
    "train": {
      "batch_size": _power_of_two(facts.num_rows / 50, 64, 1024),
      "epochs": min(20.0, max(3.0, 20.0 * (25_000 / facts.num_rows) ** 0.5)),
    },
    "predict": {"propensity_power": 0.5},
  }


def _linear(facts: DataFacts) -> dict[str, dict[str, Any]]:
  """Weights from features to labels, few passes at a high rate.

  For many labels: most of them are rare then, and networks overfit them.
  """
  wide_labels = WIDE_BYTES // (4 * facts.num_features)
  return {
    "encoder": {
      "dim": 0,
      "embedding_dropout": 0.0,
      "activation": "",
      "scale": 0.0,
    },
    "head": {
      "loss": "bce",
      "wide": True,
      "wide_labels": wide_labels if wide_labels < facts.num_labels else 0,
      "cosine": False,
      "init": "normal",
      "init_scale": 0.0,
      "prior_bias": False,
      "bias": -6.0,
    },
    "optim": {"warmup": 0.0, "decay": "linear"},
    "optim.encoder": {"name": "sgd", "learning_rate": 0.0},
    "optim.head": {"name": "sgd", "learning_rate": 0.0},
    "train": {"batch_size": 64, "epochs": 2.0},
    "predict": {"propensity_power": 0.5},
  }


def _embedding(facts: DataFacts) -> dict[str, dict[str, Any]]:
  """Unit embeddings against unit label rows that start at centroids.

  For so many features and labels that linear weights do not fit, and for
  dense features with many labels.
  """
  return {
    "encoder": {
      "dim": 256,
      "embedding_dropout": 0.3,
      "activation": "",
      "scale": 12.0,
    },
    "head": {
      "loss": "softmax",
      "wide": False,
      "wide_labels": 0,
      "cosine": True,
      "init": "centroid",
      "init_scale": 1.0,
      "prior_bias": False,
      "bias": 0.0,
    },
    "optim": {"warmup": 0.05, "decay": "cosine"},
    "optim.encoder": {"name": "adam", "learning_rate": 2e-3},
    "optim.head": {"name": "adam", "learning_rate": 2e-3},
    "train": {"batch_size": 512, "epochs": 4.0},
    "predict": {"propensity_power": 0.5},
  }


def _image(facts: DataFacts) -> dict[str, dict[str, Any]]:
  """Embeddings of images: nothing but what the encoder itself brings."""
  single = facts.labels_per_row <= 1
  return {
    "encoder": {
      "dim": 256,
      "embedding_dropout": 0.0,
      "activation": "",
      "scale": 0.0,
    },
    "head": {
      "loss": "softmax" if single else "bce",
      "wide": False,
      "wide_labels": 0,
      "cosine": False,
      "init": "normal",
      "init_scale": 0.02,
      "prior_bias": not single,
      "bias": 0.0,
    },
    "optim": {"warmup": 0.05, "decay": "cosine"},
    "optim.encoder": {"name": "adam", "learning_rate": 3e-3},
    "optim.head": {"name": "adam", "learning_rate": 1e-2},
    "train": {"batch_size": 128, "epochs": 30.0},
    "predict": {"propensity_power": 0.0},
  }


FAMILIES = {
  "network": _network,
  "linear": _linear,
  "embedding": _embedding,
  "image": _image,
}


def _power_of_two(value: float, low: int, high: int) -> int:
  """The power of two nearest to `value` within the bounds."""
  return min(high, max(low, 2 ** round(math.log2(max(value, 1)))))
