"""Arrays on disk: written in pieces, mapped, and compared with checksums."""

from __future__ import annotations

from collections.abc import Callable
import pathlib
import time
from typing import Any
import zlib

import numpy as np

from xlj.data import errors

_HEADER = 128  # of an .npy file; fixed, as it is written after the data
_READ = 2**22
_REBUILD = "remove its directory, and it is written again"


class ArrayWriter:
  """Writes an `.npy` file whose length is not known beforehand."""

  def __init__(self, path: pathlib.Path, dtype: Any, width: int | None = None):
    """Opens the file.

    Args:
      path: ends with .npy.
      dtype: of the elements.
      width: columns of a matrix; None writes a vector.
    """
    self._dtype = np.dtype(dtype)
    self._width = width
    self._file = open(path, "wb")
    self._file.write(bytes(_HEADER))
    self._count = 0
    self._crc = 0

  def write(self, array: np.ndarray) -> None:
    """Appends elements, or whole rows.

    Args:
      array: anything that converts to the type.
    """
    data = np.ascontiguousarray(array, self._dtype)
    self._count += len(data)
    # A memory view of an empty array cannot be cast to bytes.
    if data.size:
      view = data.data.cast("B")
      self._crc = zlib.crc32(view, self._crc)
      self._file.write(view)

  def close(self) -> dict[str, Any]:
    """Completes the file.

    Returns:
      Its description, for `open_array` and `check_array`.
    """
    shape = [self._count]
    if self._width is not None:
      shape.append(self._width)
    header = repr(
      {
        "descr": self._dtype.str,
        "fortran_order": False,
        "shape": tuple(shape),
      }
    ).encode()
    magic = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little")
    self._file.seek(0)
    self._file.write(magic + header.ljust(_HEADER - 11) + b"\n")
    self._file.close()
    return {"dtype": self._dtype.str, "shape": shape, "crc32": self._crc}

  def abort(self) -> None:
    """Closes the file as it is; harmless after `close`."""
    self._file.close()


def open_array(path: pathlib.Path, facts: dict[str, Any]) -> np.ndarray:
  """Maps an array; reads only the size of the file.

  Args:
    path: the .npy file.
    facts: what `ArrayWriter.close` returned.

  Returns:
    A read-only array on a memory map.

  Raises:
    DataError: when the file is missing or has another length.
  """
  expected = array_bytes(facts) + _HEADER
  size = path.stat().st_size if path.exists() else -1
  if size != expected:
    found = "no file" if size < 0 else f"{size} bytes"
    raise errors.DataError(path, found, f"{expected} bytes", hint=_REBUILD)
  shape = tuple(facts["shape"])  # whatever its header says
  # The class np.memmap would cost time on every access.
  return np.asarray(np.memmap(path, facts["dtype"], "r", _HEADER, shape))


def check_array(
  path: pathlib.Path,
  facts: dict[str, Any],
  rest: Callable[[float], object] | None = None,
) -> None:
  """Compares the content of an array with its checksum; reads all of it.

  Args:
    path: the .npy file.
    facts: what `ArrayWriter.close` returned.
    rest: called between pieces with the seconds that the last one took.

  Raises:
    DataError: when they differ.
  """
  crc = 0
  with open(path, "rb") as file:
    file.seek(_HEADER)
    begun = time.monotonic()
    while chunk := file.read(_READ):
      crc = zlib.crc32(chunk, crc)
      if rest is not None:
        rest(time.monotonic() - begun)
        begun = time.monotonic()
  if crc != facts["crc32"]:
    raise errors.DataError(
      path, f"checksum {crc}", f"{facts['crc32']}", hint=_REBUILD
    )


def array_bytes(facts: dict[str, Any]) -> int:
  """Returns the size of an array's data from its description.

  Args:
    facts: what `ArrayWriter.close` returned.

  Returns:
    Bytes.
  """
  count = 1
  for size in facts["shape"]:
    count *= size
  return count * np.dtype(facts["dtype"]).itemsize
