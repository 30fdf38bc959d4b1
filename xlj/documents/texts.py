"""Texts in a memory map: their bytes in one array, in another where each ends.

Legend: N texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import hashlib
from typing import overload

import numpy as np

from xlj.data import ingest


@dataclasses.dataclass(frozen=True, eq=False)
class Texts(Sequence[str]):
  """Texts that are read when they are asked for.

  Attributes:
    data: uint8 [bytes], all texts in UTF-8.
    offsets: int64 [N + 1], where each begins.
    fingerprint: two sequences of the same texts have the same one.

  Example:
    texts[3]              # a text
    texts[10:20]          # a list of them
    texts[np.array([7, 3])]
  """

  data: np.ndarray
  offsets: np.ndarray
  fingerprint: str

  def __len__(self) -> int:
    """N."""
    return len(self.offsets) - 1

  @overload
  def __getitem__(self, rows: int | np.integer) -> str: ...
  @overload
  def __getitem__(self, rows: slice | np.ndarray | list[int]) -> list[str]: ...

  def __getitem__(
    self, rows: int | np.integer | slice | np.ndarray | list[int]
  ) -> str | list[str]:
    """A text, or those of several rows.

    Args:
      rows: a row, a slice, or int [n]; below 0 it counts from the end.

    Returns:
      A text, or a list of them in the order of the rows.

    Raises:
      IndexError: when a row is out of range.
    """
    if isinstance(rows, slice):
      chosen = range(len(self))[rows]
      if chosen.step == 1:
        return self._between(chosen.start, max(chosen.start, chosen.stop))
      return [self._one(row) for row in chosen]
    if isinstance(rows, (int, np.integer)):
      return self._one(range(len(self))[rows])
    rows = np.asarray(rows)
    if rows.size == 0:
      return []
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
      raise IndexError(f"Rows are {rows.dtype} {rows.shape}, not integers [n].")
    every = range(len(self))
    return [self._one(every[row]) for row in rows.tolist()]

  def _one(self, row: int) -> str:
    start, stop = self.offsets[row : row + 2]
    return self.data[start:stop].tobytes().decode()

  def _between(self, start: int, stop: int) -> list[str]:
    ends = np.asarray(self.offsets[start : stop + 1])
    data = self.data[ends[0] : ends[-1]].tobytes()
    ends = (ends - ends[0]).tolist()
    return [data[a:b].decode() for a, b in zip(ends, ends[1:])]


def of(texts: Sequence[str]) -> Texts:
  """Texts in memory.

  Args:
    texts: N of them.

  Returns:
    The same.
  """
  pieces = [text.encode() for text in texts]
  data = np.frombuffer(b"".join(pieces), np.uint8)
  offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
  digest = hashlib.sha256(data.tobytes() + offsets.tobytes())
  return Texts(data, offsets, digest.hexdigest()[:32])


class Writer:
  """Writes texts as they come; memory holds one block of them."""

  def __init__(self, out: ingest.Writers, part: str):
    """Writes arrays `PART.data` and `PART.offsets`.

    Args:
      out: the arrays of an entry.
      part: which texts they are.
    """
    self._out, self._part = out, part
    self._hashes = hashlib.sha256(), hashlib.sha256()
    self._end = 0
    out.add(f"{part}.data", np.zeros(0, np.uint8))
    out.add(f"{part}.offsets", np.zeros(1, np.int64))

  def add(self, texts: Iterable[str]) -> None:
    """Appends texts."""
    pieces = [text.encode() for text in texts]
    data = b"".join(pieces)
    ends = np.cumsum([0, *map(len, pieces)], dtype=np.int64)[1:] + self._end
    self._end += len(data)
    self._out.add(f"{self._part}.data", np.frombuffer(data, np.uint8))
    self._out.add(f"{self._part}.offsets", ends)
    self._hashes[0].update(data)
    self._hashes[1].update(ends.tobytes())

  def fingerprint(self) -> str:
    """Of what has been written: the same in blocks of any size."""
    both = b"".join(found.digest() for found in self._hashes)
    return hashlib.sha256(both).hexdigest()[:32]
