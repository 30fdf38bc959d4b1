"""Text formats as streams of checked blocks of rows.

Three kinds of file, told apart by their first line:
  ONE_FILE    `N F L`, then N rows `l1,l2 f:v f:v ...` (a row without labels
              starts with a space; `l1::0.5` is a label with a relevance)
  MATRIX      `N F`, then N rows `f:v f:v ...` (the split form)
  HEADERLESS  rows like ONE_FILE's, as in multi-label svmlight; comments after
              `#` are ignored

Order within a row is free, explicit zeros among features are kept, empty lines
at the end are ignored. An empty line elsewhere is a row with nothing in it if a
header says how many rows there are, and an error if not.

Legend: N rows, F features, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import enum
import itertools
import os
import re
from typing import NamedTuple

import numpy as np

from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import lines
from xlj.data import numbering
from xlj.data import parse
from xlj.data import strict

Path = str | os.PathLike[str]

# Of a label, and above 0.
_RELEVANCE = re.compile(
  rb"((?:^|[\n,])\d+)::(?=[0-9.]*[1-9])(\d{1,9}\.?\d{0,9}|\.\d{1,9})(?=[, \n])"
)
_COMMENT = re.compile(rb" *#[^\n]*")
_NAMED_COMMENT = re.compile(rb"(?<![^\n ]) *#[^\n]*")  # C# is a name
_OF_NAME = re.compile(r"(::[0-9.]+)$")  # its relevance
_PAIR = re.compile(rb"[^:]*:[-+.\deE]*")  # of a feature and its value
_BETWEEN_SIZES = re.compile(rb" *[,;] *| +")


class Kind(enum.Enum):
  """What a text file is, by the number of integers in its header."""

  HEADERLESS = 0
  MATRIX = 2
  ONE_FILE = 3


class Header(NamedTuple):
  """Sizes that a file states; None where it does not."""

  kind: Kind
  num_rows: int | None = None
  num_columns: int | None = None
  num_labels: int | None = None


def stream(
  path: Path,
  entries: checks.Columns,
  labels: checks.Columns,
  kind: Kind | None = None,
  block_bytes: int = lines.BLOCK_BYTES,
) -> Iterator[csr_lib.Rows | errors.DataError]:
  """Reads a text file of rows.

  Args:
    path: plain or gzip; "-" is standard input.
    entries: checks the `f:v` of the file, features or labels; without a limit,
      the header's becomes the limit.
    labels: checks the labels, likewise.
    kind: refuses any other kind of file; None accepts all.
    block_bytes: bytes read at a time.

  Yields:
    All rows in order, and in the place of one that is not right its error.

  Raises:
    DataError: when the file itself is not right, at its begin or its end.
    OSError: when it cannot be read.
  """
  source = lines.blocks(path, block_bytes, keep_nul=True)
  first = next(source, None)
  if first is None:
    raise errors.DataError(path, "an empty file", _EXPECTED[kind])
  header, rest = _header(first, path, kind)
  _check_header(header, entries, labels, path)
  entries.state(header.num_columns)
  labels.state(header.num_labels)
  reader = _Reader(path, header, entries, labels)
  for block in itertools.chain([rest] if rest.text else [], source):
    for rows in reader.each(block):
      if isinstance(rows, errors.DataError) or rows.features.shape[0]:
        yield rows
  reader.finish()


def rows(
  text: bytes, path: Path, first_line: int, what: str = "feature"
) -> parse.Parsed:
  """Parses whole lines; see `strict.rows`, which this does faster."""
  parsed = parse.rows(text)
  if parsed is None and b"::" in text:
    parsed = parse.rows(_RELEVANCE.sub(rb"\1", text))
    if parsed is not None:
      # All are above 0, and no more is asked of them than one that is not 1.
      found = {float(value) for _, value in _RELEVANCE.findall(text)}
      relevances = np.full(len(parsed.labels), max(found - {1.0}, default=1.0))
      parsed = parsed._replace(relevances=relevances)
  return parsed or strict.rows(text, path, first_line, what)


def numbered(
  block: lines.Block,
  path: Path,
  names: numbering.Names,
  parts: Callable[[str], tuple[list[str], str]],
) -> bytes:
  """Puts numbers in the place of the names of labels.

  Args:
    block: whole lines.
    path: named in errors.
    names: numbers them.
    parts: the names of a line, each perhaps with a relevance, and the rest.

  Returns:
    The lines, as they are where labels are ids.

  Raises:
    DataError: when it is no UTF-8, or a name is that of several labels.
  """
  out = []
  written = lines.decoded(block, path).split("\n")
  for number, line in enumerate(written, block.first_line):
    found, rest = parts(line)
    ids = []
    for label in found:
      name, relevance = [*_OF_NAME.split(label, 1), ""][:2]
      i = names.number(name) if name else ""  # which is refused
      if i == -1:
        raise errors.DataError(
          path,
          f"label {name!r}, the name of several labels",
          "a name that one label has",
          line=number,
          hint="give the labels of the file of names different ones",
        )
      ids.append(f"{i}{relevance}")
    out.append(",".join(ids) + rest)
  return "\n".join(out).encode()


def _head(line: str) -> tuple[list[str], str]:
  """The labels before the first blank, and the rest."""
  head, blank, rest = line.partition(" ")
  if not head or ":" in head.replace("::", ""):
    return [], line
  return head.split(","), blank + rest


def _is_name(token: bytes) -> bool:
  """Whether a label is a name: it is no number, nor what begins like one."""
  text = token.decode(errors="replace")
  try:
    float(text)
  except ValueError:
    return any(c.isalpha() or not c.isascii() for c in text)
  return False


def has_names(path: Path) -> bool:
  """Whether the first label of a file of rows, or of labels, is a name.

  Args:
    path: as of `stream`, or what `label_lists` reads.

  Returns:
    False where the first lines have no labels.
  """
  first = next(lines.blocks(path, keep_nul=True), None)
  rest = b"" if first is None else first.text
  line, _, others = rest.partition(b"\n")
  sizes = line.split()
  if len(sizes) in (2, 3) and all(map(_is_size, sizes)):
    rest = others
  for line in rest.split(b"\n"):
    label = re.split(rb",|::| ", line, maxsplit=1)[0]
    if label and label[:1] != b"#" and not _PAIR.fullmatch(label):
      return _is_name(label)
  return False


_EXPECTED = {
  None: "rows 'l1,l2 f:v ...', or a header 'rows features labels' before them",
  Kind.ONE_FILE: "a header 'rows features labels' of three integers",
  Kind.MATRIX: "a header 'rows columns' of two integers",
  Kind.HEADERLESS: "rows 'l1,l2 f:v f:v ...'",
}


def _header(
  first: lines.Block, path: Path, kind: Kind | None
) -> tuple[Header, lines.Block]:
  line, _, rest = first.text.partition(b"\n")
  _check_first_line(first.text, path, kind)
  tokens = line.split()
  rows_only = any(mark in line for mark in (b":", b",", b"#"))
  if rows_only or len(tokens) < 2:
    header, block = Header(Kind.HEADERLESS), first
  elif len(tokens) <= 3 and all(_is_size(token) for token in tokens):
    sizes = [int(token) for token in tokens]
    header = Header(Kind(len(tokens)), *sizes)
    block = lines.Block(rest, 2)
  else:
    raise errors.DataError(
      path, f"header {strict.shown(line)}", _EXPECTED[kind], line=1
    )
  if kind is not None and header.kind is not kind:
    what = "no header" if header.kind is Kind.HEADERLESS else "header"
    raise errors.DataError(
      path, f"{what} {strict.shown(line)}", _EXPECTED[kind], line=1
    )
  return header, block


def _check_first_line(text: bytes, path: Path, kind: Kind | None) -> None:
  """Refuses what would be a header, were it written as one."""
  written = text.split(b"\n", 9)[:-1]
  plain = [line.partition(b"#")[0] for line in written]
  number = next((i for i, line in enumerate(plain) if line.strip()), 0)
  line = plain[number]
  head = line.partition(b"\r")[0].strip(b" ")
  sizes = _BETWEEN_SIZES.split(head)
  if not (2 <= len(sizes) <= 3 and all(map(_is_size, sizes))):
    return
  if b"\r" in line:
    found, hint = "lines that end with '\\r' alone", "end them with '\\n'"
  elif b"," in head or b";" in head:
    if written[0] != head:
      return
    found = strict.shown(head)
    hint = (
      "a header has spaces, not commas; a row of labels without features ends"
      " with a space"
    )
  elif number:
    found, hint = "a header further down", "remove the lines before it"
  elif b"#" in written[0]:
    found, hint = "a header with a comment", "remove the comment"
  else:
    return
  raise errors.DataError(
    path, found, _EXPECTED[kind], line=number + 1, hint=hint
  )


def _is_size(token: bytes) -> bool:
  return token.isdigit() and len(token) < 20


def _check_header(
  header: Header, entries: checks.Columns, labels: checks.Columns, path: Path
) -> None:
  def refuse(found: str, expected: str, hint: str = "") -> None:
    found = f"a header with {found}"
    raise errors.DataError(path, found, expected, line=1, hint=hint)

  if header.num_rows == 0:
    refuse("0 rows", "at least one row")
  for size, columns in (
    (header.num_columns, entries),
    (header.num_labels, labels),
  ):
    what = f"{columns.what}s"
    most, limit = checks.MAX_COLUMNS, columns.limit
    if size is not None and size > most and columns.numbers is None:
      refuse(f"{size} {what}", f"at most {most}", checks.RENUMBER)
    # A file to predict from may say that it has no labels.
    if size and limit and size != limit:
      refuse(f"{size} {what}", f"{limit}, as in the rest of the data")


class _Reader:
  """Turns the blocks of one file into rows, and counts them."""

  def __init__(
    self,
    path: Path,
    header: Header,
    entries: checks.Columns,
    labels: checks.Columns,
  ):
    self._path = path
    self._header = header
    self._columns = entries
    self._labels = labels
    self._num_rows = 0
    self._num_empty = 0
    self._num_blank = 0  # lines of a file without a header
    self._blank_line: int | None = None
    self._last_line = 1

  def read(self, block: lines.Block) -> csr_lib.Rows:
    """Parses and checks a block."""
    lines.check_no_nul(block, self._path)
    text = block.text
    headerless = self._header.kind is Kind.HEADERLESS
    names = self._labels.numbers
    if headerless and b"#" in text:
      named = isinstance(names, numbering.Names)
      text = (_NAMED_COMMENT if named else _COMMENT).sub(b"", text)
    if isinstance(names, numbering.Names):
      whole = lines.Block(text, block.first_line)
      text = numbered(whole, self._path, names, _head)
    parsed = rows(text, self._path, block.first_line, self._columns.what)
    keep = self._kept_rows(parsed, block, text)
    place = checks.Place(self._path, block.first_line)
    if self._header.kind is Kind.MATRIX:
      self._check_no_labels(parsed, place)
    labels = self._labels.block(
      parsed.label_indptr, parsed.labels, parsed.relevances, place
    )
    features = self._columns.block(
      parsed.indptr, parsed.ids, parsed.values, place
    )
    if keep is not None:
      features, labels = features.take(keep), labels.take(keep)
    self._num_rows += features.num_rows
    self._last_line = block.first_line + len(parsed.indptr) - 2
    without = self._header.kind is Kind.MATRIX
    return csr_lib.Rows(features, None if without else labels)

  def each(
    self, block: lines.Block
  ) -> Iterator[csr_lib.Rows | errors.DataError]:
    """The rows of a block, in halves of it where one of them is wrong."""
    before = dict(vars(self))
    try:
      rows = self.read(block)
    except errors.DataError as error:
      vars(self).update(before)
      written = [line + b"\n" for line in block.text.split(b"\n")[:-1]]
      if len(written) > 1:
        half, first = len(written) // 2, block.first_line
        yield from self.each(lines.Block(b"".join(written[:half]), first))
        first += half
        yield from self.each(lines.Block(b"".join(written[half:]), first))
        return
      if self._num_blank:  # It is about empty lines further up.
        yield from [error] * self._num_blank
        self._num_blank, self._blank_line = 0, None
        yield from self.each(block)
      else:
        yield error
        self._num_rows += 1
    else:
      yield rows

  def finish(self) -> None:
    """Checks the number of rows at the end of the file."""
    expected = self._header.num_rows
    if expected is None:
      if not self._num_rows:
        raise errors.DataError(self._path, "no rows", "at least one")
    elif self._num_rows < expected:
      raise errors.DataError(
        self._path,
        f"{self._num_rows} rows",
        f"{expected} as in the header",
        line=self._last_line,
        hint="the file is cut short, or the header is wrong",
      )

  def _kept_rows(
    self, parsed: parse.Parsed, block: lines.Block, text: bytes
  ) -> np.ndarray | None:
    """Rows to keep of the block's lines; None for all."""
    filled = np.diff(parsed.indptr) + np.diff(parsed.label_indptr) > 0
    if self._header.num_rows is not None:
      keep = self._within_count(filled, block.first_line, text)
      kept = filled if keep is None else filled[keep]
      self._num_empty += int((~kept).sum())
      return keep
    if filled.all() and self._blank_line is None:
      return None
    return self._without_blanks(filled, block, text)

  def _within_count(
    self, filled: np.ndarray, first_line: int, text: bytes
  ) -> np.ndarray | None:
    assert self._header.num_rows is not None
    if self._blank_line is None and not filled.all():
      self._blank_line = _first_blank(text, first_line)
    left = self._header.num_rows - self._num_rows
    if len(filled) <= left:
      return None
    extra = left + np.flatnonzero(filled[left:])
    if len(extra):
      line = first_line + int(extra[0])
      empty = self._num_empty + int((~filled[: extra[0]]).sum())
      fits = self._num_rows + int(extra[0]) - empty < self._header.num_rows
      if self._blank_line is not None and fits:
        raise errors.DataError(
          self._path,
          "an empty line, which counts as a row",
          f"{self._header.num_rows} rows as in the header (line {line} is one"
          " more)",
          line=self._blank_line,
          hint="remove it",
        )
      raise errors.DataError(
        self._path,
        "more rows",
        f"{self._header.num_rows} as in the header",
        line=line,
      )
    return np.arange(left)

  def _without_blanks(
    self, filled: np.ndarray, block: lines.Block, text: bytes
  ) -> np.ndarray:
    written, cleaned = block.text.split(b"\n"), text.split(b"\n")
    keep = []
    for row, is_filled in enumerate(filled):
      if is_filled or (cleaned[row] and b"#" not in written[row]):
        if self._blank_line is not None:
          raise errors.DataError(
            self._path,
            "an empty line",
            "a row",
            line=self._blank_line,
            hint="a row with neither labels nor features is a single space",
          )
        keep.append(row)
      elif not written[row]:
        self._num_blank += 1
        if self._blank_line is None:
          self._blank_line = block.first_line + row
    return np.array(keep, np.int64)

  def _check_no_labels(self, parsed: parse.Parsed, place: checks.Place) -> None:
    """Refuses rows of the split form that start with a bare id."""
    if len(parsed.labels):
      row = int(np.argmax(np.diff(parsed.label_indptr) > 0))
      raise place.error(
        row,
        f"'{parsed.labels[0]}' without a value",
        f"{self._columns.what}:value",
        "after a header of two integers, rows are 'id:value id:value ...'",
      )


def _first_blank(text: bytes, first_line: int) -> int | None:
  """Number of the first line with nothing in it, not even a space."""
  position = 0 if text.startswith(b"\n") else text.find(b"\n\n") + 1
  if not position and not text.startswith(b"\n"):
    return None
  return first_line + text.count(b"\n", 0, position)
