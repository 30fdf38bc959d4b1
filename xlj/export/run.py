"""Answers of an artifact, by JAX and NumPy alone; one file.

It needs `pip install jax flatbuffers`. As a command, with a row on each line of
the input, or in an .npz file (a sparse matrix as SciPy saves it, or one array):

  python DIR/artifact/run.py --k=5 < rows.jsonl

  {"3": 1.0, "17": 0.5}
  {"labels": [41, 7], "scores": [2.5, -0.25]}

A row is an object from feature ids to values, a list of ids, each with the
value 1 (of a model of texts: of tokens, in order), or, for a model of dense
features, the list of all values. In Python:

  from run import Artifact
  scores, labels = Artifact("DIR/artifact").topk([{3: 1.0, 17: 0.5}], k=5)

Legend: n rows, K features of one (padded), F features.
"""

import argparse
import json
import mmap
import os
import sys

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

FORMAT = 1  # the newest that this file reads
ABOUT = "artifact.json"
WEIGHTS = "weights.safetensors"
_AGAIN = "copy the directory again, or export the run again"
_MOST = 1024  # rows at a time
_FEW = 8  # times that a program is run, rather than one of more rows
_DTYPES = {
  "BF16": jnp.bfloat16,
  "F8_E4M3": jnp.float8_e4m3fn,
  "F32": np.float32,
  "F64": np.float64,
  "I8": np.int8,
  "I32": np.int32,
  "I64": np.int64,
  "U8": np.uint8,
  "U16": np.uint16,
  "U32": np.uint32,
}


def read_about(directory):
  """Reads what an artifact says of itself.

  Args:
    directory: Of the artifact.

  Returns:
    A dict.

  Raises:
    ValueError: It is missing, damaged, or newer than this file.
  """
  path = os.path.join(directory, ABOUT)
  try:
    with open(path, encoding="utf-8") as file:
      about = json.load(file)
    number = int(about["format"])
  except FileNotFoundError:
    raise ValueError(
      f"{path}: no such file; give a directory that xlj export has"
      " written with --artifact"
    ) from None
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path}: a damaged file ({error}); {_AGAIN}") from None
  if number > FORMAT:
    raise ValueError(
      f"{path}: found format {number}, expected {FORMAT} at most; use the"
      " run.py of that directory"
    )
  return about


def read_tensors(path):
  """Maps the arrays of a safetensors file.

  Args:
    path: Of the file.

  Returns:
    Arrays by name, which cannot be written to.

  Raises:
    ValueError: The file is not as it was written.
  """
  try:
    with open(path, "rb") as file:
      data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
      first, last = entry["data_offsets"]
      shape, dtype = entry["shape"], np.dtype(_DTYPES[entry["dtype"]])
      flat = np.frombuffer(data, np.uint8, last - first, start + first)
      found[name] = flat.view(dtype).reshape(shape)
    return found
  except OSError as error:
    raise ValueError(f"{path}: {error.strerror}; {_AGAIN}") from None
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path}: a damaged file ({error}); {_AGAIN}") from None


class Artifact:
  """Programs and what they take besides rows.

  Attributes:
    about: What the artifact says of itself, `artifact.json`.
  """

  def __init__(self, directory=None):
    """Opens an artifact.

    Args:
      directory: Of it; by default that of this file.

    Raises:
      ValueError: A file is not as it was written, or this JAX does not read it.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    self.directory = os.fspath(directory or here)
    self.about = read_about(self.directory)
    weights = read_tensors(os.path.join(self.directory, WEIGHTS))
    self._programs = [
      (program["rows"], jax.jit(self._program(program["file"]).call))
      for program in self.about["programs"]
    ]
    self._weights = {name: jnp.asarray(a) for name, a in weights.items()}

  def topk(self, rows, k=None):
    """The best labels of rows.

    Args:
      rows: n of them; see the top of this file. Also a sparse matrix of SciPy,
        or an array `[n, F]`.
      k: How many labels, at most those that the programs find; by default all.

    Returns:
      float32 scores `[n, k]`, descending, and int32 labels `[n, k]`; -inf and
      -1 where there are fewer.

    Raises:
      ValueError: k or a row does not fit the model.
    """
    most = self.about["k"]
    k = most if k is None else k
    if not 1 <= k <= most:
      raise ValueError(
        f"k is {k}; this artifact finds up to {most} labels: export it again"
        " with a larger --k"
      )
    scores, labels, finite = self(*_padded(rows, self.about))
    if not finite.all():
      row = int(np.argmin(finite))
      raise ValueError(f"row {row}: its values are too large for the model")
    return scores[:, :k], labels[:, :k]

  def __call__(self, *inputs):
    """All that the programs find.

    Args:
      *inputs: int32 ids `[n, K]` and float32 values `[n, K]`, 0 where a row has
        no more features; for dense features values `[n, F]` alone.

    Returns:
      As `topk`, and bool `[n]`, whether the values of a row are finite.
    """
    count, found = len(inputs[0]), []
    for start in range(0, max(count, 1), _MOST):
      part = [a[start : start + _MOST] for a in inputs]
      found.append(self._some(part))
    return tuple(np.concatenate(parts) for parts in zip(*found))

  def _some(self, inputs):
    """Of not too many rows."""
    count = len(inputs[0])
    fit = [each for each in self._programs if count <= _FEW * each[0]]
    rows, program = (fit or self._programs[-1:])[0]
    size = [(rows * _power(-(-count // rows)) - count, 0)]
    if len(inputs) > 1:
      width = inputs[0].shape[1]
      wanted = max(8, _power(width))
      if self.about["longest"]:  # and tokens beyond it are not read
        wanted = min(wanted, self.about["longest"])
        inputs = [a[:, :wanted] for a in inputs]
      size.append((wanted - min(width, wanted), 0))
    pads = [(0, more) for more, _ in size]
    pads += [(0, 0)] * (2 - len(pads))
    found = program(self._weights, *(np.pad(a, pads) for a in inputs))
    return [np.asarray(a)[:count] for a in found]

  def _program(self, name):
    """Reads a program, and says what to do if this JAX cannot."""
    path, about = os.path.join(self.directory, name), self.about
    newest = export.maximum_supported_calling_convention_version
    oldest = export.minimum_supported_calling_convention_version
    try:
      with open(path, "rb") as file:
        data = bytearray(file.read())
    except OSError as error:
      raise ValueError(f"{path}: {error.strerror}; {_AGAIN}") from None
    try:
      number = about["calling_convention"]
      if not oldest <= number <= newest:
        raise ValueError(
          f"calling convention {number}, not {oldest} to {newest}"
        )
      program = export.deserialize(data)
      program.mlir_module()  # reads what newer versions have written
      return program
    except ImportError as error:
      raise ValueError(
        f"{path}: a package is missing ({error}): pip install flatbuffers"
      ) from None
    except Exception as error:  # of whatever kind
      raise ValueError(
        f"{path}: JAX {jax.__version__} cannot read it ({error}); it was made"
        f" by JAX {about['jax']} on {about['made'][:10]}, and a JAX reads what"
        " those of the six months before it have made, or of the three weeks"
        " after it. Where xlj is, make it again, which needs no run: `python"
        f" xlj export --refresh={self.directory}`; or use that JAX"
      ) from error


def _power(n):
  """The least power of two that is not less than n."""
  return 1 << max(n - 1, 0).bit_length()


def _padded(rows, about):
  """What programs take of rows: ids and values `[n, K]`, or values `[n, F]`."""
  features = about["num_features"]
  if about["input"] == "dense":
    values = np.asarray(rows, np.float32)
    values = values.reshape(len(values), -1 if values.size else features)
    if values.shape[1] != features:
      raise ValueError(
        f"rows have {values.shape[1]} values; the model reads {features}"
      )
    return (values,)
  if hasattr(rows, "indptr"):
    starts, indices = np.asarray(rows.indptr), np.asarray(rows.indices)
    numbers = np.asarray(rows.data)
  else:
    pairs = [_pairs(i, row) for i, row in enumerate(rows)]
    starts = np.cumsum([0, *(len(ids) for ids, _ in pairs)])
    indices = np.array([i for ids, _ in pairs for i in ids], np.int64)
    numbers = np.array([v for _, values in pairs for v in values])
  wrong = np.flatnonzero((indices < 0) | (indices >= features))
  if len(wrong):
    row = np.searchsorted(starts, wrong[0], side="right") - 1
    raise ValueError(
      f"row {row}: feature {indices[wrong[0]]}; there are 0 to {features - 1}"
    )
  lengths = np.diff(starts)
  used = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
  ids, values = np.zeros(used.shape, np.int32), np.zeros(used.shape, np.float32)
  ids[used] = indices
  with np.errstate(over="ignore"):  # the program says so
    values[used] = numbers
  return ids, values


def _pairs(number, row):
  """Ids and values of a row."""
  try:
    if isinstance(row, dict):
      ids = sorted(row, key=int)
      return [int(i) for i in ids], [float(row[i]) for i in ids]
    return [int(i) for i in row], [1.0] * len(row)
  except (TypeError, ValueError):
    raise ValueError(
      f"row {number} is {str(row)[:80]}; give an object from feature ids to"
      " values, or a list of ids"
    ) from None


class _Csr:
  """A sparse matrix, as SciPy saves it."""

  def __init__(self, file):
    self.indptr, self.indices = file["indptr"], file["indices"]
    self.data = file["data"]


def read_rows(path):
  """The rows of an .npz file."""
  with np.load(path, allow_pickle=False) as file:
    if "indptr" in file:
      return _Csr(file)
    return file[file.files[0]]


def main():
  """Answers the rows of the input."""
  parser = argparse.ArgumentParser(
    description="Writes the best labels of each row that it reads, as JSON."
  )
  parser.add_argument("input", nargs="?", help=".npz; default: JSON from stdin")
  parser.add_argument("--k", type=int, default=5, help="labels of a row")
  options = parser.parse_args()
  try:
    artifact = Artifact()
    if options.input:
      rows = read_rows(options.input)
    else:
      rows = [json.loads(line) for line in sys.stdin]
    for scores, labels in zip(*artifact.topk(rows, options.k)):
      found = labels >= 0
      answer = {
        "labels": labels[found].tolist(),
        "scores": scores[found].tolist(),
      }
      print(json.dumps(answer), flush=True)
  except ValueError as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main()
