"""Dense `.npy` files: features, images and the labels of rows.

Images `[N, H, W, C]` are features too: each is a row of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
import math
import os
from typing import IO

import numpy as np

from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import numbering

Path = str | os.PathLike[str]
_BLOCK_ENTRIES = 2**18
_MAX_AXES = 32
_LABELS = (
  "a NumPy array of labels: [rows] ids, [rows, labels] of 0 and 1, or ids"
  " [rows, most] where shorter rows end with -1"
)
_NAMES = "a NumPy array of names of labels, [rows] or [rows, most]"
_IN_ORDER = "save numpy.ascontiguousarray(images)"


def open_features(path: Path, num_columns: int | None = None) -> np.ndarray:
  """Maps a dense matrix; reads nothing but its header.

  Args:
    path: a file of `numpy.save`.
    num_columns: the width that it has to have.

  Returns:
    [N, F], of the type in the file; images are rows of H * W * C numbers.

  Raises:
    DataError: when it is not a matrix of numbers of that width, or of images in
      Fortran order.
    OSError: when it cannot be opened.
  """
  array = _open(path)
  if array.ndim == 4 and not array.flags.c_contiguous:
    raise errors.DataError(
      path, "images in Fortran order", "each image in one piece", hint=_IN_ORDER
    )
  array = array.reshape(len(array), -1) if array.ndim == 4 else array
  if num_columns is not None and array.shape[1] != num_columns:
    raise errors.DataError(
      path, f"{array.shape[1]} features", f"{num_columns} as elsewhere"
    )
  return array


def image_shape(path: Path) -> tuple[int, ...]:
  """Tells the shape of an image; reads nothing but the header of a file.

  Args:
    path: a file of `numpy.save`.

  Returns:
    `(H, W, C)`, or nothing if the file holds rows `[N, F]`.

  Raises:
    DataError: as `open_features`.
    OSError: when it cannot be opened.
  """
  array = _open(path)
  return array.shape[1:] if array.ndim == 4 else ()


def _open(path: Path) -> np.ndarray:
  """Maps a dense matrix in its own shape."""
  expected = "a NumPy array [rows, features] of numbers"
  array = _map(path, expected)
  if array.ndim not in (2, 4) or array.dtype.kind not in "fiu":
    raise errors.DataError(
      path,
      f"{array.dtype} {array.shape}",
      f"{expected}, or of images [rows, height, width, channels]",
    )
  if not array.size:
    raise errors.DataError(path, f"an empty array {array.shape}", expected)
  return array


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
  """Reads what precedes the numbers of an array, and believes none of it.

  Args:
    file: at the start of what `numpy.save` writes; then at the numbers.

  Returns:
    The shape, whether the order is Fortran's, and the type.

  Raises:
    ValueError: when it is damaged.
  """
  try:
    version = np.lib.format.read_magic(file)
    read = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran, dtype = read(file)
  # NumPy parses it as Python, of which damage makes anything.
  except Exception as error:
    raise ValueError(f"{type(error).__name__}: {error}") from error
  if len(shape) > _MAX_AXES or min(shape, default=0) < 0 or not dtype.itemsize:
    raise ValueError(f"{dtype} of shape {shape}")
  if dtype.hasobject:
    raise ValueError("Python objects, which are never unpickled")
  return shape, fortran, dtype


def _map(path: Path, expected: str) -> np.ndarray:
  """Maps an array of any shape and type."""

  def refused(why: object) -> errors.DataError:
    hint = "write lists of labels as the lines of Y.trn.txt"
    return errors.DataError(
      path,
      f"no readable array ({why})",
      expected,
      hint=hint if expected == _LABELS and "objects" in str(why) else "",
    )

  with open(path, "rb") as file:
    try:
      shape, fortran, dtype = read_header(file)
    except ValueError as error:
      raise refused(error) from error
    offset, size = file.tell(), os.fstat(file.fileno()).st_size
  missing = math.prod(shape) * dtype.itemsize - (size - offset)
  if missing > 0:
    raise refused(f"{missing} bytes are missing for {dtype} {shape}")
  if not math.prod(shape):
    raise errors.DataError(path, f"an empty array {shape}", expected)
  order = "F" if fortran else "C"
  return np.memmap(path, dtype, "r", offset, shape, order)


def stream_features(
  path: Path,
  num_columns: int | None = None,
  block_entries: int = _BLOCK_ENTRIES,
) -> Iterator[np.ndarray]:
  """Reads a dense matrix.

  Args:
    path: a file of `numpy.save`.
    num_columns: the width that it has to have.
    block_entries: numbers read at a time, at least a row.

  Yields:
    float32 [n, F], or bytes as they are, all rows in order.

  Raises:
    DataError: as `open_features`, or when a value is not finite in float32.
    OSError: when it cannot be opened.
  """
  for block in _each(path, num_columns, block_entries):
    if isinstance(block, errors.DataError):
      raise block
    yield block


def _each(
  path: Path, num_columns: int | None, block_entries: int = _BLOCK_ENTRIES
) -> Iterator[np.ndarray | errors.DataError]:
  """As `stream_features`; in the place of a row not right is its error."""
  array = open_features(path, num_columns)
  for start, rows in _blocks(array, block_entries):
    if array.dtype == np.uint8:
      yield rows
      continue
    with np.errstate(over="ignore"):
      block = np.array(rows, np.float32)
    finite = np.isfinite(block)
    done = 0
    for row in np.flatnonzero(~finite.all(axis=1)).tolist():
      if row > done:
        yield block[done:row]
      column = int(np.argmin(finite[row]))
      yield checks.Place(path, first_row=start).error(
        row,
        f"value {rows[row, column]} of feature {column}",
        "a finite number within float32",
      )
      done = row + 1
    if done < len(block):
      yield block[done:]


def stream_rows(
  path: Path, features: checks.Columns, labels: checks.Columns
) -> Iterator[csr_lib.Rows | errors.DataError]:
  """Reads rows without labels, or their errors; see `stream_features`."""
  del labels
  for block in _each(path, features.width):
    failed = isinstance(block, errors.DataError)
    yield block if failed else csr_lib.Rows(block, None)


def stream_labels(
  path: Path,
  labels: checks.Columns,
  block_entries: int = _BLOCK_ENTRIES,
) -> Iterator[csr_lib.Csr]:
  """Reads the labels of rows.

  An array is one of these, or refused:
    [N] whole numbers     the label of each row, or -1 for none
    [N, L] of 0 and 1     whether a row has a label, of any type of numbers
    [N, w] whole numbers  ids, of which shorter rows end with -1; at least one
                          does, or it could be counts, and w = 1 needs none
    [N] or [N, w] texts   names, an empty one for none

  Args:
    path: a file of `numpy.save`.
    labels: checks the blocks.
    block_entries: numbers read at a time, at least a row.

  Yields:
    All rows, without values.

  Raises:
    DataError: when it is not such a file, or a label is not below the width.
    OSError: when it cannot be opened.
  """
  array = _map(path, _LABELS)
  if isinstance(labels.numbers, numbering.Names):
    yield from _named(path, array, labels, labels.numbers, block_entries)
    return
  if array.ndim == 1 and array.dtype.kind in "iu":
    indicator, array = False, array.reshape(-1, 1)
  elif array.ndim == 2 and array.dtype.kind in "biuf":
    indicator = _is_indicator(path, array, labels, block_entries)
  else:
    raise errors.DataError(path, f"{array.dtype} {array.shape}", _LABELS)
  if indicator:
    labels.set_width(path, array.shape[1])
  for start, block in _blocks(array, block_entries):
    place = checks.Place(path, first_row=start)
    known = block != (0 if indicator else -1)
    late = ~known[:, :-1] & known[:, 1:]
    if not indicator and late.any():
      row = int(np.argmax(late.any(axis=1)))
      raise place.error(row, "an id after -1", "-1 at the end of a row only")
    indptr = np.concatenate([[0], np.cumsum(known.sum(axis=1))])
    ids = np.nonzero(known)[1] if indicator else block[known]
    yield labels.block(indptr.astype(np.int64), ids, None, place)


def has_names(path: Path) -> bool:
  """Whether an array has texts."""
  return _map(path, _LABELS).dtype.kind in "US"


def _named(
  path: Path,
  array: np.ndarray,
  labels: checks.Columns,
  names: numbering.Names,
  block_entries: int,
) -> Iterator[csr_lib.Csr]:
  """Reads names."""
  if array.ndim > 2 or array.dtype.kind not in "US":
    raise errors.DataError(path, f"{array.dtype} {array.shape}", _NAMES)
  for start, block in _blocks(array.reshape(len(array), -1), block_entries):
    place, found = checks.Place(path, first_row=start), block.tolist()
    for row, of_row in enumerate(found):
      try:
        texts = [x.decode() if isinstance(x, bytes) else x for x in of_row if x]
      except UnicodeDecodeError as error:
        raise place.error(row, f"a name ({error})", "text in UTF-8") from None
      found[row] = [names.number(text) for text in texts]
      if -1 in found[row]:
        raise place.error(row, "a name of several labels", "that of one")
    indptr = np.cumsum([0, *map(len, found)], dtype=np.int64)
    ids = np.array([i for row in found for i in row], np.int64)
    yield labels.block(indptr, ids, None, place)


def _is_indicator(
  path: Path, array: np.ndarray, labels: checks.Columns, block_entries: int
) -> bool:
  """Whether a matrix says 0 or 1 of each label; False if it has ids."""
  # Smallest and largest number, and whether there is any between 0 and 1.
  low, high, zeros, binary = np.inf, -np.inf, False, True
  for _, block in _blocks(array, block_entries):
    # NaN stays, where min and max of Python would drop it.
    low, high = np.minimum(low, block.min()), np.maximum(high, block.max())
    zeros = zeros or bool((block == 0).any())
    binary = binary and bool(((block == 0) | (block == 1)).all())
  one_column = array.shape[1] == 1 and array.dtype.kind in "iu"
  if binary and not one_column:
    return True
  if one_column and (not binary or (labels.width or 1) > 1):
    return False
  what = f"{array.dtype} {array.shape} of numbers from {low:g} to {high:g}"
  if array.dtype.kind not in "iu" or (low == -1 and high <= 1 and not zeros):
    hint = "for yes and no, save labels > 0"
  elif low < 0:
    return False
  elif one_column:
    hint = (
      "for the id of each row, save labels.ravel(); else labels.astype(bool)"
    )
  else:
    hint = (
      "for ids, add a column of -1; for counts or relevances, save labels > 0"
    )
  raise errors.DataError(path, what, _LABELS, hint=hint)


def _blocks(
  array: np.ndarray, block_entries: int
) -> Iterator[tuple[int, np.ndarray]]:
  """Rows of a matrix, with the number of the first."""
  step = max(1, block_entries // array.shape[1])
  for start in range(0, len(array), step):
    yield start, array[start : start + step]
