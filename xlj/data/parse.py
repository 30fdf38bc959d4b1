"""Text rows `l1,l2 f:v f:v ...` to arrays, a block of lines at a time.

`rows` is vectorised: it looks at a block as runs of digits between other
bytes, converts all runs at once, and reads the grammar off the bytes between
them. It returns None for whatever it does not recognise; `strict.rows` then
parses the same block line by line, and either returns it or says what is
wrong. Every text format of `formats` is made of such rows.

Legend: M runs of digits in a block, T tokens, R rows, E entries.
"""

from typing import NamedTuple

import numpy as np

# Classes of the bytes that are not digits. The first four end a token.
_LINE, _SPACE, _COMMA, _COLON, _POINT, _MINUS, _LETTER, _OTHER = range(8)
_CLASS = np.full(256, _OTHER, np.uint8)
_CLASS[[ord(byte) for byte in "\n ,:.-"]] = range(6)
_CLASS[[ord(byte) for byte in "eE+"]] = _LETTER

_WINDOW = 8  # digits converted by one multiplication ladder
# Integers below 10^15 and powers of ten up to 10^22 are exact in float64, so
# their quotient is the float64 nearest to the decimal number, as float() gives.
_EXACT_DIGITS = 15
_POWERS = 10.0 ** np.arange(_EXACT_DIGITS + 1)
_MAX_DIGITS = 2 * _WINDOW


class Parsed(NamedTuple):
  """Entries of a block of rows, as written: neither sorted nor in range.

  Attributes:
    label_indptr: int64 [R + 1].
    labels: int64 [E'], label ids.
    indptr: int64 [R + 1].
    ids: int64 [E], feature ids.
    values: float64 [E]; may be infinite when the text overflows.
    relevances: float64 [E'], those of the labels, or None for all 1.
  """

  label_indptr: np.ndarray
  labels: np.ndarray
  indptr: np.ndarray
  ids: np.ndarray
  values: np.ndarray
  relevances: np.ndarray | None = None


class _Runs(NamedTuple):
  """Run i is the digits between other bytes i and i + 1."""

  position: np.ndarray  # int64 [M + 1], of the other bytes
  kind: np.ndarray  # uint8 [M + 1], their class
  length: np.ndarray  # int64 [M]
  number: np.ndarray  # uint64 [M]; right for up to _MAX_DIGITS digits


def rows(block: bytes) -> Parsed | None:
  """Parses whole lines.

  Args:
    block: lines that end with a newline; spaces are the only other white space.

  Returns:
    The entries, one row per line; None when the block is not plainly right.
  """
  data = b"\n" + block + bytes(_WINDOW)
  runs = _digit_runs(data)
  if runs.kind.max() == _OTHER:
    return None
  ends = np.flatnonzero(runs.kind <= _COLON)  # [T + 1], into the other bytes
  first = ends[:-1]  # the first run of each token
  extent = ends[1:] - first  # runs in each token
  kind = runs.kind[ends]
  left, right = kind[:-1], kind[1:]
  length = runs.length[first]  # [T]

  is_id = right == _COLON
  is_value = left == _COLON
  empty = (extent == 1) & (length == 0)
  at_start = (left == _LINE) | (left == _COMMA)
  # A label follows a line end or a comma. Nothing but empty space may follow a
  # space, unless a colon ends it.
  is_label = at_start & ~is_id & ~(empty & (left == _LINE) & (right <= _SPACE))
  is_space = empty & (left <= _SPACE) & (right <= _SPACE)
  ids = is_id & (left <= _SPACE)
  values = is_value & (right <= _SPACE)
  if not (is_label | is_space | ids | values).all():
    return None
  whole = is_label | ids
  if not ((extent == 1) & _is_number(length))[whole].all():
    return None

  id_tokens = np.flatnonzero(is_id)
  numbers = _values(data, runs, ends, id_tokens + 1)
  if numbers is None:
    return None
  label_tokens = np.flatnonzero(is_label)
  line_tokens = np.flatnonzero(right == _LINE)  # the last token of each row
  return Parsed(
    _indptr(label_tokens, line_tokens),
    runs.number[first[label_tokens]].astype(np.int64),
    _indptr(id_tokens, line_tokens),
    runs.number[first[id_tokens]].astype(np.int64),
    numbers,
  )


def pairs(block: bytes) -> np.ndarray | None:
  """Parses lines of two non-negative integers.

  Args:
    block: as in `rows`.

  Returns:
    int64 [lines, 2]; None when the block is not plainly right.
  """
  runs = _digit_runs(b"\n" + block + bytes(_WINDOW))
  if len(runs.length) % 2 or not _is_number(runs.length).all():
    return None
  kind = runs.kind[1:].reshape(-1, 2)
  if (kind != (_SPACE, _LINE)).any():
    return None
  return runs.number.astype(np.int64).reshape(-1, 2)


def _is_number(length: np.ndarray) -> np.ndarray:
  return (length > 0) & (length <= _MAX_DIGITS)


def _indptr(tokens: np.ndarray, line_tokens: np.ndarray) -> np.ndarray:
  indptr = np.zeros(len(line_tokens) + 1, np.int64)
  indptr[1:] = np.searchsorted(tokens, line_tokens, side="right")
  return indptr


def _digit_runs(data: bytes) -> _Runs:
  """Converts all runs of digits of `data`, whose last bytes are a margin."""
  array = np.frombuffer(data, np.uint8)
  text = array[:-_WINDOW]
  position = np.flatnonzero(text - np.uint8(ord("0")) > 9)
  kind = _CLASS.take(text[position])
  length = np.diff(position)
  length -= 1
  # windows[i] is bytes i to i + 7 as one little-endian number. (On these and
  # on table look-ups, `take` is up to twice as fast as indexing.)
  windows = np.ndarray((len(text) + 1,), "<u8", data, strides=(1,))
  start = position[:-1] + 1
  if length.max(initial=0) <= _WINDOW:
    return _Runs(position, kind, length, _decimal(windows.take(start), length))
  low = np.minimum(length, _WINDOW)
  number = _decimal(windows[start + (length - low)], low)
  long = np.flatnonzero(length > _WINDOW)
  high = _decimal(windows[start[long]], length[long] - _WINDOW)
  number[long] += high * np.uint64(10**_WINDOW)
  return _Runs(position, kind, length, number)


def _decimal(window: np.ndarray, length: np.ndarray) -> np.ndarray:
  """Numbers written in the first `length` <= 8 bytes of 8-byte windows.

  Shifting by the bytes that do not belong to the number puts zeros in front of
  it; then neighbouring digits, pairs and fours are joined, as in D. Lemire,
  "Quickly parsing eight digits" (2018).
  """
  # Shifting by all 64 bits gives 0 in NumPy, the number of an empty run.
  window <<= (64 - 8 * length).astype(np.uint64)
  window &= np.uint64(0x0F0F0F0F0F0F0F0F)
  for factor, shift, mask in (
    (10, 8, 0x00FF00FF00FF00FF),
    (100, 16, 0x0000FFFF0000FFFF),
    (10000, 32, 0x00000000FFFFFFFF),
  ):
    high = window >> np.uint64(shift)
    window *= np.uint64(factor)
    window += high
    window &= np.uint64(mask)
  return window


def _values(
  data: bytes, runs: _Runs, ends: np.ndarray, tokens: np.ndarray
) -> np.ndarray | None:
  """float64 [E]: numbers such as 3, -0.25, .5, 1e-3 in the tokens."""
  first, last = ends[tokens], ends[tokens + 1]
  negative = None
  if (runs.kind == _MINUS).any():
    negative = (runs.kind[first + 1] == _MINUS) & (runs.length[first] == 0)
    first = first + negative
  extent = last - first
  digits = runs.length[first]
  out = runs.number[first].astype(np.float64)
  odd = extent > 2
  if (extent > 1).any():
    at = np.flatnonzero(extent == 2)
    if len(at) == len(extent):
      at = slice(None)  # the usual case, without copies
    first = first[at]
    fraction = runs.length[first + 1]
    digits[at] += fraction
    power = _POWERS[np.minimum(fraction, _EXACT_DIGITS)]
    out[at] *= power
    out[at] += runs.number[first + 1]
    out[at] /= power
    odd[at] = runs.kind[first + 1] != _POINT
  odd |= (digits == 0) | (digits > _EXACT_DIGITS)
  if negative is not None:
    np.negative(out, out=out, where=negative)
  if not odd.any():
    return out
  return _fill_odd(data, runs, ends, tokens, odd, out)


def _fill_odd(
  data: bytes,
  runs: _Runs,
  ends: np.ndarray,
  tokens: np.ndarray,
  odd: np.ndarray,
  out: np.ndarray,
) -> np.ndarray | None:
  """Converts what the arithmetic cannot: exponents and very many digits."""
  tokens = tokens[odd]
  starts = (runs.position[ends[tokens]] + 1).tolist()
  stops = runs.position[ends[tokens + 1]].tolist()
  try:
    out[odd] = [float(data[i:j]) for i, j in zip(starts, stops)]
  except ValueError:
    return None
  return out
