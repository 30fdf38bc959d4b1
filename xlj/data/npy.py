"""Dense `.npy` files: features, images and the labels of rows.

Images `[N, H, W, C]` are features too: each is a row of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
import os

import numpy as np

from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import errors

Path = str | os.PathLike[str]
_BLOCK_ENTRIES = 2**18
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
  try:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  except (ValueError, EOFError) as error:
    raise errors.DataError(
      path, f"no readable array ({error})", expected
    ) from error
  if not isinstance(array, np.ndarray):
    raise errors.DataError(path, "an archive of arrays", expected)
  if array.ndim not in (2, 4) or array.dtype.kind not in "fiu":
    raise errors.DataError(
      path,
      f"{array.dtype} {array.shape}",
      f"{expected}, or of images [rows, height, width, channels]",
    )
  if not array.size:
    raise errors.DataError(path, f"an empty array {array.shape}", expected)
  return array


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
  array = open_features(path, num_columns)
  step = max(1, block_entries // array.shape[1])
  for start in range(0, len(array), step):
    if array.dtype == np.uint8:
      yield array[start : start + step]
      continue
    with np.errstate(over="ignore"):
      block = np.array(array[start : start + step], np.float32)
    finite = np.isfinite(block)
    if not finite.all():
      row, column = np.argwhere(~finite)[0].tolist()
      raise checks.Place(path, first_row=start).error(
        row,
        f"value {array[start + row, column]} of feature {column}",
        "a finite number within float32",
      )
    yield block


def stream_rows(
  path: Path, features: checks.Columns, labels: checks.Columns
) -> Iterator[csr_lib.Rows]:
  """Reads a dense matrix as rows without labels; see `stream_features`."""
  del labels
  for block in stream_features(path, features.limit):
    yield csr_lib.Rows(block, None)


def stream_labels(path: Path, labels: checks.Columns) -> Iterator[csr_lib.Csr]:
  """Reads the one label of each row.

  Args:
    path: a file of `numpy.save`, whole numbers [N]; -1 for a row without label.
    labels: has the width that they must have; without, it is what they need.

  Yields:
    All rows, without values.

  Raises:
    DataError: when it is not such a file, or a label is not below the width.
    OSError: when it cannot be opened.
  """
  expected = "a NumPy array [rows] of whole numbers, the label of each"
  try:
    ids = np.load(path, allow_pickle=False)
  except (ValueError, EOFError) as error:
    raise errors.DataError(
      path, f"no readable array ({error})", expected
    ) from error
  if not isinstance(ids, np.ndarray):
    raise errors.DataError(path, "an archive of arrays", expected)
  if ids.ndim != 1 or ids.dtype.kind not in "iu":
    raise errors.DataError(path, f"{ids.dtype} {ids.shape}", expected)
  limit = checks.MAX_COLUMNS if labels.limit is None else labels.limit
  wrong = (ids < -1) | (ids >= limit)
  if wrong.any():
    row = int(np.argmax(wrong))
    raise checks.Place(path).error(
      row, f"label {ids[row]}", f"a label in [-1, {limit - 1}]"
    )
  labels.seen = max(labels.seen, int(ids.max(initial=-1)) + 1)
  known = ids >= 0
  indptr = np.concatenate([[0], np.cumsum(known)]).astype(np.int64)
  yield csr_lib.Csr(indptr, ids[known].astype(np.int32), None, labels.count)
