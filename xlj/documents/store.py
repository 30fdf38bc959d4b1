"""Texts and labels of a data set as memory maps, written on the first read.

Legend: N rows, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from typing import Any

from absl import logging

from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import entries
from xlj.data import errors
from xlj.data import ingest
from xlj.data import verification as verification_lib
from xlj.documents import discover
from xlj.documents import formats
from xlj.documents import label_file
from xlj.documents import naming
from xlj.documents import rows
from xlj.documents import texts as texts_lib

DataError = errors.DataError
Texts = texts_lib.Texts
Path = str | os.PathLike[str]
has_documents = discover.has_documents

# Part of every key: raise it when what is written changes.
_VERSION = 1
_LOG_SECONDS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Documents:
  """One split of a set of texts; its arrays are memory maps.

  Attributes:
    texts: of each row.
    labels: [N, L] without values; rows may be empty. There may be more columns
      than `num_labels`, for labels that training has not.
    num_labels: how many labels training has, L.
    label_names: by label id; None if labels have ids alone.
    label_texts: of each label: what a file of labels says, or else its name;
      None where ids have neither.
    ids: of each row; None where rows have none.
    filter: [N, L] without values, the labels to leave out when a row is scored;
      None when the data set has none.
    name: for logs and reports.
    fingerprint: hash of the content and of how it was read.
    cache_dir: directory of the arrays, where what is computed from them may be
      kept.
    notes: what there is to say: empty texts, labels that training has not.
    verification: of large arrays, in the background; None without.
  """

  texts: Texts
  labels: csr_lib.Csr
  num_labels: int
  label_names: list[str] | None
  label_texts: Texts | None
  ids: Texts | None
  filter: csr_lib.Csr | None
  name: str
  fingerprint: str
  cache_dir: pathlib.Path
  notes: tuple[str, ...] = ()
  verification: verification_lib.Verification | None = None

  @property
  def num_rows(self) -> int:
    """Number of rows, N."""
    return len(self.texts)

  def check(self) -> None:
    """Raises as soon as damage of the arrays has been found; costs nothing.

    Raises:
      DataError: naming the file, and what to do.
    """
    if self.verification is not None:
      self.verification.check()


@dataclasses.dataclass(frozen=True)
class _Options:
  """How files are read; a part of the key.

  Attributes:
    split: train, test or validation.
    names: labels that training has; None without names.
    num_labels: how many those are; None if the rows decide.
    duplicates: see `rows.blocks`.
  """

  split: str
  names: tuple[str, ...] | None
  num_labels: int | None
  duplicates: str


def open_documents(
  data_dir: Path,
  split: str = "train",
  *,
  cache_dir: Path | None = None,
  names: Sequence[str] | None = None,
  num_labels: int | None = None,
  duplicates: str = "refuse",
  verify: bool = True,
) -> Documents:
  """Opens a split of a set of texts.

  The training split decides what the labels are: those of the file of labels,
  if there is one, and then as they appear.

  Args:
    data_dir: directory of the data set; `discover` documents the file names.
    split: "train", "test" or "validation".
    cache_dir: where the arrays are kept; by default `.xlj_cache` in `data_dir`
      or, where that cannot be written, the user's cache directory.
    names: of the labels that a model knows, by id. Others that occur have ids
      beyond, and `notes` says how many. By default the training split's.
    num_labels: how many labels a model knows that has no names for them.
    duplicates: what becomes of a label that a row has twice: "refuse", or
      "first" takes it once.
    verify: whether arrays too large to be checked now are compared with their
      checksums in the background (see `Documents.check`).

  Returns:
    The split.

  Raises:
    DataError: when the files are missing, ambiguous, or not right; it names the
      file, the line, what was found and what was expected.
    OSError: when a file cannot be read, or the cache cannot be written.

  Example:
    train = open_documents("data/arxiv")
    test = open_documents("data/arxiv", "test", names=train.label_names)
  """
  files = discover.find(data_dir, split)
  train = None
  if split != "train" and names is None and num_labels is None:
    if discover.has_documents(data_dir, "train"):
      train = open_documents(
        data_dir, cache_dir=cache_dir, duplicates=duplicates, verify=False
      )
      names, num_labels = train.label_names, train.num_labels
  options = _Options(
    split,
    None if names is None else tuple(names),
    num_labels if names is None else len(names),
    duplicates,
  )
  name = f"{pathlib.Path(data_dir).absolute().name}/{split}"
  found = entries.open_entry(
    files.all(),
    lambda hashes: _key(files, options, hashes),
    lambda directory: _write(files, options, directory),
    lambda entry, meta: _load(entry, meta, options, name),
    cache_dir,
  )
  if train is not None:
    found = dataclasses.replace(found, label_texts=train.label_texts)
  if not verify:
    return found
  return dataclasses.replace(
    found, verification=entries.verification(found.cache_dir)
  )


def _key(
  files: discover.Files, options: _Options, hashes: Sequence[str]
) -> str:
  """Hashes content and options, but neither directories nor stems of names."""
  endings = [discover.plain_ending(path) for path in files.all()]
  what = [
    "documents",
    _VERSION,
    dataclasses.astuple(options),
    endings,
    list(hashes),
  ]
  return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _write(
  files: discover.Files, options: _Options, directory: pathlib.Path
) -> dict[str, Any]:
  """Writes the arrays of a split; returns their description."""
  size = sum(path.stat().st_size for path in files.all())
  logging.info("Reading %s (%.1f MB).", files.rows[0], size / 1e6)
  begun = time.monotonic()
  given, known = _known(files, options)
  beyond = None
  if options.num_labels is not None:
    beyond = checks.Beyond({"label": options.num_labels})
  numbers = naming.Numbers(known, beyond)
  with contextlib.ExitStack() as stack:
    out = ingest.Writers(directory, stack)
    meta = _rows(files, options, out, numbers)
    if options.num_labels is None:
      meta |= _labels(out, given, numbers)
    meta["arrays"] = out.close()
  meta["num_labels"] = numbers.count
  seconds = time.monotonic() - begun
  logging.info(
    "Read %d texts, %d labels in %.1f s (%.0f MB/s).",
    *(meta["num_rows"], meta["num_labels"], seconds),
    size / 1e6 / max(seconds, 1e-9),
  )
  return meta


def _known(
  files: discover.Files, options: _Options
) -> tuple[label_file.LabelFile | None, naming.Known]:
  """The file of labels if it counts, and the labels that are known."""
  path = files.label_file
  if options.num_labels is not None:
    return None, naming.Known(
      options.names, options.num_labels, path is not None, "training"
    )
  if path is None:
    return None, naming.Known(None, None, True, "training")
  given = label_file.read(path)
  return given, naming.Known(given.names, given.count, True, path.name)


def _rows(
  files: discover.Files,
  options: _Options,
  out: ingest.Writers,
  numbers: naming.Numbers,
) -> dict[str, Any]:
  """Writes texts, labels and ids of the rows; returns what they are."""
  texts = texts_lib.Writer(out, "texts")
  ids = texts_lib.Writer(out, "ids")
  num_rows, num_ids, num_entries, empty = 0, 0, 0, []
  for path, block in _blocks(files, options):
    texts.add(block.texts)
    ids.add(found or "" for found in block.ids)
    labels = numbers.block(block, path)
    out.add_csr("labels", labels)
    num_rows += len(block.texts)
    num_ids += sum(found is not None for found in block.ids)
    num_entries += labels.nnz
    empty += [
      (path, line)
      for text, line in zip(block.texts, block.lines)
      if not text or text.isspace()
    ]
  if not num_rows:
    raise DataError(files.rows[0], "no row", "texts")
  if options.split == "train" and not num_entries:
    raise DataError(files.rows[0], "no label in any row", "labels")
  notes = numbers.notes(files.rows[-1])
  if empty:
    path, line = empty[0]
    where = f"the first in {path.name}:{line}"
    notes.append(f"{len(empty):,} rows have an empty text, {where}")
  return {
    "num_rows": num_rows,
    "has_ids": num_ids > 0,
    "texts": texts.fingerprint(),
    "ids": ids.fingerprint(),
    "notes": notes,
  }


def _blocks(
  files: discover.Files, options: _Options
) -> Iterator[tuple[pathlib.Path, rows.Block]]:
  """All rows; raises the first error in them."""
  done, last = 0, time.monotonic()
  for path in files.rows:
    for block in formats.stream(path, duplicates=options.duplicates):
      if isinstance(block, DataError):
        raise block
      yield path, block
      done += len(block.texts)
      if time.monotonic() - last > _LOG_SECONDS:
        last = time.monotonic()
        logging.info("%s: %d rows so far.", path.name, done)


def _labels(
  out: ingest.Writers,
  given: label_file.LabelFile | None,
  numbers: naming.Numbers,
) -> dict[str, Any]:
  """Writes names and texts of the labels; returns what they are."""
  meta: dict[str, Any] = {}
  if numbers.named:
    names = texts_lib.Writer(out, "label_names")
    if given is not None:
      names.add(given.names or ())
    names.add(numbers.new)
    meta["label_names"] = names.fingerprint()
  if given is not None and given.texts is not None:
    texts = texts_lib.Writer(out, "label_texts")
    texts.add(given.texts)
    texts.add(numbers.new)
    meta["label_texts"] = texts.fingerprint()
  return meta


def _load(
  entry: pathlib.Path, meta: dict[str, Any], options: _Options, name: str
) -> Documents:
  maps = entries.arrays(entry, meta)

  def texts(part: str) -> Texts | None:
    if f"{part}.data" not in maps or part not in meta:
      return None
    return Texts(maps[f"{part}.data"], maps[f"{part}.offsets"], meta[part])

  rows_texts = texts("texts")
  assert rows_texts is not None
  names = texts("label_names")
  labels = csr_lib.Csr(
    maps["labels.indptr"], maps["labels.indices"], None, meta["num_labels"]
  )
  label_names = None if names is None else names[:]
  if options.names is not None:
    label_names = list(options.names)
  return Documents(
    rows_texts,
    labels,
    meta["num_labels"] if options.num_labels is None else options.num_labels,
    label_names,
    texts("label_texts") or names,
    texts("ids") if meta["has_ids"] else None,
    None,
    name,
    entry.name,
    entry,
    tuple(meta["notes"]),
  )
