"""SciPy's CSR in `.npz` as a stream of checked blocks.

SciPy's `save_npz` writes a zip archive of plain arrays, so the entries can be
read side by side, a block of rows at a time, whether or not they are
compressed; only the row pointers are held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
from typing import IO
import zipfile
import zlib

import numpy as np

from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import errors

Path = str | os.PathLike[str]
BLOCK_ENTRIES = 2**18

_CSR = "a CSR matrix as scipy.sparse.save_npz writes it"
_REBUILD = "save it with scipy.sparse.save_npz(path, matrix.tocsr())"
# Kinds of NumPy types that each array of an archive may have.
_KINDS = {
  "format": "SU",
  "shape": "iu",
  "indptr": "iu",
  "indices": "iu",
  "data": "fiub",
}
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError)


def stream_npz(
  path: Path,
  columns: checks.Columns,
  block_entries: int = BLOCK_ENTRIES,
) -> Iterator[csr_lib.Csr]:
  """Reads a SciPy CSR matrix.

  Args:
    path: a file of `scipy.sparse.save_npz`.
    columns: checks the blocks; without a limit, the width of the matrix becomes
      the limit.
    block_entries: entries read at a time; a longer row is read whole.

  Yields:
    All rows in order.

  Raises:
    DataError: when the file is damaged, not CSR, of another width than the
      limit, or has an entry that is not right.
    OSError: when it cannot be opened.
  """
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(open(path, "rb"))
    try:
      archive = stack.enter_context(zipfile.ZipFile(file))
    except zipfile.BadZipFile as error:
      raise errors.DataError(
        path, f"no readable zip archive ({error})", _CSR, hint=_REBUILD
      ) from error
    shape, indptr = _read_frame(path, archive)
    _set_limit(path, columns, shape[1])
    ids = _member(path, archive, "indices", stack)
    values = _member(path, archive, "data", stack)
    for member, name in ((ids, "indices"), (values, "data")):
      if member.length != indptr[-1]:
        raise errors.DataError(
          path, f"{member.length} {name}", f"{indptr[-1]} as in indptr"
        )
    for start, stop in _spans(indptr, block_entries):
      count = int(indptr[stop] - indptr[start])
      yield columns.block(
        indptr[start : stop + 1] - indptr[start],
        ids.read(count),
        values.read(count),
        checks.Place(path, first_row=start),
      )
    ids.finish()
    values.finish()


def stream_rows(
  path: Path, features: checks.Columns, labels: checks.Columns
) -> Iterator[csr_lib.Rows]:
  """Reads a matrix of features as rows without labels; see `stream_npz`."""
  del labels
  for block in stream_npz(path, features):
    yield csr_lib.Rows(block, None)


def stream_labels(path: Path, labels: checks.Columns) -> Iterator[csr_lib.Csr]:
  """Reads a matrix of labels, without values; see `stream_npz`."""
  return stream_npz(path, labels)


class _Member:
  """One array of an archive, read from its start to its end."""

  def __init__(self, path: Path, name: str, file: IO[bytes]):
    self._path = path
    self._name = name
    self._file = file
    try:
      version = np.lib.format.read_magic(file)
      read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
      }[version]
      self.shape, _, self.dtype = read(file)
    except (*_DAMAGE, KeyError) as error:
      raise self._damaged(error) from error
    kinds = _KINDS[name]
    if self.dtype.kind not in kinds or self.dtype.hasobject:
      raise errors.DataError(path, f"{name} of type {self.dtype}", _CSR)

  @property
  def length(self) -> int:
    """Number of elements."""
    return int(np.prod(self.shape))

  def read(self, count: int) -> np.ndarray:
    """Returns the next elements."""
    size = count * self.dtype.itemsize
    try:
      data = self._file.read(size)
      if len(data) < size:
        raise EOFError(f"{size - len(data)} bytes are missing")
    except _DAMAGE as error:
      raise self._damaged(error) from error
    return np.frombuffer(data, self.dtype)

  def finish(self) -> None:
    """Reads past the end, which is when the checksum is compared."""
    try:
      if self._file.read(1):
        raise EOFError("there is more of it than its header says")
    except _DAMAGE as error:
      raise self._damaged(error) from error

  def _damaged(self, error: Exception) -> errors.DataError:
    return errors.DataError(
      self._path, f"damaged {self._name} ({error})", _CSR, hint=_REBUILD
    )


def _member(
  path: Path, archive: zipfile.ZipFile, name: str, stack: contextlib.ExitStack
) -> _Member:
  try:
    file = stack.enter_context(archive.open(f"{name}.npy"))
  except KeyError as error:
    names = ", ".join(sorted(archive.namelist())) or "nothing"
    raise errors.DataError(
      path, f"an archive of {names}", _CSR, hint=_REBUILD
    ) from error
  except zipfile.BadZipFile as error:
    raise errors.DataError(
      path, f"damaged {name} ({error})", _CSR, hint=_REBUILD
    ) from error
  return _Member(path, name, file)


def _read_frame(
  path: Path, archive: zipfile.ZipFile
) -> tuple[tuple[int, int], np.ndarray]:
  """Returns the shape and the checked row pointers, int64 [N + 1]."""

  def load(name: str) -> np.ndarray:
    with contextlib.ExitStack() as stack:
      member = _member(path, archive, name, stack)
      out = member.read(member.length)
      member.finish()
      return out

  layout = load("format").tolist()
  if layout not in ([b"csr"], ["csr"]):
    raise errors.DataError(path, f"layout {layout}", _CSR, hint=_REBUILD)
  shape = load("shape").tolist()
  if len(shape) != 2:
    raise errors.DataError(path, f"shape {shape}", "[rows, columns]")
  indptr = load("indptr").astype(np.int64)
  if len(indptr) != shape[0] + 1 or shape[0] < 1:
    raise errors.DataError(
      path, f"{len(indptr)} row pointers", f"{shape[0]} + 1 for its shape"
    )
  if indptr[0] != 0 or (np.diff(indptr) < 0).any():
    raise errors.DataError(path, "row pointers that descend", _CSR)
  return (shape[0], shape[1]), indptr


def _set_limit(path: Path, columns: checks.Columns, width: int) -> None:
  if width > checks.MAX_COLUMNS:
    raise errors.DataError(
      path, f"{width} {columns.what}s", f"at most {checks.MAX_COLUMNS}"
    )
  if columns.limit is not None and columns.limit != width:
    raise errors.DataError(
      path, f"{width} {columns.what}s", f"{columns.limit} as elsewhere"
    )
  columns.limit = width


def _spans(indptr: np.ndarray, block_entries: int) -> Iterator[tuple[int, int]]:
  """Cuts the rows into blocks of about so many entries, at least a row."""
  start, total = 0, len(indptr) - 1
  while start < total:
    bound = indptr[start] + block_entries
    stop = int(np.searchsorted(indptr, bound, side="right")) - 1
    # Rows without entries are bounded too.
    stop = min(max(stop, start + 1), start + block_entries)
    yield start, stop
    start = stop
