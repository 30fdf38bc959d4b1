"""Texts as rows of token ids, by the `tokenizers` library.

A tokenizer comes with a pretrained encoder, or is learned from the texts: byte
pairs (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with
Subword Units") over bytes (Radford et al. 2019), which know every script and,
unlike WordPiece as that library learns it, come out the same every time.

Legend: N texts, V token ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import hashlib
import itertools
import json
import os
from pathlib import Path
import re
from typing import Any, TYPE_CHECKING

import numpy as np

from xlj import files
from xlj.data import csr as csr_lib

if TYPE_CHECKING:
  import tokenizers

FILE = "tokenizer.json"
_BLOCK = 512  # texts that are encoded at a time; an encoding is large
# Characters for each token that a long text is cut to before it is encoded:
# the library would make all tokens of it, and then cut.
_CHARACTERS = 256
# Learning takes the square of the length of a word; longer ones are cut for it.
_LONG = re.compile(r"\S{256}")
# Of a learned tokenizer. Padding is 0, as the padding of rows.
_PAD, _START, _MASK = "<pad>", "<s>", "<mask>"


class Tokens:
  """Texts to the ids of their tokens, in order.

  Attributes:
    num_features: V.
    max_length: most tokens of a text, special ones included.
    truncated: how many texts had more, of all that were encoded so far.

  Example:
    tokens = Tokens.pretrained("weights/all-MiniLM-L6-v2", max_length=128)
    tokens(["a text", ""]).pad(width=8).ids
  """

  def __init__(self, document: str):
    """Takes a tokenizer as it is.

    Args:
      document: Content of a `tokenizer.json` that truncates.
    """
    self._document = document
    self._tokenizer = _library().Tokenizer.from_str(document)
    self.num_features = 1 + max(self._tokenizer.get_vocab().values(), default=0)
    self.max_length: int = self._tokenizer.truncation["max_length"]
    self.truncated = 0

  @classmethod
  def pretrained(
    cls,
    directory: str | os.PathLike[str],
    *,
    max_length: int = 128,
    special: bool = True,
  ) -> Tokens:
    """Reads the tokenizer of a pretrained encoder.

    Truncation and padding that its file asks for are not done.

    Args:
      directory: Holds `tokenizer.json`.
      max_length: Most tokens of a text, special ones included.
      special: Whether special tokens are added, as encoders but static ones
        were trained.

    Returns:
      The tokenizer.

    Raises:
      FileNotFoundError: If it has no such file.
      ValueError: If the file is no tokenizer, or `max_length` leaves no room
        for a token of the text.
    """
    tokenizer = _read(Path(directory))
    if not special:
      tokenizer.post_processor = None
    return cls(_limited(tokenizer, max_length))

  @classmethod
  def train(
    cls, texts: Sequence[str], *, size: int = 16384, max_length: int = 128
  ) -> Tokens:
    """Learns the tokens of texts: byte pairs, in lower case.

    Args:
      texts: Of the training rows; the same texts in the same order give the
        same tokenizer, byte for byte.
      size: Most tokens, the 256 bytes and three special ones included.
      max_length: Most tokens of a text, special ones included.

    Returns:
      The tokenizer.

    Raises:
      ValueError: If there is no room for the bytes, or `max_length` leaves none
        for a token of the text.
    """
    lib = _library()
    alphabet = lib.pre_tokenizers.ByteLevel.alphabet()
    special = [_PAD, _START, _MASK]
    if size < len(alphabet) + len(special):
      raise ValueError(
        f"{size} tokens do not hold the {len(alphabet)} bytes and"
        f" {len(special)} special tokens; allow more"
      )
    tokenizer = lib.Tokenizer(lib.models.BPE())
    tokenizer.normalizer = lib.normalizers.Sequence(
      [lib.normalizers.NFC(), lib.normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = lib.pre_tokenizers.ByteLevel(
      add_prefix_space=True
    )
    tokenizer.decoder = lib.decoders.ByteLevel()
    tokenizer.post_processor = lib.processors.TemplateProcessing(
      single=f"{_START} $A", special_tokens=[(_START, special.index(_START))]
    )
    trainer = lib.trainers.BpeTrainer(
      vocab_size=size,
      min_frequency=2,
      special_tokens=special,
      initial_alphabet=sorted(alphabet),
      show_progress=False,
    )
    tokenizer.train_from_iterator(
      (
        [_LONG.sub(r"\g<0> ", _readable(text)) for text in block]
        for block in _blocks(texts)
      ),
      trainer,
    )
    return cls(_limited(tokenizer, max_length))

  @classmethod
  def load(cls, directory: str | os.PathLike[str]) -> Tokens:
    """Reads what `save` has written; errors are those of `pretrained`."""
    path = Path(directory) / FILE
    _read(path.parent)
    return cls(path.read_text(encoding="utf-8"))

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes `tokenizer.json` to a directory; it holds `max_length` too."""
    files.write_text(Path(directory) / FILE, self._document)

  def fingerprint(self) -> str:
    """SHA-256 of the file that `save` writes."""
    return hashlib.sha256(self._document.encode()).hexdigest()

  def __call__(self, texts: Sequence[str]) -> csr_lib.Csr:
    """Encodes texts.

    A text that is no Unicode (half of a surrogate pair) has U+FFFD there.

    Args:
      texts: N of them; an empty one has the special tokens alone.

    Returns:
      `[N, V]` without values. Unlike other such matrices, a row has its ids in
      the order of the text, and may have one several times.
    """
    lengths: list[int] = []
    parts = []
    for block in _blocks(texts):
      rows = [encoding.ids for encoding in self._encode(block)]
      lengths += map(len, rows)
      ids = itertools.chain.from_iterable(rows)
      parts.append(np.fromiter(ids, np.int32, sum(map(len, rows))))
    indptr = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    indices = np.concatenate(parts or [np.zeros(0, np.int32)])
    return csr_lib.Csr(indptr, indices, None, self.num_features)

  def _encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
    """Encodes a block, and counts what is cut."""
    texts = [_readable(text) for text in texts]
    limit = _CHARACTERS * self.max_length
    heads = [_head(text, limit) for text in texts]
    out = self._tokenizer.encode_batch_fast(heads)
    for i, (text, head) in enumerate(zip(texts, heads)):
      if len(head) < len(text) and not out[i].overflowing:
        out[i] = self._tokenizer.encode_batch_fast([text])[0]
    self.truncated += sum(bool(encoding.overflowing) for encoding in out)
    return out


def _library() -> Any:
  """The package, which is an extra."""
  try:
    import tokenizers
  except ImportError as error:
    raise ImportError(
      "tokens of texts need tokenizers: pip install 'xlj-jax[text]'"
    ) from error
  return tokenizers


def _read(directory: Path) -> tokenizers.Tokenizer:
  path = directory / FILE
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} does not exist; the directory of a pretrained encoder has its"
      " tokenizer there"
    )
  lib = _library()
  try:
    return lib.Tokenizer.from_file(os.fspath(path))
  except Exception as error:  # the library has no class of its own
    raise ValueError(f"{path} is no tokenizer: {error}") from None


def _limited(tokenizer: tokenizers.Tokenizer, max_length: int) -> str:
  """Content of the file, with truncation and nothing else that it may ask."""
  least = 1 + tokenizer.num_special_tokens_to_add(False)
  if max_length < least:
    raise ValueError(
      f"max_length is {max_length}, and with its special tokens a text has at"
      f" least {least}; allow more"
    )
  tokenizer.no_padding()
  tokenizer.enable_truncation(max_length)
  # In one order, whatever that of the library's tables.
  return json.dumps(
    json.loads(tokenizer.to_str()), ensure_ascii=False, sort_keys=True
  )


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
  for start in range(0, len(texts), _BLOCK):
    yield texts[start : start + _BLOCK]


def _head(text: str, limit: int) -> str:
  """A text, or if it is long its first whole words; none without spaces."""
  if len(text) <= limit:
    return text
  end = max(text.rfind(space, 0, limit) for space in " \t\n")
  return text[: max(end, 0)].rstrip()


def _readable(text: str) -> str:
  """The text, with U+FFFD for halves of surrogate pairs."""
  if not isinstance(text, str):
    raise TypeError(f"a text is {type(text).__name__}; give str")
  if text.isascii():
    return text
  try:
    text.encode()
  except UnicodeEncodeError:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
  return text
