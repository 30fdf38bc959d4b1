"""Label rows as files of FAISS and USearch, and answers with those.

Such a file is for whoever has these libraries and not xlj: the numbers of its
vectors are those of the rows, and scores are inner products. Where rows have a
bias, it is one more number of a vector, and an example has a 1 there. Here the
libraries name candidates, which are scored again with the rows themselves.

FAISS comes with `pip install 'xlj-jax[faiss]'`, USearch with
'xlj-jax[usearch]'.

Legend: n examples, D width, L rows.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from typing import Any

import numpy as np

from xlj import files
from xlj.search import exact

KINDS = ("flat", "ivf", "hnsw")  # of FAISS; USearch has the last one alone
_LINKS = 32  # of a row of FAISS's HNSW
_SAMPLE = 64  # rows of which a list's centre is made
_PIECE = 2**15  # rows that are handed over at a time
_EFFORT = 64  # unless told otherwise


def write(
  path: str | os.PathLike[str], rows: exact.Rows, kind: str = "hnsw"
) -> None:
  """Writes the index of another library.

  Args:
    path: Ends with `.faiss` or `.usearch`, which says whose. FAISS keeps
      float32; USearch keeps bfloat16, or float32 where rows have that.
    rows: Label rows.
    kind: One of `KINDS`.

  Raises:
    ValueError: There is no such library, or it has no such kind.
    ImportError: The library is not installed.
    OSError: The file cannot be written.
  """
  path = pathlib.Path(path)
  library = _library(path)
  if kind not in KINDS or (library == "usearch" and kind != "hnsw"):
    kinds = KINDS if library == "faiss" else KINDS[-1:]
    raise ValueError(f"kind is {kind!r}; {path} can have {', '.join(kinds)}")
  width = rows.dim + (rows.bias is not None)
  with files.replacing(path) as partial:
    if library == "usearch":
      dtype = "f32" if rows.values.dtype == np.float32 else "bf16"
      index = _usearch().Index(ndim=width, metric="ip", dtype=dtype)
      for start in range(0, len(rows), _PIECE):
        vectors = _vectors(rows, slice(start, start + _PIECE))
        index.add(np.arange(start, start + len(vectors)), vectors)
      index.save(str(partial))
      return
    faiss = _faiss()
    if kind == "hnsw":
      index = faiss.IndexHNSWFlat(width, _LINKS, faiss.METRIC_INNER_PRODUCT)
    else:
      index = faiss.IndexFlatIP(width)
    if kind == "ivf":
      lists = min(len(rows), math.ceil(math.sqrt(len(rows))))
      centres = index
      index = faiss.IndexIVFFlat(
        *(centres, width, lists, faiss.METRIC_INNER_PRODUCT)
      )
      size = min(len(rows), lists * _SAMPLE)
      sample = np.random.default_rng(0).choice(len(rows), size, replace=False)
      index.train(_vectors(rows, np.sort(sample)))
    for start in range(0, len(rows), _PIECE):
      index.add(_vectors(rows, slice(start, start + _PIECE)))
    faiss.write_index(index, str(partial))


def load(path: str | os.PathLike[str], rows: exact.Rows) -> External:
  """Opens what `write` wrote, or an index of the same vectors by other means.

  Args:
    path: Ends with `.faiss` or `.usearch`.
    rows: That it is of.

  Returns:
    What answers.

  Raises:
    ValueError: It cannot be read, or is of other rows.
    ImportError: The library is not installed.
  """
  path = pathlib.Path(path)
  library = _library(path)
  try:
    if library == "usearch":
      index = _usearch().Index.restore(str(path), view=True)
      size, width = len(index), index.ndim
    else:
      index = _faiss().read_index(str(path))
      size, width = index.ntotal, index.d
  except (OSError, RuntimeError, ValueError) as error:
    raise ValueError(f"{path}: no index can be read: {error}") from error
  wanted = (len(rows), rows.dim + (rows.bias is not None))
  if (size, width) != wanted:
    raise ValueError(
      f"{path}: has {size} vectors of width {width}, and the rows make"
      f" {wanted[0]} of {wanted[1]}; write it again"
    )
  return External(rows, index, library)


@dataclasses.dataclass(frozen=True, eq=False)
class External:
  """An index of another library; see `load`.

  Attributes:
    rows: What is answered with.
    index: The library's.
    library: "faiss" or "usearch".
    effort: How many lists (IVF) or candidates (HNSW) are looked at.
    recall: Share of the k best rows that was found so, when it was measured
      last; None if it was not.
    k: Of that measurement.
  """

  rows: exact.Rows
  index: Any
  library: str
  effort: int = _EFFORT
  recall: float | None = None
  k: int | None = None

  def topk(
    self,
    x: np.ndarray,
    k: int,
    *,
    effort: int | None = None,
    exclude: exact.Named | None = None,
    among: exact.Named | None = None,
    threshold: float | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """About the k rows with the highest scores for each example.

    Args:
      x: `[n, D]`.
      k: How many, from 1 to L.
      effort: By default `effort`.
      exclude: As for `exact.topk`; as many candidates more are asked for.
      among: As for `exact.topk`, which then answers, of these rows alone.
      threshold: As for `exact.topk`.

    Returns:
      As `exact.topk`; fewer where fewer were found.

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
    effort = self.effort if effort is None else effort
    exact.check_number("effort", effort, None)
    floor = exact.floor_of(threshold)
    denied = exact.denied_of(exclude, len(x), num_rows)
    most = min(num_rows, k + int((denied[1] - denied[0]).max(initial=0)))
    found = self._found(x, most, effort) if len(x) else np.empty((0, most), int)
    return exact.rescored(x, found, self.rows, k, floor, denied)

  def tune(self, x: np.ndarray, recall: float = 0.95, k: int = 10) -> External:
    """Finds the least effort with a recall.

    Args:
      x: `[n, D]` examples as they will be asked; a few hundred.
      recall: Share of the k best rows that is to be found.
      k: How many.

    Returns:
      The same with another `effort`, and the recall measured with it, which is
      lower than asked for where no effort reaches it.

    Raises:
      ValueError: With what does not fit.
    """
    exact.check_tuning(x, recall)
    _, true = exact.topk(x, self.rows, k)

    def measured(effort: int) -> float:
      return exact.recall(self.topk(x, k, effort=effort)[1], true)

    effort = exact.smallest(lambda e: measured(e) >= recall, len(self.rows))
    share = measured(effort)
    return dataclasses.replace(self, effort=effort, recall=share, k=k)

  def _found(self, x: np.ndarray, most: int, effort: int) -> np.ndarray:
    """Candidates `[n, most]`; -1 is none."""
    if self.rows.bias is not None:
      x = np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)
    if self.library == "usearch":
      self.index.expansion_search = max(effort, most)
      matches = self.index.search(x, most)
      keys = matches.keys.reshape(len(x), -1).astype(np.int64)
      counts = getattr(matches, "counts", np.array([keys.shape[1]]))
      return np.where(np.arange(keys.shape[1]) < counts[:, None], keys, -1)
    faiss = _faiss()
    options = None
    if isinstance(self.index, faiss.IndexIVF):
      options = faiss.SearchParametersIVF(nprobe=min(effort, self.index.nlist))
    elif isinstance(self.index, faiss.IndexHNSW):
      options = faiss.SearchParametersHNSW(efSearch=max(effort, most))
    return self.index.search(x, most, params=options)[1]


def _vectors(rows: exact.Rows, which: slice | np.ndarray) -> np.ndarray:
  """Rows as libraries have them: float32 `[L, D]`, or with a bias one more."""
  some = rows.part(which)
  if some.bias is None:
    return some.widened()
  return np.concatenate([some.widened(), some.bias[:, None]], 1)


def _library(path: pathlib.Path) -> str:
  if path.suffix not in (".faiss", ".usearch"):
    raise ValueError(f"{path}: give a file that ends with .faiss or .usearch")
  return path.suffix[1:]


def _faiss() -> Any:
  try:
    import faiss
  except ImportError as error:
    raise ImportError(
      "FAISS is missing: pip install 'xlj-jax[faiss]'"
    ) from error
  return faiss


def _usearch() -> Any:
  try:
    import usearch.index
  except ImportError as error:
    raise ImportError(
      "USearch is missing: pip install 'xlj-jax[usearch]'"
    ) from error
  return usearch.index
