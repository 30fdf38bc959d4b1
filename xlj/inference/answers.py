"""What all that answers has in common: what may be asked, and how it is told.

It needs no JAX, which an exported model does without.
"""

from collections.abc import Mapping
import numbers
from typing import Any

import numpy as np

DEFAULT_K = 5
OVERFLOW = (
  "the values of its features are not finite in float32 once they are weighted"
  " as in training; give them the scale of the training rows"
)
NO_SCORE = (
  "its scores are not finite: the values of its features are too large for the"
  " model; give them the scale of the training rows"
)


def checked_k(k: int | None, threshold: float | None, num_labels: int) -> int:
  """How many labels are asked for.

  Args:
    k: As a caller gives it; None for `DEFAULT_K`, or all where there are fewer.
    threshold: Score that a label has to reach, likewise.
    num_labels: How many there are.

  Returns:
    k.

  Raises:
    ValueError: One of them is no such number.
  """
  if k is None:
    k = min(DEFAULT_K, num_labels)
  is_whole = isinstance(k, numbers.Integral) and not isinstance(k, bool)
  if not is_whole or not 1 <= k <= num_labels:
    raise ValueError(
      f"k is {k!r}; it must be a whole number in [1, {num_labels}]"
    )
  is_number = isinstance(threshold, numbers.Real) and threshold == threshold
  if threshold is not None and not is_number:
    raise ValueError(f"threshold is {threshold!r}; give a score, or None")
  return int(k)


def reaching(
  threshold: float | None, scores: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The same `[n, k]`, with -inf and -1 where a score is below a threshold."""
  if threshold is None:
    return scores, ids
  missed = scores < threshold
  return np.where(missed, -np.inf, scores), np.where(missed, -1, ids)


def refuse(wrong: Mapping[int, str]) -> None:
  """Raises for the first row of which something is wrong, if there is one."""
  if wrong:
    row, why = min(wrong.items())
    raise ValueError(f"row {row} of the examples (the first is 0): {why}")


def names_of(names: list[str], ids: np.ndarray) -> Any:
  """Names of labels, nested as ids `[...]` are; None for -1.

  Raises:
    ValueError: There is no such id.
  """
  if ids.size and ids.dtype.kind not in "iu":
    raise ValueError(f"ids are {ids.dtype}; label ids are whole numbers")
  if ids.size and not -1 <= ids.min() <= ids.max() < len(names):
    wrong = ids[(ids < -1) | (ids >= len(names))].flat[0]
    raise ValueError(f"label {wrong}: there are ids 0 to {len(names) - 1}")
  found = [names[i] if i >= 0 else None for i in ids.flat]
  return np.array(found, object).reshape(ids.shape).tolist()
