"""Large ids, or names, as dense numbers.

The ids that occur in the training split are numbered in ascending order, those
of features and those of labels; names of labels as they appear, or as a file of
names has them. Everything behind the readers knows the numbers alone; ids and
names come back where users see them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import hashlib
import os
import pathlib
import zipfile

import numpy as np

from xlj import files
from xlj.data import errors

FILE = "ids.npz"  # of a run or an entry of the cache
MAX_ID = 2**62


class Numbers:
  """Numbers the ids of one matrix while it is read."""

  def __init__(self, known: Iterable[int] = ()):
    """Known ids have the first numbers; others get the next as they appear.

    Args:
      known: ids, ascending.
    """
    self._known = np.asarray(known, np.int64)
    self._new: dict[int, int] = {}

  def __len__(self) -> int:
    """How many ids have a number."""
    return len(self._known) + len(self._new)

  def of(self, ids: np.ndarray) -> np.ndarray:
    """The numbers of ids `[...]`, of all of them.

    Args:
      ids: integers.

    Returns:
      int64 `[...]`.
    """
    different, place = np.unique(ids, return_inverse=True)
    numbers = find(self._known, different)
    for i in np.flatnonzero(numbers < 0).tolist():
      numbers[i] = self._new.setdefault(int(different[i]), len(self))
    return numbers[place].reshape(ids.shape)

  def ids(self) -> np.ndarray:
    """The ids by their numbers."""
    return np.concatenate([self._known, np.array([*self._new], np.int64)])


class Names:
  """Numbers the labels of one matrix that is written with their names.

  It has what `Numbers` has; the reader of a format asks `number` first.

  Attributes:
    known: how many have had a number before.
  """

  def __init__(self, known: Sequence[str] = ()):
    """Known names have the first numbers; others get the next as they appear.

    Args:
      known: names by number; of those that are there twice none can be meant.
    """
    self.known = len(known)
    self._names = list(known)
    self._numbers: dict[str, int] = {}
    for i, name in enumerate(known):
      self._numbers[name] = -1 if name in self._numbers else i

  def __len__(self) -> int:
    """How many names have a number."""
    return len(self._names)

  def number(self, name: str) -> int:
    """The number of a name; -1 of one that several labels have."""
    found = self._numbers.get(name)
    if found is None:
      found = self._numbers[name] = len(self._names)
      self._names.append(name)
    return found

  def of(self, numbers: np.ndarray) -> np.ndarray:
    """The same: the reader has numbered them."""
    return numbers

  def ids(self) -> np.ndarray:
    """The names by their numbers, `[L]` objects."""
    return np.array(self._names, object)


@dataclasses.dataclass(frozen=True, eq=False)
class Numbering:
  """The ids of a training split by their numbers.

  Attributes:
    features: int64 `[F]`, ascending.
    labels: int64 `[L]`, ascending.
  """

  features: np.ndarray
  labels: np.ndarray

  def fingerprint(self) -> str:
    """A text that two numberings share only if they are the same."""
    both = self.features.tobytes() + b"," + self.labels.tobytes()
    return hashlib.sha256(both).hexdigest()

  def label_ids(self, numbers: np.ndarray) -> np.ndarray:
    """The ids of labels `[...]`, int64; -1 stays."""
    return np.where(numbers < 0, -1, self.labels[numbers])

  def numbers(self) -> dict[str, Numbers]:
    """What numbers the ids of a file."""
    return {"feature": Numbers(self.features), "label": Numbers(self.labels)}

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes them into a directory."""
    path = pathlib.Path(directory) / FILE
    with files.replacing(path) as partial, partial.open("wb") as file:
      np.savez(file, features=self.features, labels=self.labels)

  @classmethod
  def load(cls, directory: str | os.PathLike[str]) -> Numbering:
    """Reads what `save` wrote.

    Raises:
      DataError: if it is missing or damaged.
    """
    path = pathlib.Path(directory) / FILE
    try:
      with np.load(path, allow_pickle=False) as file:
        return cls(file["features"], file["labels"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as e:
      raise errors.DataError(
        path, f"no ids ({e})", "those of data.renumber", hint="bring it back"
      ) from None


NONE = Numbering(np.zeros(0, np.int64), np.zeros(0, np.int64))


def find(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """The places int64 `[...]` of ids in ascending ones; -1 where it is not."""
  if not len(known):
    return np.full(ids.shape, -1, np.int64)
  place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
  return np.where(known[place] == ids, place, -1)
