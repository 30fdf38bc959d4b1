"""Several judges of a text, whose scores make one.

Beside a run on vectors of texts stand in its directory a run on their words
(`words`), and what is kept of training (`fusion.npz`): the vectors of training
rows and their labels, and of what is said of the labels. Candidates are the
best labels of either run, and the labels of training rows near to the text. The
score of one is a sum of its `FEATURES` with weights, for which the candidates'
softmax gave held-out training rows the greatest likelihood.

A classifier's score, that of near rows and how often a label occurs are also
what SCORE fuses (Dahiya et al., "NGAME: Negative mining-aware mini-batching for
extreme classification", WSDM 2023, section 4), with a tree.

Legend: n texts, M training rows, L label ids, D width of vectors, m candidates
of all texts.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from xlj import files
from xlj import ops
from xlj import sharding
from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.model import neighbours as neighbours_lib

FILE = "fusion.json"  # of a run: the weights
MEMORY_FILE = "fusion.npz"
HELD_OUT_FILE = "fusion_held_out.npz"  # answers to rows not trained on
PLACES = 10  # of each
WORDS = "words"  # directory of the other run
FEATURES = (
  "vectors",  # logit of the run
  "words",  # logit of the run on words
  "near",  # log share of near training rows, by what the run makes of vectors
  "near_texts",  # likewise, by the vectors as they are
  "label_text",  # cosine with what is said of the label
  "count",  # log of one more than the training rows that have the label
  "own_text",  # whether the text is the one that the label is described by
  "label_words",  # cosines of words with the label's name, and all said of it
)
# Where nothing is trained nothing can be fitted: cosines count, those of words
# half as much as those of vectors, which have been multiplied by 20.
UNTRAINED = {"vectors": 1.0, "label_words": 10.0}
SMALL = neighbours_lib.SMALL


class Candidates(NamedTuple):
  """Labels that may be answers, by text and then by label.

  Attributes:
    texts: int64 `[m]`, from 0.
    labels: int64 `[m]`.
  """

  texts: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Memory:
  """What is kept of training.

  Attributes:
    vectors: float16 `[M, D]` of the training rows, of length 1.
    labels: `[M, L]`.
    label_vectors: float16 `[L, D]` of what is said of labels, of length 1; 0
      where there is nothing.
    counts: int64 `[L]`, training rows.
    described: uint64 `[L]`, `hashed` of what labels are described by; 0
      without.
    label_words: `[L, F]` the words of the names of labels and of all that is
      said of them, each of length 1, added up.
  """

  vectors: np.ndarray
  labels: csr_lib.Csr
  label_vectors: np.ndarray
  counts: np.ndarray
  described: np.ndarray
  label_words: csr_lib.Csr

  def save(self, directory: Path) -> None:
    """Writes it into the directory of a run."""
    arrays = {}
    for name, value in vars(self).items():
      if isinstance(value, csr_lib.Csr):
        parts = vars(value).items()
        arrays |= {f"{name}.{k}": a for k, a in parts if a is not None}
      else:
        arrays[name] = value
    with files.replacing(directory / MEMORY_FILE) as partial:
      with partial.open("wb") as out:
        np.savez(out, **arrays)

  @classmethod
  def load(cls, directory: Path) -> "Memory":
    """Reads what `save` wrote.

    Raises:
      DataError: The file is missing, or not as it was written.
    """
    path = directory / MEMORY_FILE
    try:
      with np.load(path, allow_pickle=False) as found:
        arrays: dict[str, Any] = dict(found)
      for name in ("labels", "label_words"):
        parts = ("indptr", "indices", "values", "num_columns")
        a, b, values, width = (arrays.pop(f"{name}.{p}", None) for p in parts)
        arrays[name] = csr_lib.Csr(a, b, values, int(width))
        arrays[name].validate()
      return cls(**arrays)
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
      raise _damaged(path, error) from error
    except zipfile.BadZipFile as error:
      raise _damaged(path, error) from error


@dataclasses.dataclass(frozen=True, eq=False)
class Fusion:
  """What fuses the scores of runs; see the module.

  Attributes:
    words: The run on words, an `inference.predictor.Predictor`.
    memory: What is kept of training.
    weights: float64 `[8]`, of `FEATURES`.
    candidates: Best labels of each run.
    neighbours: How many training rows are near; 0 for none.
    temperature: Of their cosines.
  """

  words: Any
  memory: Memory
  weights: np.ndarray
  candidates: int
  neighbours: int
  temperature: float

  @functools.cached_property
  def _labels(self) -> Any:
    return self.memory.labels.to_scipy()

  @functools.cached_property
  def _places(self) -> dict[str, jax.Array]:
    """Rows to search, by space, on the devices; filled when one is searched."""
    return {}

  def judge(
    self, run: Any, texts: Sequence[str], choice: Any
  ) -> tuple[Candidates, np.ndarray, dict[int, str]]:
    """Candidates of texts, and their features.

    Args:
      run: The run on vectors, an `inference.predictor.Predictor`.
      texts: n of them.
      choice: Labels that may be answers, a `model.label_choice.LabelChoice`.

    Returns:
      Candidates, their features float64 `[m, 8]`, and by text what is wrong
      with those whose scores mean nothing.
    """
    x = run.run.encoding.featurizer(texts)
    counts = self.words.run.encoding.featurizer(texts)
    found, failed = [], {}
    for judge, features in ((run, x), (self.words, counts)):
      k = min(self.candidates, judge.num_labels)
      scores, ids, wrong = judge.answers_alone(features, k, choice)
      failed |= wrong
      found.append((ids, scores))
    shares = [
      self._shares(run, "mapped", run.embed(x)),
      self._shares(run, "vectors", x),
    ]
    named = [ids for ids, _ in found]
    if choice.is_free:
      named += [csr_lib.Csr.from_scipy(s).pad(_longest(s)).ids for s in shares]
    candidates = union(named, self.memory.labels.num_columns)
    features = features_of(candidates, found, shares, x, counts, texts, self)
    return candidates, features, failed

  def _shares(self, run: Any, space: str, x: np.ndarray) -> Any:
    """How much of near training rows has each label, sparse `[n, L]`."""
    x, count = _unit(x), len(x)
    if not self.neighbours:
      return scipy.sparse.csr_array((count, self.memory.labels.num_columns))
    with jax.set_mesh(run.mesh):
      if space not in self._places:
        rows = self.memory.vectors
        if space == "mapped":
          rows = run.embed(rows.astype(np.float32))
        self._places[space] = _place(_unit(rows))
      rows = self._places[space]
      x = np.pad(x, ((0, sharding.fill(count)), (0, 0)))
      k = min(self.neighbours, self.memory.labels.num_rows)
      known = self.memory.labels.num_rows
      best = _search(sharding.put_batch(x), rows, k, known)
      cosines, near = (sharding.whole(a)[:count] for a in best)
    shares = neighbours_lib.shares(cosines, self.temperature)
    starts = np.arange(count + 1) * near.shape[1]
    of_rows = scipy.sparse.csr_array(
      (shares.ravel(), near.ravel(), starts), shape=(count, known)
    )
    return scipy.sparse.csr_array(of_rows @ self._labels)


def load(run: Any, load_words: Any) -> Fusion | None:
  """What fuses the scores of a run with those of others.

  Args:
    run: The run, an `inference.predictor.Predictor`.
    load_words: Opens the run on words in a directory.

  Returns:
    The fusion; None for a run that answers alone.

  Raises:
    DataError: A file is missing, or not as it was written.
  """
  settings = run.config.fusion
  if not settings.with_words:
    return None
  path = run.workdir / FILE
  try:
    saved = json.loads(path.read_text())["weights"]
    weights = np.array([float(saved[name]) for name in FEATURES])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise _damaged(path, error) from error
  return Fusion(
    load_words(run.workdir / WORDS),
    Memory.load(run.workdir),
    weights,
    settings.candidates,
    settings.neighbours,
    settings.temperature,
  )


def save_held_out(directory: Path, *arrays: np.ndarray) -> None:
  """Writes what `load_held_out` reads into the directory of a run."""
  with files.replacing(directory / HELD_OUT_FILE) as partial:
    with partial.open("wb") as out:
      np.savez(out, *arrays)


def load_held_out(directory: Path) -> list[np.ndarray]:
  """What was answered to rows that the first runs had not seen.

  Returns:
    Scores and label ids `[n, k]`, bool `[n, k]` which are right, and `[L]` how
    many training rows labels had.

  Raises:
    DataError: There is no such file, or it is not as it was written.
  """
  path = directory / HELD_OUT_FILE
  try:
    with np.load(path, allow_pickle=False) as found:
      return [found[f"arr_{i}"] for i in range(4)]
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise errors.DataError(
      path,
      f"no answers to held-out rows ({error})",
      "what training has written",
      hint="calibrate on a split that the run was not trained on, by"
      " --rows=test or --rows=validation",
    ) from error


def union(named: Sequence[np.ndarray], num_labels: int) -> Candidates:
  """All labels that some judge names for a text, each once.

  Args:
    named: int `[n, K]` of each judge; -1 for none.
    num_labels: L.

  Returns:
    The candidates.
  """
  keys = []
  for ids in named:
    rows = np.repeat(np.arange(len(ids)), ids.shape[1])
    flat = ids.ravel().astype(np.int64)
    keys.append((rows * num_labels + flat)[flat >= 0])
  every = np.unique(np.concatenate(keys))
  return Candidates(*np.divmod(every, num_labels))


def features_of(
  candidates: Candidates,
  scored: Sequence[tuple[np.ndarray, np.ndarray]],
  shares: Sequence[Any],
  vectors: np.ndarray,
  counts: csr_lib.Csr,
  texts: Sequence[str],
  fusion: Fusion,
) -> np.ndarray:
  """The features of candidates.

  A run says nothing of a label that is not among its best: it then counts as
  the last of them.

  Args:
    candidates: m of them.
    scored: Label ids and scores `[n, K]` of each run, descending.
    shares: Sparse `[n, L]`, of near training rows in both spaces.
    vectors: `[n, D]` of the texts.
    counts: `[n, F]` of their words.
    texts: n of them.
    fusion: Whose memory counts.

  Returns:
    float64 `[m, 8]`, columns as in `FEATURES`.
  """
  rows, labels = candidates
  memory = fusion.memory
  found = []
  for ids, scores in scored:
    finite = np.where(np.isfinite(scores), scores, np.inf)
    found.append(_looked_up(candidates, ids, scores, finite.min(1)))
  found += [np.log(_entries(s, rows, labels) + SMALL) for s in shares]
  said = memory.label_vectors[labels].astype(np.float32)
  found.append(np.einsum("md,md->m", _unit(vectors)[rows], said))
  found.append(np.log1p(memory.counts[labels]))
  hashes = np.array([hashed(text) for text in texts], np.uint64)
  found.append((hashes[rows] == memory.described[labels]) & (hashes[rows] > 0))
  words: Any = unit_words(fusion.words, counts).to_scipy()
  both = words[rows].multiply(memory.label_words.to_scipy()[labels])
  found.append(np.asarray(both.sum(1)).ravel())
  return np.stack(found, 1).astype(np.float64)


def topk(
  candidates: Candidates, scores: np.ndarray, num_texts: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """The best candidates of each text.

  Args:
    candidates: m of them.
    scores: `[m]`.
    num_texts: n.
    k: How many.

  Returns:
    float32 scores `[n, k]`, descending, and int32 labels; -inf and -1 where
    there are fewer.
  """
  rows, labels = candidates
  order = np.lexsort((labels, -scores, rows))
  rows = rows[order]
  place = np.arange(len(rows)) - np.searchsorted(rows, rows)
  kept = place < k
  rows, place, order = rows[kept], place[kept], order[kept]
  best = np.full((num_texts, k), -np.inf, np.float32)
  ids = np.full((num_texts, k), -1, np.int32)
  best[rows, place] = scores[order]
  ids[rows, place] = labels[order]
  return best, ids


def unit_words(run: Any, counts: csr_lib.Csr) -> csr_lib.Csr:
  """The weighted words of texts, of length 1.

  Args:
    run: A run on words, an `inference.predictor.Predictor`.
    counts: `[n, F]` of the words of n texts.

  Returns:
    `[n, F]`; nothing for a text without known words.
  """
  return dataclasses.replace(run.weighting, l2=True)(counts)


def hashed(text: str) -> int:
  """A number of 64 bits that texts of the same words share; 0 without any."""
  words = " ".join(text.lower().split())
  if not words:
    return 0
  digest = hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=8)
  return int.from_bytes(digest.digest(), "little")


def _looked_up(
  candidates: Candidates, ids: np.ndarray, scores: np.ndarray, rest: np.ndarray
) -> np.ndarray:
  """The scores `[m]` of candidates, `rest` `[n]` for those not among `ids`."""
  out = rest[candidates.texts].astype(np.float64)
  width = int(max(candidates.labels.max(initial=0), ids.max(initial=0))) + 1
  keys = candidates.texts * width + candidates.labels
  rows = np.repeat(np.arange(len(ids)), ids.shape[1])
  flat = ids.ravel().astype(np.int64)
  named = flat >= 0
  place = np.searchsorted(keys, (rows * width + flat)[named])
  place = np.minimum(place, len(keys) - 1)
  right = keys[place] == (rows * width + flat)[named]
  out[place[right]] = scores.ravel()[named][right]
  return out


def _entries(matrix: Any, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Entries `[m]` of a sparse matrix, 0 where there is none."""
  return np.asarray(matrix[rows, labels]).ravel()


def _longest(matrix: Any) -> int:
  return max(1, int(np.diff(matrix.indptr).max(initial=0)))


def _unit(rows: np.ndarray) -> np.ndarray:
  """float32 rows of length 1; those of length 0 stay."""
  rows = np.asarray(rows, np.float32)
  length = np.linalg.norm(rows, axis=1, keepdims=True)
  return rows / np.where(length > 0, length, 1)


def _place(rows: np.ndarray) -> jax.Array:
  """Rows on the mesh in context, with padding."""
  padded = np.pad(rows, ((0, sharding.fill(len(rows))), (0, 0)))
  return sharding.put_rows(len(padded), lambda chosen: padded[chosen])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _search(
  x: jax.Array, rows: jax.Array, k: int, known: int
) -> tuple[jax.Array, jax.Array]:
  """The k nearest of the known rows."""
  return ops.label_topk(jnp.asarray(x), rows, None, k, num_labels=known)


def _damaged(path: Path, error: Exception) -> errors.DataError:
  return errors.DataError(
    path,
    f"nothing to fuse scores by ({error})",
    "what training wrote",
    hint="copy the whole directory of the run, or run its training command"
    " again, which goes on where it is",
  )
