"""Which pairs of a feature and a label meet in training rows, and how strongly.

The evidence of a pair is the sum of the squared values of its feature over the
rows with its label. It is found block by block of labels.

Legend: N rows, F features, L label rows, B blocks, R label rows of a block, P
pairs of the block with most.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import dataclasses
import itertools
from typing import Any

import numpy as np
import scipy.sparse

from xlj import processors
from xlj.data import csr as csr_lib

_ENTRIES = 2**22  # of the features that are weighted at a time
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
    weights: `[B, P]` float32, 0 at padding; None for those that start at 0.
  """

  starts: np.ndarray
  columns: np.ndarray
  found: int
  weights: np.ndarray | None = None

  @property
  def arrays(self) -> list[np.ndarray]:
    """Starts, columns, and weights if there are any."""
    found = self.starts, self.columns, self.weights
    return [array for array in found if array is not None]

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

  Takes 8 bytes for each entry of the features and 10 for each pair that meets,
  beside some blocks of pairs again.

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
  num_blocks, size = shape
  examples = _examples(labels.take(rows), row_of_label, num_blocks * size)
  sums, frequency = _evidence(features, rows, weighting, examples, num_blocks)
  found = sum(part.nnz for part in sums)
  return Pairs(*_packed(_limited(sums, frequency, limits), size), found)


def _evidence(
  features: csr_lib.Csr,
  rows: np.ndarray,
  weighting: Callable[[csr_lib.Csr], csr_lib.Csr],
  examples: _Matrix,
  num_blocks: int,
) -> tuple[list[_Matrix], np.ndarray]:
  """The evidence `[F, R]` of each block; how many rows have each feature."""
  squares, frequency = _squares(features, rows, weighting)
  size = examples.shape[0] // num_blocks

  def block(b: int) -> _Matrix:
    # The transpose of what is not sorted is.
    return (examples[b * size : (b + 1) * size] @ squares).T.tocsr()

  with futures.ThreadPoolExecutor(processors.usable()) as threads:
    return list(threads.map(block, range(num_blocks))), frequency


def _squares(
  features: csr_lib.Csr,
  rows: np.ndarray,
  weighting: Callable[[csr_lib.Csr], csr_lib.Csr],
) -> tuple[_Matrix, np.ndarray]:
  """Squared weighted features `[n, F]`, and how many rows have each `[F]`."""
  indptr = np.zeros(len(rows) + 1, np.int64)
  np.cumsum(np.diff(features.indptr)[rows], out=indptr[1:])
  indices = np.empty(indptr[-1], np.int32)
  squares = np.empty(indptr[-1], np.float32)
  frequency = np.zeros(features.num_columns, np.int64)
  cuts = np.flatnonzero(np.diff(indptr[1:] // _ENTRIES)) + 1
  first = 0
  for part in np.split(rows, cuts):
    x = weighting(features.take(part))
    assert x.values is not None
    own = slice(first, first := first + x.nnz)
    indices[own] = x.indices
    np.square(x.values, out=squares[own])
    frequency += np.bincount(x.indices, minlength=len(frequency))
  shape = len(rows), features.num_columns
  return scipy.sparse.csr_array((squares, indices, indptr), shape), frequency


def _examples(
  labels: csr_lib.Csr, row_of_label: np.ndarray, num_rows: int
) -> _Matrix:
  """The examples of each label row `[L, n]`, 1 where it is theirs."""
  found = row_of_label[labels.indices]
  known = found >= 0
  indptr = np.concatenate([[0], np.cumsum(known)])[labels.indptr]
  found = found[known]
  values = np.ones(len(found), np.float32)
  return scipy.sparse.csr_array(
    (values, found, indptr), (labels.num_rows, num_rows)
  ).T.tocsr()


def _limited(
  sums: list[_Matrix], frequency: np.ndarray, limits: Limits
) -> list[_Matrix]:
  """The pairs that are kept.

  Args:
    sums: The evidence `[F, R]` of each block.
    frequency: How many rows have each feature, `[F]`.
    limits: Which.
  """
  visits = sum(
    np.dot(np.diff(part.indptr).astype(float), frequency) for part in sums
  )
  if visits > limits.work:
    for b, part in enumerate(sums):  # each in the place of what it is of
      sums[b] = _where(part, part.data >= limits.evidence)
  if limits.per_feature:
    every = scipy.sparse.hstack(sums, format="csr")
    every = _best(every, _feature(every), limits.per_feature)
    sizes = np.cumsum([0, *(part.shape[1] for part in sums)])
    sums = [every[:, i:j] for i, j in itertools.pairwise(sizes)]
  if limits.per_label:
    sums = [_best(part, part.indices, limits.per_label) for part in sums]
  return sums


def _best(sums: _Matrix, owner: np.ndarray, most: int) -> _Matrix:
  """At most so many pairs of each owner, those with most evidence."""
  order = np.lexsort((-sums.data, owner))
  sizes = np.bincount(owner)
  rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  keep = np.ones(len(order), bool)
  keep[order[rank >= most]] = False
  return _where(sums, keep)


def _where(sums: _Matrix, keep: np.ndarray) -> _Matrix:
  """Some of the stored entries of a matrix."""
  indptr = np.concatenate([[0], np.cumsum(keep)])[sums.indptr]
  return scipy.sparse.csr_array(
    (sums.data[keep], sums.indices[keep], indptr), sums.shape
  )


def _feature(sums: _Matrix) -> np.ndarray:
  """The row of each stored entry."""
  return np.repeat(np.arange(sums.shape[0]), np.diff(sums.indptr))


def _packed(
  parts: list[_Matrix], rows_per_block: int
) -> tuple[np.ndarray, np.ndarray]:
  """The stored entries of each block's `[F, R]`: `starts` and `columns`.

  Raises:
    ValueError: If a block has 2^31 entries or more.
  """
  width = max(1, *(part.nnz for part in parts))
  if width >= 2**31:
    raise ValueError(
      f"a block has {width} pairs of a feature and a label, above 2^31; raise"
      " head.blocks, or keep fewer pairs"
    )
  dtype = np.uint16 if rows_per_block <= 2**16 else np.uint32
  columns = np.zeros((len(parts), width), dtype)
  for own, part in zip(columns, parts):
    own[: part.nnz] = part.indices
  return np.stack([part.indptr.astype(np.int32) for part in parts]), columns


def by_block(
  weights: _Matrix, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The stored entries of a matrix by block, by feature, by label row.

  Args:
    weights: `[F, B * R]` float32, sparse.
    shape: (B, R).

  Returns:
    `starts` and `columns` of `Pairs`, and the entries `[B, P]`, 0 at padding.

  Raises:
    ValueError: If a block has 2^31 entries or more.
  """
  num_blocks, size = shape
  by_label = weights.tocsc()
  parts = [
    by_label[:, b * size : (b + 1) * size].tocsr() for b in range(num_blocks)
  ]
  starts, columns = _packed(parts, size)
  values = np.zeros(columns.shape, np.float32)
  for own, part in zip(values, parts):
    own[: part.nnz] = part.data
  return starts, columns, values
