"""Sets of (row, label) pairs in CSR form: membership and reciprocal filters.

Shapes: N rows, K ids per row, L labels, nnz pairs.
"""

from typing import NamedTuple, Protocol

import numpy as np


class SparseRows(Protocol):
  """CSR rows: an `xlj.data` Csr, a scipy CSR matrix or a `LabelRows`."""

  @property
  def indptr(self) -> np.ndarray:
    """Where each row starts in `indices`, integers [N + 1]."""
    ...

  @property
  def indices(self) -> np.ndarray:
    """Column ids, integers [nnz], ascending and distinct within a row."""
    ...


class LabelRows(NamedTuple):
  """The plainest `SparseRows`."""

  indptr: np.ndarray  # [N + 1]
  indices: np.ndarray  # [nnz]


def contains(rows: SparseRows, ids: np.ndarray, num_columns: int) -> np.ndarray:
  """Tells which ids are among the entries of their row.

  Args:
    rows: CSR rows, N of them, sorted and without duplicates.
    ids: integers [N, K]; ids outside [0, num_columns) are never found.
    num_columns: L, at most 2**31.

  Returns:
    bool [N, K].

  Raises:
    ValueError: the row counts differ, or `rows` is not sorted CSR.

  Example:
    >>> rows = LabelRows(np.array([0, 2, 2]), np.array([3, 7]))
    >>> contains(rows, np.array([[7, 5], [7, -1]]), 10)
    array([[ True, False],
           [False, False]])
  """
  # One int64 key per (row, column) pair: N * L stays far below 2**63.
  keys = _pair_keys(rows, len(ids), num_columns)  # [nnz], ascending
  if not keys.size:
    return np.zeros(ids.shape, bool)
  first = np.arange(len(ids), dtype=np.int64)[:, None] * num_columns
  wanted = first + ids  # [N, K]
  at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
  return (keys[at] == wanted) & (ids >= 0) & (ids < num_columns)


def filter_depth(filtered: SparseRows, k: int, num_labels: int) -> int:
  """How many predictions per row keep k of them through `mask_filtered`.

  Args:
    filtered: the (row, label) pairs to leave out, of every row to be scored.
    k: predictions wanted.
    num_labels: L.

  Returns:
    min(L, k + the longest row of `filtered`).

  Example:
    >>> filter_depth(LabelRows(np.array([0, 2]), np.array([3, 7])), 5, 100)
    7
  """
  longest = np.diff(filtered.indptr).max(initial=0)
  return min(num_labels, k + int(longest))


def mask_filtered(
  topk_scores: np.ndarray,
  topk_ids: np.ndarray,
  filtered: SparseRows,
  k: int,
  num_labels: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Removes filtered labels from over-long predictions and keeps k.

  Data sets whose labels are documents list (row, label) pairs of a document
  with itself; these must not take up a place among the top k.

  Args:
    topk_scores: float [N, K], descending.
    topk_ids: integers [N, K], -1 where there is no prediction.
    filtered: the pairs to leave out of these N rows.
    k: predictions to keep.
    num_labels: L.

  Returns:
    scores [N, k] and ids [N, k] in the order they came in; places that stay
    empty have score -inf and id -1.

  Raises:
    ValueError: K is below `filter_depth(filtered, k, num_labels)`, so that a
      row could lose labels that belong to its top k.

  Example:
    >>> rows = LabelRows(np.array([0, 1]), np.array([7]))
    >>> scores, ids = np.array([[3.0, 2.0, 1.0]]), np.array([[7, 4, 2]])
    >>> mask_filtered(scores, ids, rows, 2, 10)
    (array([[2., 1.]]), array([[4, 2]]))
  """
  needed = filter_depth(filtered, k, num_labels)
  if topk_ids.shape[1] < needed:
    raise ValueError(
      f"{topk_ids.shape[1]} predictions per row, but {needed} are needed to"
      f" keep {k} after filtering: ask for filter_depth(...) predictions"
    )
  drop = contains(filtered, topk_ids, num_labels) | (topk_ids < 0)  # [N, K]
  # A stable sort moves what is dropped to the end and keeps the ranking.
  order = np.argsort(drop, axis=1, kind="stable")[:, :k]
  empty = np.take_along_axis(drop, order, axis=1)
  scores = np.take_along_axis(topk_scores, order, axis=1)
  ids = np.take_along_axis(topk_ids, order, axis=1)
  return np.where(empty, -np.inf, scores), np.where(empty, -1, ids)


def take(rows: SparseRows, keep: np.ndarray) -> LabelRows:
  """The rows where `keep`, bool [N], is true."""
  lengths = np.diff(rows.indptr)
  indptr = np.concatenate([[0], np.cumsum(lengths[keep])])
  return LabelRows(indptr, np.asarray(rows.indices)[np.repeat(keep, lengths)])


def check(rows: SparseRows, num_rows: int, num_columns: int) -> None:
  """Refuses rows that are not CSR rows with ids in [0, num_columns).

  Raises:
    ValueError: with what was found and what was expected.
  """
  indptr, indices = np.asarray(rows.indptr), np.asarray(rows.indices)
  if len(indptr) != num_rows + 1:
    raise ValueError(
      f"{len(indptr) - 1} rows of labels for {num_rows} rows of predictions"
    )
  if indptr[0] != 0 or indptr[-1] != len(indices):
    raise ValueError(
      f"indptr runs from {indptr[0]} to {indptr[-1]}, expected 0 to"
      f" {len(indices)}, the number of entries"
    )
  if indices.size and not 0 <= indices.min() <= indices.max() < num_columns:
    raise ValueError(
      f"label ids from {indices.min()} to {indices.max()}, expected ids in"
      f" [0, {num_columns})"
    )


def _pair_keys(rows: SparseRows, num_rows: int, num_columns: int) -> np.ndarray:
  check(rows, num_rows, num_columns)
  first = np.arange(num_rows, dtype=np.int64) * num_columns
  keys = np.repeat(first, np.diff(rows.indptr)) + np.asarray(rows.indices)
  if np.any(keys[1:] <= keys[:-1]):
    raise ValueError("the ids of a row must ascend without duplicates")
  return keys
