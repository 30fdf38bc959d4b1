"""Scores and best labels of rows, by compiled loops over mapped arrays.

Legend: n rows, F features, L label rows, D width, M training rows kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from xlj import processors
from xlj.data import csr as csr_lib
from xlj.export import host_loops
from xlj.export import reader
from xlj.search import exact
from xlj.search import external
from xlj.search import index as index_lib

Rows = csr_lib.Csr | np.ndarray
_WORTH_THREADS = 64  # rows
_FEW = 4  # rows for which reading narrow label rows takes longer than products
_ROOM = 2**22  # scores at a time, where all of a row are made at once
_SEARCHED = (np.float32, np.uint16, np.int8)  # types of rows that are searched
_DECODED = 2**26  # numbers that are kept as float32 if they are stored shorter


class Asked(NamedTuple):
  """Which label rows may be answers, as `host_loops.answer` takes it.

  Attributes:
    denied: int32, rows that may not; -1 is none.
    of_excluded: int64 `[n + 1]`, where each example begins in `excluded`; empty
      for none.
    excluded: int32, rows that an example may not have; -1 is none.
    among: Whether examples may have some rows alone.
    first: int64 `[n]`, where each example begins in `only`.
    last: int64 `[n]`, where it ends.
    only: int32, those rows, ascending in an example.
  """

  denied: np.ndarray = np.zeros(0, np.int32)
  of_excluded: np.ndarray = np.zeros(0, np.int64)
  excluded: np.ndarray = np.zeros(0, np.int32)
  among: bool = False
  first: np.ndarray = np.zeros(0, np.int64)
  last: np.ndarray = np.zeros(0, np.int64)
  only: np.ndarray = np.zeros(0, np.int32)

  def named(self) -> tuple[exact.Named | None, exact.Named | None]:
    """The rows to exclude, and those to search among; see `exact.topk`."""
    exclude: exact.Named | None = self.denied if len(self.denied) else None
    if len(self.of_excluded):
      ends = zip(self.of_excluded, self.of_excluded[1:])
      exclude = [
        np.concatenate([self.denied, self.excluded[a:b]]) for a, b in ends
      ]
    if not self.among:
      return exclude, None
    first, last = self.first, self.last
    if len(first) and (first == first[0]).all() and (last == last[0]).all():
      return exclude, self.only[first[0] : last[0]]
    return exclude, [self.only[a:b] for a, b in zip(first, last)]

  def since(self, row: int) -> Asked:
    """The same of examples from one on."""
    return self._replace(
      of_excluded=self.of_excluded[row:],
      first=self.first[row:],
      last=self.last[row:],
    )


class Scores:
  """What an exported model computes.

  Attributes:
    label_rows: Those that alone make the scores, with what the encoder makes of
      an example; None where there is more, or where they are of float8.
    index: Of these rows, if it is to be used.
  """

  def __init__(
    self, manifest: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
  ):
    """Takes over a model.

    Args:
      manifest: What it says of itself.
      tensors: Its arrays, of which none can be written to.
    """
    self._manifest, self._tensors = manifest, tensors
    self._num_labels = manifest["num_labels"]
    how, width = manifest["weighting"], manifest["num_features"]
    self._log, self._l2 = how["kind"].startswith("log"), how["l2"]
    self._idf = _read_only(np.ones(width, np.float32))
    if how["kind"].endswith("tfidf"):
      self._idf = tensors["idf"]
    self._numbers: dict[str, np.ndarray] = {}
    self._room: list[np.ndarray] = []  # to be used again
    self._pairs: Any = _NO_PAIRS
    if "starts" in tensors:
      coded = _coded(tensors["values"], tensors.get("scale"))
      self._pairs = tensors["starts"], tensors["labels"], *coded
    self._kept: Any = None
    if manifest["neighbours"]:
      starts, rows, values, ends, labels = (
        tensors[f"neighbours.{name}"]
        for name in ("starts", "rows", "values", "label_starts", "labels")
      )
      self._kept = (starts, rows, values), (ends, labels)
    self.label_rows: exact.Rows | None = None
    self.index: index_lib.Index | external.External | None = None
    stored = tensors.get("label_rows")
    alone = "starts" not in tensors and self._kept is None
    if alone and stored is not None and stored.dtype in _SEARCHED:
      scale = tensors.get("label_rows.scale")
      self.label_rows = exact.Rows(stored, scale, tensors["bias"])
    # Otherwise the scores of one row at a time are made of the bias.
    self._is_dense = "label_rows" in tensors or self._kept is not None

  def weighted(self, rows: csr_lib.Csr) -> tuple[csr_lib.Csr, np.ndarray]:
    """Rows with weighted values, and the status of each.

    Args:
      rows: Raw features; ids and values need not be checked.

    Returns:
      The rows, and uint8 `[n]`; see `host_loops.weigh`.
    """
    values = rows.values
    if values is None:
      values = np.ones(rows.nnz, np.float32)
    given = map(_writable, (rows.indptr, rows.indices, values))
    indptr, indices, values = given
    out, status = np.empty_like(values), np.empty(rows.num_rows, np.uint8)
    host_loops.weigh(
      *(indptr, indices, values, self._log, self._l2, self._idf, out, status)
    )
    return csr_lib.Csr(indptr, indices, out, len(self._idf)), status

  def topk(
    self, rows: Rows, k: int, asked: Asked
  ) -> tuple[np.ndarray, np.ndarray]:
    """The best labels of rows.

    Args:
      rows: n rows, weighted.
      k: How many labels.
      asked: Which ones.

    Returns:
      float32 scores `[n, k]`, descending, and int32 label rows; -inf and -1
      where there are fewer, or scores are no numbers.
    """
    if self.label_rows is not None:
      exclude, among = asked.named()
      x, of = self.embed(rows), {"exclude": exclude, "among": among}
      if self.index is not None:
        scores, found = self.index.topk(x, k, **of)
      else:
        scores, found = exact.topk(x, self.label_rows, k, **of)
      return scores, found.astype(np.int32)
    count = _count(rows)
    scores = np.empty((count, k), np.float32)
    found = np.empty((count, k), np.int32)

    def run(part: slice) -> None:
      self._answer(rows, part, asked, scores, found)

    _in_threads(count, run)
    return scores, found

  def embed(self, rows: Rows) -> np.ndarray:
    """What the encoder makes of weighted rows, float32 `[n, D]`."""
    fields = self._manifest["config"]
    table = self._tensors["encoder.table"]
    if isinstance(rows, csr_lib.Csr):
      h = np.zeros((rows.num_rows, table.shape[1]), np.float32)
      coded = _coded(table, self._tensors.get("encoder.table.scale"))
      host_loops.add_bags(rows.indptr, rows.indices, rows.values, *coded, h)
    else:
      h = rows @ self.decoded("encoder.table")
    h *= np.float32(fields["encoder.input_scale"])
    activation = reader.ACTIVATIONS[fields["encoder.activation"]]
    if "encoder.bias" in self._tensors:
      h += self.decoded("encoder.bias")
      h = activation(h)
    for i in range(len(fields["encoder.hidden"])):
      name = f"encoder.layers.{i}"
      h = h @ self.decoded(f"{name}.kernel")
      h += self.decoded(f"{name}.bias")
      h = activation(h)
    scale = fields["encoder.scale"]
    if "encoder.log_scale" in self._tensors:
      scale = np.exp(self._tensors["encoder.log_scale"])
    if scale:
      h *= scale / np.sqrt((h * h).sum(1, keepdims=True) + np.float32(1e-6))
    return h

  def decoded(self, name: str, part: slice = slice(None)) -> np.ndarray:
    """The numbers of an array, or of some rows of it, as float32."""
    array, scale = self._tensors[name], self._tensors.get(f"{name}.scale")
    if array.dtype != np.float32 and array.size > _DECODED:
      return reader.decoded(array[part], None if scale is None else scale[part])
    if name not in self._numbers:
      self._numbers[name] = reader.decoded(array, scale)
    return self._numbers[name][part]

  def decoded_values(self, first: int = 0, last: int | None = None) -> Any:
    """The linear weights of some features, one after the other, as float32."""
    starts = self._tensors["starts"][first : None if last is None else last + 1]
    values = reader.decoded(self._tensors["values"][starts[0] : starts[-1]])
    scale = self._tensors.get("scale")
    if scale is None:
      return values
    return values * np.repeat(scale[first:last], np.diff(starts))

  def _answer(
    self,
    rows: Rows,
    part: slice,
    asked: Asked,
    scores: np.ndarray,
    found: np.ndarray,
  ) -> None:
    """Writes the answers of some of the rows."""
    size = part.stop - part.start
    if self._is_dense:
      size = max(1, min(size, _ROOM // self._num_labels))
    room = self._take_room(size if self._is_dense else 1)
    for start in range(part.start, part.stop, size):
      stop = min(start + size, part.stop)
      block, z = _some(rows, start, stop), room
      if self._is_dense:
        z = room[: stop - start]
        self._score(block, z)
      sparse = block if isinstance(block, csr_lib.Csr) else _NO_ROWS
      host_loops.answer(
        *(sparse.indptr, sparse.indices, sparse.values),
        *(*self._pairs, self._tensors["bias"], not self._is_dense, z),
        *(*asked.since(start), scores[start:stop], found[start:stop]),
      )
    self._room.append(room)

  def _score(self, rows: Rows, z: np.ndarray) -> None:
    """Writes the scores `z [n, L]`, but for linear weights."""
    bias = self._tensors["bias"]
    if "label_rows" in self._tensors:
      x, stored = self.embed(rows), self._tensors["label_rows"]
      if stored.dtype == np.int8 and len(x) <= _FEW:
        scale = self._tensors["label_rows.scale"]
        host_loops.multiply(x, stored, scale, z)
      else:
        size = max(1, _ROOM // x.shape[1])
        for start in range(0, len(bias), size):
          label_rows = self.decoded("label_rows", slice(start, start + size))
          np.matmul(x, label_rows.T, out=z[:, start : start + size])
      z += bias
    else:
      z[:] = bias
    if self._kept is None:
      return
    assert isinstance(rows, csr_lib.Csr)  # They have sparse features.
    how, (kept, labels) = self._manifest["neighbours"], self._kept
    num_kept = len(labels[0]) - 1
    host_loops.add_of_neighbours(
      *(rows.indptr, rows.indices, rows.values, kept, labels),
      *(min(how["count"], num_kept), how["temperature"], how["weight"]),
      *(how["small"], np.empty(num_kept, np.float32)),
      *(np.zeros(len(bias), np.float32), z),
    )

  def _take_room(self, size: int) -> np.ndarray:
    """Room for scores `[m, L]` of at least so many rows."""
    try:
      room = self._room.pop()  # another thread may have taken the last
    except IndexError:
      room = np.empty((0, 0), np.float32)
    if len(room) < size:
      room = np.empty((size, self._num_labels), np.float32)
    return room


def _in_threads(count: int, run: Callable[[slice], None]) -> None:
  """Has threads run parts of `count` rows, where there are enough of them."""
  threads = count // _WORTH_THREADS
  if threads > 1:
    threads = min(processors.usable(), threads)
  if threads < 2:
    if count:
      run(slice(0, count))
    return
  ends = np.linspace(0, count, threads + 1).astype(int).tolist()
  with futures.ThreadPoolExecutor(threads) as pool:
    list(pool.map(run, map(slice, ends[:-1], ends[1:])))


def _count(rows: Rows) -> int:
  """Number of rows."""
  return rows.num_rows if isinstance(rows, csr_lib.Csr) else len(rows)


def _some(rows: Rows, start: int, stop: int) -> Rows:
  """Some of the rows."""
  if start == 0 and stop == _count(rows):
    return rows
  if isinstance(rows, csr_lib.Csr):
    return rows.slice_rows(start, stop)
  return rows[start:stop]


def _coded(
  array: np.ndarray, scale: np.ndarray | None
) -> tuple[np.ndarray, np.uint32, np.ndarray | None, np.ndarray | None]:
  """Numbers as the loops take them: array, shift, table and scale."""
  if array.dtype == np.float32:
    return array.view(np.uint32), np.uint32(0), None, None
  if array.dtype == np.uint16:
    return array, np.uint32(16), None, None
  assert scale is not None  # Numbers of 8 bits have one.
  table = None if array.dtype == np.int8 else _FLOAT8
  return array, np.uint32(0), table, scale


def _writable(array: np.ndarray) -> np.ndarray:
  """The same, of the one type that the loops are compiled for."""
  if type(array) is np.ndarray and array.flags.carray:
    return array
  return np.array(array)


def _read_only(array: np.ndarray) -> np.ndarray:
  """The same, of the type that mapped arrays have to the compiler."""
  array.flags.writeable = False
  return array


_FLOAT8 = _read_only(reader.float8_table())
_NO_ROWS = csr_lib.Csr.from_rows([], 0, [])
_NO_PAIRS = (
  _read_only(np.zeros(0, np.int64)),
  _read_only(np.zeros(0, np.uint16)),
  *_coded(_read_only(np.zeros(0, np.float32)), None),
)
