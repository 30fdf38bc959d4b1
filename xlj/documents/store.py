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
from xlj.data import formats as data_formats
from xlj.data import ingest
from xlj.data import verification as verification_lib
from xlj.documents import discover
from xlj.documents import formats
from xlj.documents import label_file
from xlj.documents import naming
from xlj.documents import paired
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
    holdout: share of the rows of the training files that are the test split.
  """

  split: str
  names: tuple[str, ...] | None
  num_labels: int | None
  duplicates: str
  holdout: float


def open_documents(
  data_dir: Path,
  split: str = "train",
  *,
  cache_dir: Path | None = None,
  names: Sequence[str] | None = None,
  num_labels: int | None = None,
  duplicates: str = "refuse",
  holdout: float = 0.0,
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
    holdout: makes that share of the training rows the test split, by the hash
      of their id, or else of their text: rows that are added move no other,
      and rows of the same text stay together.
    verify: whether arrays too large to be checked now are compared with their
      checksums in the background (see `Documents.check`).

  Returns:
    The split.

  Raises:
    DataError: when the files are missing, ambiguous, or not right; it names the
      file, the line, what was found and what was expected.
    ImportError: for Parquet, without pyarrow.
    OSError: when a file cannot be read, or the cache cannot be written.

  Example:
    train = open_documents("data/arxiv")
    test = open_documents("data/arxiv", "test", names=train.label_names)
  """
  files = _files(data_dir, split, holdout)
  train = None
  if split != "train" and names is None and num_labels is None:
    if discover.has_documents(data_dir, "train"):
      train = open_documents(
        data_dir,
        cache_dir=cache_dir,
        duplicates=duplicates,
        holdout=holdout,
        verify=False,
      )
      names, num_labels = train.label_names, train.num_labels
  options = _Options(
    split,
    None if names is None else tuple(names),
    num_labels if names is None else len(names),
    duplicates,
    holdout if split in ("train", "test") else 0.0,
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


def _files(data_dir: Path, split: str, holdout: float) -> discover.Files:
  """The files of a split, those of the training split if it is a part of it."""
  if not 0 <= holdout < 1:
    raise ValueError(f"holdout is {holdout}, expected a share in [0, 1).")
  if not holdout or split not in ("train", "test"):
    return discover.find(data_dir, split)
  if discover.has_documents(data_dir, "test"):
    raise DataError(
      data_dir,
      f"a test split, and {holdout} of the training rows asked for as one",
      "one of the two",
    )
  files = discover.find(data_dir, "train")
  if files.filter is not None:
    raise DataError(
      files.filter, "rows by number", "no such file where rows are held out"
    )
  return files


def _key(
  files: discover.Files, options: _Options, hashes: Sequence[str]
) -> str:
  """Hashes content, names of files (notes have them) and options."""
  what = [
    "documents",
    _VERSION,
    dataclasses.astuple(options),
    [path.name for path in files.all()],
    files.features,
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
  if known.count is not None and (given is None or options.split != "train"):
    beyond = checks.Beyond({"label": known.count})
  numbers = naming.Numbers(known, beyond)
  with contextlib.ExitStack() as stack:
    out = ingest.Writers(directory, stack)
    meta = _rows(files, options, out, numbers)
    if files.filter is not None:
      size_of = meta["num_rows"], numbers.count
      out.add_csr("filter", data_formats.read_pairs(files.filter, *size_of))
    if options.num_labels is None:
      meta |= _labels(out, given, numbers)
    meta["arrays"] = out.close()
  meta["num_columns"] = numbers.count
  meta["num_labels"] = known.count if beyond is not None else numbers.count
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
    by_id = path is not None or files.labels is not None
    return None, naming.Known(
      options.names, options.num_labels, by_id, "training"
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
  num_rows, num_ids, num_entries, num_empty, first = 0, 0, 0, 0, ""
  for path, block in _blocks(files, options, numbers):
    texts.add(block.texts)
    ids.add(found or "" for found in block.ids)
    labels = numbers.block(block, path)
    out.add_csr("labels", labels)
    num_rows += len(block.texts)
    num_ids += sum(found is not None for found in block.ids)
    num_entries += labels.nnz
    for text, line in zip(block.texts, block.lines):
      if not text or text.isspace():
        num_empty += 1
        first = first or f"{path.name}:{line}"
  if not num_rows:
    part = f" in the {options.split} split" if options.holdout else ""
    raise DataError(files.rows[0], f"no row{part}", "texts")
  if options.split == "train" and not num_entries:
    raise DataError(files.rows[0], "no label in any row", "labels")
  notes = numbers.notes()
  if num_empty:
    notes.append(f"{num_empty:,} rows have an empty text, the first in {first}")
  return {
    "num_rows": num_rows,
    "has_ids": num_ids > 0,
    "texts": texts.fingerprint(),
    "ids": ids.fingerprint(),
    "notes": notes,
  }


def _blocks(
  files: discover.Files, options: _Options, numbers: naming.Numbers
) -> Iterator[tuple[pathlib.Path, rows.Block]]:
  """The rows of a split; raises the first error in them."""
  done, last = 0, time.monotonic()
  for path in files.rows:
    pairs = None
    if files.labels is None:
      stream = formats.stream(path, duplicates=options.duplicates)
    else:
      pairs = paired.Pairs(
        path,
        files.labels,
        features=files.features,
        duplicates=options.duplicates,
      )
      stream = pairs.blocks()
    for block in stream:
      if isinstance(block, DataError):
        raise block
      done += len(block.texts)
      if options.holdout:
        block = _part(block, options.holdout, options.split == "test")
      yield path, block
      if time.monotonic() - last > _LOG_SECONDS:
        last = time.monotonic()
        logging.info("%s: %d rows so far.", path.name, done)
    if pairs is not None:
      numbers.state(pairs.num_labels, path)


def _part(block: rows.Block, share: float, held_out: bool) -> rows.Block:
  """The rows of a block that are held out, or the others."""
  kept = [
    (_place(text if row is None else row) < share) == held_out
    for text, row in zip(block.texts, block.ids)
  ]
  return block.only(kept)


def _place(text: str) -> float:
  """A number in [0, 1) that looks as if drawn, the same for the same text."""
  digest = hashlib.blake2b(text.encode(), digest_size=6).digest()
  return int.from_bytes(digest) / 2**48


def _labels(
  out: ingest.Writers,
  given: label_file.LabelFile | None,
  numbers: naming.Numbers,
) -> dict[str, Any]:
  """Writes names and texts of the labels; returns what they are."""
  meta: dict[str, Any] = {}
  if numbers.named:
    names = texts_lib.Writer(out, "label_names")
    names.add((given and given.names) or ())
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

  def matrix(part: str) -> csr_lib.Csr | None:
    if f"{part}.indptr" not in maps:
      return None
    arrays = maps[f"{part}.indptr"], maps[f"{part}.indices"]
    return csr_lib.Csr(*arrays, None, meta["num_columns"])

  rows_texts = texts("texts")
  labels, names = matrix("labels"), texts("label_names")
  assert rows_texts is not None and labels is not None

  label_names = None if names is None else names[:]
  if options.names is not None:
    label_names = list(options.names)
  return Documents(
    rows_texts,
    labels,
    meta["num_labels"],
    label_names,
    texts("label_texts") or names,
    texts("ids") if meta["has_ids"] else None,
    matrix("filter"),
    name,
    entry.name,
    entry,
    tuple(meta["notes"]),
  )
