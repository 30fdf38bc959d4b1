"""Groups of equally many labels that share examples or look alike.

The labels are split in two again and again, each time by spherical 2-means
with parts of given sizes, until there are as many parts as groups. Sources:
Prabhu et al., "Parabel: Partitioned Label Trees for Extreme Classification
with Application to Dynamic Search Advertising", WWW 2018, section 4; Yu et
al., "PECOS: Prediction for Enormous and Correlated Output Spaces", JMLR 2022,
section 3.

Legend: N rows, F features, L labels, n labels of a part, C groups.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import statistics

_MAX_ROUNDS = 20  # of 2-means on one part
_TOLERANCE = 1e-4  # of its mean similarity, below which it stops (Parabel)


def centroids(
  features: csr_lib.Csr | np.ndarray,
  labels: csr_lib.Csr,
  weighting: Callable[[csr_lib.Csr], csr_lib.Csr] | None = None,
) -> csr_lib.Csr:
  """The mean direction of each label's examples.

  Row l is `sum_i y_il x_i / |x_i|`, scaled to length 1: the positive instance
  feature aggregation (PIFA) of PECOS, section 3.1.1.

  Args:
    features: [N, F]; hand over the rows to train on, if not all of them.
    labels: [N, L].
    weighting: applied to sparse features first.

  Returns:
    float32 [L, F] with rows of length 1, and empty ones for labels without
    examples.
  """
  rows = _sparse(features)
  if weighting is not None and isinstance(features, csr_lib.Csr):
    rows = weighting(rows)
  sums = labels.to_scipy().T @ _unit_rows(rows).to_scipy()
  return _unit_rows(csr_lib.Csr.from_scipy(sums))


def balanced(
  vectors: csr_lib.Csr | np.ndarray,
  num_groups: int,
  seed: int,
) -> np.ndarray:
  """Groups similar labels, all groups of the same size but for one label.

  The first `L mod C` groups have one label more than the others. Labels
  without a vector fill the groups up: those with one are spread as evenly as
  the labels in all, so that no group is left without examples if it need not.
  Neighbouring groups are similar. Takes O(entries) memory and
  O(entries log C) time.

  Args:
    vectors: [L, F] what is known of each label: `centroids`, or features of
      its text; only directions count.
    num_groups: C, from 1 to L; any number.
    seed: of the first centres of each split.

  Returns:
    int32 [L], the group of each label, a function of the arguments alone.

  Raises:
    ValueError: when there are fewer labels than groups, or no group.

  Example:
    groups = balanced(centroids(train.features, train.labels), 512, seed=0)
    order = LabelOrder.by_groups(groups, 512, label_counts)
  """
  matrix = _unit_rows(_sparse(vectors))
  num_labels = matrix.num_rows
  if not 1 <= num_groups <= num_labels:
    raise ValueError(
      f"{num_groups} groups of {num_labels} labels; give from 1 to that many"
    )
  groups = np.empty(num_labels, np.int32)
  filled = matrix.row_lengths > 0
  known = np.flatnonzero(filled)
  sizes = _sizes(len(known), num_groups)
  stack = [(known, matrix.take(known), 0, num_groups)]
  while stack:
    members, rows, first, stop = stack.pop()
    if stop - first == 1 or not len(members):
      groups[members] = first
      continue
    middle = (first + stop) // 2
    generator = np.random.default_rng((seed, first, stop))
    left = _split(rows, int(sizes[first:middle].sum()), generator)
    for part, bounds in ((left, (first, middle)), (~left, (middle, stop))):
      some = rows.take(np.flatnonzero(part))
      stack.append((members[part], _compact(some), *bounds))
  room = _sizes(num_labels, num_groups) - sizes
  groups[~filled] = np.repeat(np.arange(num_groups), room)
  return groups


def _sizes(total: int, parts: int) -> np.ndarray:
  """int64 [parts] that add up to `total`; the first ones are one larger."""
  return np.full(parts, total // parts) + (np.arange(parts) < total % parts)


def _sparse(matrix: csr_lib.Csr | np.ndarray) -> csr_lib.Csr:
  if isinstance(matrix, csr_lib.Csr):
    return matrix
  import scipy.sparse

  return csr_lib.Csr.from_scipy(scipy.sparse.csr_array(matrix))


def _split(
  rows: csr_lib.Csr, size: int, generator: np.random.Generator
) -> np.ndarray:
  """Spherical 2-means with a part of `size` rows; bool [n], that part.

  Given centres a and b, the parts of these sizes with the largest sum of
  similarities are the rows with the largest x (a - b), and the others.
  """
  count = rows.num_rows
  left = np.zeros(count, bool)
  if size in (0, count):
    left[:size] = True
    return left
  matrix = rows.to_scipy()
  direction = _first_direction(rows, generator)
  before = -np.inf
  for _ in range(_MAX_ROUNDS):
    best = np.argsort(-(matrix @ direction), kind="stable")
    left[:] = False
    left[best[:size]] = True
    sums = [matrix.T @ part.astype(np.float32) for part in (left, ~left)]
    lengths = [np.linalg.norm(part) for part in sums]
    # The rows of a part have similarities to its centre that add up to this.
    mean = float(sum(lengths)) / count
    if mean <= before + _TOLERANCE:
      break
    before = mean
    a, b = (part / max(n, 1e-12) for part, n in zip(sums, lengths))
    direction = a - b
  return left


def _first_direction(
  rows: csr_lib.Csr, generator: np.random.Generator
) -> np.ndarray:
  """Between two rows: any, and one drawn by its distance (k-means++)."""
  first = int(generator.integers(rows.num_rows))
  a = rows.take([first]).to_scipy().toarray()[0]
  distance = 1 - (rows.to_scipy() @ a).astype(np.float64)
  total = np.cumsum(np.maximum(distance, 0))
  place = np.searchsorted(total, generator.random() * total[-1], side="right")
  second = min(int(place), rows.num_rows - 1)
  return a - rows.take([second]).to_scipy().toarray()[0]


def _compact(rows: csr_lib.Csr) -> csr_lib.Csr:
  """Leaves out the columns without entries, where there are many of them.

  So a split costs its entries and not F, however many small ones there are.
  """
  if rows.nnz >= rows.num_columns:
    return rows
  columns, indices = np.unique(rows.indices, return_inverse=True)
  return dataclasses.replace(
    rows, indices=indices.astype(np.int32), num_columns=len(columns)
  )


def _unit_rows(rows: csr_lib.Csr) -> csr_lib.Csr:
  """Rows of length 1, without the entries of rows of zeros."""
  lengths = statistics.row_norms(rows)
  lengths[lengths == 0] = 1
  values = 1 if rows.values is None else rows.values
  values = values / np.repeat(lengths, rows.row_lengths)
  kept = values != 0
  indptr = np.concatenate([[0], np.cumsum(kept)])[rows.indptr]
  return csr_lib.Csr(indptr, rows.indices[kept], values[kept], rows.num_columns)
