"""Smaller arrays of an exported model: fewer bits, and fewer sparse weights.

With 8 bits, the numbers of a row, or the weights of a feature, share a scale:
that with which the greatest of them is the greatest that 8 bits can hold. So
none is off by more than 1/254 of the greatest with int8, or 1/16 of itself with
float8 (e4m3).

Of sparse weights the smallest ones are dropped. On held-out rows of two data
sets no rule that knew more (how often a feature occurs, and how large; which
weights are negative) kept more of P@k and PSP@k for as many weights. On a third
one, of long texts, no rule could spare even a third of them: measure it.

Legend: F features, Z sparse weights.
"""

from __future__ import annotations

import numpy as np

from xlj import config as config_lib
from xlj.export import tensors as tensors_lib

# What `--dtype` may be, from the narrowest on; of those of 8 bits int8 is finer
# for most rows.
DTYPES = {
  "int8": np.dtype(np.int8),
  "fp8": tensors_lib.FLOAT8,
  "bfloat16": tensors_lib.BFLOAT16,
  "float32": np.dtype(np.float32),
}
_GREATEST = {"int8": 127.0, "fp8": 448.0}


def narrowed(
  tensors: tensors_lib.Tensors, dtype: str
) -> dict[str, tensors_lib.Tensor]:
  """Arrays of a model with fewer bits.

  Args:
    tensors: Those of `arrays.of`.
    dtype: One of `DTYPES`. Training rows that are kept, and what there is one
      number of for each label or unit, stay float32.

  Returns:
    The arrays, with scales.
  """
  found = dict(tensors)
  if dtype == "float32":
    return found
  for name, tensor in tensors.items():
    if name == "values":
      assert isinstance(tensor, np.ndarray)
      if dtype in _GREATEST:
        found |= _by_feature(tensor, found["starts"], dtype)
      else:
        found[name] = tensor.astype(tensors_lib.BFLOAT16)
    elif len(tensor.shape) == 2 and tensor.dtype == np.float32:
      if isinstance(tensor, np.ndarray):
        tensor = tensors_lib.of_array(tensor)
      found |= _by_row(name, tensor, dtype)
  return found


def _by_feature(
  values: np.ndarray, starts: tensors_lib.Tensor, dtype: str
) -> dict[str, np.ndarray]:
  """`values [Z]` with 8 bits, and the `scale [F]` of each feature."""
  assert isinstance(starts, np.ndarray)
  counts = np.diff(starts)
  scale = np.zeros(len(counts), np.float32)
  if len(values):
    own = counts > 0
    greatest = np.maximum.reduceat(np.abs(values), starts[:-1][own])
    scale[own] = greatest / _GREATEST[dtype]
  each = np.repeat(scale, counts)
  return {"values": _divided(values, each, dtype), "scale": scale}


def _by_row(
  name: str, matrix: tensors_lib.Made, dtype: str
) -> dict[str, tensors_lib.Tensor]:
  """A matrix in fewer bits, and with 8 the scale of each row."""
  narrow = DTYPES[dtype]
  if dtype not in _GREATEST:
    found = tensors_lib.Made(
      *(matrix.shape, narrow),
      lambda start, stop: matrix.rows(start, stop).astype(narrow),
    )
    return {name: found}
  scale = np.zeros(matrix.shape[0], np.float32)
  for start, rows in matrix.pieces():
    greatest = np.abs(rows).max(1, initial=0)
    scale[start : start + len(rows)] = greatest / _GREATEST[dtype]

  def rows(start: int, stop: int) -> np.ndarray:
    each = scale[start:stop, None]
    return _divided(matrix.rows(start, stop), each, dtype)

  made = tensors_lib.Made(matrix.shape, narrow, rows)
  return {name: made, f"{name}.scale": scale}


def _divided(values: np.ndarray, scale: np.ndarray, dtype: str) -> np.ndarray:
  """Numbers divided by their scales, with 8 bits; 0 where a scale is 0."""
  found = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
  if dtype == "int8":
    np.rint(found, out=found)
  return found.astype(DTYPES[dtype])


def pruned(
  tensors: tensors_lib.Tensors, share: float
) -> dict[str, tensors_lib.Tensor]:
  """Arrays without the smallest sparse weights.

  Args:
    tensors: Those of `arrays.of`.
    share: Of the weights that are dropped.

  Returns:
    The arrays.

  Raises:
    ConfigError: There are no sparse weights.
  """
  values, labels, starts = _sparse(tensors)
  count = min(len(values), round(share * len(values)))
  keep = np.ones(len(values), bool)
  if count:
    keep[np.argpartition(np.abs(values), count - 1)[:count]] = False
  return {
    **tensors,
    "starts": np.concatenate([[0], np.cumsum(keep)])[starts],
    "labels": labels[keep],
    "values": values[keep],
  }


def share_for(
  tensors: tensors_lib.Tensors, dtype: str, max_bytes: int
) -> float:
  """The share of sparse weights to drop, for a file that is small enough.

  Args:
    tensors: Those of `arrays.of`.
    dtype: That the file is to have.
    max_bytes: Its size, at most.

  Returns:
    The share for `pruned`.

  Raises:
    ConfigError: There are not enough sparse weights.
  """
  size = tensors_lib.file_bytes(narrowed(tensors, dtype))
  if size <= max_bytes:
    return 0.0
  values, labels, _ = _sparse(tensors)
  each = DTYPES[dtype].itemsize + labels.itemsize
  count = -(-(size - max_bytes) // each)
  if count > len(values):
    raise config_lib.ConfigError(
      f"max_bytes is {max_bytes}, and without any sparse weight the file takes"
      f" {size - each * len(values)} in {dtype}; allow more"
    )
  return count / len(values)


def _sparse(
  tensors: tensors_lib.Tensors,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """`values`, `labels` and `starts`."""
  if "values" not in tensors:
    raise config_lib.ConfigError(
      "prune and max_bytes drop sparse weights, and the model has none"
      " (head.wide is False); leave them out, and give a narrower dtype"
    )
  values, labels, starts = (
    tensors[name] for name in ("values", "labels", "starts")
  )
  assert isinstance(values, np.ndarray) and isinstance(labels, np.ndarray)
  assert isinstance(starts, np.ndarray)
  return values, labels, starts
