"""Writers of the text and binary formats that `formats` reads.

What is written is read back equal: float32 values are written with the fewest
digits that identify them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import contextlib
import gzip
import os
import re
from typing import BinaryIO, cast

import numpy as np

from xlj import files
from xlj.data import csr as csr_lib

Path = str | os.PathLike[str]
_ROWS = 4096
_WHOLE = re.compile(r"\.0(?=[ \n])")  # 1.0 is written as 1


def write_one_file(
  path: Path, features: csr_lib.Csr, labels: csr_lib.Csr
) -> None:
  """Writes the one-file format, `N F L` and then `l1,l2 f:v f:v ...`.

  Args:
    path: compressed if it ends with .gz.
    features: [N, F].
    labels: [N, L]; values are ignored.

  Raises:
    ValueError: when the numbers of rows differ, or a matrix is not what `Csr`
      promises.
    OSError: when it cannot be written.
  """
  _check_rows(features, labels)
  header = (features.num_rows, features.num_columns, labels.num_columns)
  with _create(path) as file:
    file.write(_line(header))
    for start in range(0, features.num_rows, _ROWS):
      part = slice(start, start + _ROWS)
      file.write(_rows(_part(features, part), _part(labels, part)))


def write_matrix(path: Path, matrix: csr_lib.Csr) -> None:
  """Writes one file of the split form, `N F` and then `f:v f:v ...`.

  Args:
    path: such as trn_X_Xf.txt or trn_X_Y.txt; compressed if it ends with .gz.
    matrix: [N, F], or labels [N, L], whose entries are written with value 1.

  Raises:
    ValueError: when it is not what `Csr` promises.
    OSError: when it cannot be written.
  """
  _check(matrix)
  with _create(path) as file:
    file.write(_line(matrix.shape))
    for start in range(0, matrix.num_rows, _ROWS):
      file.write(_rows(_part(matrix, slice(start, start + _ROWS)), None))


def write_svmlight(
  path: Path, features: csr_lib.Csr, labels: csr_lib.Csr
) -> None:
  """Writes multi-label svmlight: the one-file format without its header.

  Args:
    path: compressed if it ends with .gz.
    features: [N, F]; ids are written from 0.
    labels: [N, L]; values are ignored.

  Raises:
    ValueError: when the numbers of rows differ, or a matrix is not what `Csr`
      promises.
    OSError: when it cannot be written.
  """
  _check_rows(features, labels)
  with _create(path) as file:
    for start in range(0, features.num_rows, _ROWS):
      part = slice(start, start + _ROWS)
      file.write(_rows(_part(features, part), _part(labels, part)))


def write_pairs(path: Path, matrix: csr_lib.Csr) -> None:
  """Writes the entries of a matrix as lines `row column`, as filter files are.

  Args:
    path: such as filter_labels_test.txt; compressed if it ends with .gz.
    matrix: [N, L]; values are ignored.

  Raises:
    ValueError: when it is not what `Csr` promises.
    OSError: when it cannot be written.
  """
  _check(matrix)
  with _create(path) as file:
    for row in range(matrix.num_rows):
      start, stop = matrix.indptr[row : row + 2]
      columns = matrix.indices[start:stop].tolist()
      file.write(b"".join(b"%d %d\n" % (row, column) for column in columns))


def write_npz(path: Path, matrix: csr_lib.Csr) -> None:
  """Writes a SciPy CSR archive, such as X.trn.npz.

  Args:
    path: ends with .npz.
    matrix: [N, F]; entries without values are written with value 1.

  Raises:
    ValueError: when it is not what `Csr` promises.
    OSError: when it cannot be written.
  """
  import scipy.sparse

  _check(matrix)
  with _create(path) as file:
    scipy.sparse.save_npz(file, matrix.to_scipy())


def _check(matrix: csr_lib.Csr) -> None:
  """Refuses what the readers would refuse."""
  if not isinstance(matrix, csr_lib.Csr):
    raise ValueError(
      f"The matrix is a {type(matrix).__name__}; give a Csr, as"
      " Csr.from_scipy(matrix) is."
    )
  matrix.validate()


def _check_rows(features: csr_lib.Csr, labels: csr_lib.Csr) -> None:
  _check(features)
  _check(labels)
  if features.num_rows != labels.num_rows:
    raise ValueError(
      f"{features.num_rows} rows of features, but {labels.num_rows} of labels."
    )


@contextlib.contextmanager
def _create(path: Path) -> Iterator[BinaryIO]:
  with files.replacing(path) as partial, partial.open("wb") as file:
    if not os.fspath(path).endswith(".gz"):
      yield file
      return
    # No name and no time: equal content makes equal files.
    with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
      yield cast("BinaryIO", packed)


def _line(numbers: Iterable[int]) -> bytes:
  return b" ".join(b"%d" % number for number in numbers) + b"\n"


def _part(matrix: csr_lib.Csr, part: slice) -> csr_lib.Csr:
  return matrix.slice_rows(part.start, part.stop)


def _rows(features: csr_lib.Csr, labels: csr_lib.Csr | None) -> bytes:
  """Formats rows; those without labels start with a space if some may have."""
  ids = features.indices.tolist()
  if features.values is None:
    cells = [f"{i}:1" for i in ids]
  else:
    # NumPy writes the shortest decimal that reads back as the same float32.
    values = np.asarray(features.values, np.float32).astype(str).tolist()
    cells = [f"{i}:{v}" for i, v in zip(ids, values)]
  bounds = features.indptr.tolist()
  out = [" ".join(cells[i:j]) for i, j in zip(bounds, bounds[1:])]
  if labels is not None:
    names = list(map(str, labels.indices.tolist()))
    bounds = labels.indptr.tolist()
    heads = [",".join(names[i:j]) for i, j in zip(bounds, bounds[1:])]
    out = [f"{head} {row}" for head, row in zip(heads, out)]
  text = "\n".join([*out, ""])
  return _WHOLE.sub("", text).encode()
