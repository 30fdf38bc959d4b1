"""Weibull distributions of the greatest distances of each label.

Legend: M distances, L labels.
"""

from typing import NamedTuple

import numpy as np

_BISECTIONS = 50
_LEAST = 1e-12  # what a smaller value counts as
_SHAPES = 1e-2, 1e3  # between which the shape of a distribution is looked for


class Weibull(NamedTuple):
  """Distributions `1 - exp(-(d / scale)^shape)`, of each label.

  Attributes:
    shape: `[L]` float64.
    scale: `[L]` float64; infinite where nothing is far.
  """

  shape: np.ndarray
  scale: np.ndarray

  def share_below(
    self, labels: np.ndarray, distances: np.ndarray
  ) -> np.ndarray:
    """How much of each label's distribution is nearer; all `[N, K]`."""
    scaled = distances.astype(np.float64) / self.scale[labels]
    return -np.expm1(-(scaled ** self.shape[labels]))


def fit_tails(
  labels: np.ndarray, distances: np.ndarray, num_labels: int, tail: int
) -> Weibull:
  """The distributions of the greatest distances of each label.

  Args:
    labels: `[M]` ints.
    distances: `[M]` floats.
    num_labels: L.
    tail: How many distances of a label are its greatest; labels with fewer
      share the distribution of all of theirs.

  Returns:
    The distributions; nothing is far from a label without distances.
  """
  order = np.lexsort((-distances, labels))
  labels, distances = labels[order], distances[order]
  counts = np.bincount(labels, minlength=num_labels)
  is_rare = counts < tail
  rank = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels]
  group = np.where(is_rare[labels], num_labels, labels)
  kept = is_rare[labels] | (rank < tail)
  fitted = fit(group[kept], distances[kept], num_labels + 1)
  shape = np.where(is_rare, fitted.shape[-1], fitted.shape[:-1])
  scale = np.where(is_rare, fitted.scale[-1], fitted.scale[:-1])
  return Weibull(shape, np.where(counts, scale, np.inf))


def fit(groups: np.ndarray, values: np.ndarray, num_groups: int) -> Weibull:
  """The likeliest Weibull distribution of each group's values.

  The shape k is where `sum v^k log v / sum v^k - 1 / k` is the mean of `log v`
  (Cohen 1965, "Maximum likelihood estimation in the Weibull distribution"),
  found for all groups at once by bisection, as the left side only grows.

  Args:
    groups: `[M]` ints.
    values: `[M]` floats, at least 0.
    num_groups: L.

  Returns:
    The distributions; the scale is infinite where there are no values.
  """
  count = np.bincount(groups, minlength=num_groups)
  values = np.maximum(values, _LEAST)
  largest = np.full(num_groups, _LEAST)
  np.maximum.at(largest, groups, values)
  logs = np.log(values / largest[groups])

  def total(weights):
    return np.bincount(groups, weights, num_groups)

  some = np.maximum(count, 1)
  mean = total(logs) / some
  low, high = (np.full(num_groups, np.log(shape)) for shape in _SHAPES)
  for _ in range(_BISECTIONS):
    middle = (low + high) / 2
    powers = np.exp(np.exp(middle)[groups] * logs)
    norm = np.where(count, total(powers), 1)
    is_less = total(powers * logs) / norm - np.exp(-middle) < mean
    low, high = np.where(is_less, middle, low), np.where(is_less, high, middle)
  shape = np.exp((low + high) / 2)
  powers = total(np.exp(shape[groups] * logs))
  scale = largest * (powers / some) ** (1 / shape)
  return Weibull(shape, np.where(count, scale, np.inf))
