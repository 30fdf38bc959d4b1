"""Generated multi-label data whose best possible score is known.

A data set is a sample from this process:

* There are T topics, each in one of G groups. A point draws one topic, which
  nobody gets to see, from a power law.
* Its features are words. Each word comes from the whole vocabulary, from the
  words of the group, or from the words of the topic; which one is random, and
  words belong to several topics. Values are counts of words.
* Each label belongs to one group or one topic. The labels of the point's group
  and topic are switched on independently, the r-th of a topic with probability
  `0.85 / r`. With the power law over topics, most labels are very rare.

Given the features, the probability of every label is known exactly: that of
its topic (or group) by Bayes' rule, times its probability given the topic.
Ranking by it is the best that any method can do, on average over test sets,
even one that knows the process: see `Oracle`.

Legend: n points, T topics (or groups), F features, L labels, k ranks.
"""

from collections.abc import Callable, Sequence
import dataclasses
import os
import pathlib

import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import writers
from xlj.synthetic import process as process_lib

ORACLE_FILE = "oracle.npz"

Spec = process_lib.Spec
DEMO = Spec()  # what `make demo` learns

_BLOCK = 4096  # points ranked at a time
_RANKS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Oracle:
  """The best possible ranking of a set of points.

  `probabilities` are exact posteriors, p(label | features) of the process. No
  ranking that sees the features alone has a higher expected P@k, so their sum
  over the first k ranks, over k, bounds every method's P@k *in expectation*;
  on one test set of n points a method may exceed it by luck, by the order of
  1 / sqrt(n).

  Attributes:
    labels: int32 [n, k], the most probable labels, best first.
    probabilities: float32 [n, k], descending.
  """

  labels: np.ndarray
  probabilities: np.ndarray


def generate(
  directory: str | os.PathLike[str], spec: Spec = DEMO
) -> process_lib.Process:
  """Writes a data set in the repository's text format.

  Args:
    directory: made if needed; gets `train.txt`, `test.txt`, `labels.txt` (one
      name per line) and `oracle.npz` (see `Oracle`, for the test split).
      Files of these names are replaced.
    spec: what to generate.

  Returns:
    The process that the data is a sample of.

  Raises:
    OSError: when the directory cannot be written.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  process = process_lib.Process(spec)
  for split in ("train", "test"):
    features, labels = process.sample(split)
    writers.write_one_file(directory / f"{split}.txt", features, labels)
    if split == "test":
      oracle = rank(process, features)
      np.savez(directory / ORACLE_FILE, **dataclasses.asdict(oracle))
  names = "\n".join([*process.label_names(), ""])
  (directory / "labels.txt").write_text(names, encoding="utf-8")
  return process


def rank(
  process: process_lib.Process, features: csr_lib.Csr, k: int = _RANKS
) -> Oracle:
  """Ranks labels by their exact probability given the features.

  Args:
    process: that the points were drawn from.
    features: word counts [n, F].
    k: ranks; at most the number of labels.

  Returns:
    The k most probable labels of each point.
  """
  k = min(k, process.spec.num_labels)
  blocks = [
    _rank_block(process, features.slice_rows(start, start + _BLOCK), k)
    for start in range(0, features.num_rows, _BLOCK)
  ]
  labels, probabilities = map(np.concatenate, zip(*blocks))
  return Oracle(labels, probabilities)


def load_oracle(directory: str | os.PathLike[str]) -> Oracle:
  """Reads what `generate` left about the test split.

  Args:
    directory: of the data set.

  Returns:
    The best possible ranking of the test split.

  Raises:
    FileNotFoundError: when the directory holds no generated data set.
  """
  with np.load(pathlib.Path(directory) / ORACLE_FILE) as file:
    return Oracle(file["labels"], file["probabilities"])


def best_possible(
  oracle: Oracle, ks: Sequence[int] = (1, 3, 5)
) -> dict[str, float]:
  """Returns the highest expected P@k that any ranking can have.

  Args:
    oracle: of the points to rank.
    ks: each at most the oracle's number of ranks.

  Returns:
    `{"P@1": ..., ...}` in percent: the sum of the probabilities of the k most
    probable labels over k, averaged over the points.

  Raises:
    ValueError: when a k exceeds the ranks.
  """
  ranks = oracle.probabilities.shape[1]
  if max(ks) > ranks:
    raise ValueError(f"P@{max(ks)} asked for, but there are {ranks} ranks.")
  probabilities = oracle.probabilities.astype(np.float64)
  return {f"P@{k}": 100 * float(probabilities[:, :k].mean()) for k in ks}


def _rank_block(
  process: process_lib.Process, features: csr_lib.Csr, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """The k most probable labels of n points, and their probabilities.

  A label of a topic that is not among the k most probable ones is behind k
  labels of the same rung, and a label past rung k behind k of its own topic;
  so k topics (and groups) with k labels each hold the k best labels.
  """
  topics = process.topic_posterior(features)  # [n, T]
  starts = np.arange(0, topics.shape[1], process.spec.topics_per_group)
  groups = np.add.reduceat(topics, starts, axis=1)
  parts = [
    _candidates(groups, process.group_ladder, process.group_labels, k),
    _candidates(topics, process.topic_ladder, process.topic_labels, k),
  ]
  labels, scores = (np.concatenate(part, axis=1) for part in zip(*parts))
  scores = np.where(labels < 0, -1, scores)
  order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return (
    np.take_along_axis(labels, order, 1).astype(np.int32),
    np.take_along_axis(scores, order, 1).astype(np.float32),
  )


def _candidates(
  nodes: np.ndarray,
  ladder: np.ndarray,
  labels_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
  k: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Ids and probabilities of the labels on k rungs of the k best topics.

  Args:
    nodes: [n, T], probability of each topic (or group).
    ladder: [R], probability of its labels.
    labels_of: maps (topic, rung) to label ids, -1 for none.
    k: how many of both.

  Returns:
    (ids, probabilities), each [n, candidates].
  """
  best = np.argsort(-nodes, axis=1, kind="stable")[:, :k]
  weight = np.take_along_axis(nodes, best, 1)[:, :, None]
  rung = np.arange(min(k, len(ladder)))
  scores = weight * ladder[rung]  # [n, k, rungs]
  labels = labels_of(best[:, :, None], rung)
  return labels.reshape(len(nodes), -1), scores.reshape(len(nodes), -1)
