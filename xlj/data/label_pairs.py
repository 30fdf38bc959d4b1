"""Which pairs of a feature and a label meet in training rows, and how strongly.

The evidence of a pair is the sum of the squared values of its feature over the
rows with its label. Rows are read once, part by part.

Legend: N rows, F features, L label rows, B blocks, R label rows of a block, P
pairs of the block with most.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np
import scipy.sparse

from xlj.data import csr as csr_lib

# Triples (row, feature, label) of a part: of about 16 bytes each while they are
# counted, beside what has been found so far.
_TRIPLES = 2**25
_Matrix = Any  # a scipy.sparse.csr_array


@dataclasses.dataclass(frozen=True)
class Limits:
  """Which pairs are kept.

  Attributes:
    evidence: Least evidence, where all pairs would be too much work.
    work: How often pairs may be visited in a pass over the rows before that is
      so: the sum over the features of each row of how many pairs they have.
    per_feature: At most so many pairs of a feature, those with most evidence;
      0 for any number.
    per_label: At most so many pairs of a label, likewise.
  """

  evidence: float = 0.0
  work: int = 0
  per_feature: int = 0
  per_label: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Pairs by block, by feature, by label row.

  Attributes:
    starts: int32 `[B, F + 1]`; those of feature f of block b are `starts[b, f]`
      to `starts[b, f + 1]`.
    columns: `[B, P]` unsigned, the row of each pair in its block, ascending for
      each feature; 0 at padding.
    found: How many pairs met, before limits.
  """

  starts: np.ndarray
  columns: np.ndarray
  found: int

  @property
  def kept(self) -> int:
    """How many pairs there are."""
    return int(self.starts[:, -1].sum())


def find(
  features: csr_lib.Csr,
  labels: csr_lib.Csr,
  row_of_label: np.ndarray,
  shape: tuple[int, int],
  *,
  rows: np.ndarray,
  weighting: Callable[[csr_lib.Csr], csr_lib.Csr],
  limits: Limits,
) -> Pairs:
  """Finds the pairs of a training split.

  Takes about 12 bytes for each pair that meets, twice while parts are put
  together, and 16 for each of 2^25 triples at a time.

  Args:
    features: `[N, F]`.
    labels: `[N, num_labels]`.
    row_of_label: int `[num_labels]`, the label row of each label; -1 for labels
      without one.
    shape: (B, R).
    rows: Rows to read, ascending.
    weighting: Of the features.
    limits: Which pairs are kept.

  Returns:
    The pairs; `columns` are as wide as the block with most of them needs.

  Raises:
    ValueError: If a block has 2^31 pairs or more.
  """
  num_blocks, rows_per_block = shape
  num_rows = num_blocks * rows_per_block
  frequency = np.zeros(features.num_columns, np.int64)

  def summed(parts: list[np.ndarray]) -> _Matrix:
    """The evidence `[F, B * R]` of parts, each added up a few times alone."""
    if len(parts) > 1:
      half = 1 << (len(parts) - 1).bit_length() - 1
      return summed(parts[:half]) + summed(parts[half:])
    x = weighting(features.take(parts[0])).to_scipy()
    frequency[:] += np.bincount(x.indices, minlength=len(frequency))
    x.data **= 2
    y = _by_row(labels.take(parts[0]), row_of_label, num_rows)
    return x.T.tocsr() @ y

  sums = summed(_parts(features, labels, rows))
  sums.sort_indices()
  starts, columns, _ = by_block(_limited(sums, frequency, limits), shape)
  return Pairs(starts, columns, sums.nnz)


def _parts(
  features: csr_lib.Csr, labels: csr_lib.Csr, rows: np.ndarray
) -> list[np.ndarray]:
  """Rows in parts of about as many triples; at least one."""
  triples = np.diff(features.indptr)[rows] * np.diff(labels.indptr)[rows]
  part = np.cumsum(triples) // _TRIPLES
  return np.split(rows, np.flatnonzero(np.diff(part)) + 1)


def _by_row(
  labels: csr_lib.Csr, row_of_label: np.ndarray, num_rows: int
) -> _Matrix:
  """Labels `[n, L]` by label row, 1 where there is one."""
  found = row_of_label[labels.indices]
  known = found >= 0
  indptr = np.concatenate([[0], np.cumsum(known)])[labels.indptr]
  found = found[known]
  values = np.ones(len(found), np.float32)
  return scipy.sparse.csr_array(
    (values, found, indptr), (labels.num_rows, num_rows)
  )


def _limited(sums: _Matrix, frequency: np.ndarray, limits: Limits) -> _Matrix:
  """The pairs that are kept.

  Args:
    sums: The evidence `[F, B * R]`.
    frequency: How many rows have each feature, `[F]`.
    limits: Which.
  """
  sizes = np.diff(sums.indptr)
  keep = np.ones(sums.nnz, bool)
  if np.dot(sizes.astype(float), frequency) > limits.work:
    keep = sums.data >= limits.evidence
  feature = np.repeat(np.arange(sums.shape[0]), sizes)
  for most, owner in (
    (limits.per_feature, feature),
    (limits.per_label, sums.indices),
  ):
    if most and np.bincount(owner[keep]).max(initial=0) > most:
      # By owner, those with most evidence first.
      order = np.flatnonzero(keep)
      order = order[np.lexsort((-sums.data[order], owner[order]))]
      sizes = np.bincount(owner[order])
      rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
      keep[order[rank >= most]] = False
  counts = np.bincount(feature[keep], minlength=sums.shape[0])
  indptr = np.concatenate([[0], np.cumsum(counts)])
  return scipy.sparse.csr_array(
    (sums.data[keep], sums.indices[keep], indptr), sums.shape
  )


def by_block(
  weights: _Matrix, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The stored entries of a matrix by block, by feature, by label row.

  Args:
    weights: `[F, B * R]` csr_array float32.
    shape: (B, R).

  Returns:
    `starts` and `columns` of `Pairs`, and the entries `[B, P]`, 0 at padding.

  Raises:
    ValueError: If a block has 2^31 entries or more.
  """
  num_blocks, rows_per_block = shape
  num_features = weights.shape[0]
  weights.sort_indices()
  block = (weights.indices // rows_per_block).astype(np.uint16)
  feature = np.repeat(
    np.arange(num_features, dtype=np.int32), np.diff(weights.indptr)
  )
  sizes = np.bincount(block, minlength=num_blocks)
  width = max(1, sizes.max(initial=0))
  if width >= 2**31:
    raise ValueError(
      f"a block has {width} pairs of a feature and a label, above 2^31; raise"
      " head.blocks, or keep fewer pairs"
    )
  starts = np.zeros((num_blocks, num_features + 1), np.int32)
  dtype = np.uint16 if rows_per_block <= 2**16 else np.uint32
  columns = np.zeros((num_blocks, width), dtype)
  values = np.zeros((num_blocks, width), np.float32)
  order = np.argsort(block, kind="stable")  # still by feature and row
  for b, part in enumerate(np.split(order, np.cumsum(sizes)[:-1])):
    columns[b, : len(part)] = weights.indices[part] - b * rows_per_block
    values[b, : len(part)] = weights.data[part]
    counts = np.bincount(feature[part], minlength=num_features)
    starts[b, 1:] = np.cumsum(counts)
  return starts, columns, values
