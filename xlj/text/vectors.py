"""Texts as embeddings of a pretrained encoder that is not trained further.

They are computed once, and kept in the cache beside the texts for all runs:

    PLACE/KEY/          a finished entry of `xlj.data.cache`
    PLACE/KEY.part/     blocks of one that is not, each with its checksum

A computation that was killed goes on where it was. Processes that want the same
embeddings at the same time, of one job or of several, share the blocks.

Legend: N texts, T tokens of a text (padded), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path
import random
import shutil
import time
from typing import Any, NamedTuple
import zipfile

from absl import logging
import jax
import numpy as np

from xlj import files
from xlj.data import cache
from xlj.data import csr as csr_lib
from xlj.data import entries
from xlj.data import ingest
from xlj.documents import texts as texts_lib
from xlj.encoders import pretrained
from xlj.encoders import static
from xlj.text import tokens as tokens_lib

DIRECTORY = "encoder"  # of a run
_SETTINGS = "vectors.json"
_ARRAY = "features"
_VERSION = 1  # of entries: raise it when what is written changes
_MODULES = "modules.json"  # of sentence-transformers
# Of the directory of an encoder, besides its weights.
_FILES = (pretrained.CONFIG_FILE, _MODULES, "1_Pooling/config.json")
# Tokens of a batch, padding included, for each device; on CPUs more are no
# faster, and the last batch of each width is filled up.
_BATCH = {"cpu": 2**10}
_LARGE_BATCH = 2**16
_BLOCK_BATCHES = 128  # in a block of texts, about
_LOG_SECONDS = 10.0


class Embedded(NamedTuple):
  """Embeddings on disk.

  Attributes:
    features: float32 `[N, D]`, a memory map.
    entry: Its directory, an entry of `xlj.data.entries`.
  """

  features: np.ndarray
  entry: Path


class Vectors:
  """Texts to the embeddings of a frozen encoder.

  A text is padded to one of few widths, which its own length decides. In
  `embed` batches are always full, so that the bits of an embedding depend on
  the text and the kind of device alone, and not on the other texts or on how
  many devices there are. Calls with a few texts make smaller batches, which
  change the last bits.

  Attributes:
    tokens: What splits texts.
    num_features: D.

  Example:
    vectors = Vectors.pretrained("weights/all-MiniLM-L6-v2")
    vectors(["a text", "another"])                     # [2, 384]
    vectors.embed(documents.texts, cache_dir).features  # [N, 384]
  """

  def __init__(
    self, directory: Path, tokens: tokens_lib.Tokens, dtype: str
  ) -> None:
    """Reads an encoder; see `pretrained`."""
    self.tokens = tokens
    self._directory, self._dtype = directory, dtype
    self._mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("texts",))
    place = jax.NamedSharding(self._mesh, jax.P())
    unit = _has_unit_rows(directory)
    if _is_static(directory):
      table = static.load(directory)
      self.num_features, known = table.shape[1], len(table)
      self._encode = static.encoder(table, unit=unit, place=place)
    else:
      sizes = pretrained.sizes(directory)
      self.num_features, known = sizes.width, sizes.num_tokens
      if tokens.max_length > sizes.positions:
        raise ValueError(
          f"max_length is {tokens.max_length}, and {directory} has positions"
          f" for {sizes.positions} tokens; allow no more"
        )
      self._encode = pretrained.encoder(
        directory, dtype=dtype, unit=unit, place=place
      )
    if tokens.num_features > known:
      raise ValueError(
        f"{directory}: {tokens_lib.FILE} has {tokens.num_features} tokens, and"
        f" the weights know {known}; they do not belong together"
      )

  @classmethod
  def pretrained(
    cls,
    directory: str | os.PathLike[str],
    *,
    max_length: int = 128,
    dtype: str = "float32",
  ) -> Vectors:
    """Reads a pretrained encoder and its tokenizer.

    Args:
      directory: `tokenizer.json`, and a transformer as `encoders.pretrained`
        reads it or a table of token vectors as `encoders.static` does.
      max_length: Most tokens of a text, special ones included.
      dtype: That a transformer computes in, "float32" or "bfloat16".

    Returns:
      The featurizer. Embeddings have length 1 unless `modules.json` is there
      and names no normalisation.

    Raises:
      FileNotFoundError: There is no tokenizer.
      ValueError: A file is missing, or not right.
      ImportError: An extra is not installed.
    """
    directory = Path(directory)
    tokens = tokens_lib.Tokens.pretrained(
      directory, max_length=max_length, special=not _is_static(directory)
    )
    return cls(directory, tokens, dtype)

  @classmethod
  def load(cls, directory: str | os.PathLike[str]) -> Vectors:
    """Reads what `save` has written; errors are those of `pretrained`."""
    inside = Path(directory) / DIRECTORY
    tokens = tokens_lib.Tokens.load(inside)
    settings = json.loads((inside / _SETTINGS).read_text())
    return cls(inside, tokens, settings["dtype"])

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Copies the encoder to `encoder` in a directory.

    A run is then complete without the pretrained directory; that takes as much
    room as its weights, 91 MB for MiniLM.
    """
    inside = Path(directory) / DIRECTORY
    for name in _parts(self._directory):
      target = inside / name
      target.parent.mkdir(parents=True, exist_ok=True)
      with files.replacing(target) as partial:
        shutil.copyfile(self._directory / name, partial)
    self.tokens.save(inside)
    files.write_text(inside / _SETTINGS, json.dumps({"dtype": self._dtype}))

  def fingerprint(self) -> str:
    """SHA-256 of all that embeddings depend on, besides the texts."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    names = _parts(self._directory)
    what: list[Any] = [_VERSION, self.tokens.fingerprint(), self._dtype]
    for name in names:
      with (self._directory / name).open("rb") as file:
        what.append([name, hashlib.file_digest(file, "sha256").hexdigest()])
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Embeds texts.

    Args:
      texts: N of them.

    Returns:
      float32 `[N, D]`.
    """
    return self._embed(self.tokens(texts), full=False)

  def embed(
    self, texts: texts_lib.Texts, place: Path, *, name: str = "texts"
  ) -> Embedded:
    """Embeds texts once, and opens what is there of them later.

    Args:
      texts: N of them.
      place: A directory that can be written, best the same for all runs.
      name: Of the texts, for the log.

    Returns:
      The embeddings.

    Raises:
      OSError: If `place` cannot be written, or is full.
    """
    what = json.dumps([_VERSION, texts.fingerprint, self.fingerprint()])
    key = hashlib.sha256(what.encode()).hexdigest()[:32]
    part = place / f"{key}.part"
    blocks = _Blocks(self, texts, part)

    def write(directory: Path) -> dict[str, Any]:
      cut = 0
      with contextlib.ExitStack() as stack:
        out = ingest.Writers(directory, stack)
        for i in range(len(blocks)):
          found = blocks.get(i)
          out.add(_ARRAY, found.vectors, self.num_features)
          cut += found.cut
        return {"arrays": out.close(), "cut": cut}

    def load(entry: Path, meta: dict[str, Any]) -> Embedded:
      if meta["cut"]:
        logging.warning(
          "%d of the %d texts of %s have more than %d tokens; what follows is"
          " not read",
          *(meta["cut"], len(texts), name, self.tokens.max_length),
        )
      return Embedded(entries.arrays(entry, meta)[_ARRAY], entry)

    if cache.read_meta(place / key) is None:
      blocks.compute(name, lambda: (place / key).exists())
    found, _ = entries.open_in([place], key, write, load)
    shutil.rmtree(part, ignore_errors=True)
    return found

  @property
  def batch_tokens(self) -> int:
    """Tokens of a full batch on all devices of this process, at most."""
    each = _BATCH.get(jax.default_backend(), _LARGE_BATCH)
    return each * self._mesh.size

  def _embed(self, rows: csr_lib.Csr, *, full: bool) -> np.ndarray:
    """Embeddings of tokens `[N, V]`; in full batches, or as small as needed."""
    out = np.empty((rows.num_rows, self.num_features), np.float32)
    sizes = _widths(self.tokens.max_length)
    widths = sizes[np.searchsorted(sizes, rows.row_lengths)]
    running = []
    for width in np.unique(widths):
      where = np.flatnonzero(widths == width)
      most = max(1, self.batch_tokens // self._mesh.size // int(width))
      for start in range(0, len(where), most * self._mesh.size):
        chosen = where[start : start + most * self._mesh.size]
        each = most if full else _at_least(len(chosen) / self._mesh.size, most)
        x = self._run(rows.take(chosen), int(width), each * self._mesh.size)
        running.append((chosen, x))
    for chosen, x in running:
      out[chosen] = np.asarray(x)[: len(chosen)]
    return out

  def _run(self, rows: csr_lib.Csr, width: int, count: int) -> jax.Array:
    """Starts a batch of `count` texts, which `rows` are the first of."""
    padded = rows.pad(width, fill=0)
    below = ((0, count - rows.num_rows), (0, 0))
    batch = np.pad(padded.ids, below), np.pad(padded.values, below)
    with jax.set_mesh(self._mesh):
      place = jax.NamedSharding(self._mesh, jax.P("texts"))
      return self._encode(*jax.device_put(batch, place))


class _Block(NamedTuple):
  """Embeddings of consecutive texts.

  Attributes:
    vectors: float32 `[n, D]`.
    cut: How many of the texts were too long.
  """

  vectors: np.ndarray
  cut: int


class _Blocks:
  """The blocks of some texts, each in a file once it has been computed."""

  def __init__(
    self, vectors: Vectors, texts: texts_lib.Texts, directory: Path
  ) -> None:
    self._vectors, self._texts, self._directory = vectors, texts, directory
    # As if a text had 16 tokens: a name has the size, so that blocks of other
    # devices are not taken for these.
    self._size = max(1, _BLOCK_BATCHES * vectors.batch_tokens // 16)

  def __len__(self) -> int:
    return -(-len(self._texts) // self._size)

  def get(self, i: int) -> _Block:
    """Reads a block; computes it if that is not possible."""
    path = self._directory / f"{self._size}-{i:06}.npz"
    found = _read(path)
    if found is None:
      self._directory.mkdir(parents=True, exist_ok=True)
      with cache.alone(path):
        found = _read(path)  # another process may have computed it
        if found is None:
          if path.exists():
            logging.warning("%s is damaged; it is computed again", path)
          found = self._compute(i)
          with files.replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, vectors=found.vectors, cut=found.cut)
    return found

  def compute(self, name: str, done: Callable[[], bool]) -> None:
    """Computes all that are not there, unless another process has.

    Args:
      name: Of the texts, for the log.
      done: Whether the entry is there.
    """
    order = list(range(len(self)))
    # Each process in an order of its own, so that few wait for each other.
    random.Random(os.getpid()).shuffle(order)
    begun = last = time.monotonic()
    seen = 0
    for count, i in enumerate(order, 1):
      if done():
        return
      self.get(i)
      seen += len(range(len(self._texts))[self._rows(i)])
      now = time.monotonic()
      if now - last > _LOG_SECONDS or count == len(order):
        last = now
        rate = seen / max(now - begun, 1e-9)
        logging.info(
          "Embedding %s: %d of %d texts, %.0f a second, %.0f s left",
          *(name, seen, len(self._texts), rate),
          (len(self._texts) - seen) / rate,
        )

  def _rows(self, i: int) -> slice:
    return slice(i * self._size, (i + 1) * self._size)

  def _compute(self, i: int) -> _Block:
    tokens = self._vectors.tokens
    before = tokens.truncated
    rows = tokens(self._texts[self._rows(i)])
    found = self._vectors._embed(rows, full=True)
    return _Block(found, tokens.truncated - before)


def _read(path: Path) -> _Block | None:
  """A block whose checksum is right, or None."""
  try:
    with np.load(path) as found:
      return _Block(found["vectors"], int(found["cut"]))
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None


def _widths(max_length: int) -> np.ndarray:
  """What texts are padded to, ascending, the last one is `max_length`."""
  sizes = {width << k for width in (8, 24) for k in range(20)}
  return np.array(sorted({min(size, max_length) for size in sizes}))


def _at_least(count: float, most: int) -> int:
  """Rows of a small batch: a power of 8, or as many as a full one has."""
  size = 1
  while size < count:
    size *= 8
  return min(size, most)


def _parts(directory: Path) -> Iterator[str]:
  """Names of the files of an encoder, its tokenizer's not among them."""
  for name in _FILES:
    if (directory / name).is_file():
      yield name
  weights = [pretrained.WEIGHTS_FILE]
  if not (directory / weights[0]).is_file():
    if (directory / pretrained.INDEX_FILE).is_file():
      yield pretrained.INDEX_FILE
    weights = sorted(path.name for path in directory.glob("*.safetensors"))
  yield from weights


def _is_static(directory: Path) -> bool:
  """Whether it has a table of token vectors alone."""
  try:
    saved = json.loads((directory / pretrained.CONFIG_FILE).read_text())
  except FileNotFoundError:
    return True
  except ValueError:
    return False  # whose reader says what is wrong
  return isinstance(saved, dict) and saved.get("model_type") == "model2vec"


def _has_unit_rows(directory: Path) -> bool:
  """Whether embeddings are to have length 1."""
  path = directory / _MODULES
  return not path.is_file() or ".Normalize" in path.read_text()
