"""Compressed sparse rows on plain or memory-mapped NumPy arrays.

Legend: N rows, n rows of a selection, nnz entries.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  import scipy.sparse


class Padded(NamedTuple):
  """Rows as a rectangle.

  Attributes:
    ids: int32 [n, width], columns of each row, then the fill.
    values: float32 [n, width], 1 for entries of a matrix without values, then
      zeros.
    cut: entries that did not fit.
  """

  ids: np.ndarray
  values: np.ndarray
  cut: int


@dataclasses.dataclass(frozen=True, eq=False)
class Csr:
  """A sparse matrix by rows; entry e of row r has indptr[r] <= e < indptr[r+1].

  Columns ascend and do not repeat within a row, but where rows are tokens of
  texts, in their order. The arrays may be memory maps: no method but `validate`
  reads more than the rows that it is asked for.

  Attributes:
    indptr: int64 [N + 1], not descending; indptr[0] is 0.
    indices: int32 [nnz], column of each entry.
    values: float32 [nnz], or None when every entry is 1.
    num_columns: columns of the matrix.

  Example:
    x = Csr.from_rows([[3, 7], [], [0]], num_columns=8)
    x.take([2, 0]).pad(width=2).ids    # [[0, -1], [3, 7]]
  """

  indptr: np.ndarray
  indices: np.ndarray
  values: np.ndarray | None
  num_columns: int

  @property
  def num_rows(self) -> int:
    """Number of rows, N."""
    return len(self.indptr) - 1

  @property
  def nnz(self) -> int:
    """Number of stored entries."""
    return len(self.indices)

  @property
  def shape(self) -> tuple[int, int]:
    """(rows, columns)."""
    return self.num_rows, self.num_columns

  @property
  def row_lengths(self) -> np.ndarray:
    """int32 [N], the number of entries of each row."""
    return np.diff(self.indptr).astype(np.int32)

  def take(self, rows: np.ndarray | list[int]) -> Csr:
    """Gathers rows, in the order given; repeats are allowed.

    Args:
      rows: int [n], each in [0, N).

    Returns:
      The rows in memory, as a matrix of n rows.

    Raises:
      IndexError: when a row is out of range.
    """
    rows = np.asarray(rows, np.int64).reshape(-1)
    if rows.size and not 0 <= rows.min() <= rows.max() < self.num_rows:
      raise IndexError(
        f"Rows {rows.min()} to {rows.max()} asked for of {self.num_rows}."
      )
    starts = np.asarray(self.indptr[rows])
    lengths = self.indptr[rows + 1] - starts
    indptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    # Entry e of output row r is entry e - indptr[r] + starts[r] of the source.
    source = np.repeat(starts - indptr[:-1], lengths)
    source += np.arange(len(source))
    values = None if self.values is None else np.asarray(self.values[source])
    return Csr(
      indptr, np.asarray(self.indices[source]), values, self.num_columns
    )

  def slice_rows(self, start: int, stop: int) -> Csr:
    """Returns consecutive rows without copying their entries.

    Args:
      start: first row; clipped to N.
      stop: one past the last row; clipped to N.

    Returns:
      A matrix whose entries are views of this one's.
    """
    start, stop = (min(max(bound, 0), self.num_rows) for bound in (start, stop))
    stop = max(start, stop)
    first, last = int(self.indptr[start]), int(self.indptr[stop])
    values = None if self.values is None else self.values[first:last]
    indptr = np.asarray(self.indptr[start : stop + 1]) - first
    return Csr(indptr, self.indices[first:last], values, self.num_columns)

  def below(self, width: int) -> Csr:
    """Leaves out the entries of columns from `width` on.

    Args:
      width: columns of the result.

    Returns:
      A matrix of as many rows; this one's arrays if it has no such entry.
    """
    kept = self.indices < width
    if kept.all():
      return dataclasses.replace(self, num_columns=width)
    values = None if self.values is None else self.values[kept]
    indptr = np.concatenate([[0], np.cumsum(kept)])[self.indptr]
    return Csr(indptr, self.indices[kept], values, width)

  def as_labels(self, num_labels: int) -> Csr:
    """The columns as label ids: `num_labels` of them, and no values.

    A sequence may have them in any order, and twice; the result has not.
    """
    import scipy.sparse

    kept = self.below(num_labels)
    found = np.ones(kept.nnz, np.float32), kept.indices, kept.indptr
    out = scipy.sparse.csr_array(found, shape=kept.shape)
    return Csr.from_scipy(out, values=False)

  def pad(self, width: int, fill: int = -1) -> Padded:
    """Lays the rows out as a rectangle.

    Args:
      width: entries per row of the result; a longer row keeps its first ones.
      fill: id in the cells past the end of a row, whose value is 0.

    Returns:
      ids int32 [N, width], values float32 [N, width] and how many entries were
      cut, which the caller must not ignore unless it planned the cut.

    Raises:
      ValueError: when the width is negative.
    """
    if width < 0:
      raise ValueError(f"width must not be negative, got {width}.")
    lengths = np.diff(self.indptr)
    filled = np.arange(width) < lengths[:, None]  # [N, width]
    ids = np.full(filled.shape, fill, np.int32)
    values = np.zeros(filled.shape, np.float32)
    indices, entries = self.indices, self.values
    cut = int(np.maximum(lengths - width, 0).sum())
    if cut:
      rank = np.arange(self.nnz) - np.repeat(self.indptr[:-1], lengths)
      indices = indices[rank < width]
      entries = None if entries is None else entries[rank < width]
    ids[filled] = indices
    values[filled] = 1 if entries is None else entries
    return Padded(ids, values, cut)

  def validate(self, *, in_order: bool = False) -> None:
    """Checks everything that the class promises; reads the whole matrix.

    Args:
      in_order: Whether rows are tokens in their order, which may repeat.

    Raises:
      ValueError: naming what is broken, and the first row where it is.
    """
    if len(self.indptr) < 1 or self.indptr[0] != 0:
      raise ValueError("indptr must start with 0.")
    lengths = np.diff(self.indptr)
    if (lengths < 0).any():
      raise ValueError(f"indptr descends at row {int(np.argmax(lengths < 0))}.")
    if self.indptr[-1] != self.nnz:
      raise ValueError(
        f"indptr ends with {self.indptr[-1]}, but there are {self.nnz} entries."
      )
    if self.values is not None and len(self.values) != self.nnz:
      raise ValueError(f"{len(self.values)} values for {self.nnz} entries.")
    self._check_columns(in_order)
    if self.values is not None:
      self._refuse(~np.isfinite(self.values), "has a value that is not finite")

  def _check_columns(self, in_order: bool) -> None:
    outside = (self.indices < 0) | (self.indices >= self.num_columns)
    self._refuse(outside, f"has a column outside [0, {self.num_columns})")
    if in_order:
      return
    descends = np.zeros(self.nnz, bool)
    descends[1:] = self.indices[1:] <= self.indices[:-1]
    starts = self.indptr[:-1][np.diff(self.indptr) > 0]
    descends[starts] = False
    self._refuse(descends, "has columns that repeat or do not ascend")

  def _refuse(self, bad: np.ndarray, what: str) -> None:
    if bad.any():
      entry = int(np.argmax(bad))
      row = int(np.searchsorted(self.indptr, entry, side="right")) - 1
      raise ValueError(f"Row {row} {what}: {self.indices[entry]}.")

  def to_scipy(self) -> scipy.sparse.csr_array:
    """Returns the matrix as a SciPy CSR array of float32 that shares memory."""
    import scipy.sparse

    values = self.values
    if values is None:
      values = np.ones(self.nnz, np.float32)
    out = scipy.sparse.csr_array(
      (values, self.indices, self.indptr), shape=self.shape, copy=False
    )
    out.has_canonical_format = True
    return out

  @classmethod
  def from_scipy(
    cls,
    matrix: scipy.sparse.sparray | scipy.sparse.spmatrix,
    *,
    values: bool = True,
  ) -> Csr:
    """Converts a SciPy matrix of any layout.

    Args:
      matrix: [N, columns]; entries stored twice are added up, as SciPy does.
      values: False drops the values, so that each stored entry counts as 1.

    Returns:
      The matrix with sorted columns.

    Raises:
      ValueError: when it is not 2-d or not of real numbers, or has more columns
        than an int32 can number.
    """
    import scipy.sparse

    given: Any = matrix  # whose types name neither
    if len(given.shape) != 2 or given.dtype.kind not in "buif":
      raise ValueError(
        f"The matrix is {given.dtype} {given.shape}; give real numbers"
        " [N, columns], one row as matrix.reshape(1, -1)."
      )
    out = scipy.sparse.csr_array(matrix)
    num_columns = int(out.shape[1])  # pyrefly: ignore[unsupported-operation]
    if num_columns > np.iinfo(np.int32).max:
      raise ValueError(f"{num_columns} columns do not fit in int32 ids.")
    if not out.has_canonical_format:
      out = out.copy()  # the constructor shares memory with its argument
      out.sum_duplicates()
    return cls(
      out.indptr.astype(np.int64),
      out.indices.astype(np.int32),
      out.data.astype(np.float32) if values else None,
      num_columns,
    )

  @classmethod
  def from_rows(
    cls,
    rows: list[list[int]],
    num_columns: int,
    values: list[list[float]] | None = None,
  ) -> Csr:
    """Builds a small matrix from lists, one of columns per row.

    Args:
      rows: columns of each row, ascending.
      num_columns: columns of the matrix.
      values: values of each row, shaped like `rows`; None for all 1.

    Returns:
      The matrix.

    Raises:
      ValueError: when the rows break what the class promises.
    """
    indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    flat = [column for row in rows for column in row]
    entries = None
    if values is not None:
      entries = np.array([v for row in values for v in row], np.float32)
    out = cls(indptr, np.array(flat, np.int32), entries, num_columns)
    out.validate()
    return out


class Rows(NamedTuple):
  """A block of rows as a reader yields it.

  Attributes:
    features: Csr, or float32 (or bytes) [n, F] where they are dense.
    labels: Csr without values; None where the source cannot have labels.
  """

  features: Csr | np.ndarray
  labels: Csr | None


def concatenate(blocks: list[Csr]) -> Csr:
  """Stacks matrices on top of each other.

  Args:
    blocks: at least one matrix; all with values or all without, and of one
      number of columns.

  Returns:
    One matrix with the rows of all, in memory.

  Raises:
    ValueError: when there is no block, or they do not match.
  """
  if not blocks:
    raise ValueError("There is nothing to concatenate.")
  kinds = {(block.num_columns, block.values is None) for block in blocks}
  if len(kinds) > 1:
    raise ValueError(f"Blocks differ in (columns, no values): {sorted(kinds)}.")
  lengths = np.concatenate([np.diff(block.indptr) for block in blocks])
  indptr = np.zeros(len(lengths) + 1, np.int64)
  np.cumsum(lengths, out=indptr[1:])
  values = [block.values for block in blocks if block.values is not None]
  return Csr(
    indptr,
    np.concatenate([block.indices for block in blocks]),
    np.concatenate(values) if values else None,
    blocks[0].num_columns,
  )
