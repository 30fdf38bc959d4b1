"""Lists of similar label rows, of which an answer looks at few.

An inverted file: spherical k-means makes lists of rows, an example is compared
with the mean of each list, and the lists with the highest scores are looked at.
That is done with codes of one byte a number; the best rows by codes are scored
again with the rows themselves, so that answers and scores are those of the
rows. What is missed is what lies in other lists. Sources: Jégou, Douze and
Schmid, "Product Quantization for Nearest Neighbor Search", IEEE TPAMI 2011,
section 4 (inverted file); Dhillon and Modha, "Concept Decompositions for Large
Sparse Text Data Using Clustering", Machine Learning 2001 (spherical k-means).

Legend: n examples, D width, L rows, C lists, P lists that are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import json
import math
import os
import pathlib
import zlib

import numpy as np

from xlj import files
from xlj.search import exact

FILE = "index.json"
_FORMAT = 1
_ARRAYS = ("starts", "names", "codes", "scale", "bias", "centres", "offsets")
_ROUNDS = 10  # of k-means
_SAMPLE = 64  # rows of which a list's centre is made
_PIECE = 2**15  # rows that are widened at a time
_RESCORED = 4  # rows scored again for each that is returned, and
_LEAST_RESCORED = 32  # at least so many
_FINGERPRINT = 64  # rows that tell rows from others


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """Lists of rows; see `build` and `load`.

  Attributes:
    rows: What is answered with.
    centres: Mean row of each list, and mean bias.
    starts: int64 `[C + 1]`, where each list starts in what follows.
    names: int32 or int64 `[L]`, the numbers of the rows, list by list.
    codes: int8 of the rows, in this order.
    probes: P, how many lists are looked at if nothing else is said.
    recall: Share of the k best rows that were found with as many lists, when it
      was measured last; None if it was not.
    k: Of that measurement.
  """

  rows: exact.Rows
  centres: exact.Rows
  starts: np.ndarray
  names: np.ndarray
  codes: exact.Rows
  probes: int = 1
  recall: float | None = None
  k: int | None = None

  @property
  def num_lists(self) -> int:
    """C."""
    return len(self.centres)

  @functools.cached_property
  def _coarse(self) -> exact.Rows:
    """The centres in a byte a number: a fourth of what is read."""
    return exact.stored(self.centres.values, "int8", self.centres.bias)

  def topk(
    self,
    x: np.ndarray,
    k: int,
    *,
    probes: int | None = None,
    rescore: int | None = None,
    exclude: exact.Named | None = None,
    among: exact.Named | None = None,
    threshold: float | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """About the k rows with the highest scores for each example.

    Args:
      x: `[n, D]`.
      k: How many, from 1 to L.
      probes: How many lists are looked at; by default `probes`. With all C,
        only rounding of codes can leave out a row.
      rescore: How many of the best rows by codes are scored again; by default
        four times k and at least 32. With 0 the scores are those of codes.
      exclude: As for `exact.topk`.
      among: As for `exact.topk`, which then answers, of these rows alone.
      threshold: As for `exact.topk`.

    Returns:
      As `exact.topk`. Where the lists have fewer rows, the last ones are -inf
      and -1.

    Raises:
      ValueError: With what does not fit.
    """
    if among is not None:
      return exact.topk(
        *(x, self.rows, k), exclude=exclude, among=among, threshold=threshold
      )
    num_rows = len(self.rows)
    x = exact.queries(x, self.rows.dim)
    exact.check_number("k", k, num_rows)
    probes = self.probes if probes is None else probes
    exact.check_number("probes", probes, self.num_lists)
    if rescore is None:
      rescore = max(_RESCORED * k, _LEAST_RESCORED)
    exact.check_number("rescore", rescore, None, least=0)
    floor = exact.floor_of(threshold)
    denied = exact.denied_of(exclude, len(x), num_rows)
    places = min(max(k, rescore), num_rows) if rescore else 0
    if len(x) == 1:
      heaps = exact.empty(1, k)
      parts = self._coarse, self.codes, self.rows
      centres, codes, rows = (part.arrays() for part in parts)
      exact.loops().search(
        *(x, centres, self.starts, codes, self.names, rows),
        *(probes, places, floor, denied, *heaps),
      )
      return heaps[:2]
    lists = exact.topk(x, self._coarse, probes)[1]
    if not places:
      return exact.ordered(self._probed(x, lists, k, floor, denied))
    lowest = exact.floor_of(None)
    _, numbers, _ = self._probed(x, lists, places, lowest, denied)
    return exact.rescored(x, numbers, self.rows, k, floor, denied)

  def _probed(
    self,
    x: np.ndarray,
    lists: np.ndarray,
    places: int,
    floor: np.float32,
    denied: exact.Denied,
  ) -> exact.Heaps:
    """The best rows by codes in some lists `[n, P]`."""

    def task(examples: slice, part: slice, heaps: exact.Heaps) -> None:
      some = lists[examples].ravel()
      each = len(some) // lists.shape[1]
      part = slice(part.start * each, part.stop * each)
      # The nearest lists first, whose rows leave few others better than they.
      rank = np.tile(np.arange(lists.shape[1]), each)
      nearest = np.full(self.num_lists + 1, lists.shape[1])  # -1 is the last
      np.minimum.at(nearest, some, rank)
      pairs = np.lexsort((some, nearest[some]))[part]
      exact.loops().probe(
        *(x[examples], pairs // lists.shape[1], some[pairs]),
        *(self.starts, *self.codes.arrays(), self.names, floor),
        *(exact.of_examples(denied, examples), *heaps),
      )

    work = len(self.rows) // self.num_lists * self.rows.dim
    return exact.shared_out(task, *(len(x), lists.shape[1], work, places))

  def tune(self, x: np.ndarray, recall: float = 0.95, k: int = 10) -> Index:
    """Finds how many lists have to be looked at.

    Args:
      x: `[n, D]` examples as they will be asked; a few hundred.
      recall: Share of the k best rows that is to be found.
      k: How many.

    Returns:
      The same index with other `probes`, and the recall measured with them.

    Raises:
      ValueError: With what does not fit.
    """
    exact.check_tuning(x, recall)
    _, true = exact.topk(x, self.rows, k)
    _, order = exact.topk(x, self._coarse, self.num_lists)
    # After how many lists that of each of the best rows comes.
    places = np.zeros(order.shape, np.int64)
    known = np.where(order < 0, self.num_lists - 1, order)
    np.put_along_axis(places, known, np.arange(self.num_lists)[None], 1)
    list_of_row = np.empty(len(self.rows), np.int64)
    sizes = np.diff(self.starts)
    list_of_row[self.names] = np.repeat(np.arange(self.num_lists), sizes)
    needed = np.sort(
      np.take_along_axis(places, list_of_row[true], 1)[true >= 0]
    )
    last = max(0, math.ceil(recall * len(needed)) - 1)
    probes = int(needed[last]) + 1 if len(needed) else 1
    while True:
      _, found = self.topk(x, k, probes=probes)
      share = exact.recall(found, true)
      if share >= recall or probes == self.num_lists:
        break  # Rounding of codes may have cost some.
      probes = min(self.num_lists, probes + 1 + probes // 16)
    return dataclasses.replace(self, probes=probes, recall=share, k=k)

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes the index, without the rows that it is of.

    Args:
      directory: Is made if need be; gets `index.json`, the last one, and
        arrays `*.npy`.

    Raises:
      OSError: It cannot be written.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).unlink(missing_ok=True)
    for name, array in self._arrays().items():
      with files.replacing(_path(directory, name)) as partial:
        with partial.open("wb") as file:
          np.save(file, array, allow_pickle=False)
    facts = {
      "format": _FORMAT,
      "rows": len(self.rows),
      "dim": self.rows.dim,
      "fingerprint": _fingerprint(self.rows),
      "probes": self.probes,
      "recall": self.recall,
      "k": self.k,
    }
    files.write_text(directory / FILE, json.dumps(facts, indent=2) + "\n")

  def _arrays(self) -> dict[str, np.ndarray]:
    _, scale, bias = self.codes.arrays()
    return {
      "starts": self.starts,
      "names": self.names,
      "codes": self.codes.values,
      "scale": scale,
      "bias": bias,
      "centres": self.centres.values,
      "offsets": self.centres.arrays()[2],
    }


def build(
  rows: exact.Rows, num_lists: int | None = None, seed: int = 0
) -> Index:
  """Makes lists of similar rows.

  Args:
    rows: Label rows; memory maps are read twice.
    num_lists: C; by default the root of L.
    seed: Of the rows of which the first centres are made.

  Returns:
    The index, which looks at one list unless told otherwise; see `Index.tune`.

  Raises:
    ValueError: There are no rows, or fewer than lists.
  """
  if not len(rows):
    raise ValueError("there are no rows to make lists of")
  if num_lists is None:
    num_lists = min(len(rows), math.ceil(math.sqrt(len(rows))))
  exact.check_number("num_lists", num_lists, len(rows))
  generator = np.random.default_rng(seed)
  centres = _centres(rows, num_lists, generator)
  groups = np.empty(len(rows), np.int64)
  sums = np.zeros(centres.shape, np.float32)
  counts = np.zeros(num_lists, np.int64)
  for part in _pieces(len(rows)):
    piece = rows.part(part).widened()
    groups[part] = _nearest(piece, centres)
    exact.loops().add_to_sums(piece, groups[part], sums, counts)
  starts = np.concatenate([[0], np.cumsum(counts)])
  names = np.argsort(groups, kind="stable")
  names = names.astype(np.int32 if len(rows) < 2**31 else np.int64)
  means = sums / np.maximum(counts, 1)[:, None].astype(np.float32)
  offsets = np.zeros(num_lists)
  if rows.bias is not None:
    offsets = np.bincount(groups, rows.bias, num_lists) / np.maximum(counts, 1)
  offsets[counts == 0] = -np.inf  # so that they are not looked at
  codes = np.empty((len(rows), rows.dim), np.int8)
  scale = np.empty(len(rows), np.float32)
  for part in _pieces(len(rows)):
    piece = exact.stored(rows.part(names[part]).widened(), "int8")
    codes[part], scale[part] = piece.values, piece.scale
  bias = None if rows.bias is None else rows.bias[names]
  return Index(
    rows,
    exact.Rows(means, None, offsets.astype(np.float32)),
    starts,
    names,
    exact.Rows(codes, scale, bias),
  )


def load(directory: str | os.PathLike[str], rows: exact.Rows) -> Index:
  """Maps an index that `Index.save` wrote; reads little of it.

  Args:
    directory: Of the index.
    rows: That it was built of.

  Returns:
    The index.

  Raises:
    ValueError: There is no index, it is damaged, or of other rows.
  """
  directory = pathlib.Path(directory)
  path = directory / FILE
  try:
    facts = json.loads(path.read_text())
    if facts["format"] != _FORMAT:
      raise ValueError(f"its format is {facts['format']}, not {_FORMAT}")
    arrays = {
      name: np.load(_path(directory, name), "r", allow_pickle=False)
      for name in _ARRAYS
    }
    same = facts["fingerprint"] == _fingerprint(rows)
    if same:
      _check(arrays, rows)
    settings = {name: facts[name] for name in ("probes", "recall", "k")}
  except (OSError, EOFError, KeyError, ValueError) as error:
    raise ValueError(f"{directory}: no index can be read: {error}") from error
  if not same:
    raise ValueError(
      f"{directory}: the index is of other rows ({facts['rows']} of width"
      f" {facts['dim']}) than these ({len(rows)} of width {rows.dim}); build it"
      " again"
    )
  bias = arrays["bias"] if len(arrays["bias"]) else None
  return Index(
    rows,
    exact.Rows(arrays["centres"], None, arrays["offsets"]),
    np.array(arrays["starts"]),
    np.asarray(arrays["names"]),
    exact.Rows(arrays["codes"], arrays["scale"], bias),
    **settings,
  )


def _check(arrays: dict[str, np.ndarray], rows: exact.Rows) -> None:
  """Refuses arrays by which the loops would read beyond others."""
  starts, names, codes, scale, bias, centres, offsets = map(
    arrays.__getitem__, _ARRAYS
  )
  shapes = {
    "names": (names, (len(rows),)),
    "codes": (codes, rows.values.shape),
    "scale": (scale, (len(rows),)),
    "bias": (bias, (0,) if rows.bias is None else (len(rows),)),
    "centres": (centres, (len(starts) - 1, rows.dim)),
    "offsets": (offsets, (len(starts) - 1,)),
  }
  for name, (array, shape) in shapes.items():
    if array.shape != shape:
      raise ValueError(f"{name}.npy is {array.shape}, not {shape}")
  ends = int(starts[0]), int(starts[-1])
  if ends != (0, len(rows)) or (np.diff(starts) < 0).any():
    raise ValueError(f"starts.npy does not ascend from 0 to {len(rows)}")
  if not 0 <= names.min() <= names.max() < len(rows):
    raise ValueError(f"names.npy is not of rows 0 to {len(rows) - 1}")


def _centres(
  rows: exact.Rows, num_lists: int, generator: np.random.Generator
) -> np.ndarray:
  """Spherical k-means of a sample; float32 `[C, D]` of length 1."""
  size = min(len(rows), num_lists * _SAMPLE)
  chosen = np.sort(generator.choice(len(rows), size, replace=False))
  sample = _unit(rows.part(chosen).widened())
  centres = sample[generator.choice(size, num_lists, replace=False)]
  for _ in range(_ROUNDS):
    groups = _nearest(sample, centres)
    sums = np.zeros_like(centres)
    counts = np.zeros(num_lists, np.int64)
    exact.loops().add_to_sums(sample, groups, sums, counts)
    empty = np.flatnonzero(counts == 0)
    sums[empty] = sample[generator.choice(size, len(empty), replace=False)]
    centres = _unit(sums)
  return centres


def _nearest(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
  """int64 `[L]`, the centre with the largest inner product with each row."""
  return np.maximum(exact.topk(rows, exact.Rows(centres), 1)[1][:, 0], 0)


def _unit(rows: np.ndarray) -> np.ndarray:
  lengths = np.linalg.norm(rows, axis=1, keepdims=True)
  return rows / np.where(lengths > 0, lengths, 1)


def _fingerprint(rows: exact.Rows) -> str:
  """Tells rows from others by some of them."""
  some = rows.part(np.linspace(0, len(rows) - 1, _FINGERPRINT).astype(int))
  check = zlib.crc32(f"{len(rows)} {rows.values.dtype}".encode())
  for array in some.arrays():
    check = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, check)
  return f"{check:08x}"


def _path(directory: pathlib.Path, name: str) -> pathlib.Path:
  return directory / f"{name}.npy"


def _pieces(size: int) -> Iterator[slice]:
  for start in range(0, size, _PIECE):
    yield slice(start, min(start + _PIECE, size))
