"""The grammar of text rows, line by line: slow, and exact about what is wrong.

This is the reference for `parse`, and what explains a line that it refuses.
"""

import math
import os
import re

import numpy as np

from xlj.data import errors
from xlj.data import parse

_ID = re.compile(rb"[0-9]+")
_NUMBER = re.compile(rb"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_MAX_ID = 2**62  # of int64; see `checks` for what is less
_MAX_DIGITS = 19
_SHOWN = 40


def rows(
  block: bytes,
  path: str | os.PathLike[str],
  first_line: int,
  what: str = "feature",
) -> parse.Parsed:
  """Parses whole lines `l1,l2 f:v f:v ...`; a label may be `l1::relevance`.

  Args:
    block: lines; spaces are the only white space.
    path: named in errors.
    first_line: number of the first line, for errors.
    what: "feature" or "label", what the ids before colons are.

  Returns:
    The entries, one row per line.

  Raises:
    DataError: at the first token that is not right.
  """
  label_counts, labels, relevances = [0], [], []
  counts, ids, values = [0], [], []
  for number, line in enumerate(_lines(block), first_line):
    found = _row(line, path, number, what)
    labels += found[0]
    relevances += found[1]
    ids += found[2]
    values += found[3]
    label_counts.append(len(labels))
    counts.append(len(ids))
  return parse.Parsed(
    np.array(label_counts, np.int64),
    np.array(labels, np.int64),
    np.array(counts, np.int64),
    np.array(ids, np.int64),
    np.array(values, np.float64),
    np.array(relevances, np.float64) if b"::" in block else None,
  )


def pairs(
  block: bytes, path: str | os.PathLike[str], first_line: int
) -> np.ndarray:
  """Parses lines of two ids.

  Args:
    block: as in `rows`.
    path: named in errors.
    first_line: number of the first line, for errors.

  Returns:
    int64 [n, 2]; empty lines at the end of the block are left out.

  Raises:
    DataError: at the first line that is not right.
  """
  out = []
  block = block.rstrip(b" \n")
  for number, line in enumerate(_lines(block), first_line):
    tokens = line.split()
    if len(tokens) != 2:
      raise errors.DataError(
        path, shown(line), "a row and a label, 'row label'", line=number
      )
    out.append([_id(token, "row or label", path, number) for token in tokens])
  return np.array(out, np.int64).reshape(-1, 2)


def shown(text: bytes) -> str:
  """Returns bytes as they appear in messages: quoted, escaped and short.

  Args:
    text: any bytes.

  Returns:
    A printable string.
  """
  if not text.strip():
    return "an empty line"
  out = repr(text[:_SHOWN].decode("latin-1"))
  return out + "..." if len(text) > _SHOWN else out


def _lines(block: bytes) -> list[bytes]:
  lines = block.split(b"\n")
  return lines if lines[-1] else lines[:-1]


def _row(
  line: bytes, path: str | os.PathLike[str], number: int, what: str
) -> tuple[list[int], list[float], list[int], list[float]]:
  head, _, rest = line.partition(b" ")
  # A row without labels may start without a space.
  if b":" in head.replace(b"::", b""):
    head, rest = b"", line
  labels, relevances = [], []
  for token in head.split(b",") if head else ():
    key, marks, value = token.partition(b"::")
    labels.append(_id(key, "label", path, number))
    relevances.append(_value(value, path, number) if marks else 1.0)
  ids, values = [], []
  for token in rest.split(b" "):
    if token:
      key, colon, value = token.partition(b":")
      if not colon:
        raise errors.DataError(
          path,
          shown(token),
          f"{what}:value",
          line=number,
          hint="a row is 'l1,l2 f:v f:v ...', without space between labels",
        )
      ids.append(_id(key, what, path, number))
      values.append(_value(value, path, number))
  return labels, relevances, ids, values


def _id(
  token: bytes, what: str, path: str | os.PathLike[str], number: int
) -> int:
  if not _ID.fullmatch(token):
    hint = ""
    if token.startswith(b"-"):
      hint = "ids count from 0 and are never negative"
    elif token == b"qid":
      hint = "remove the query ids"
    elif what == "label" and token and not token[:1].isdigit():
      hint = (
        "the first label of the training split is no name, so that all are ids;"
        " --config.data.named_labels=True says that they are names"
      )
    found = f"{what} {shown(token)}" if token else f"no {what} id"
    raise errors.DataError(
      path, found, f"a {what} id of digits", line=number, hint=hint
    )
  digits = token.lstrip(b"0") or b"0"
  # Python refuses to convert thousands of them.
  if len(digits) > _MAX_DIGITS or int(digits) > _MAX_ID:
    found = token.decode() if len(token) <= _SHOWN else shown(token)
    raise errors.DataError(
      path, f"{what} {found}", f"an id of at most {_MAX_ID}", line=number
    )
  return int(digits)


def _value(token: bytes, path: str | os.PathLike[str], number: int) -> float:
  good = _NUMBER.fullmatch(token)
  value = float(token) if good else 0.0
  with np.errstate(over="ignore"):
    good = good and math.isfinite(np.float32(value))
  if not good:
    found = f"value {shown(token)}" if token else "no value after the colon"
    raise errors.DataError(
      path, found, "a finite number in the range of float32", line=number
    )
  return value
