"""Text files as blocks of whole lines: plain, gzip or standard input.

Memory is bounded by the block, or by the longest line.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Generator, Iterator
import contextlib
import gzip
import io
import os
import sys
from typing import cast, NamedTuple
import zlib

from xlj.data import errors

# Small enough that a block and what is computed from it stay in the cache of a
# core: 1-MiB blocks are parsed at two thirds of the speed.
BLOCK_BYTES = 2**18
MAX_LINE_BYTES = 2**28
STDIN = "-"

_GZIP = b"\x1f\x8b"
_MARK = b"\xef\xbb\xbf"  # byte order mark of UTF-8
_HEAD_BYTES = 256
_UNPACK = "unpack it first"
_IMAGES = "xlj images makes a data set of a folder of images"
_WRITE = "write its rows as text, or as SciPy's .npz or NumPy's .npy"
_SAVE = "save it as UTF-8"
# How files that are no text begin: what they are, and what to do.
_OTHERS = {
  b"PK\x03\x04": ("a zip archive", _UNPACK),
  b"BZh": ("bzip2", _UNPACK),
  b"\xfd7zXZ": ("xz", _UNPACK),
  b"\x28\xb5\x2f\xfd": ("zstd", _UNPACK),
  b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
  b"Rar!": ("a rar archive", _UNPACK),
  b"\x1f\x8b": ("gzip in gzip", _UNPACK),
  b"\x93NUMPY": ("a NumPy array", "give it a name that ends with .npy"),
  b"\x89PNG": ("a PNG image", _IMAGES),
  b"\xff\xd8\xff": ("a JPEG image", _IMAGES),
  b"GIF8": ("a GIF image", _IMAGES),
  b"BM": ("a BMP image", _IMAGES),
  b"II*\0": ("a TIFF image", _IMAGES),
  b"MM\0*": ("a TIFF image", _IMAGES),
  b"RIFF": ("a WebP image, or sound", _IMAGES),
  b"PAR1": ("a Parquet table", _WRITE),
  b"ARROW1": ("an Arrow table", _WRITE),
  b"\x89HDF": ("an HDF5 file", _WRITE),
  b"MATLAB 5": ("a MATLAB file", _WRITE),
  b"SQLite format": ("an SQLite database", _WRITE),
  b"\x80\x02": ("a Python pickle", _WRITE),
  b"\x80\x03": ("a Python pickle", _WRITE),
  b"\x80\x04": ("a Python pickle", _WRITE),
  b"\x80\x05": ("a Python pickle", _WRITE),
  b"%PDF": ("a PDF", _WRITE),
  b"\xff\xfe": ("text in UTF-16", _SAVE),
  b"\xfe\xff": ("text in UTF-16", _SAVE),
}


class Block(NamedTuple):
  """Consecutive whole lines.

  Attributes:
    text: lines ended by newlines; carriage returns before them are gone, unless
      they are kept.
    first_line: number of the first line, from 1.
  """

  text: bytes
  first_line: int


def blocks(
  path: str | os.PathLike[str],
  block_bytes: int = BLOCK_BYTES,
  *,
  keep_tabs: bool = False,
  keep_nul: bool = False,
  keep_returns: bool = False,
) -> Generator[Block]:
  """Reads a text file.

  Args:
    path: a plain or gzip file, told apart by content; "-" is standard input.
    block_bytes: bytes read at a time.
    keep_tabs: False turns tabs into spaces.
    keep_nul: whether NUL bytes are no error yet; see `check_no_nul`.
    keep_returns: whether carriage returns before newlines stay.

  Yields:
    All lines in order. Nothing when the file is empty.

  Raises:
    DataError: when the file is binary, damaged gzip, or has an endless line.
    OSError: when it cannot be read.
  """
  line = 1
  for text in _whole_lines(path, block_bytes):
    if not keep_returns and b"\r" in text:
      text = text.replace(b"\r\n", b"\n")
    if not keep_nul:
      check_no_nul(Block(text, line), path)
    if not keep_tabs and b"\t" in text:
      text = text.replace(b"\t", b" ")
    yield Block(text, line)
    line += text.count(b"\n")


def decoded(block: Block, path: str | os.PathLike[str]) -> str:
  """The text of a block, for what is more than numbers.

  Args:
    block: of `blocks`.
    path: its file.

  Returns:
    The text; no byte is replaced.

  Raises:
    DataError: when it is not UTF-8, with the line.
  """
  try:
    return block.text.decode()
  except UnicodeDecodeError as error:
    raise errors.DataError(
      path,
      f"byte 0x{block.text[error.start]:02x}",
      "text in UTF-8",
      line=_line_of(block, error.start),
      hint="convert it: iconv -f LATIN1 -t UTF-8, or whatever it is in",
    ) from None


def check_no_nul(block: Block, path: str | os.PathLike[str]) -> None:
  """Refuses a block that is not text.

  Args:
    block: of `blocks`.
    path: its file.

  Raises:
    DataError: when there is a NUL byte, with its line.
  """
  if b"\0" in block.text:
    line = _line_of(block, block.text.index(b"\0"))
    raise errors.DataError(path, "a NUL byte", "text", line=line)


def _line_of(block: Block, position: int) -> int:
  return block.first_line + block.text.count(b"\n", 0, position)


def _whole_lines(
  path: str | os.PathLike[str], block_bytes: int
) -> Iterator[bytes]:
  pending: list[bytes] = []
  size = 0
  for chunk in _chunks(path, block_bytes):
    head, newline, tail = chunk.rpartition(b"\n")
    if newline:
      yield b"".join([*pending, head, newline])
      pending, size = [], 0
    pending.append(tail)
    size += len(tail)
    if size > MAX_LINE_BYTES:
      raise errors.DataError(
        path,
        f"more than {MAX_LINE_BYTES} bytes without a line end",
        "text with one row per line",
      )
  last = b"".join(pending)
  if last:
    yield last + b"\n"


def _chunks(path: str | os.PathLike[str], block_bytes: int) -> Iterator[bytes]:
  """Bytes of the file, after decompression and without a byte order mark."""
  done = 0
  with contextlib.ExitStack() as stack:
    read = _open(path, stack)
    while True:
      try:
        chunk = read(block_bytes)
      except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise errors.DataError(
          path,
          f"damaged gzip after {done} bytes of text ({error})",
          "a complete gzip file",
          hint="copy or download the file again",
        ) from error
      if not chunk:
        return
      if not done:
        _check_magic(path, chunk)
        chunk = chunk.removeprefix(_MARK)
      done += len(chunk)
      yield chunk


def _open(
  path: str | os.PathLike[str], stack: contextlib.ExitStack
) -> Callable[[int], bytes]:
  """Returns a function that reads up to so many bytes of text."""
  if os.fspath(path) == STDIN:
    raw = cast("io.BufferedReader", sys.stdin.buffer)
  else:
    raw = stack.enter_context(open(path, "rb"))
  if raw.peek(len(_GZIP)).startswith(_GZIP):
    return stack.enter_context(gzip.open(raw)).read
  if os.fspath(path).endswith(".gz"):
    raise errors.DataError(
      path,
      "a name that ends with .gz on content that is not gzip",
      "a gzip file",
      hint="rename the file, or copy it again if it should be compressed",
    )
  return raw.read1  # a pipe gives what it has, without filling the block


def _check_magic(path: str | os.PathLike[str], chunk: bytes) -> None:
  if _is_text(chunk[:_HEAD_BYTES]):
    return  # perhaps of names, of which one is BMW
  for magic, (name, hint) in _OTHERS.items():
    if chunk.startswith(magic):
      raise errors.DataError(path, name, "text, plain or gzip", hint=hint)


def _is_text(head: bytes) -> bool:
  """Whether the first bytes are UTF-8 without control characters."""
  try:
    text = codecs.getincrementaldecoder("utf-8")().decode(head)
  except UnicodeDecodeError:
    return False
  return all(c >= " " or c in "\t\n\r\f" for c in text)
