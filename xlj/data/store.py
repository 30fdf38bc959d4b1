"""Data sets as memory-mapped arrays, written on the first read.

`open_split` finds the files of a split, and `open_file` takes one file. The
first time they stream it to a cache (see `cache`), block by block, so that
neither the text nor the matrix has to fit in memory; later the arrays are only
mapped. A damaged cache is noticed and written again.

Legend: N rows, F features, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any, Protocol

import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import entries
from xlj.data import errors
from xlj.data import formats
from xlj.data import ingest
from xlj.data import lines
from xlj.data import names
from xlj.data import npy
from xlj.data import numbering as numbering_lib
from xlj.data import sequences as sequences_lib
from xlj.data import tables
from xlj.data import tokens
from xlj.data import user_items
from xlj.data import verification as verification_lib

DataError = errors.DataError
label_names = names.label_names
Path = str | os.PathLike[str]
_Options = (
  ingest.Options | tokens.Options | sequences_lib.Options | user_items.Options
)

# Part of every key: raise it when what is written changes.
_VERSION = 1
# Options that came later, with what keys without them stand for.
_LATER = {
  "duplicates": "refuse",
  "column": 1,
  "beyond": False,
  "renumber": "",
  "named": "",
  "feature_names": (),
}


class ComputedRows(Protocol):
  """Dense float32 features `[N, F]` of which rows exist when asked for."""

  shape: tuple[int, int]

  def __len__(self) -> int:
    """N."""
    ...

  def __getitem__(self, rows: Any) -> np.ndarray:
    """The features of some rows."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """One split of a data set; its arrays are memory maps.

  Attributes:
    features: [N, F], sparse, or dense float32 or bytes: an array, or rows
      computed when they are asked for.
    labels: [N, L] without values; rows may be empty.
    filter: [N, L] without values, the labels to leave out when a row is scored
      (reciprocal pairs); None when the data set has none.
    name: for logs and reports.
    fingerprint: hash of the content and of how it was read.
    cache_dir: directory of the arrays, where what is computed from them may be
      kept; None when they are not from the cache.
    verification: of large arrays, in the background; None without.
    image: (height, width, channels) where each row is an image; else nothing.
    numbering: of ids that are too large for columns; None if they are not.
    label_names: of labels that are written as names, by id; else None.
    notes: what there is to say of ids that a model does not know.
    encoding: of texts, that made the features (see `xlj.text.features`); None
      where rows are no texts.
    label_texts: a text for each label, empty where there is none; None if no
      label has one.
    sequential: whether features are items in their order, and the label the
      next one (see `sequences`).
    own_validation: whether labels for validation are held out of each row, and
      not rows: the split "validation" has them.
  """

  features: csr_lib.Csr | np.ndarray | ComputedRows
  labels: csr_lib.Csr
  filter: csr_lib.Csr | None
  name: str
  fingerprint: str
  cache_dir: pathlib.Path | None = None
  verification: verification_lib.Verification | None = None
  image: tuple[int, ...] = ()
  notes: tuple[str, ...] = ()
  numbering: numbering_lib.Numbering | None = None
  label_names: list[str] | None = None
  encoding: Any = None
  label_texts: Sequence[str] | None = None
  sequential: bool = False
  own_validation: bool = False

  def check(self) -> None:
    """Raises as soon as damage of the arrays has been found; costs nothing.

    Raises:
      DataError: naming the file, and what to do.
    """
    if self.verification is not None:
      self.verification.check()

  def without_seen(self) -> Split:
    """The same whose filter has the features too, which are labels as well."""
    assert isinstance(self.features, csr_lib.Csr)  # the config says so
    seen = self.features.as_labels(self.num_labels)
    if self.filter is not None:
      every = (
        seen.to_scipy() + self.filter.as_labels(self.num_labels).to_scipy()
      )
      seen = csr_lib.Csr.from_scipy(every, values=False)
    return dataclasses.replace(self, filter=seen)

  @property
  def num_rows(self) -> int:
    """Number of rows, N."""
    return self.labels.num_rows

  @property
  def num_features(self) -> int:
    """Number of features, F."""
    return self.features.shape[1]

  @property
  def num_labels(self) -> int:
    """Number of labels, L."""
    return self.labels.num_columns


def open_split(
  data_dir: Path,
  split: str = "train",
  *,
  cache_dir: Path | None = None,
  num_features: int | None = None,
  num_labels: int | None = None,
  zero_based: bool = True,
  duplicates: str = "refuse",
  column: int = 1,
  beyond: bool = False,
  renumber: bool = False,
  numbering: numbering_lib.Numbering | None = None,
  named: bool | None = None,
  label_names: Sequence[str] | None = None,
  feature_names: Sequence[str] | None = None,
  context: int = 0,
  sequences: str = "",
  interactions: user_items.How = user_items.USUAL,
  verify: bool = True,
) -> Split:
  """Opens a split of a data set.

  Args:
    data_dir: directory of the data set; `discover` documents the file names.
    split: "train", "test" or "validation".
    cache_dir: where the arrays are kept; by default `.xlj_cache` in `data_dir`
      or, where that cannot be written, the user's cache directory.
    num_features: the width that the features have to have; None takes what the
      files say or, without a header, what the ids need.
    num_labels: likewise for labels.
    zero_based: False if text numbers features from 1; labels count from 0.
    duplicates: what becomes of ids that a row has twice: "refuse", or "sum"
      adds their values up, or "first" keeps the first one.
    column: of the files of row numbers, from 1, where a data set has those.
    beyond: whether a model of these widths is to score the split: features
      beyond are left out, labels beyond stay, so that there may be more than
      `num_labels`, and `Split.notes` says how many.
    renumber: whether ids are numbered that are large, but few.
    numbering: of those of the training split; by default what the files have.
    named: whether labels are written as names; None looks at the first label
      of the training split.
    label_names: those of a model that is to score the split, by id; by default
      of the training split. That has those of a file of names, and then others
      as they appear.
    feature_names: columns of a table that are the features of that model; by
      default those of the training split.
    context: above 0, the files hold text; a row is a token, its label the
      word, its features that many tokens before it (see `tokens`).
    sequences: name of the file, without its ending, of a set of sequences; a
      row is a user, its label an item, its features the items before it (see
      `sequences`).
    interactions: what is held out of a file of these.
    verify: whether arrays too large to be checked now are compared with their
      checksums in the background (see `Split.check`).

  Returns:
    The split.

  Raises:
    DataError: when the files are missing, ambiguous, or not right; it names the
      file, the line, what was found and what was expected.
    OSError: when a file cannot be read, or the cache cannot be written.

  Example:
    train = open_split("data/bibtex")
    test = open_split("data/bibtex", "test", num_labels=train.num_labels)
  """
  name = f"{pathlib.Path(data_dir).absolute().name}/{split}"
  if context:
    files = discover.find_tokens(data_dir, split)
    options = tokens.Options(context, num_features, num_labels)
  elif sequences:
    files = discover.find_sequences(data_dir, sequences)
    options = sequences_lib.Options(split, num_labels or num_features)
  elif discover.has_interactions(data_dir, interactions.lists):
    files = discover.find_interactions(data_dir, split)
    options = user_items.Options(split, interactions)
  else:
    files = discover.find(data_dir, split)
    options = ingest.Options(
      num_features, num_labels, zero_based, True, duplicates, column, beyond
    )
    if column != 1 and files.rows is None:
      raise DataError(
        data_dir,
        "no files of row numbers (NAME_trSplit.txt)",
        f"one with {column} columns, as data.split is {column}",
        hint="leave --config.data.split out",
      )
    if split != "train" and discover.is_table(files.features):
      if feature_names is None:
        feature_names = table_features(data_dir)
      options = dataclasses.replace(
        options, feature_names=tuple(feature_names or ())
      )
    if renumber:
      which = numbering.fingerprint() if numbering else "own"
      options = dataclasses.replace(options, renumber=which)
  if isinstance(options, ingest.Options) and _is_named(
    files, options, named, data_dir, split
  ):
    # What others are read by, and whether this one is as it was for a model.
    training = split == "train" or not discover.has_split(data_dir, "train")
    own = names.label_names(data_dir) or ()
    if not training and label_names is None:
      how = {"zero_based": zero_based, "duplicates": duplicates}
      own = open_split(
        data_dir, cache_dir=cache_dir, column=column, named=True, **how
      ).label_names
    found = None
    if training or label_names is None:
      found = _open_named(files, options, name, cache_dir, own or ())
    if label_names is not None and (
      found is None or found.label_names != list(label_names)
    ):
      found = _open_named(files, options, name, cache_dir, label_names)
    assert found is not None
  elif isinstance(options, user_items.Options) and label_names is not None:
    options = dataclasses.replace(
      options, named=_digest(label_names), num_features=num_features
    )
    found = _open(files, options, name, cache_dir, known=label_names)
  else:
    found = _open(files, options, name, cache_dir, numbering)
  if not verify:
    return found
  assert found.cache_dir is not None  # It is from files.
  return dataclasses.replace(
    found, verification=entries.verification(found.cache_dir)
  )


def open_file(
  path: Path,
  *,
  labels: Path | None = None,
  filter_pairs: Path | None = None,
  cache_dir: Path | None = None,
  num_features: int | None = None,
  num_labels: int | None = None,
  zero_based: bool = True,
  duplicates: str = "refuse",
) -> Split:
  """Opens files given by name; labels are optional.

  Args:
    path: features, with labels or without, in any format of `formats`.
    labels: a file of labels alone, for features without.
    filter_pairs: lines `row label` to leave out when scoring.
    cache_dir: as in `open_split`.
    num_features: as in `open_split`.
    num_labels: as in `open_split`.
    zero_based: as in `open_split`.
    duplicates: as in `open_split`.

  Returns:
    The rows, with empty label lists if there are no labels.

  Raises:
    DataError: when something in a file is not right.
    OSError: when a file cannot be read, or the cache cannot be written.
  """
  if os.fspath(path) == lines.STDIN:
    raise DataError(
      path,
      "standard input",
      "a file",
      hint="formats.stream_rows reads it without a cache",
    )
  files = discover.Files(
    pathlib.Path(path),
    None if labels is None else pathlib.Path(labels),
    None if filter_pairs is None else pathlib.Path(filter_pairs),
  )
  options = ingest.Options(
    num_features, num_labels, zero_based, False, duplicates
  )
  return _open(files, options, pathlib.Path(path).name, cache_dir)


def verify(split: Split) -> None:
  """Compares all arrays of a split with their checksums; reads all of them.

  Args:
    split: from `open_split` or `open_file`.

  Raises:
    DataError: naming the array that is damaged.
  """
  if split.cache_dir is not None:
    entries.check(split.cache_dir)


def table_features(data_dir: Path) -> list[str] | None:
  """The names of the features of a training split that is a table.

  Args:
    data_dir: directory of the data set.

  Returns:
    Those of the columns; None where there is no such table, or its features
    are lists.

  Raises:
    DataError: when it is not right.
  """
  if not discover.has_split(data_dir, "train"):
    return None
  path = discover.find(data_dir, "train").features
  return tables.feature_names(path) if discover.is_table(path) else None


def _is_named(
  files: discover.Files,
  options: ingest.Options,
  named: bool | None,
  data_dir: Path,
  split: str,
) -> bool:
  """Whether labels are names, as the training split says."""
  if named is None and not options.renumber:
    if split != "train" and discover.has_split(data_dir, "train"):
      files = discover.find(data_dir, "train")
    return formats.has_names(files.labels or files.features)
  if named and options.renumber:
    raise DataError(
      files.labels or files.features,
      "names of labels (data.named_labels), and ids to number (data.renumber)",
      "one of the two",
    )
  return bool(named)


def _digest(names: Sequence[str]) -> str:
  return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def _open_named(
  files: discover.Files,
  options: ingest.Options,
  name: str,
  cache_dir: Path | None,
  known: Sequence[str],
) -> Split:
  """Opens files whose labels are names, of which some are known."""
  options = dataclasses.replace(options, named=_digest(known))
  found = _open(files, options, name, cache_dir, known=known)
  if options.beyond:
    return dataclasses.replace(found, label_names=list(known))
  return found


def _open(
  files: discover.Files,
  options: _Options,
  name: str,
  cache_dir: Path | None,
  numbering: numbering_lib.Numbering | None = None,
  known: Sequence[str] = (),
) -> Split:
  def write(directory: pathlib.Path) -> dict[str, Any]:
    if isinstance(options, tokens.Options):
      return tokens.ingest(files, options, directory)
    if isinstance(options, sequences_lib.Options):
      return sequences_lib.ingest(files, options, directory)
    if isinstance(options, user_items.Options):
      return user_items.ingest(files, options, directory, known)
    return ingest.ingest(files, options, directory, numbering, known)

  return entries.open_entry(
    files.all(),
    lambda hashes: _key(files, options, hashes),
    write,
    lambda entry, meta: _split(entry, meta, files, name),
    cache_dir,
  )


def _key(
  files: discover.Files,
  options: _Options,
  hashes: Sequence[str],
) -> str:
  """Hashes content and options, but neither directories nor stems of names."""
  roles = [
    (role, getattr(files, role).suffix.removesuffix(".gz"))
    for role in ("features", "labels", "filter", "rows")
    if getattr(files, role) is not None
  ]
  settings = [
    [option, value] if option in _LATER else value
    for option, value in dataclasses.asdict(options).items()
    if value != _LATER.get(option, ())
  ]
  what = [_VERSION, settings, roles, list(hashes)]
  return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _split(
  entry: pathlib.Path, meta: dict[str, Any], files: discover.Files, name: str
) -> Split:
  maps = entries.arrays(entry, meta)

  def matrix(part: str, num_columns: int) -> csr_lib.Csr:
    return csr_lib.Csr(
      maps[f"{part}.indptr"],
      maps[f"{part}.indices"],
      maps.get(f"{part}.values"),
      num_columns,
    )

  if meta["dense"] == ingest.SOURCE:
    features = np.asarray(npy.open_features(files.features))
  elif meta["dense"]:
    features = maps["features"]
  else:
    features = matrix("features", meta["num_features"])
  pairs = None
  if "filter.indptr" in maps:
    pairs = matrix("filter", meta["num_labels"])
  labels = matrix("labels", meta["num_labels"])
  image = ()
  if meta["dense"] and not discover.is_table(files.features):
    image = npy.image_shape(files.features)
  notes = tuple(
    f"{path.name}: {note}"
    for what, path in (
      ("feature", files.features),
      ("label", files.labels or files.features),
    )
    for note in meta.get("notes", {}).get(what, ())
  )
  numbered = meta.get("renumbered", False)
  named = maps.get("label_names")
  return Split(
    *(features, labels, pairs, name, entry.name, entry),
    image=image,
    notes=notes,
    numbering=numbering_lib.Numbering.load(entry) if numbered else None,
    label_names=None if named is None else json.loads(named.tobytes()),
    sequential=meta.get("sequential", False),
    own_validation=meta.get("own_validation", False),
  )
