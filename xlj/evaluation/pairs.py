"""Sets of (row, label) pairs in CSR form.

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
