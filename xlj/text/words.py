"""Words: texts to counts of the n-grams of words and characters in them.

Legend: N texts, F features, n code points, V terms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from typing import Any

import numpy as np

from xlj import files
from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.text import characters
from xlj.text import word_loops

FILE = "words.npz"

_VERSION = 1
_MOST_FEATURES = np.iinfo(np.int32).max
# The most of a block of texts. A text is never cut, however long.
_BLOCK_TEXTS, _BLOCK_POINTS = 4096, 2**20
_START = 2**16  # terms that there is room for at first


@dataclasses.dataclass(frozen=True)
class Options:
  """Which n-grams are features. Names and meanings are scikit-learn's.

  The defaults were the best of those tried on held-out training rows of two
  sets of short texts, with ten times the features of single words. There
  min_df=2 left out more than half of these, for 0 to 0.6 points of P@1.

  Attributes:
    ngrams: lengths of n-grams of words, lowest and highest; (0, 0) for none.
    char_ngrams: lengths of n-grams of characters within a word, a space at
      both of its ends included (`analyzer="char_wb"`); (0, 0) for none.
    min_df: rows of the training split that a term is in at least.
    max_df: share of the rows that a term is in at most.
    max_features: how many terms are kept, those that occur most often, and the
      first by alphabet among those that occur as often; 0 for all.
    hashed: number of buckets that terms are hashed to, where a vocabulary of
      all terms would not fit in memory; 0 for a vocabulary.
    lowercase: whether upper and lower case are one.
  """

  ngrams: tuple[int, int] = (1, 2)
  char_ngrams: tuple[int, int] = (5, 5)
  min_df: int = 1
  max_df: float = 1.0
  max_features: int = 0
  hashed: int = 0
  lowercase: bool = True

  def __post_init__(self) -> None:
    """Checks the fields.

    Raises:
      ValueError: naming the field that cannot be.
    """
    for name in ("ngrams", "char_ngrams"):
      low, high = lengths = tuple(getattr(self, name))
      object.__setattr__(self, name, lengths)  # what JSON has as a list
      if lengths != (0, 0) and not 1 <= low <= high:
        raise ValueError(
          f"{name} is {lengths}; give the lowest and the highest length, such"
          " as (1, 2), or (0, 0) for none"
        )
    if not self.ngrams[1] and not self.char_ngrams[1]:
      raise ValueError("ngrams and char_ngrams are both none; give one")
    if self.min_df < 1:
      raise ValueError(f"min_df is {self.min_df}; it must be at least 1")
    if not 0 < self.max_df <= 1:
      raise ValueError(f"max_df is {self.max_df}; give a share in (0, 1]")
    for name in ("max_features", "hashed"):
      if not 0 <= getattr(self, name) <= _MOST_FEATURES:
        raise ValueError(
          f"{name} is {getattr(self, name)}; give 0 to {_MOST_FEATURES}"
        )
    limits = (self.min_df, self.max_df, self.max_features)
    if self.hashed and limits != (1, 1.0, 0):
      raise ValueError(
        f"hashed is {self.hashed}, and nothing is known of terms that are"
        " hashed: leave min_df at 1, max_df at 1 and max_features at 0"
      )


@dataclasses.dataclass(frozen=True, eq=False)
class Words:
  """Counts n-grams; made by `fit` or `load`.

  A text is put into lower case (if asked for) and NFC, and then words are
  `characters.kinds`' runs. Features are numbered by the code points of the
  term, n-grams of words before those of characters.

  Counts are those of scikit-learn's `CountVectorizer`, with our words as its
  `token_pattern` or `tokenizer`. The weighting "tfidf" of `data.weighting` with
  `smooth=True` makes them its `TfidfVectorizer`'s, and "log_tfidf" without
  `smooth`, which is our default, weighs rare terms more: log(1 + count) and
  log(N / df).

  Attributes:
    options: what was asked for.
    num_features: F.

  Example:
    options = words_lib.Options(ngrams=(1, 1), char_ngrams=(0, 0))
    words = words_lib.fit(["A first text", "a second"], options)
    words(["a third text"])  # Csr [1, 4]: one "a" and one "text"
  """

  options: Options
  num_features: int
  _kinds: np.ndarray
  _terms: _Terms

  def __call__(self, texts: Sequence[str]) -> csr_lib.Csr:
    """Counts the n-grams of texts.

    Args:
      texts: N of them; a row does not depend on the others.

    Returns:
      The counts [N, F], 0 for n-grams that are no term; in memory.

    Raises:
      TypeError: when it is one text.
    """
    blocks = [
      self._count(_Block(block, self.options, self._kinds))
      for block in _blocks(texts)
    ]
    if not blocks:
      return csr_lib.Csr.from_rows([], self.num_features, [])
    return csr_lib.concatenate(blocks)

  def _count(self, block: _Block) -> csr_lib.Csr:
    hashed = self.options.hashed
    if hashed:
      ids = (block.hashes % np.uint64(hashed)).astype(np.int32)
    else:
      ids = self._terms.look_up(block)
    counts = np.empty(len(ids), np.float32)
    indptr = np.empty(len(block.ends), np.int64)
    word_loops.count(ids, block.ends, counts, indptr)
    nnz = indptr[-1]
    return csr_lib.Csr(
      indptr, ids[:nnz].copy(), counts[:nnz].copy(), self.num_features
    )

  def feature_names(self) -> list[str]:
    """The terms, by feature; those of characters have a `~` before them.

    Raises:
      ValueError: when terms are hashed, as buckets have no names.
    """
    if self.options.hashed:
      raise ValueError(f"The {self.num_features} features are buckets of terms")
    names = self._terms.strings()
    first = self._terms.num_words
    return names[:first] + [f"~{name}" for name in names[first:]]

  def fingerprint(self) -> str:
    """A hash of all that counts depend on."""
    digest = hashlib.sha256()
    for name, array in self._arrays().items():
      digest.update(f"{name} {array.dtype} {array.shape} ".encode())
      digest.update(array.tobytes())
    return digest.hexdigest()[:16]

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes `words.npz`; a reader sees all of it, or what was there.

    Raises:
      OSError: when it cannot be written.
    """
    path = pathlib.Path(directory) / FILE
    with files.replacing(path) as partial, partial.open("wb") as file:
      np.savez(file, **self._arrays())

  def _arrays(self) -> dict[str, Any]:
    # Runs of one kind; a later Python may know more letters than this one.
    first = np.flatnonzero(np.diff(self._kinds, prepend=255))
    options = json.dumps(dataclasses.asdict(self.options), sort_keys=True)
    terms = self._terms
    return {
      "version": np.array(_VERSION),
      "options": np.frombuffer(options.encode(), np.uint8),
      "kinds.first": first.astype(np.int32),
      "kinds": self._kinds[first],
      "num_words": np.array(terms.num_words),
      "terms": np.frombuffer(terms.text().encode(), np.uint8),
      "lengths": np.diff(terms.starts).astype(np.int32),
    }

  @classmethod
  def load(cls, directory: str | os.PathLike[str]) -> Words:
    """Reads what `save` wrote.

    Raises:
      DataError: when the file is damaged, or of another version.
      OSError: when it cannot be read.
    """
    path = pathlib.Path(directory) / FILE
    try:
      with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
      version = int(arrays["version"])
      if version == _VERSION:
        return _of_arrays(arrays)
    except OSError:
      raise
    except Exception as error:  # whatever NumPy and zipfile say of damage
      raise errors.DataError(
        path, f"a damaged file ({error})", "words", hint="copy it again"
      ) from error
    raise errors.DataError(
      path, f"version {version}", f"{_VERSION}", hint="use a newer xlj"
    )


def fit(texts: Iterable[str], options: Options | None = None) -> Words:
  """Finds the terms of texts.

  Args:
    texts: those of the training split, a sequence or a stream, read once and
      block by block. All terms have to fit in memory, those that the options
      leave out too: about 100 bytes each, and 250 for those that are kept.
    options: which n-grams are terms; by default those of `Options`.

  Returns:
    The featurizer. It does not depend on the blocks.

  Raises:
    TypeError: when it is one text.
    ValueError: when no term is left.
  """
  options = options or Options()
  kinds = characters.kinds()
  terms = _Terms(_points(""), np.zeros(0, np.int32), 0)
  if options.hashed:
    return Words(options, options.hashed, kinds, terms)
  num_texts = 0
  rows = total = np.zeros(0, np.int64)  # [V], those of a term; its occurrences
  for block in _blocks(texts):
    listed = _Block(block, options, kinds)
    ids = terms.look_up(listed, add=True)
    counts = np.empty(len(ids), np.float32)
    indptr = np.empty(len(listed.ends), np.int64)
    word_loops.count(ids, listed.ends, counts, indptr)
    ids, counts = ids[: indptr[-1]], counts[: indptr[-1]]
    if terms.num > len(rows):
      rows, total = (_longer(array, terms.num) for array in (rows, total))
    np.add.at(rows, ids, 1)
    np.add.at(total, ids, counts.astype(np.int64))
    num_texts += len(block)
  rows, total = rows[: terms.num], total[: terms.num]
  kept = (rows >= options.min_df) & (rows <= options.max_df * num_texts)
  terms = terms.chosen(np.flatnonzero(kept), total, options.max_features)
  if not terms.num:
    raise ValueError(
      f"No term is left of {len(kept)} in {num_texts} texts; lower min_df"
      f" ({options.min_df}) or raise max_df ({options.max_df})"
    )
  return Words(options, terms.num, kinds, terms)


class _Block:
  """The n-grams of some texts, see `word_loops.list_ngrams`."""

  def __init__(self, texts: list[str], options: Options, kinds: np.ndarray):
    joined = "".join(texts)
    if joined.isascii():
      joined = joined.lower() if options.lowercase else joined
    else:  # lower case depends on what is beside a letter, and may be longer
      texts = [characters.prepare(text, options.lowercase) for text in texts]
      joined = "".join(texts)
    points = _points(joined)
    starts = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(
      np.fromiter(map(len, texts), np.int64, len(texts)), out=starts[1:]
    )
    out = np.empty(2 * len(points) + 1, np.uint32)
    begins = np.empty(len(points) + 1, np.int64)
    rows = np.empty(len(starts), np.int64)
    size, num = word_loops.split(points, starts, kinds, out, begins, rows)
    words, chars = options.ngrams, options.char_ngrams
    most = num * max(words[1] - words[0] + 1, 2) if words[1] else 0
    if chars[1]:
      most += (size + num) * (chars[1] - chars[0] + 1)
    first, last = np.empty((2, most), np.int64)
    hashes = np.empty(most, np.uint64)
    self.ends = np.empty(len(starts), np.int64)  # [N + 1]
    num = word_loops.list_ngrams(
      out, begins, rows, kinds, words, chars, first, last, hashes, self.ends
    )
    self.points = out
    self.first, self.last, self.hashes = first[:num], last[:num], hashes[:num]


class _Terms:
  """Terms by number, and a hash table of them.

  Attributes:
    num: V.
    num_words: how many of them, the first ones, are n-grams of words; 0 while
      terms are added.
    points: uint32, code points of all terms, and then room for more.
    starts: int64 [V + 1], where each term begins; and room.
    hashes: uint64 [V], the hash of each; and room.
    slots: int32, a power of two of them, more than twice as many as terms.
  """

  def __init__(self, points: np.ndarray, lengths: np.ndarray, num_words: int):
    self.num, self.num_words = len(lengths), num_words
    self.points = points
    self.starts = np.zeros(self.num + 1, np.int64)
    np.cumsum(lengths, out=self.starts[1:])
    self.hashes = np.empty(self.num, np.uint64)
    word_loops.hash_terms(points, self.starts, num_words, self.hashes)
    self._enter_all(self.num)

  def _enter_all(self, room: int) -> None:
    size = 1 << (2 * room + 1).bit_length()
    self.slots = np.full(size, -1, np.int32)
    word_loops.enter(self.hashes, self.num, self.slots)

  def look_up(self, block: _Block, *, add: bool = False) -> np.ndarray:
    """int32 [E], the term of each n-gram; -1 if it is none, unless added."""
    ids = np.empty(len(block.hashes), np.int32)
    done = 0
    while True:
      done, self.num = word_loops.look_up(
        block.points,
        block.first,
        block.last,
        block.hashes,
        done,
        self.slots,
        self.points,
        self.starts,
        self.hashes,
        self.num,
        add,
        ids,
      )
      if done == len(ids):
        return ids
      self._make_room(int(block.last[done] - block.first[done]))

  def _make_room(self, length: int) -> None:
    """For twice the terms, and one more of some length."""
    if self.num >= _MOST_FEATURES // 2:
      raise ValueError(
        f"More than {self.num} terms; set hashed, or lower the lengths"
      )
    self.hashes = _longer(self.hashes, self.num)
    self.starts = _longer(self.starts, self.num + 1)
    self.points = _longer(self.points, int(self.starts[self.num]) + length)
    self._enter_all(len(self.hashes))

  def chosen(self, kept: np.ndarray, total: np.ndarray, most: int) -> _Terms:
    """Some terms in the order that features have.

    Args:
      kept: int64, terms.
      total: int64 [V], how often each occurs.
      most: how many of them are taken; 0 for all.
    """
    by_words = np.empty(self.num, np.uint64)
    word_loops.hash_terms(self.points, self.starts, self.num, by_words)
    of_words = (by_words == self.hashes[: self.num])[kept]
    text, starts = self.text(), self.starts.tolist()
    strings = {i: text[starts[i] : starts[i + 1]] for i in kept.tolist()}
    order = np.array(
      [
        term
        for part in (kept[of_words], kept[~of_words])
        for term in sorted(part.tolist(), key=strings.__getitem__)
      ],
      np.int64,
    )
    if most and len(order) > most:
      often = np.argsort(-total[order], kind="stable")[:most]
      order = order[np.sort(often)]
    num_words = int(np.isin(order, kept[of_words]).sum())
    points = _points("".join(map(strings.__getitem__, order.tolist())))
    lengths = np.diff(self.starts)[order]
    return _Terms(points, lengths, num_words)

  def text(self) -> str:
    """All terms, one after the other."""
    return _text(self.points[: self.starts[self.num]])

  def strings(self) -> list[str]:
    """Each term."""
    text, starts = self.text(), self.starts[: self.num + 1].tolist()
    return [text[i:j] for i, j in itertools.pairwise(starts)]


def _of_arrays(arrays: dict[str, np.ndarray]) -> Words:
  """The words that `Words._arrays` describes.

  Raises:
    Exception: of some kind, when they do not fit together.
  """
  options = Options(**json.loads(arrays["options"].tobytes()))
  lengths = np.diff(arrays["kinds.first"], append=len(characters.kinds()))
  kinds = np.repeat(arrays["kinds"], lengths)
  points = _points(arrays["terms"].tobytes().decode())
  terms = _Terms(points, arrays["lengths"], int(arrays["num_words"]))
  if terms.starts[-1] != len(points):
    raise ValueError("terms of other lengths than it says")
  return Words(options, options.hashed or terms.num, kinds, terms)


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
  """Texts in lists that are short where texts are long."""
  if isinstance(texts, str):
    raise TypeError("texts is one str; give a list of them")
  given: Any = texts
  rest = None if hasattr(given, "__getitem__") else iter(given)
  start, size = 0, 64
  while block := list(
    itertools.islice(rest, size) if rest else given[start : start + size]
  ):
    yield block
    start += len(block)
    mean = sum(map(len, block)) // len(block) + 1
    size = max(1, min(_BLOCK_TEXTS, _BLOCK_POINTS // mean, 4 * size))


def _points(text: str) -> np.ndarray:
  """uint32 [n], the code points of a text; lone surrogates are some too."""
  encoded = text.encode("utf-32-le", "surrogatepass")
  return np.frombuffer(encoded, "<u4").astype(np.uint32)


def _text(points: np.ndarray) -> str:
  return points.astype("<u4").tobytes().decode("utf-32-le")


def _longer(array: np.ndarray, least: int) -> np.ndarray:
  """The array with more room: twice as much as is needed at least."""
  out = np.zeros(max(2 * least, len(array), _START), array.dtype)
  out[: len(array)] = array
  return out
