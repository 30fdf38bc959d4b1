"""Streams the files of a split to arrays on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import contextlib
import dataclasses
import json
import pathlib
import time
from typing import Any

from absl import logging
import numpy as np

from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import errors
from xlj.data import formats
from xlj.data import mapped
from xlj.data import npy
from xlj.data import numbering
from xlj.data import row_split
from xlj.data import text

# Dense float32 features, or bytes, are not copied: the source is mapped.
SOURCE = "source"
COPY = "copy"

_LOG_SECONDS = 10
_SHOWN = 3  # of the names that training has not


@dataclasses.dataclass(frozen=True)
class Options:
  """How files are read.

  Attributes:
    num_features: the width that features have to have; None takes the file's.
    num_labels: the width that labels have to have; None takes the file's.
    zero_based: False if features are numbered from 1.
    labelled: True refuses rows of which none has a label.
    duplicates: what becomes of ids that a row has twice (`checks.DUPLICATES`).
    column: of files of row numbers, from 1; see `row_split`.
    renumber: number the ids that are known or, if none are given, those that
      occur; a text that says which, or nothing.
    beyond: True lets ids beyond the widths through, as `checks.Beyond` says.
    named: labels are names, of which some are known or none is; a text that
      says which, or nothing.
    feature_names: columns of a table that are features; by default its own.
  """

  num_features: int | None
  num_labels: int | None
  zero_based: bool
  labelled: bool
  duplicates: str = "refuse"
  column: int = 1
  beyond: bool = False
  renumber: str = ""
  named: str = ""
  feature_names: tuple[str, ...] = ()


def ingest(
  files: discover.Files,
  options: Options,
  directory: pathlib.Path,
  known: numbering.Numbering | None = None,
  names: Sequence[str] = (),
) -> dict[str, Any]:
  """Writes the arrays of a split.

  Args:
    files: what to read.
    options: how to read it.
    directory: where the arrays go.
    known: the numbers of ids in the training split, if there are such.
    names: of labels that are known, where labels are names.

  Returns:
    The description of what was written: sizes, and each array's checksum.

  Raises:
    DataError: at the first thing that is not right.
    OSError: when a file cannot be read or written.
  """
  size = sum(path.stat().st_size for path in files.all())
  logging.info("Reading %s (%.1f MB).", files.features, size / 1e6)
  start = time.monotonic()
  if options.renumber and known is None:
    known = _numbered(files, options)
  with contextlib.ExitStack() as stack:
    out = Writers(directory, stack)
    named = numbering.Names(names) if options.named else None
    meta = _rows(files, options, out, known, named)
    if files.filter is not None:
      pairs = formats.read_pairs(
        files.filter,
        meta["num_rows"],
        meta["num_labels"],
        None if known is None else known.labels,
      )
      out.add_csr("filter", pairs)
    if named is not None:
      out.add("label_names", as_bytes(named.ids().tolist()))
    meta["arrays"] = out.close()
  meta["renumbered"] = known is not None
  if known is not None:
    known.save(directory)
  seconds = time.monotonic() - start
  logging.info(
    "Read %d rows, %d features, %d labels in %.1f s (%.0f MB/s).",
    *(meta[key] for key in ("num_rows", "num_features", "num_labels")),
    seconds,
    size / 1e6 / max(seconds, 1e-9),
  )
  return meta


class Writers:
  """Array files of an entry, by name, opened when first needed."""

  def __init__(self, directory: pathlib.Path, stack: contextlib.ExitStack):
    """Writes into `directory`; `stack` removes what is not completed."""
    self._directory = directory
    self._stack = stack
    self._files: dict[str, mapped.ArrayWriter] = {}
    self._entries: dict[str, int] = {}

  def add(self, name: str, array: np.ndarray, width: int | None = None) -> None:
    """Appends to an array."""
    if name not in self._files:
      path = self._directory / f"{name}.npy"
      writer = mapped.ArrayWriter(path, array.dtype, width)
      self._stack.callback(writer.abort)
      self._files[name] = writer
    self._files[name].write(array)

  def add_csr(self, part: str, block: csr_lib.Csr) -> None:
    """Appends rows to the three arrays of a matrix."""
    if part not in self._entries:
      self._entries[part] = 0
      self.add(f"{part}.indptr", np.zeros(1, np.int64))
    self.add(f"{part}.indptr", block.indptr[1:] + self._entries[part])
    self.add(f"{part}.indices", block.indices)
    if block.values is not None:
      self.add(f"{part}.values", block.values)
    self._entries[part] += block.nnz

  def close(self) -> dict[str, Any]:
    """Completes all files and returns their descriptions."""
    return {name: writer.close() for name, writer in self._files.items()}


def _numbered(files: discover.Files, options: Options) -> numbering.Numbering:
  """The ids that occur; reads all of the files once more for it."""
  numbers = numbering.NONE.numbers()
  reading = {"duplicates": options.duplicates, "numbers": numbers}
  stream = formats.stream_rows(
    files.features,
    zero_based=options.zero_based,
    kind=text.Kind.MATRIX if files.labels is not None else None,
    **reading,
  )
  if files.rows is not None:
    chosen = row_split.read(files.rows, options.column)
    taken: Any = row_split.take(stream, chosen, files.rows)
    used = {"feature": taken.features, "label": taken.labels}
    return numbering.Numbering(
      *(
        np.sort(numbers[what].ids()[np.unique(part.indices)])
        for what, part in used.items()
      )
    )
  for _ in stream:
    pass
  if files.labels is not None:
    for _ in formats.stream_labels(files.labels, **reading):
      pass
  return numbering.Numbering(
    *(np.sort(numbers[what].ids()) for what in ("feature", "label"))
  )


def _rows(
  files: discover.Files,
  options: Options,
  out: Writers,
  known: numbering.Numbering | None,
  named: numbering.Names | None,
) -> dict[str, Any]:
  """Writes features and labels; returns the sizes."""
  dense = SOURCE if _is_mapped(files.features) else None
  num_rows, num_features, num_labels, num_entries = 0, 0, 0, 0
  beyond, widths = None, (options.num_features, options.num_labels)
  if options.beyond:
    each = zip(("feature", "label"), widths)
    beyond = checks.Beyond({what: n for what, n in each if n})
    widths = None, None
  numbers: Any = None if known is None else known.numbers()
  if named is not None:
    numbers = {"label": named}
  stream = formats.stream_rows(
    files.features,
    num_features=widths[0],
    num_labels=widths[1],
    beyond=beyond,
    numbers=numbers,
    zero_based=options.zero_based,
    duplicates=options.duplicates,
    feature_names=options.feature_names or None,
    kind=text.Kind.MATRIX if files.labels is not None else None,
  )
  stream = _logged(stream, files.features)
  if files.rows is not None:
    chosen = row_split.read(files.rows, options.column)
    stream = [row_split.take(stream, chosen, files.rows)]
  for features, labels in stream:
    num_features = features.shape[1]
    num_rows += features.shape[0]
    if isinstance(features, csr_lib.Csr):
      out.add_csr("features", features)
    elif dense != SOURCE:
      dense = COPY
      out.add("features", features, num_features)
    if files.labels is None:
      labels = _own_labels(files, options, labels, features.shape[0])
      out.add_csr("labels", labels)
      num_labels, num_entries = labels.num_columns, num_entries + labels.nnz
  if files.labels is not None:
    stream = formats.stream_labels(
      files.labels,
      num_labels=widths[1],
      duplicates=options.duplicates,
      beyond=beyond,
      numbers=numbers,
    )
    counts = _separate_labels(files, stream, out, num_rows)
    num_labels, num_entries = counts
  if options.labelled and not num_entries:
    raise errors.DataError(
      files.labels or files.features, "no label in any row", "labels"
    )
  if known is not None and beyond is None:
    # There may be more ids in rows that are not of the split.
    num_features, num_labels = len(known.features), len(known.labels)
  notes = {}
  if beyond:
    notes = {what: beyond.notes(what) for what in ("feature", "label")}
  if named is not None:
    notes["label"] = _of_names(named, beyond)
  return {
    "dense": dense,
    "num_rows": num_rows,
    "num_features": num_features,
    "num_labels": num_labels,
    "notes": notes,
  }


def _of_names(
  names: numbering.Names, beyond: checks.Beyond | None
) -> list[str]:
  """What there is to say of names that were not known."""
  new = names.ids()[names.known :].tolist()
  first = "; ".join(map(repr, new[:_SHOWN]))
  if beyond is not None:
    return [f"{note}: {first}" for note in beyond.notes("label")]
  if not new or not names.known:
    return []
  return [f"{len(new):,} labels that the file of names has not: {first}"]


def as_bytes(names: list[str]) -> np.ndarray:
  """Names as an array; `store` reads them."""
  return np.frombuffer(json.dumps(names).encode(), np.uint8)


def _is_mapped(path: pathlib.Path) -> bool:
  """Whether dense features can be read where they are."""
  if path.suffix != ".npy":
    return False
  array = npy.open_features(path)
  return array.dtype in (np.float32, np.uint8) and array.flags.c_contiguous


def _own_labels(
  files: discover.Files,
  options: Options,
  labels: csr_lib.Csr | None,
  num_rows: int,
) -> csr_lib.Csr:
  """The labels that came with the features, or empty rows."""
  if labels is not None:
    return labels
  if options.labelled and discover.is_table(files.features):
    raise errors.DataError(
      files.features, "no column of labels", "a column 'labels' or 'label'"
    )
  if options.labelled:
    raise errors.DataError(
      files.features,
      "features without labels",
      "a header 'rows features labels', or svmlight rows",
      line=None if files.features.suffix in (".npz", ".npy") else 1,
      hint="the split form is named trn_X_Xf.txt with trn_X_Y.txt",
    )
  return csr_lib.Csr(
    np.zeros(num_rows + 1, np.int64),
    np.zeros(0, np.int32),
    None,
    options.num_labels or 0,
  )


def _separate_labels(
  files: discover.Files,
  stream: Iterable[csr_lib.Csr],
  out: Writers,
  num_rows: int,
) -> tuple[int, int]:
  """Writes a file of labels; returns the number of labels and of entries."""
  assert files.labels is not None
  rows, num_labels, num_entries = 0, 0, 0
  for labels in stream:
    out.add_csr("labels", labels)
    rows += labels.num_rows
    num_labels, num_entries = labels.num_columns, num_entries + labels.nnz
  if rows != num_rows:
    raise errors.DataError(
      files.labels,
      f"{rows} rows",
      f"{num_rows}, as many as in {files.features.name}",
    )
  return num_labels, num_entries


def _logged(
  stream: Iterable[formats.Rows], path: pathlib.Path
) -> Iterable[formats.Rows]:
  """Passes blocks on and says now and then how many rows there were."""
  rows, last = 0, time.monotonic()
  for block in stream:
    yield block
    rows += block.features.shape[0]
    if time.monotonic() - last > _LOG_SECONDS:
      last = time.monotonic()
      logging.info("%s: %d rows so far.", path.name, rows)
