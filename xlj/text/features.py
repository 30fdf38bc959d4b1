"""What a model reads of texts, as splits of a data set.

A featurizer makes features of texts: counts of words (`words`), tokens in order
(`tokens`), or embeddings (`vectors`). It is fitted to the training split, and
kept with the cache and with the run, so that texts mean the same when they are
scored. The features of a split are computed once, block by block, and mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import hashlib
import os
import pathlib
from typing import Any, Protocol, TypeVar

from absl import logging
import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import entries
from xlj.data import errors
from xlj.data import ingest
from xlj.data import store
from xlj.documents import formats
from xlj.documents import naming
from xlj.documents import store as documents_lib
from xlj.documents import texts as texts_lib
from xlj.text import vectors

_T = TypeVar("_T")
_BLOCK = 4096  # texts at a time
_SAMPLE = 256  # rows that tell whether texts of labels do
_TELLING = 0.25  # of other labels, that may be nearer
_VERSION = 1  # of entries: raise it when what is written changes


class Featurizer(Protocol):
  """Makes features of texts."""

  @property
  def num_features(self) -> int:
    """F."""
    ...

  def __call__(self, texts: Sequence[str]) -> csr_lib.Csr | np.ndarray:
    """The features `[n, F]` of n texts."""
    ...

  def fingerprint(self) -> str:
    """A text that two featurizers share only if they are the same."""
    ...

  def save(self, directory: pathlib.Path) -> None:
    """Writes what `load` of its class reads."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class Encoding:
  """What training has learned of texts and names.

  Attributes:
    kind: what is read of texts, as `data.text` says.
    featurizer: makes the features.
    label_names: by label id; None if labels are ids.
    num_labels: L.
  """

  kind: str
  featurizer: Featurizer
  label_names: list[str] | None
  num_labels: int

  @property
  def labels(self) -> tuple[list[str] | None, int]:
    """What the labels are."""
    return self.label_names, self.num_labels


def fit(
  documents: documents_lib.Documents,
  settings: str,
  make: Callable[[Sequence[str]], Featurizer],
  load: Callable[[pathlib.Path], Featurizer],
) -> Featurizer:
  """The featurizer of a training split, fitted once.

  Args:
    documents: the training split.
    settings: all that it depends on besides the texts.
    make: fits it.
    load: reads it from a directory.

  Returns:
    The featurizer.
  """

  def write(directory: pathlib.Path) -> dict[str, Any]:
    make(documents.texts).save(directory)
    return {"arrays": {}}

  return _computed(
    documents, f"featurizer {settings}", write, lambda entry, _: load(entry)
  )


def open_split(
  documents: documents_lib.Documents, encoding: Encoding, verify: bool = True
) -> store.Split:
  """The features of documents, computed once.

  Args:
    documents: texts and labels.
    encoding: what makes the features.
    verify: as of `xlj.data.store.open_split`.

  Returns:
    The split, whose arrays are memory maps.
  """
  featurizer = encoding.featurizer
  if isinstance(featurizer, vectors.Vectors):
    return _embedded(documents, encoding, featurizer, verify)

  def write(directory: pathlib.Path) -> dict[str, Any]:
    logging.info(
      "Reading the %d texts of %s", len(documents.texts), documents.name
    )
    return _write(documents.texts, featurizer, directory)

  def load(entry: pathlib.Path, meta: dict[str, Any]) -> store.Split:
    maps = entries.arrays(entry, meta)
    features: Any = maps.get("features")
    if features is None:
      features = csr_lib.Csr(
        maps["features.indptr"],
        maps["features.indices"],
        maps.get("features.values"),
        featurizer.num_features,
      )
    return store.Split(
      features,
      documents.labels,
      documents.filter,
      documents.name,
      entry.name,
      entry,
      verification=entries.verification(entry) if verify else None,
      notes=documents.notes,
      encoding=encoding,
      label_texts=documents.label_texts,
    )

  what = f"features {featurizer.fingerprint()}"
  return _computed(documents, what, write, load)


def _embedded(
  documents: documents_lib.Documents,
  encoding: Encoding,
  featurizer: vectors.Vectors,
  verify: bool,
) -> store.Split:
  """Embeddings of documents, which are those of the texts alone."""
  place = documents.cache_dir.parent
  found = featurizer.embed(documents.texts, place, name=documents.name)
  both = f"{documents.fingerprint} {found.entry.name}"
  return store.Split(
    found.features,
    documents.labels,
    documents.filter,
    documents.name,
    hashlib.sha256(both.encode()).hexdigest()[:32],
    documents.cache_dir,
    verification=entries.verification(found.entry) if verify else None,
    notes=documents.notes,
    encoding=encoding,
    label_texts=documents.label_texts,
  )


def read_file(path: str | os.PathLike[str], encoding: Encoding) -> store.Split:
  """Texts of a file that may have labels which training has not.

  Args:
    path: the file, of any form of texts.
    encoding: of a run.

  Returns:
    The rows, in memory. Labels that the run has not have ids from `num_labels`
    on; the split's encoding has their names, too.

  Raises:
    DataError: a row is not right, or has no labels.
  """
  names = encoding.label_names
  known = naming.Known(names, encoding.num_labels, True, "the run")
  numbers = naming.Numbers(known, None)
  features: list[Any] = []
  labels: list[csr_lib.Csr] = []
  for block in formats.stream(path):
    if isinstance(block, errors.DataError):
      raise block
    labels.append(numbers.block(block, path))
    features.append(encoding.featurizer(block.texts))
  if not labels:
    raise errors.DataError(path, "no row", "texts")
  width = numbers.count
  labels = [dataclasses.replace(part, num_columns=width) for part in labels]
  if numbers.named:
    names = [*(names or map(str, range(encoding.num_labels))), *numbers.new]
  sparse = isinstance(features[0], csr_lib.Csr)
  return store.Split(
    csr_lib.concatenate(features) if sparse else np.concatenate(features),
    csr_lib.concatenate(labels),
    None,
    pathlib.Path(path).name,
    "",
    encoding=dataclasses.replace(encoding, label_names=names, num_labels=width),
  )


def label_texts_tell(split: store.Split) -> bool:
  """Whether the texts of labels say which ones a row has.

  They do not where they are, say, names of people. A sample of rows decides:
  most are nearer to what is said of a label of theirs than to what is said of
  the label of another row.

  Args:
    split: the training split.

  Returns:
    The answer; of tokens whether most texts say more than a name, and False
    of words.
  """
  if split.label_texts is None or split.encoding.kind == "words":
    return False
  if split.encoding.kind == "tokens":  # Which are not embedded yet.
    some = split.label_texts[:_SAMPLE]
    return float(np.mean([bool(_parts(text)[0]) for text in some])) > 0.5
  assert not isinstance(split.features, csr_lib.Csr)
  labelled = np.flatnonzero(split.labels.row_lengths)
  sample = np.linspace(0, len(labelled) - 1, min(_SAMPLE, len(labelled)))
  rows = np.unique(labelled[sample.astype(np.int64)])
  labels = split.labels.indices[split.labels.indptr[rows]]
  said = split.encoding.featurizer([split.label_texts[i] for i in labels])
  cosines = np.asarray(split.features[rows]) @ said.T
  own = np.diag(cosines)[:, None]
  # Half of others are nearer by chance.
  return bool(np.mean(cosines > own) < _TELLING)


def label_split(split: store.Split) -> store.Split | None:
  """The texts of labels as examples, each of its own label.

  Of a text "name: description" the name counts as much as the whole. Where
  texts are described in the words that describe them as labels, too, as many of
  wordnet_hypernym are, the description alone would make each its own label.

  Args:
    split: the training split, of texts.

  Returns:
    A split in memory, with a row for each label that has a text; None if none
    has.
  """
  said = [(i, t) for i, t in enumerate(split.label_texts or ()) if t.strip()]
  if not said:
    return None
  ids = np.array([i for i, _ in said], np.int32)
  texts = [text for _, text in said]
  names = list(map(name_of, texts))
  featurizer, name = split.encoding.featurizer, f"{split.name}, texts of labels"
  if isinstance(featurizer, vectors.Vectors):
    both = texts_lib.of(names + texts)
    assert split.cache_dir is not None  # It is from files.
    place = split.cache_dir.parent
    found = featurizer.embed(both, place, name=name).features
    features: Any = (found[: len(ids)] + found[len(ids) :]) / 2
  else:
    features = csr_lib.concatenate([featurizer(names), featurizer(texts)])
    ids = np.tile(ids, 2)
  labels = csr_lib.Csr(
    np.arange(len(ids) + 1, dtype=np.int64), ids, None, split.num_labels
  )
  return store.Split(features, labels, None, name, split.fingerprint)


def name_of(text: str) -> str:
  """What a text of a label begins with: its name, if there is more."""
  return _parts(text)[0] or text


def description(text: str) -> str:
  """What a text of a label says beside its name: all if it has none."""
  return _parts(text)[1] or text


def _parts(text: str) -> tuple[str, str]:
  """The name of "name: description" or two lines, and the rest; or nothing."""
  for between in ("\n", ": "):
    name, _, more = text.partition(between)
    if name.strip() and more.strip():
      return name, more
  return "", ""


def _write(
  texts: documents_lib.Texts, featurizer: Featurizer, directory: pathlib.Path
) -> dict[str, Any]:
  """Writes the features of texts; returns what there is to say of them."""
  with contextlib.ExitStack() as stack:
    out = ingest.Writers(directory, stack)
    for start in range(0, len(texts), _BLOCK):
      block = featurizer(texts[start : start + _BLOCK])
      if isinstance(block, csr_lib.Csr):
        out.add_csr("features", block)
      else:
        out.add("features", block, featurizer.num_features)
    return {"arrays": out.close()}


def _computed(
  documents: documents_lib.Documents,
  what: str,
  write: Callable[[pathlib.Path], dict[str, Any]],
  load: Callable[[pathlib.Path, dict[str, Any]], _T],
) -> _T:
  """What is computed from documents, in the cache beside them."""
  key = f"{_VERSION} {documents.fingerprint} {what}"
  name = hashlib.sha256(key.encode()).hexdigest()[:32]
  place = documents.cache_dir.parent
  return entries.open_in([place], name, write, load)[0]
