"""Arrays in a safetensors file, which is written piece by piece.

The format is that of https://github.com/huggingface/safetensors: the length of
a header, the header, which is JSON, and the arrays one after the other. Those
of wide types are first, and the header is filled up with blanks: every array
starts at a multiple of its item's size, the first one at one of 64 bytes, and
so a file can be mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
import math
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

BFLOAT16 = jnp.dtype(jnp.bfloat16)
FLOAT8 = jnp.dtype(jnp.float8_e4m3fn)
_ALIGNED = 64
_PIECE = 2**24  # bytes that are made at a time
# What the format calls the types, by NumPy's name.
_CODES = {
  BFLOAT16.name: "BF16",
  FLOAT8.name: "F8_E4M3",
  "float32": "F32",
  "float64": "F64",
  "int8": "I8",
  "int32": "I32",
  "int64": "I64",
  "uint8": "U8",
  "uint16": "U16",
  "uint32": "U32",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
  """An array whose rows are made when they are needed.

  Attributes:
    shape: With at least one axis.
    dtype: Of the array.
    rows: From the numbers of the first row and of the one after the last, the
      rows.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  rows: Callable[[int, int], np.ndarray]

  @property
  def nbytes(self) -> int:
    """Size of the array."""
    return math.prod(self.shape) * self.dtype.itemsize

  def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
    """The number of a first row, and rows; none are large."""
    size = max(1, _PIECE // max(1, self.nbytes // max(1, self.shape[0])))
    for start in range(0, self.shape[0], size):
      yield start, self.rows(start, min(start + size, self.shape[0]))


Tensor = np.ndarray | Made
Tensors = Mapping[str, Tensor]


def file_bytes(tensors: Tensors) -> int:
  """The size of a file of arrays."""
  data = sum(tensor.nbytes for tensor in tensors.values())
  return len(_header(tensors)) + data


def of_array(array: np.ndarray) -> Made:
  """An array that is there, with at least one axis."""
  return Made(array.shape, array.dtype, lambda start, stop: array[start:stop])


def write(path: str | os.PathLike[str], tensors: Tensors) -> None:
  """Writes arrays.

  Args:
    path: Of the file, which is new.
    tensors: By name.

  Raises:
    OSError: The file cannot be written.
  """
  with open(path, "xb") as out:
    out.write(_header(tensors))
    for name in _in_order(tensors):
      tensor = tensors[name]
      if isinstance(tensor, np.ndarray) and tensor.ndim:
        tensor = of_array(tensor)
      parts = (
        (piece for _, piece in tensor.pieces())
        if isinstance(tensor, Made)
        else [tensor]
      )
      for part in parts:
        flat = np.ascontiguousarray(part, tensor.dtype).reshape(-1)
        out.write(flat.view(np.uint8).data)
    out.flush()
    os.fsync(out.fileno())


def _in_order(tensors: Tensors) -> list[str]:
  """Names of arrays as they follow each other."""
  return sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))


def _header(tensors: Tensors) -> bytes:
  """What comes before the arrays."""
  header: dict[str, Any] = {}
  end = 0
  for name in _in_order(tensors):
    tensor, start = tensors[name], end
    end += tensor.nbytes
    header[name] = {
      "dtype": _CODES[tensor.dtype.name],
      "shape": list(tensor.shape),
      "data_offsets": [start, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-(8 + len(text)) % _ALIGNED)
  return len(text).to_bytes(8, "little") + text
