"""What is read of texts: `data.text`, and the section `text`."""

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import families
from xlj.config import options
from xlj.data import discover
from xlj.data import store
from xlj.documents import discover as documents_discover
from xlj.documents import store as documents_lib
from xlj.text import features as features_lib
from xlj.text import tokens as tokens_lib
from xlj.text import vectors as vectors_lib
from xlj.text import words as words_lib

_OF_WORDS = tuple(
  f"text.words.{field.name}" for field in dataclasses.fields(words_lib.Options)
)
_OF_TOKENS = ("text.pretrained", "text.max_length")
_READS = {
  "": (),
  "words": _OF_WORDS,
  "tokens": (*_OF_TOKENS, "text.num_tokens"),
  "vectors": (*_OF_TOKENS, "text.dtype"),
  "auto": (*_OF_WORDS, *_OF_TOKENS, "text.num_tokens", "text.dtype"),
}
# Of texts that a small encoder embeds on one core, training on them included;
# wordnet_hypernym took 17 minutes on two. Accelerators are faster by a factor
# that nobody has measured yet.
_BYTES_PER_SECOND = 2500
_FASTER = 50
CHOICES = {
  "data.text": tuple(_READS),
  "text.dtype": ("float32", "bfloat16"),
}
SWITCHES = (options.by_name("data.text", _READS),)


def fields() -> options.Fields:
  """All fields, with None for "decide from the data"."""
  return {
    # What is read of texts: "words" (how often each occurs), "tokens" (in
    # order, for an encoder of texts), "vectors" (embeddings by an encoder that
    # stays as it is) or "auto": vectors if there is a pretrained encoder, or
    # else words; "" where rows are no texts
    "data.text": config_dict.placeholder(str),
    # Of the training texts, that are the test split, by the hash of each
    "data.test_share": 0.0,
    # Minutes that "auto" may take with a pretrained encoder; 0 for all it needs
    "text.budget": 0.0,
    # Directory of a pretrained encoder: config.json, tokenizer.json and
    # model.safetensors; empty: tokens are learned from the texts
    "text.pretrained": "",
    "text.max_length": 128,  # most tokens of a text, special ones included
    "text.num_tokens": 16_384,  # tokens to learn from the texts
    "text.dtype": "float32",  # that vectors are computed in
    # Of words, see xlj.text.words:
    # Shortest and longest runs of words that count; (0, 0) for none
    "text.words.ngrams": (1, 2),
    # Shortest and longest pieces of a word, in characters; (0, 0) for none
    "text.words.char_ngrams": (5, 5),
    "text.words.min_df": 1,  # fewest training texts that have a term
    "text.words.max_df": 1.0,  # greatest share of them that has one
    "text.words.max_features": 0,  # most terms, the frequent ones; 0 for all
    # Features that terms are hashed to; 0 for a vocabulary
    "text.words.hashed": 0,
    "text.words.lowercase": True,  # put texts into lower case first
  }


RANGES: checks.Ranges = {
  "data.test_share": checks.RATE,
  "text.budget": checks.Range(0, 1e6),
  "text.max_length": checks.Range(1, 2**20),
  "text.num_tokens": checks.Range(259),
  "text.words.ngrams": checks.Range(0, 16),
  "text.words.char_ngrams": checks.Range(0, 16),
  "text.words.min_df": checks.Range(1),
  "text.words.max_df": checks.Range(0, 1, above=True),
  "text.words.max_features": checks.Range(0),
  "text.words.hashed": checks.Range(0),
}


def _has_vectors(config: ml_collections.ConfigDict) -> bool:
  """Whether there is an encoder for vectors, and time for it."""
  text = config.text
  if not text.pretrained or not text.budget:
    return bool(text.pretrained)
  size = sum(path.stat().st_size for path in files(config, "train"))
  seconds = size / _BYTES_PER_SECOND / (os.cpu_count() or 1)
  if jax.default_backend() != "cpu":
    seconds /= _FASTER
  return seconds <= 60 * text.budget


def rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  """Values for fields that are left open."""
  if facts.text == "tokens":  # Their order is what counts.
    return {"data.weighting": "none", "data.l2": False}
  return {}


def kind(config: ml_collections.ConfigDict) -> str:
  """What is read of the texts of a config's data.

  Args:
    config: Resolved or not; features in files come before texts.

  Returns:
    One of `data.text`; "" if there are none.
  """
  data = config.data
  if data.text == "auto":
    return "vectors" if _has_vectors(config) else "words"
  if data.text is not None:
    return data.text
  if data.generator.rows or data.context or data.sequences or not data.dir:
    return ""
  if discover.has_split(data.dir, "train"):
    return ""
  return "words" if documents_lib.has_documents(data.dir, "train") else ""


def has_split(config: ml_collections.ConfigDict, split: str) -> bool:
  """Whether the texts of a config's data have a split."""
  if split == "test" and config.data.test_share:
    return True
  return documents_lib.has_documents(config.data.dir, split)


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses values that cannot be used.

  Raises:
    ConfigError: Naming the field.
  """
  if config.data.text == "words":
    _word_options(config)
  if not config.data.text:
    return
  for name, off in (("context", 0), ("sequences", ""), ("renumber", False)):
    if config.data[name] != off:
      raise checks.ConfigError(
        f"data.{name} is {config.data[name]}, and the data are texts"
        f" (data.text={config.data.text!r}); leave it out"
      )


def files(config: ml_collections.ConfigDict, split: str) -> tuple[Path, ...]:
  """The files of the texts of a split."""
  return documents_discover.find(config.data.dir, split).rows


def documents(
  config: ml_collections.ConfigDict,
  directory: str | Path,
  split: str,
  encoding: features_lib.Encoding | None = None,
) -> documents_lib.Documents:
  """The texts and labels of a split.

  Args:
    config: A config.
    directory: Of the data.
    split: Which.
    encoding: Of a run, whose labels count; by default the training split's.

  Returns:
    The documents.

  Raises:
    DataError: They are missing, or not right.
  """
  return documents_lib.open_documents(
    directory,
    split,
    cache_dir=config.data.cache_dir or None,
    names=None if encoding is None else encoding.label_names,
    num_labels=None if encoding is None else encoding.num_labels,
    holdout=config.data.test_share,
    duplicates="first" if config.data.duplicates == "first" else "refuse",
    verify=config.data.verify,
  )


def open_split(
  config: ml_collections.ConfigDict,
  directory: str | Path,
  split: str,
  encoding: features_lib.Encoding | None = None,
) -> store.Split:
  """What a model reads of the texts of a split.

  Args:
    config: A config, of whose data `kind` is not "".
    directory: Of the data.
    split: Which.
    encoding: Of a run; by default that of the training split.

  Returns:
    The split.

  Raises:
    DataError: The texts are missing, or not right.
  """
  is_own = split == "train" and Path(directory) == Path(config.data.dir)
  if encoding is None or is_own:
    found = documents(config, config.data.dir, "train")
    if encoding is None:
      encoding = features_lib.Encoding(
        kind(config),
        _fitted(config, found),
        found.label_names,
        found.num_labels,
      )
    # Other data than the run began with may name other labels.
    if is_own and (found.label_names, found.num_labels) == encoding.labels:
      return features_lib.open_split(found, encoding, config.data.verify)
  found = documents(config, directory, split, encoding)
  return features_lib.open_split(found, encoding, config.data.verify)


def load(
  config: ml_collections.ConfigDict, workdir: Path
) -> features_lib.Featurizer:
  """The featurizer that a run has.

  Args:
    config: Its config.
    workdir: Its directory.

  Returns:
    The featurizer.

  Raises:
    DataError: It is missing, or not as it was written.
  """
  return _loader(config)(workdir)


def _loader(config: ml_collections.ConfigDict) -> Any:
  """What reads the featurizer from a directory."""
  made: dict[str, Any] = {
    "words": words_lib.Words,
    "tokens": tokens_lib.Tokens,
    "vectors": vectors_lib.Vectors,
  }
  return made[kind(config)].load


def _fitted(
  config: ml_collections.ConfigDict, found: documents_lib.Documents
) -> features_lib.Featurizer:
  """The featurizer of the training split."""
  text = config.text
  if kind(config) == "words":
    words = _word_options(config)
    make = functools.partial(words_lib.fit, options=words)
    what: Any = dataclasses.asdict(words)
  elif text.pretrained:
    try:
      return _pretrained(config)
    except (FileNotFoundError, ValueError) as error:
      raise checks.ConfigError(f"text.pretrained: {error}") from None
  elif kind(config) == "vectors":
    raise checks.ConfigError(
      "data.text is 'vectors', and text.pretrained is empty; name the directory"
      " of a pretrained encoder by --config.text.pretrained=DIR"
    )
  else:
    what = {"size": text.num_tokens, "max_length": text.max_length}
    make = functools.partial(tokens_lib.Tokens.train, **what)
  settings = json.dumps([kind(config), what])
  return features_lib.fit(found, settings, make, _loader(config))


def _pretrained(
  config: ml_collections.ConfigDict,
) -> features_lib.Featurizer:
  """What a pretrained encoder reads of texts, or makes of them."""
  text = config.text
  if kind(config) == "tokens":
    return tokens_lib.Tokens.pretrained(
      text.pretrained, max_length=text.max_length
    )
  return vectors_lib.Vectors.pretrained(
    text.pretrained, max_length=text.max_length, dtype=text.dtype
  )


def _word_options(config: ml_collections.ConfigDict) -> words_lib.Options:
  """Which n-grams are features."""
  try:
    return words_lib.Options(**config.text.words)
  except ValueError as error:
    raise checks.ConfigError(f"text.words.{error}") from None
