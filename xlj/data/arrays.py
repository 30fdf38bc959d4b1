"""SciPy's sparse matrices in `.npz` as streams of checked blocks.

SciPy's `save_npz` writes a zip archive of plain arrays, so those of a CSR
matrix can be read side by side, a block of rows at a time, whether or not they
are compressed. CSC and COO matrices are turned around in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import math
import os
from typing import IO
import zipfile

import numpy as np

from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import npy

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
  "row": "iu",
  "col": "iu",
  "data": "fiub",
}
_FRAME = 64  # most numbers, or bytes of one, of what describes a matrix


def stream_npz(
  path: Path,
  columns: checks.Columns,
  block_entries: int = BLOCK_ENTRIES,
) -> Iterator[csr_lib.Csr]:
  """Reads a SciPy matrix: CSR, CSC or COO.

  Args:
    path: a file of `scipy.sparse.save_npz`.
    columns: checks the blocks; without a limit, the width of the matrix becomes
      the limit.
    block_entries: entries read at a time; a longer row is read whole.

  Yields:
    All rows in order.

  Raises:
    DataError: when the file is damaged, of another layout or width than the
      limit, or has an entry that is not right.
    OSError: when it cannot be opened.
  """
  for block in _blocks(path, columns, block_entries):
    yield columns.block(*block)


# What `Columns.block` takes: pointers, ids, values and where they are.
_Block = tuple[np.ndarray, np.ndarray, np.ndarray, checks.Place]


def _blocks(
  path: Path, columns: checks.Columns, block_entries: int = BLOCK_ENTRIES
) -> Iterator[_Block]:
  """Reads blocks of rows, which are not checked yet."""
  with contextlib.ExitStack() as stack:
    archive = _Archive(path, stack)
    layout, shape = archive.frame()
    columns.set_width(path, shape[1])
    if layout == "csr":
      yield from _stream_csr(archive, shape[0], block_entries)
    else:
      yield from _turned(archive, layout, shape, block_entries)


def _stream_csr(
  archive: _Archive, num_rows: int, block_entries: int
) -> Iterator[_Block]:
  """Reads pointers, indices and values side by side."""
  pointers, ids, values = map(archive.member, ("indptr", "indices", "data"))
  if pointers.length != num_rows + 1:
    raise errors.DataError(
      archive.path,
      f"{pointers.length} row pointers",
      f"{num_rows} + 1 for its shape",
    )
  if values.length != ids.length:
    raise errors.DataError(
      archive.path,
      f"{ids.length} indices and {values.length} data",
      "as many of both",
    )
  last = _ascending(archive, pointers.read(1), 0)
  for first_row in range(0, num_rows, block_entries):
    found = pointers.read(min(block_entries, num_rows - first_row))
    indptr = np.concatenate([last[-1:], found.astype(np.int64)])
    last = _ascending(archive, indptr, ids.length)
    for start, stop in _spans(indptr, block_entries):
      count = int(indptr[stop] - indptr[start])
      yield (
        indptr[start : stop + 1] - indptr[start],
        ids.read(count),
        values.read(count),
        checks.Place(archive.path, first_row=first_row + start),
      )
  if last[-1] != ids.length:
    raise errors.DataError(
      archive.path, f"{ids.length} indices", f"{last[-1]} as in indptr"
    )
  for member in (pointers, ids, values):
    member.finish()


def _ascending(
  archive: _Archive, pointers: np.ndarray, limit: int
) -> np.ndarray:
  """Checks pointers."""
  if pointers[0] < 0 or (np.diff(pointers) < 0).any():
    raise errors.DataError(archive.path, "row pointers that descend", _CSR)
  if pointers[-1] > limit:
    raise errors.DataError(
      archive.path, f"{limit} indices", f"{pointers[-1]} as in indptr"
    )
  return pointers


def _turned(
  archive: _Archive,
  layout: str,
  shape: tuple[int, int],
  block_entries: int,
) -> Iterator[_Block]:
  """Reads a CSC or COO matrix; its entries are held in memory."""
  if layout == "csc":
    rows = archive.load("indices")
    indptr = archive.load("indptr").astype(np.int64)
    indptr = _ascending(archive, indptr, len(rows))
    if len(indptr) != shape[1] + 1 or indptr[0] or indptr[-1] != len(rows):
      raise errors.DataError(
        archive.path,
        f"{len(indptr)} column pointers for {len(rows)} indices",
        f"{shape[1]} + 1 for its shape",
      )
    ids = np.repeat(np.arange(shape[1]), np.diff(indptr))
  else:
    rows, ids = archive.load("row"), archive.load("col")
  values = archive.load("data")
  if not len(rows) == len(ids) == len(values):
    raise errors.DataError(
      archive.path,
      f"{len(rows)} rows, {len(ids)} columns and {len(values)} values",
      "as many of each",
    )
  wrong = (rows < 0) | (rows >= shape[0])
  if wrong.any():
    raise errors.DataError(
      archive.path,
      f"an entry in row {rows[np.argmax(wrong)]} (from 0)",
      f"a row in [0, {shape[0] - 1}]",
    )
  if rows.itemsize < 4:  # A type that may not hold the number of rows.
    rows = rows.astype(np.int32)
  order = np.argsort(rows, kind="stable")
  rows, ids, values = rows[order], ids[order], values[order]
  for first_row in range(0, shape[0], block_entries):
    stop = min(first_row + block_entries, shape[0])
    # Of the type of the rows, or searchsorted would convert all of them.
    bounds = np.arange(first_row, stop + 1).astype(rows.dtype)
    indptr = np.searchsorted(rows, bounds)
    part = slice(indptr[0], indptr[-1])
    place = checks.Place(archive.path, first_row=first_row)
    yield indptr - indptr[0], ids[part], values[part], place


def stream_rows(
  path: Path, features: checks.Columns, labels: checks.Columns
) -> Iterator[csr_lib.Rows | errors.DataError]:
  """Reads rows without labels, or their errors; see `stream_npz`."""
  del labels
  for block in _blocks(path, features):
    for rows in features.each(*block):
      failed = isinstance(rows, errors.DataError)
      yield rows if failed else csr_lib.Rows(rows, None)


def stream_labels(path: Path, labels: checks.Columns) -> Iterator[csr_lib.Csr]:
  """Reads a matrix of labels, without values; see `stream_npz`."""
  return stream_npz(path, labels)


class _Archive:
  """What `numpy.savez` wrote; whatever is wrong with it is a DataError."""

  def __init__(self, path: Path, stack: contextlib.ExitStack):
    """Opens it; `stack` closes what is opened."""
    self.path = path
    self._stack = stack
    file = stack.enter_context(open(path, "rb"))
    try:
      self._zip = stack.enter_context(zipfile.ZipFile(file))
    except Exception as error:  # see `damaged`
      raise errors.DataError(
        path, f"no readable zip archive ({error})", _CSR, hint=_REBUILD
      ) from error

  def frame(self) -> tuple[str, tuple[int, int]]:
    """Returns the layout, and the numbers of rows and columns."""
    layout = np.asarray(self.load("format", _FRAME).astype(str)).tolist()
    if layout not in (["csr"], ["csc"], ["coo"]):
      raise errors.DataError(self.path, f"layout {layout}", _CSR, hint=_REBUILD)
    shape = self.load("shape", _FRAME).tolist()
    if len(shape) != 2:
      raise errors.DataError(self.path, f"shape {shape}", "[rows, columns]")
    if not 1 <= shape[0] < 2**62 or shape[1] < 0:
      raise errors.DataError(self.path, f"shape {shape}", "at least one row")
    return layout[0], (shape[0], shape[1])

  def load(self, name: str, most: int | None = None) -> np.ndarray:
    """Returns a whole array, of so many elements and bytes of one at most."""
    member = self.member(name)
    if most and max(member.length, member.dtype.itemsize) > most:
      raise errors.DataError(
        self.path, f"{name} of {member.length} {member.dtype}", _CSR
      )
    out = member.read(member.length)
    member.finish()
    return out

  def member(self, name: str) -> _Member:
    """Opens an array."""
    if f"{name}.npy" not in self._zip.namelist():
      names = ", ".join(sorted(self._zip.namelist())) or "nothing"
      raise errors.DataError(
        self.path, f"an archive of {names}", _CSR, hint=_REBUILD
      )
    with self.damaged(name):
      info = self._zip.getinfo(f"{name}.npy")
      file = self._stack.enter_context(self._zip.open(info))
      return _Member(self, name, file, info.file_size)

  @contextlib.contextmanager
  def damaged(self, name: str) -> Iterator[None]:
    """Says in which array something failed."""
    try:
      yield
    except errors.DataError:
      raise
    # An unknown compression is a NotImplementedError, a password a
    # RuntimeError, and every compression has errors of its own.
    except Exception as error:
      raise errors.DataError(
        self.path, f"damaged {name} ({error})", _CSR, hint=_REBUILD
      ) from error


class _Member:
  """One array of an archive, read from its start to its end."""

  def __init__(
    self, archive: _Archive, name: str, file: IO[bytes], num_bytes: int
  ):
    """Reads the header; `num_bytes` is what the archive says of its size."""
    self._archive = archive
    self._name = name
    self._file = file
    shape, _, self.dtype = npy.read_header(file)
    if self.dtype.kind not in _KINDS[name]:
      raise errors.DataError(archive.path, f"{name} of type {self.dtype}", _CSR)
    self.length = math.prod(shape)
    missing = self.length * self.dtype.itemsize - num_bytes
    if missing > 0:
      raise EOFError(f"{missing} bytes are missing for {self.dtype} {shape}")

  def read(self, count: int) -> np.ndarray:
    """Returns the next elements."""
    size = count * self.dtype.itemsize
    with self._archive.damaged(self._name):
      data = self._file.read(size)
      if len(data) < size:
        raise EOFError(f"{size - len(data)} bytes are missing")
    return np.frombuffer(data, self.dtype)

  def finish(self) -> None:
    """Reads past the end, which is when the checksum is compared."""
    with self._archive.damaged(self._name):
      if self._file.read(1):
        raise EOFError("there is more of it than its header says")


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
