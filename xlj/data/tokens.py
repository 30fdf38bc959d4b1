"""Next-word data: texts whose rows are tokens and whose labels are words.

Row i of a file is its token i. Its label is the token, and its features are
the tokens before it, as `context` one-hot vectors side by side: feature
`q V + w` says that word w is q + 1 tokens back. A bag of them with a hidden
layer is the model of Bengio et al., "A Neural Probabilistic Language Model",
JMLR 2003.

Sentences are lines, whose ends are the token `<eos>`; contexts run across them.
The vocabulary is that of the training file, the most frequent word first, and
other words count as `<unk>`.

Legend: N tokens, V words, n tokens of a block, K tokens of a context.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
import contextlib
import dataclasses
import itertools
import os
import pathlib
from typing import Any

from absl import logging
import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import errors
from xlj.data import ingest as ingest_lib
from xlj.data import lines

END = b"<eos>"
UNKNOWN = b"<unk>"

_BLOCK_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Options:
  """How token files are read.

  Attributes:
    context: K, tokens before the label that are its features.
    num_features: the number that K V has to be; None for any.
    num_labels: the number that V has to be; None for any.
  """

  context: int
  num_features: int | None = None
  num_labels: int | None = None

  def __post_init__(self) -> None:
    """Checks the context.

    Raises:
      ValueError: when it is not positive.
    """
    if self.context < 1:
      raise ValueError(f"context is {self.context}; it must be at least 1")


def words(data_dir: str | os.PathLike[str]) -> list[str]:
  """Reads the vocabulary of a data set of token files: names of its labels.

  Args:
    data_dir: directory with a training file.

  Returns:
    The words, by label id.

  Raises:
    DataError: when there is no training file, or nothing in it.
    OSError: when it cannot be read.
  """
  path = discover.find(data_dir, "train").features
  # Words are bytes of any kind; none may look like another one.
  return [word.decode(errors="backslashreplace") for word in _vocabulary(path)]


def ingest(
  files: discover.Files, options: Options, directory: pathlib.Path
) -> dict[str, Any]:
  """Writes the arrays of a split.

  Args:
    files: the tokens as features, and the vocabulary.
    options: how to read them.
    directory: where the arrays go.

  Returns:
    The description of what was written: sizes, and each array's checksum.

  Raises:
    DataError: when there is no token, or a word that is not in a vocabulary
      without `<unk>`, or the sizes are not those asked for.
    OSError: when a file cannot be read or written.
  """
  assert files.vocabulary is not None
  vocabulary = _vocabulary(files.vocabulary)
  _check_sizes(files.vocabulary, len(vocabulary), options)
  num_rows = 0
  with contextlib.ExitStack() as stack:
    out = ingest_lib.Writers(directory, stack)
    stream = _ids(files.features, vocabulary)
    for rows in _with_context(stream, options.context, len(vocabulary)):
      assert isinstance(rows.features, csr_lib.Csr) and rows.labels is not None
      out.add_csr("features", rows.features)
      out.add_csr("labels", rows.labels)
      num_rows += rows.labels.num_rows
    if not num_rows:
      raise errors.DataError(files.features, "an empty file", "tokens", line=1)
    arrays = out.close()
  logging.info(
    "Read %d tokens of %s, %d words.", num_rows, files.features, len(vocabulary)
  )
  return {
    "dense": None,
    "num_rows": num_rows,
    "num_features": options.context * len(vocabulary),
    "num_labels": len(vocabulary),
    "arrays": arrays,
  }


def _check_sizes(path: pathlib.Path, num_words: int, options: Options) -> None:
  num_features = options.context * num_words
  if num_features > np.iinfo(np.int32).max:
    raise errors.DataError(
      path,
      f"{num_words} words, {num_features} features with {options.context}"
      " tokens of context",
      "at most 2**31 features",
      hint="lower the context",
    )
  for what, found, wanted in (
    ("words", num_words, options.num_labels),
    ("features", num_features, options.num_features),
  ):
    if wanted not in (None, found):
      raise errors.DataError(path, f"{found} {what}", f"{wanted}")


def _vocabulary(path: pathlib.Path) -> dict[bytes, int]:
  """Words and their ids, the most frequent first, ties by appearance."""
  counts: collections.Counter[bytes] = collections.Counter()
  for block in lines.blocks(path, _BLOCK_BYTES):
    counts.update(_tokens(block.text))
  if not counts:
    raise errors.DataError(path, "an empty file", "tokens", line=1)
  ranked = sorted(counts, key=counts.__getitem__, reverse=True)  # stable
  return {word: i for i, word in enumerate(ranked)}


def _tokens(block: bytes) -> list[bytes]:
  return block.replace(b"\n", b" " + END + b" ").split()


def _ids(
  path: pathlib.Path, vocabulary: dict[bytes, int]
) -> Iterator[np.ndarray]:
  """Yields the tokens of a file as word ids, int32 [n] at a time."""
  unknown = vocabulary.get(UNKNOWN, -1)
  for block in lines.blocks(path, _BLOCK_BYTES):
    tokens = _tokens(block.text)
    found = map(vocabulary.get, tokens, itertools.repeat(unknown))
    ids = np.fromiter(found, np.int32, len(tokens))
    if unknown < 0 and (ids < 0).any():
      first = int(np.argmax(ids < 0))
      raise errors.DataError(
        path,
        f"{tokens[first].decode('utf-8', 'replace')!r}",
        f"a word of the training file, which has no {UNKNOWN.decode()}",
        line=block.first_line + tokens[:first].count(END),
      )
    yield ids


def _with_context(
  stream: Iterator[np.ndarray], context: int, num_words: int
) -> Iterator[csr_lib.Rows]:
  """Yields rows whose features are the `context` tokens before the label."""
  before = np.full(context, -1, np.int32)
  shift = np.arange(context) * num_words
  for ids in stream:
    tokens = np.concatenate([before, ids])
    windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], context)
    latest_first = windows[:, ::-1]  # [n, K]
    real = latest_first >= 0
    indices = (latest_first + shift)[real].astype(np.int32)
    yield csr_lib.Rows(
      _rows(real.sum(axis=1), indices, context * num_words),
      _rows(np.ones(len(ids), np.int64), ids, num_words),
    )
    before = tokens[len(ids) :]


def _rows(
  lengths: np.ndarray, indices: np.ndarray, num_columns: int
) -> csr_lib.Csr:
  indptr = np.concatenate([[0], np.cumsum(lengths)])
  return csr_lib.Csr(indptr, indices, None, num_columns)
