"""Figures of long-tailed recognition in which some examples are of no label.

An example of a class that is not among the labels has the truth -1, and a
prediction that was withheld is -1.

Legend: N examples, L labels.
"""

from collections.abc import Mapping

import numpy as np

OPEN = -1
MEASURES = ("corrected", "published")


def rejected(
  predictions: np.ndarray, confidence: np.ndarray, threshold: float
) -> np.ndarray:
  """The predictions, -1 where the confidence is below the threshold.

  A threshold on the largest probability depends on L: with cosine logits of
  scale s no probability is above `e^s / (e^s + L - 1)`. The cosine and the
  reachability do not.

  Args:
    predictions: `[N]` ints.
    confidence: `[N]` floats.
    threshold: The least that counts.

  Returns:
    `[N]` ints.

  Raises:
    ValueError: Lengths differ, or a confidence or the threshold is NaN, which
      is neither below nor above.
  """
  _numbers(confidence=confidence, threshold=np.reshape(threshold, -1))
  predictions, confidence = _same_length(predictions, confidence)
  _ids(predictions=predictions)
  return np.where(confidence < threshold, OPEN, predictions)


def threshold_keeping(confidence: np.ndarray, share: float = 0.95) -> float:
  """The threshold that a share of examples of known labels passes.

  Args:
    confidence: `[N]` of examples of known labels that were not trained on.
    share: Between 0 and 1.

  Returns:
    The threshold.

  Raises:
    ValueError: There are none, or the share is not between 0 and 1.
  """
  if not len(confidence) or not 0 <= share <= 1:
    raise ValueError(
      f"a share of {share} of {len(confidence)} examples has no threshold"
    )
  _numbers(confidence=confidence)
  return float(np.quantile(confidence, 1 - share, method="lower"))


def best_threshold(
  predictions: np.ndarray,
  confidence: np.ndarray,
  truth: np.ndarray,
  measure: str = "corrected",
) -> float:
  """The threshold of the highest F-measure, of 200 quantiles.

  It needs examples of no label: choose it on other ones than are reported.

  Args:
    predictions: `[N]` ints.
    confidence: `[N]` floats.
    truth: `[N]` ints, -1 for examples of no label.
    measure: "corrected" or "published"; the latter tends to reject nearly all.

  Returns:
    The threshold; the lowest of those that are equally good.

  Raises:
    ValueError: As for `open_f_measure`.
  """
  _numbers(confidence=confidence)
  limits = np.unique(np.quantile(confidence, np.arange(200) / 200))
  found = [
    open_f_measure(rejected(predictions, confidence, limit), truth, measure)
    for limit in limits
  ]
  return float(limits[np.argmax(found)])


def open_f_measure(
  predictions: np.ndarray, truth: np.ndarray, measure: str = "corrected"
) -> float:
  """The F-measure of the authors of OLTR, in percent.

  Of the true labels' examples, those predicted right are true positives and
  the others false positives; examples of no label that are not rejected are
  false negatives (Liu et al. 2019; not what is usually called so). "corrected"
  is their code since January 2020; "published" is what their paper's tables
  were made with, where rejected examples of known labels count as nothing:
  rejecting at random does not lower it, and almost any confidence raises it.

  Args:
    predictions: `[N]` ints, -1 where rejected.
    truth: `[N]` ints, -1 for examples of no label.
    measure: "corrected" or "published".

  Returns:
    From 0 to 100.

  Raises:
    ValueError: The measure is neither, or lengths differ.
  """
  if measure not in MEASURES:
    raise ValueError(f"the measure is {measure!r}; use one of {MEASURES}")
  predictions, truth = _same_length(predictions, truth)
  _ids(predictions=predictions, truth=truth)
  known = truth != OPEN
  right = known & (predictions == truth)
  wrong = known & ~right
  if measure == "published":
    wrong &= predictions != OPEN
  missed = ~known & (predictions != OPEN)
  precision = right.sum() / max((right | wrong).sum(), 1)
  recall = right.sum() / max((right | missed).sum(), 1)
  return 100 * 2 * precision * recall / (precision + recall + 1e-12)


def auroc(confidence: np.ndarray, truth: np.ndarray) -> float:
  """How often an example of a known label is the more confident, in percent.

  Of all pairs of one of a known label and one of none; equal ones count half.
  It depends on no threshold.

  Args:
    confidence: `[N]` floats.
    truth: `[N]` ints, -1 for examples of no label.

  Returns:
    From 0 to 100; NaN if there are no such pairs.

  Raises:
    ValueError: Lengths differ, or a confidence is NaN.
  """
  confidence, truth = _same_length(confidence, truth)
  _numbers(confidence=confidence)
  _ids(truth=truth)
  known = truth != OPEN
  _, rank, counts = np.unique(
    confidence, return_inverse=True, return_counts=True
  )
  middle = np.cumsum(counts) - (counts - 1) / 2
  num_known, num_open = known.sum(), (~known).sum()
  if not num_known or not num_open:
    return float("nan")
  above = middle[rank][known].sum() - num_known * (num_known + 1) / 2
  return float(100 * above / (num_known * num_open))


def by_shots(
  predictions: np.ndarray,
  truth: np.ndarray,
  label_counts: np.ndarray,
  many: int = 100,
  few: int = 20,
) -> dict[str, float]:
  """Accuracies of labels with many, some and few training examples.

  Means over labels of the share of their test examples that are right, in
  percent (Liu et al. 2019, as in the authors' code).

  Args:
    predictions: `[N]` ints.
    truth: `[N]` ints; examples of no label (-1) are left out.
    label_counts: `[L]` training examples of each label.
    many: From how many on they are many.
    few: Up to how many they are few.

  Returns:
    "many", "medium", "few" and "all", NaN where no label was tested, and
    "accuracy" over the examples.

  Raises:
    ValueError: A label is not among those counted, or lengths differ.
  """
  predictions, truth = _same_length(predictions, truth)
  _ids(predictions=predictions, truth=truth)
  predictions, truth = predictions[truth != OPEN], truth[truth != OPEN]
  if len(truth) and not 0 <= truth.min() <= truth.max() < len(label_counts):
    raise ValueError(
      f"labels run from {truth.min()} to {truth.max()}; {len(label_counts)}"
      " are counted"
    )
  right = predictions == truth
  tested = np.bincount(truth, minlength=len(label_counts))
  hits = np.bincount(truth, right, minlength=len(label_counts))
  share = hits / np.maximum(tested, 1)
  counts = np.asarray(label_counts)
  is_many, is_few = counts >= many, counts <= few
  groups: Mapping[str, np.ndarray] = {
    "many": is_many,
    "medium": ~is_many & ~is_few,
    "few": is_few & ~is_many,
    "all": np.ones(len(counts), bool),
  }
  found = {
    name: _mean(share[members & (tested > 0)])
    for name, members in groups.items()
  }
  return {**found, "accuracy": _mean(right)}


def _mean(values: np.ndarray) -> float:
  """The mean in percent; NaN of none."""
  return float(100 * values.mean()) if len(values) else float("nan")


def _same_length(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  a, b = np.asarray(a), np.asarray(b)
  if a.shape != b.shape or a.ndim != 1:
    raise ValueError(f"shapes are {a.shape} and {b.shape}; give [N] of both")
  return a, b


def _numbers(**arrays: np.ndarray) -> None:
  """Refuses what is not `[N]` numbers, or has a NaN; infinite ones count."""
  for name, array in arrays.items():
    array = np.asarray(array)
    if array.ndim != 1 or array.dtype.kind not in "buif":
      raise ValueError(
        f"{name} is {array.dtype} {array.shape}; give numbers [N]"
      )
    if np.isnan(array).any():
      raise ValueError(
        f"{name}[{int(np.argmax(np.isnan(array)))}] is NaN; give numbers"
      )


def _ids(**arrays: np.ndarray) -> None:
  """Refuses what is not whole numbers."""
  for name, array in arrays.items():
    if array.size and array.dtype.kind not in "iu":
      raise ValueError(
        f"{name} is {array.dtype}; give label ids, and {OPEN} for none"
      )
