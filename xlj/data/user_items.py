"""Sets: rows are users, features and labels their items, from interactions.

One file (see `interactions`) has all splits, or of two with a line for each
user one has what was held out for the test, as LightGCN gives them (He et al.
2020). What is held out of one file:

  ratio  of each user a share of the items, at random, always the same
  time   a share of all interactions, the newest ones
  last   the newest item of each user

An item that a user has several times is the oldest of these. Of one time, what
stands later in the file is newer, and without times the file is in order.
Shares are rounded; with "ratio" and "last" each user keeps an item. The test
split is held out first, that of validation likewise from what is left.

A row of "train" has what is left of a user as features and as labels. A row of
another split has what is held out as labels, and as features all that is not,
where that of "test" includes what is held out for validation; those are no
answers (`filter`). Users without features are left out of it. All splits have
a column for each item of the file, by number as they appear.

Legend: E interactions, U users, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any

import numpy as np
import scipy.sparse

from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import errors
from xlj.data import ingest as ingest_lib
from xlj.data import interactions

KINDS = ("ratio", "time", "last")
_Matrix = Any  # a scipy.sparse.csr_array


@dataclasses.dataclass(frozen=True)
class How:
  """What is held out.

  Attributes:
    by: one of `KINDS`.
    test: share of the interactions, for the test split; for "last" anything
      above 0 is one item.
    validation: likewise, of the rest.
    lists: whether the file has a line for each user, `user item item ...`.
  """

  by: str = "ratio"
  test: float = 0.2
  validation: float = 0.0
  lists: bool = False


USUAL = How()


@dataclasses.dataclass(frozen=True)
class Options:
  """How the file is read.

  Attributes:
    split: "train", "validation" or "test".
    how: what is held out.
    named: names of items that a model has, as a text that says which.
    num_features: the width of the features of that model.
  """

  split: str
  how: How
  named: str = ""
  num_features: int | None = None


def ingest(
  files: discover.Files,
  options: Options,
  directory: pathlib.Path,
  names: Sequence[str] = (),
) -> dict[str, Any]:
  """Writes the arrays of a split.

  Args:
    files: the interactions as features.
    options: how to read them.
    directory: where the arrays go.
    names: of items that have the first numbers.

  Returns:
    The description of what was written: sizes, and each array's checksum.

  Raises:
    DataError: when a line is not right, or the split has no row.
    OSError: when a file cannot be read or written.
  """
  path, split = files.features, options.split
  if files.labels is not None:
    found, test = interactions.read_lists([path, files.labels], names)
    parts = divided(found, dataclasses.replace(options.how, test=0.0))
    seen = parts["train"] + parts["validation"]
    said = test.matrix()
    parts["test"] = said - said.multiply(seen)
    parts["test"].eliminate_zeros()
  else:
    found = interactions.read(path, lists=options.how.lists, item_names=names)
    parts = divided(found, options.how)
  before = parts["train"]
  if split == "test":
    before = before + parts["validation"]
  has, held_out = np.diff(before.indptr), np.diff(parts[split].indptr)
  rows = np.flatnonzero((has > 0) & (held_out > 0))
  if not len(rows):
    raise errors.DataError(
      path,
      f"no user with items for the split {split!r}, of {len(has)} users",
      "some; data.interactions.split, .test and .validation say how many",
    )
  width = before.shape[1]
  known = width if options.num_features is None else options.num_features
  features = csr_lib.Csr.from_scipy(before[rows][:, :known])
  with contextlib.ExitStack() as stack:
    out = ingest_lib.Writers(directory, stack)
    out.add_csr("features", features)
    labels = csr_lib.Csr.from_scipy(parts[split][rows], values=False)
    out.add_csr("labels", labels)
    if split != "train":
      out.add_csr("filter", csr_lib.Csr.from_scipy(before[rows], values=False))
    out.add("label_names", ingest_lib.as_bytes(found.item_names))
    arrays = out.close()
  unknown = int(np.sum((has == 0) & (held_out > 0)))
  note = f"{unknown} users who have no item before those held out are left out"
  return {
    "dense": None,
    "own_validation": True,
    "num_rows": len(rows),
    "num_features": known,
    "num_labels": width,
    "notes": {"feature": [note] if unknown else []},
    "arrays": arrays,
  }


def divided(found: interactions.Interactions, how: How) -> dict[str, _Matrix]:
  """The items of each user, by split.

  Args:
    found: Interactions.
    how: What is held out.

  Returns:
    `[U, I]` float32 of ones, for each of `discover.SPLITS`.
  """
  place = np.arange(len(found.users))
  times = place if found.times is None else found.times
  order = np.lexsort((place, times))  # the oldest first
  users, items = found.users[order], found.items[order]
  pairs = users * len(found.item_names) + items
  first = np.sort(np.unique(pairs, return_index=True)[1])
  users, items = users[first], items[first]
  shape = len(found.user_names), len(found.item_names)

  def matrix(some: np.ndarray) -> _Matrix:
    ones = np.ones(len(some), np.float32)
    made = scipy.sparse.csr_array((ones, (users[some], items[some])), shape)
    made.sort_indices()
    return made

  parts, rest = {}, np.arange(len(users))
  for split, share in (("test", how.test), ("validation", how.validation)):
    some = _held_out(users[rest], how.by, share)
    parts[split] = matrix(rest[some])
    rest = rest[~some]
  return {"train": matrix(rest)} | parts


def _held_out(users: np.ndarray, by: str, share: float) -> np.ndarray:
  """Which interactions, of those of `users`, oldest first; bool `[E]`."""
  count = len(users)
  if by == "time":
    return np.arange(count) >= count - round(share * count)
  newest = np.arange(count)
  if by == "ratio":
    newest = np.random.default_rng(0).permutation(count)
  order = np.lexsort((newest, users))
  sizes = np.bincount(users)
  ends = np.cumsum(sizes)
  from_end = np.empty(count, np.int64)
  from_end[order] = ends[users[order]] - np.arange(count)  # the last has 1
  most = np.rint(share * sizes) if by == "ratio" else np.full(len(sizes), 1)
  most = np.minimum(most * (share > 0), sizes - 1)
  return from_end <= most[users]
