"""Metrics that are ratios of sums over points; `metrics` says of what.

A ratio takes a batch and returns what it adds to the numerator and to the
denominator at each cut-off, so that batches and processes add up.

Shapes: N points, K cut-offs, `width` predictions per point, L labels, nnz true
(point, label) pairs.
"""

from collections.abc import Callable
import dataclasses
import functools

import numpy as np

from xlj.evaluation import pairs


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
  """Predictions for some points, and the truth.

  Attributes:
    ks: Cut-offs, ascending, int64 `[K]`; the last is `width`.
    ids: Predicted labels, best first, int64 `[N, width]`.
    hits: Which of them are right, bool `[N, width]`.
    labels: All true labels of the points.
    propensities: `[L]`; None where nobody gave them.
    label_counts: `[L]` training points; None likewise.
  """

  ks: np.ndarray
  ids: np.ndarray
  hits: np.ndarray
  labels: pairs.SparseRows
  propensities: np.ndarray | None
  label_counts: np.ndarray | None = None

  @property
  def lengths(self) -> np.ndarray:
    """True labels of each point, `[N]`."""
    return np.diff(self.labels.indptr)

  @functools.cached_property
  def gains(self) -> np.ndarray:
    """1 / p_l of the hits, else 0, `[N, width]`."""
    assert self.propensities is not None
    gains = np.zeros(self.hits.shape)
    found = self.propensities[self.ids[self.hits]]
    gains[self.hits] = 1 / found.astype(np.float64)
    return gains

  @functools.cached_property
  def best_gains(self) -> np.ndarray:
    """The largest 1 / p_l of each point's labels, `[N, width]`."""
    assert self.propensities is not None
    labels, lengths = self.labels, self.lengths
    points = np.repeat(np.arange(len(lengths)), lengths)  # [nnz]
    gains = 1 / self.propensities[np.asarray(labels.indices)].astype(np.float64)
    gains = gains[np.lexsort((-gains, points))]
    rank = np.arange(len(gains)) - np.repeat(labels.indptr[:-1], lengths)
    kept = rank < self.hits.shape[1]
    best = np.zeros(self.hits.shape)
    best[points[kept], rank[kept]] = gains[kept]
    return best


# The numerator and the denominator, each `[K]` or a number for all cut-offs.
Ratio = Callable[[Batch], tuple[np.ndarray | int, np.ndarray | int]]


def precision(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
  """Hits, and predictions."""
  return _gain(batch, batch.hits), batch.ks * len(batch.hits)


def ndcg(batch: Batch) -> tuple[np.ndarray, int]:
  """DCG over the ideal one, and points."""
  return _ndcg(batch, batch.hits), len(batch.hits)


def psp(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
  """1 / p_l of the hits, and the most that there could be."""
  return _gain(batch, batch.gains), _gain(batch, batch.best_gains)


def psndcg(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
  """The same of nDCG."""
  return _ndcg(batch, batch.gains), _ndcg(batch, batch.best_gains)


def recall(batch: Batch) -> tuple[np.ndarray, int]:
  """Hits over labels, and points with labels."""
  lengths = batch.lengths
  hits = np.cumsum(batch.hits, axis=1)[:, batch.ks - 1]  # [N, K]
  found = divide(hits, lengths[:, None]).sum(axis=0)
  return found, int(np.count_nonzero(lengths))


def hit_rate(batch: Batch) -> tuple[np.ndarray, int]:
  """Points with a hit, and points with labels."""
  found = np.cumsum(batch.hits, axis=1)[:, batch.ks - 1] > 0  # [N, K]
  return found.sum(axis=0), int(np.count_nonzero(batch.lengths))


def mrr(batch: Batch) -> tuple[np.ndarray, int]:
  """1 / rank of the first hits, and points with labels."""
  ranks = np.arange(1, batch.hits.shape[1] + 1)
  best = np.maximum.accumulate(batch.hits / ranks, axis=1)  # [N, width]
  found = best[:, batch.ks - 1].sum(axis=0)
  return found, int(np.count_nonzero(batch.lengths))


def popularity(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
  """Mean training points of what a point is shown, and points shown any."""
  assert batch.label_counts is not None
  shown = (batch.ids >= 0) & (batch.ids < len(batch.label_counts))
  counts = np.where(shown, batch.label_counts[np.where(shown, batch.ids, 0)], 0)
  total, number = (
    np.cumsum(of_each, axis=1, dtype=np.float64)[:, batch.ks - 1]
    for of_each in (counts, shown)
  )  # [N, K]
  return divide(total, number).sum(axis=0), np.count_nonzero(number, axis=0)


def divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
  """top / bottom, and 0 where bottom is 0."""
  top, bottom = np.broadcast_arrays(top, bottom)
  zeros = np.zeros(top.shape)
  return np.divide(top, bottom, out=zeros, where=bottom != 0)


def _gain(batch: Batch, gains: np.ndarray) -> np.ndarray:
  """Sums over points of gain@k, `[K]`."""
  return np.cumsum(gains, axis=1)[:, batch.ks - 1].sum(axis=0)


def _ndcg(batch: Batch, gains: np.ndarray) -> np.ndarray:
  """Sums over points of DCG@k / ideal@k, `[K]`."""
  discounts = 1 / np.log2(np.arange(2, gains.shape[1] + 2))  # [width]
  ideal = np.concatenate([[0.0], np.cumsum(discounts)])
  dcg = np.cumsum(gains * discounts, axis=1)[:, batch.ks - 1]
  shortest = np.minimum(batch.ks, batch.lengths[:, None])
  return divide(dcg, ideal[shortest]).sum(axis=0)
