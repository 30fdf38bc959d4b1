"""Answers of an exported model, by NumPy and SciPy alone; one file.

As a command, with a row on each line of the input, from the ids or names of
features to values (or an array, for a model of dense features), and on each
line of the output its best labels:

  python DIR/reader.py --k=5 < rows.jsonl

  {"3": 1.0, "17": 0.5}
  {"labels": [41, 7], "scores": [2.5, -0.25], "names": ["entity", "object"]}

In Python:

  from reader import Reader
  scores, ids = Reader("DIR").topk([{3: 1.0, 17: 0.5}], k=5)

Legend: n rows, F features, L label rows, D width, M training rows kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import sys
from typing import Any

import numpy as np
import scipy.sparse

FORMAT = 1  # the newest that this file reads
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
LABELS = "labels.txt"
FEATURES = "feature_names.txt"
_EDITED = "README.md"  # the one file that is there to be filled in
_AGAIN = "copy the directory again, or export the run again"
_BLOCK = 2**24  # scores at a time
# By the names of safetensors; bfloat16 and float8 stay as they are stored.
_DTYPES = {
  "BF16": np.uint16,
  "F8_E4M3": np.uint8,
  "F32": np.float32,
  "F64": np.float64,
  "I8": np.int8,
  "I32": np.int32,
  "I64": np.int64,
  "U8": np.uint8,
  "U16": np.uint16,
  "U32": np.uint32,
}


def _gelu(x: Any) -> Any:
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _sigmoid(x: Any) -> Any:
  small = np.exp(-np.abs(x))
  return np.where(x >= 0, 1, small) / (1 + small)


# `encoder.activation`, as functions of JAX's name compute them.
ACTIVATIONS: dict[str, Any] = {
  "": lambda x: x,
  "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
  "gelu": _gelu,
  "identity": lambda x: x,
  "leaky_relu": lambda x: np.where(x >= 0, x, np.float32(0.01) * x),
  "relu": lambda x: np.maximum(x, 0),
  "relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
  "sigmoid": _sigmoid,
  "silu": lambda x: x * _sigmoid(x),
  "softplus": lambda x: np.logaddexp(x, np.float32(0)),
  "swish": lambda x: x * _sigmoid(x),
  "tanh": np.tanh,
}


# --- files -------------------------------------------------------------------


def read_manifest(
  directory: str | os.PathLike[str], verify: bool = False
) -> dict[str, Any]:
  """Reads what an exported model says of itself, and checks its files.

  Args:
    directory: Of the model.
    verify: Whether to read all files and compare their checksums; their sizes
      are compared always.

  Returns:
    The manifest, a dict.

  Raises:
    ValueError: A file is missing or not as it was written, or the format is
      newer than this file; it names the file and what to do.
  """
  path = os.path.join(directory, MANIFEST)
  try:
    with open(path, encoding="utf-8") as file:
      manifest = json.load(file)
    files = manifest["files"]
    number = int(manifest["format"])
  except FileNotFoundError:
    raise ValueError(
      f"{path}: no such file; give a directory that xlj export has written"
    ) from None
  except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
    raise ValueError(f"{path}: a damaged file ({error}); {_AGAIN}") from None
  if number > FORMAT:
    raise ValueError(
      f"{path}: found format {number}, expected {FORMAT} at most; use a newer"
      f" xlj, or the reader.py of that directory"
    )
  for name, wanted in files.items():
    file = os.path.join(directory, name)
    if name == _EDITED:
      continue
    if not os.path.exists(file):
      raise ValueError(f"{file}: no such file, and {path} names it; {_AGAIN}")
    size = os.path.getsize(file)
    if size != wanted["bytes"]:
      raise ValueError(
        f"{file}: found {size} bytes, expected {wanted['bytes']}; {_AGAIN}"
      )
    if verify:
      with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
      if digest != wanted["sha256"]:
        raise ValueError(
          f"{file}: found the sha256 {digest}, expected {wanted['sha256']};"
          f" {_AGAIN}"
        )
  return manifest


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Maps the arrays of a safetensors file.

  Args:
    path: Of the file.

  Returns:
    Arrays by name, which cannot be written to.

  Raises:
    ValueError: The file is not as it was written.
  """
  found = {}
  try:
    with open(path, "rb") as file:
      data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    size = int.from_bytes(data[:8], "little")
    if 8 + size > len(data):
      raise ValueError(f"its header has {size} bytes, the file {len(data)}")
    for name, about in json.loads(data[8 : 8 + size]).items():
      if name == "__metadata__":
        continue
      shape, (start, stop) = about["shape"], about["data_offsets"]
      dtype = np.dtype(_DTYPES[about["dtype"]])
      count = int(np.prod(shape, dtype=np.int64))
      if stop - start != count * dtype.itemsize or 8 + size + stop > len(data):
        raise ValueError(f"{name} {shape} has bytes {start} to {stop}")
      array = np.frombuffer(data, dtype, count, 8 + size + start)
      found[name] = array.reshape(shape)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{path}: a damaged file ({error}); {_AGAIN}") from None
  return found


def read_names(path: str | os.PathLike[str]) -> list[str] | None:
  """Reads a name from each line of a file; None if there is no such file."""
  if not os.path.exists(path):
    return None
  with open(path, encoding="utf-8", newline="\n") as file:
    lines = file.read().split("\n")[:-1]
  return [line.removesuffix("\r") for line in lines]


def float8_table() -> np.ndarray:
  """The numbers that the 256 bytes of float8 (e4m3fn) stand for."""
  codes = np.arange(128)
  exponent, digits = codes >> 3, codes & 7
  found = np.where(
    exponent == 0, digits * 2.0**-9, (1 + digits / 8) * 2.0 ** (exponent - 7)
  )
  found[127] = np.nan
  return np.concatenate([found, -found]).astype(np.float32)


def decoded(array: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
  """Numbers as float32.

  Args:
    array: Of float32, bfloat16 (as uint16), int8 or float8 (as uint8).
    scale: Of each row, if any.

  Returns:
    The numbers.
  """
  if array.dtype == np.uint16:
    array = (array.astype(np.uint32) << 16).view(np.float32)
  elif array.dtype == np.uint8:
    array = float8_table()[array]
  array = array.astype(np.float32, copy=False)
  if scale is None:
    return array
  return array * scale.reshape(-1, *[1] * (array.ndim - 1))


# --- answers -----------------------------------------------------------------


class Reader:
  """An exported model of the kind "linear" or "network".

  Attributes:
    manifest: What the model says of itself.
    label_names: By label id; None if labels have none.
    feature_names: By feature id, likewise.
  """

  def __init__(
    self, directory: str | os.PathLike[str], verify: bool = False
  ) -> None:
    """Opens a model.

    Args:
      directory: That `xlj export` has written.
      verify: Whether to compare checksums.

    Raises:
      ValueError: It cannot be read; the message says what to do.
    """
    self.manifest = read_manifest(directory, verify)
    if self.manifest["kind"] not in ("linear", "network"):
      raise ValueError(
        f"{os.path.join(directory, MANIFEST)}: the model is of the kind"
        f" {self.manifest['kind']!r}; this reader has the kinds 'linear' and"
        " 'network' alone"
      )
    self._tensors = read_tensors(os.path.join(directory, WEIGHTS))
    self.label_names = read_names(os.path.join(directory, LABELS))
    self.feature_names = read_names(os.path.join(directory, FEATURES))
    self._by_name = {name: i for i, name in enumerate(self.feature_names or ())}
    self._numbers: dict[str, np.ndarray] = {}
    self._pairs: Any = None
    if "starts" in self._tensors:
      self._pairs = self._matrix("", "labels", len(self._tensors["bias"]))
    self._neighbours: Any = None
    if self.manifest["neighbours"]:
      starts = self._tensors["neighbours.label_starts"]
      labels = self._tensors["neighbours.labels"]
      ones = np.ones(len(labels), np.float32), labels.astype(np.int32), starts
      shape = len(starts) - 1, len(self._tensors["bias"])
      rows = self._matrix("neighbours.", "rows", len(starts) - 1)
      self._neighbours = rows, scipy.sparse.csr_array(ones, shape=shape)

  def topk(self, rows: Any, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The best labels of each row.

    Args:
      rows: A SciPy matrix or an array `[n, F]`, or for each row a dict from
        feature id, or name, to value.
      k: How many labels, at most L.

    Returns:
      float32 scores `[n, k]`, descending, and label ids `[n, k]`.

    Raises:
      ValueError: k or the rows do not fit the model.
    """
    count = self.manifest["num_labels"]
    if not 1 <= k <= count:
      raise ValueError(f"k is {k}; it must be a whole number in [1, {count}]")
    x = self._read(rows)
    size = max(1, _BLOCK // max(1, count))
    scores, best = [np.zeros((0, k), np.float32)], [np.zeros((0, k), np.int64)]
    for start in range(0, x.shape[0], size):
      for z in self._scores(x[start : start + size]):
        kth = np.partition(z, count - k)[count - k]
        found = np.flatnonzero(z >= kth)
        found = found[np.argsort(-z[found], kind="stable")[:k]]
        if len(found) < k or not np.isfinite(z[found]).all():
          raise ValueError(
            "the scores of a row are not finite; give features the scale of"
            " the training rows"
          )
        scores.append(z[None, found])
        best.append(found[None])
    ids = np.concatenate(best)
    if "label_ids" in self._tensors:
      ids = self._tensors["label_ids"][ids]
    return np.concatenate(scores), ids

  def _read(self, rows: Any) -> Any:
    """The rows as float32 `[n, F]`, sparse or, for dense features, an array."""
    if not scipy.sparse.issparse(rows) and not hasattr(rows, "__array__"):
      rows = list(rows)
      if any(isinstance(row, dict) for row in rows):
        rows = self._of_dicts(rows)
    if self.manifest["input"] == "dense":
      x = rows.toarray() if scipy.sparse.issparse(rows) else rows
      x = np.asarray(x, np.float32).reshape(len(x), -1)
      return _checked(x, x, self.manifest["num_features"])
    x = scipy.sparse.csr_array(rows, dtype=np.float32)
    x.sum_duplicates()
    return _checked(x, x.data, self.manifest["num_features"])

  def _of_dicts(self, rows: list[dict[Any, float]]) -> Any:
    """Rows from feature ids or names to values as a matrix of SciPy."""
    width = self.manifest["num_features"]
    ids, lengths = [], []
    for number, row in enumerate(rows):
      lengths.append(len(row))
      for key in row:
        found = self._by_name.get(key, -1) if isinstance(key, str) else key
        if found == -1 and isinstance(key, str) and key.isdecimal():
          found = int(key)
        if not 0 <= found < width:
          raise ValueError(
            f"row {number} (the first is 0) has the feature {key!r}; give ids"
            f" from 0 to {width - 1}, or names of {FEATURES}"
          )
        ids.append(found)
    values = np.array([v for row in rows for v in row.values()], np.float32)
    starts = np.cumsum([0, *lengths])
    shape = len(rows), width
    return scipy.sparse.csr_array((values, ids, starts), shape=shape)

  def _scores(self, x: Any) -> np.ndarray:
    """Scores `[n, L]`."""
    if scipy.sparse.issparse(x):
      x = self._weighted(x)
    z = np.tile(self._tensors["bias"], (x.shape[0], 1))
    if "label_rows" in self._tensors:
      embedded = self._embed(x)
      size = max(1, _BLOCK // embedded.shape[1])
      for start in range(0, z.shape[1], size):
        rows = self._decoded("label_rows", slice(start, start + size))
        z[:, start : start + size] += embedded @ rows.T
    if self._pairs is not None:
      z += (x @ self._pairs).toarray()
    if self._neighbours is not None:
      z += self._gain(x)
    return z

  def _weighted(self, x: Any) -> Any:
    """Sparse rows as the model weighs their values."""
    how = self.manifest["weighting"]
    values = x.data
    if how["kind"].startswith("log"):
      values = np.copysign(np.log1p(np.abs(values)), values)
    if how["kind"].endswith("tfidf"):
      values = values * self._tensors["idf"][x.indices]
    x = scipy.sparse.csr_array((values, x.indices, x.indptr), shape=x.shape)
    return _unit(x) if how["l2"] else x

  def _embed(self, x: Any) -> np.ndarray:
    """What the encoder makes of weighted rows, `[n, D]`."""
    config = self.manifest["config"]
    activation = ACTIVATIONS[config["encoder.activation"]]
    h = np.float32(config["encoder.input_scale"]) * (
      x @ self._decoded("encoder.table")
    )
    if "encoder.bias" in self._tensors:
      h = activation(h + self._decoded("encoder.bias"))
    for i in range(len(config["encoder.hidden"])):
      name = f"encoder.layers.{i}"
      kernel = self._decoded(f"{name}.kernel")
      h = activation(h @ kernel + self._decoded(f"{name}.bias"))
    scale = config["encoder.scale"] or 0
    if "encoder.log_scale" in self._tensors:
      scale = np.exp(self._tensors["encoder.log_scale"])
    if scale:
      h = scale * h / np.sqrt((h * h).sum(1, keepdims=True) + 1e-6)
    return h.astype(np.float32, copy=False)

  def _gain(self, x: Any) -> np.ndarray:
    """What labels of near training rows gain, `[n, L]`."""
    how = self.manifest["neighbours"]
    rows, labels = self._neighbours
    cosines = (_unit(x) @ rows).toarray()
    count = min(how["count"], cosines.shape[1])
    # Of equal ones the first.
    last = cosines.shape[1] - count
    least = np.partition(cosines, last, 1)[:, last, None]
    chosen, equal = cosines > least, cosines == least
    room = count - chosen.sum(1, keepdims=True)
    chosen |= equal & (equal.cumsum(1) <= room)
    near = np.nonzero(chosen)[1].reshape(len(cosines), count)
    best = np.take_along_axis(cosines, near, 1)
    top = best.max(1, keepdims=True)
    shares = np.exp((best - top) / how["temperature"])
    shares *= (top > 0) / shares.sum(1, keepdims=True)
    starts = np.arange(len(near) + 1) * count
    entries = shares.ravel(), near.ravel(), starts
    shape = len(near), cosines.shape[1]
    named = (scipy.sparse.csr_array(entries, shape=shape) @ labels).toarray()
    return how["weight"] * np.log1p(named / how["small"])

  def _decoded(self, name: str, part: slice = slice(None)) -> np.ndarray:
    """The numbers of an array, or of some rows of it."""
    array, scale = self._tensors[name], self._tensors.get(f"{name}.scale")
    if name == "label_rows" and array.size > _BLOCK:
      return decoded(array[part], None if scale is None else scale[part])
    if name not in self._numbers:
      self._numbers[name] = decoded(array, scale)
    return self._numbers[name][part]

  def _matrix(self, prefix: str, columns: str, width: int) -> Any:
    """Numbers by feature as a matrix `[F, width]` of SciPy."""
    starts, places, values = (
      self._tensors[prefix + name] for name in ("starts", columns, "values")
    )
    values = decoded(values)
    scale = self._tensors.get(f"{prefix}scale")
    if scale is not None:
      values = values * np.repeat(scale, np.diff(starts))
    entries = values, places.astype(np.int32), starts
    return scipy.sparse.csr_array(entries, shape=(len(starts) - 1, width))


def _checked(x: Any, values: Any, width: int) -> Any:
  """The same rows, of a width and of finite values; others are refused."""
  if x.shape[1] != width:
    raise ValueError(f"the rows have {x.shape[1]} features, the model {width}")
  if not np.isfinite(values).all():
    raise ValueError("a value of the rows is not finite in float32")
  return x


def _unit(rows: Any) -> Any:
  """Sparse rows of length 1; those of length 0 stay."""
  squares = rows.multiply(rows).sum(1)
  length = np.sqrt(np.asarray(squares, np.float32)).ravel()
  scale = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
  values = rows.data * np.repeat(scale, np.diff(rows.indptr))
  return scipy.sparse.csr_array(
    (values, rows.indices, rows.indptr), shape=rows.shape
  )


def main() -> None:
  """Answers the rows of the input."""
  parser = argparse.ArgumentParser(
    description="Writes the best labels of each row that it reads, as JSON."
  )
  parser.add_argument("--k", type=int, default=5, help="labels of a row")
  parser.add_argument(
    "--verify", action="store_true", help="compare checksums of all files"
  )
  options = parser.parse_args()
  try:
    reader = Reader(os.path.dirname(os.path.abspath(__file__)), options.verify)
    for number, line in enumerate(sys.stdin, 1):
      try:
        scores, ids = reader.topk([json.loads(line)], options.k)
      except (ValueError, TypeError) as error:
        raise ValueError(f"line {number} of the input: {error}") from None
      answer = {"labels": ids[0].tolist(), "scores": scores[0].tolist()}
      if reader.label_names is not None:
        answer["names"] = [reader.label_names[i] for i in answer["labels"]]
      print(json.dumps(answer, ensure_ascii=False), flush=True)
  except ValueError as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main()
