"""Trains a run on vectors of texts with all that helps it to answer.

    WD/held_out/words, WD/held_out/vectors   runs on a part of the training rows
    WD/fusion.json, WD/fusion.npz            weights, fitted on the other part;
                                             what is kept of training
    WD/words, WD                             the runs on all of the rows

Each is a run like any other, so that whatever was stopped goes on by the same
command. See `xlj.inference.fusion` for what is fused.
"""

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np
import scipy

from xlj import config as config_lib
from xlj import files
from xlj.config import checks
from xlj.config import splits
from xlj.config import text
from xlj.data import csr as csr_lib
from xlj.data import pipeline
from xlj.data import store
from xlj.evaluation import metrics
from xlj.evaluation import pairs
from xlj.inference import fusion as fusion_lib
from xlj.inference import predictor
from xlj.model import label_choice
from xlj.runs import directory
from xlj.text import features as features_lib
from xlj.training import train

HELD_OUT = "held_out"
_BLOCK = 512  # texts that are judged at a time
_RIDGE = 1e-4  # times the squares of weights


def is_wanted(config: ml_collections.ConfigDict) -> bool:
  """Whether others help a run to answer, as a config says or leaves open."""
  if config.fusion.with_words is not None:
    return config.fusion.with_words
  return text.kind(config) == "vectors"


def train_all(config: ml_collections.ConfigDict, workdir: str | Path) -> bool:
  """Trains a run, and what helps it to answer if something does.

  Args:
    config: As of `train.train`.
    workdir: Likewise.

  Returns:
    Whether all is complete.

  Raises:
    ConfigError, DataError ...: As `train.train`.
  """
  if not is_wanted(config):
    return train.train(config, workdir)
  workdir = directory.resolve(workdir)
  words = _of_words(config)
  config = ml_collections.ConfigDict(config.to_dict())
  config.data.text = text.kind(config)
  if config.train.epochs == 0:
    words.train.epochs = 0.0
    config.fusion.neighbours = 0
  elif not (workdir / fusion_lib.FILE).exists():
    held = workdir / HELD_OUT
    for name, part in (("vectors", config), ("words", words)):
      part = ml_collections.ConfigDict(part.to_dict())
      part.fusion = config_lib.base().fusion
      part.fusion.with_words = False
      part.data.validation = config.fusion.held_out
      part.checkpoint.dir = ""
      logging.info("Training on a part of the rows: %s", held / name)
      if not train.train(part, held / name):
        return False
    _fit(config, held, workdir)
  logging.info("Training on all rows: %s", workdir / fusion_lib.WORDS)
  if not train.train(words, workdir / fusion_lib.WORDS):
    return False
  if config.train.epochs == 0 and not (workdir / fusion_lib.FILE).exists():
    _save_untrained(config, workdir)
  config.fusion.with_words = True
  logging.info("Training on all rows: %s", workdir)
  return train.train(config, workdir)


def _of_words(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config of the run on words, of the same data."""
  words, sections = config_lib.base(), ("data.", "text.", "mesh.", "seed")
  words.update_from_flattened_dict(
    {
      name: value
      for name, value in checks.flatten(config)
      if name.startswith(sections) and value is not None
    }
  )
  words.data.text, words.text.pretrained = "words", ""
  words.fusion.with_words = False
  return words


def _fit(config: ml_collections.ConfigDict, held: Path, workdir: Path) -> None:
  """Fits the weights on rows that the runs in `held` have not seen."""
  run = predictor.load(held / "vectors", which="last")
  split = splits.open_split(config)
  rows, valid_rows = pipeline.holdout(
    split.num_rows, float(config.fusion.held_out), config.seed
  )
  settings = config.fusion
  words = predictor.load(held / "words", which="last")
  fusion = fusion_lib.Fusion(
    words,
    _memory(words, split, rows),
    np.ones(len(fusion_lib.FEATURES)),
    settings.candidates,
    settings.neighbours,
    settings.temperature,
  )
  texts = text.documents(config, config.data.dir, "train").texts
  judged = []
  for start in range(0, len(valid_rows), _BLOCK):
    chosen = valid_rows[start : start + _BLOCK]
    candidates, of_them, _ = fusion.judge(run, texts[chosen], label_choice.ALL)
    judged.append((chosen, candidates, of_them))
  parts = [
    (f, _are_labels(c, split.labels.take(chosen))) for chosen, c, f in judged
  ]
  numbers = np.concatenate([chosen[c.texts] for chosen, c, _ in judged])
  features = np.concatenate([f for f, _ in parts])
  positive = np.concatenate([p for _, p in parts])
  weights = fit(features, positive, numbers)
  scores: dict[str, Any] = {}
  for name, chosen in (("vectors", np.eye(len(weights))[0]), ("all", weights)):
    scores[name] = _score(judged, chosen, split.labels, config.eval.ks)
  logging.info("Held-out rows: %s", json.dumps(scores))
  if jax.process_index():
    return
  workdir.mkdir(parents=True, exist_ok=True)
  counts = fusion.memory.counts * split.num_rows / len(rows)
  answers = _answers(judged, weights, split.labels)
  fusion_lib.save_held_out(workdir, *answers, counts)
  about = {"held_out_rows": len(valid_rows), "held_out_scores": scores}
  _save(workdir, words, split, weights, about)


def _save_untrained(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Weights for runs that are not trained, which no training row decides."""
  words = predictor.load(workdir / fusion_lib.WORDS, which="last")
  split = splits.open_split(config)
  weights = [fusion_lib.UNTRAINED.get(f, 0.0) for f in fusion_lib.FEATURES]
  if not jax.process_index():
    _save(workdir, words, split, np.array(weights), {})


def _save(
  workdir: Path,
  words: predictor.Predictor,
  split: store.Split,
  weights: np.ndarray,
  about: dict[str, Any],
) -> None:
  """Writes what fuses scores; the weights, which make it whole, are last."""
  workdir.mkdir(parents=True, exist_ok=True)
  _memory(words, split, np.arange(split.num_rows)).save(workdir)
  named = dict(zip(fusion_lib.FEATURES, map(float, weights)))
  text = json.dumps({"weights": named, **about}, indent=2)
  files.write_text(workdir / fusion_lib.FILE, text + "\n")


def fit(
  features: np.ndarray, positive: np.ndarray, texts: np.ndarray
) -> np.ndarray:
  """The weights for which labels are likeliest among the candidates.

  Of a text with several labels each counts as much; one that has none among its
  candidates tells nothing.

  Args:
    features: float64 `[m, F]` of candidates.
    positive: bool `[m]`, whether a candidate is a label of its text.
    texts: int `[m]`, ascending, whose candidate it is.

  Returns:
    float64 `[F]`.
  """
  _, first, index = np.unique(texts, return_index=True, return_inverse=True)
  count = np.add.reduceat(positive.astype(np.float64), first)
  share = positive / np.maximum(count, 1)[index]
  told = (count > 0).astype(np.float64)
  total = max(told.sum(), 1.0)
  scale = np.maximum(features.std(0), 1e-6)

  def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
    z = features @ (weights / scale)
    z = z - np.maximum.reduceat(z, first)[index]
    e = np.exp(z)
    sums = np.add.reduceat(e, first)
    value = np.sum(told * np.log(sums)) - np.sum(share * z)
    slope = (e / sums[index]) * told[index] - share
    grad = features.T @ slope / scale
    value = value / total + _RIDGE * weights @ weights
    return value, grad / total + 2 * _RIDGE * weights

  found = scipy.optimize.minimize(
    loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B"
  )
  return found.x / scale


def _memory(
  words: predictor.Predictor, split: store.Split, rows: np.ndarray
) -> fusion_lib.Memory:
  """What is kept of some training rows."""
  features: Any = split.features
  vectors = np.asarray(features[rows])
  labels = split.labels.take(rows)
  num_labels = split.num_labels
  said = np.zeros((num_labels, vectors.shape[1]), np.float16)
  of_labels = features_lib.label_split(split)
  if of_labels is not None:
    sums = of_labels.labels.to_scipy().T @ of_labels.features
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    said = (sums / np.where(length > 0, length, 1)).astype(np.float16)
  known = [*(split.label_texts or ())]
  known += [""] * (num_labels - len(known))
  names = [features_lib.name_of(label_text) for label_text in known]
  assert words.run.encoding is not None  # It is of texts.
  count: Any = words.run.encoding.featurizer
  parts = [
    fusion_lib.unit_words(words, count(t)).to_scipy() for t in (names, known)
  ]
  return fusion_lib.Memory(
    vectors.astype(np.float16),
    labels,
    said,
    np.bincount(labels.indices, minlength=num_labels).astype(np.int64),
    np.array(
      [fusion_lib.hashed(features_lib.description(t)) for t in known],
      np.uint64,
    ),
    csr_lib.Csr.from_scipy(parts[0] + parts[1]),
  )


def _are_labels(
  candidates: fusion_lib.Candidates, labels: csr_lib.Csr
) -> np.ndarray:
  """Whether candidates are labels of their texts, bool `[m]`."""
  rows = np.repeat(np.arange(labels.num_rows), labels.row_lengths)
  keys = rows * labels.num_columns + labels.indices
  own = candidates.texts * labels.num_columns + candidates.labels
  return np.isin(own, keys)


def _answers(
  judged: Sequence[tuple[np.ndarray, fusion_lib.Candidates, np.ndarray]],
  weights: np.ndarray,
  labels: csr_lib.Csr,
) -> tuple[np.ndarray, ...]:
  """Scores and ids of the best labels, and which are right, each `[n, k]`."""
  found = []
  for rows, candidates, features in judged:
    best = candidates, features @ weights, len(rows), fusion_lib.PLACES
    scores, ids = fusion_lib.topk(*best)
    right = pairs.contains(labels.take(rows), ids, labels.num_columns)
    found.append((scores, ids, right))
  return tuple(map(np.concatenate, zip(*found)))


def _score(
  judged: Sequence[tuple[np.ndarray, fusion_lib.Candidates, np.ndarray]],
  weights: np.ndarray,
  labels: csr_lib.Csr,
  ks: Sequence[int],
) -> dict[str, float]:
  """Precision at some cut-offs, in percent."""
  ranking = metrics.Ranking(
    num_labels=labels.num_columns, ks=tuple(ks), per_label=False
  )
  for rows, candidates, features in judged:
    _, ids = fusion_lib.topk(
      candidates, features @ weights, len(rows), ranking.width
    )
    ranking.update(ids, labels.take(rows))
  found = ranking.compute()
  return {name: found[name] for name in (f"P@{k}" for k in ks)}
