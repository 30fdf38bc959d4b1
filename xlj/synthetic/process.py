"""The random process behind the generated data sets of `synthetic`.

Legend: n points, T topics, G groups, R rungs of the ladder of a topic's
labels, F features, L labels.
"""

import dataclasses

import numpy as np
import scipy.sparse

from xlj.data import csr as csr_lib

LABELS_PER_GROUP = 4
# Shares of words that come from the vocabulary, the group and the topic.
_SOURCES = (0.45, 0.2, 0.35)
_SHORTEST, _LONGEST = 8, 20  # words of a point
_TOPIC_LABEL = 0.85  # probability of a topic's first label
_GROUP_LABEL = 0.6
_TOPIC_EXPONENT = 0.7  # of the power law over topics
_BLOCK = 4096  # points drawn at a time


@dataclasses.dataclass(frozen=True)
class Spec:
  """What to generate; equal specs give equal files.

  Attributes:
    num_labels: L, at least 4 per group and one per topic.
    num_train: points of the training split.
    num_test: points of the test split.
    num_features: F.
    num_groups: G.
    topics_per_group: T / G.
    words_per_topic: words that a topic prefers.
    words_per_group: words that a group prefers.
    seed: any non-negative integer.
  """

  num_labels: int = 131_072
  num_train: int = 30_000
  num_test: int = 3_000
  num_features: int = 16_384
  num_groups: int = 32
  topics_per_group: int = 16
  words_per_topic: int = 48
  words_per_group: int = 96
  seed: int = 0

  def __post_init__(self) -> None:
    """Checks the sizes.

    Raises:
      ValueError: when one is not positive, or there are too few labels.
    """
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value < (field.name != "seed"):
        raise ValueError(f"{field.name} must be positive, got {value}.")
    fewest = LABELS_PER_GROUP * self.num_groups + self.num_topics
    if self.num_labels < fewest:
      raise ValueError(
        f"num_labels must be at least {fewest}, {LABELS_PER_GROUP} for each "
        f"of {self.num_groups} groups and one for each of {self.num_topics} "
        f"topics, got {self.num_labels}."
      )

  @property
  def num_topics(self) -> int:
    """Topics, T."""
    return self.num_groups * self.topics_per_group


class Process:
  """The random process: draws points, and infers their topics.

  Attributes:
    spec: sizes and seed.
    group_ladder: float64 [LABELS_PER_GROUP], probability of each label of a
      group in points of that group.
    topic_ladder: float64 [R], likewise for topics.
  """

  def __init__(self, spec: Spec):
    """Draws the topics, their words and their labels.

    Args:
      spec: sizes and seed.
    """
    self.spec = spec
    draw = np.random.default_rng((spec.seed, 0))
    # Only `random` is called, whose stream NumPy keeps across versions more
    # faithfully than those of its distributions.
    vocabulary = np.argsort(draw.random(spec.num_features))
    self._words = (
      vocabulary[None],
      _choose(draw, spec.num_groups, spec.words_per_group, spec.num_features),
      _choose(draw, spec.num_topics, spec.words_per_topic, spec.num_features),
    )
    rank = np.argsort(draw.random(spec.num_topics))
    self._prior = _power_law(spec.num_topics, _TOPIC_EXPONENT)[rank]  # [T]
    self._group = np.arange(spec.num_topics) // spec.topics_per_group  # [T]
    self._label_ids = np.argsort(draw.random(spec.num_labels))
    self.group_ladder = _GROUP_LABEL / np.arange(1, LABELS_PER_GROUP + 1)
    rungs = -(-self._num_topic_labels // spec.num_topics)
    self.topic_ladder = _TOPIC_LABEL / np.arange(1, rungs + 1)  # [R]
    self._evidence = self._log_ratios()

  @property
  def _num_topic_labels(self) -> int:
    return self.spec.num_labels - LABELS_PER_GROUP * self.spec.num_groups

  def sample(self, split: str) -> tuple[csr_lib.Csr, csr_lib.Csr]:
    """Draws the points of a split.

    Args:
      split: "train" or "test".

    Returns:
      (features, labels): word counts [n, F], and labels [n, L] without values.
    """
    train = split == "train"
    total = self.spec.num_train if train else self.spec.num_test
    blocks = []
    for start in range(0, total, _BLOCK):
      # A generator for each block: a longer split starts like a shorter one.
      draw = np.random.default_rng((self.spec.seed, 2 - train, start))
      topics = np.searchsorted(np.cumsum(self._prior), draw.random(_BLOCK))
      topics = np.minimum(topics, self.spec.num_topics - 1)
      features = self._draw_features(draw, topics)
      labels = self._draw_labels(draw, topics)
      size = min(_BLOCK, total - start)
      blocks.append((features.slice_rows(0, size), labels.slice_rows(0, size)))
    features, labels = map(list, zip(*blocks))
    return csr_lib.concatenate(features), csr_lib.concatenate(labels)

  def topic_posterior(self, features: csr_lib.Csr) -> np.ndarray:
    """Infers the topics of points by Bayes' rule.

    Args:
      features: word counts [n, F].

    Returns:
      float64 [n, T], p(topic | features), exact for this process.
    """
    # Words are independent given the topic, and the number of words tells
    # nothing about it. What the vocabulary alone says of a word cancels.
    scores = (features.to_scipy().astype(np.float64) @ self._evidence).toarray()
    scores += np.log(self._prior)  # [n, T]
    scores -= scores.max(axis=1, keepdims=True)
    out = np.exp(scores)
    return out / out.sum(axis=1, keepdims=True)

  def label_names(self) -> list[str]:
    """Returns a name for each label that tells where it belongs."""
    spec = self.spec
    slots = [
      f"group {slot // LABELS_PER_GROUP}, label {slot % LABELS_PER_GROUP}"
      for slot in range(LABELS_PER_GROUP * spec.num_groups)
    ]
    slots += [
      f"group {self._group[slot % spec.num_topics]}, topic "
      f"{slot % spec.num_topics}, label {slot // spec.num_topics}"
      for slot in range(self._num_topic_labels)
    ]
    names = [""] * spec.num_labels
    for label, name in zip(self._label_ids.tolist(), slots):
      names[label] = name
    return names

  def group_labels(self, group: np.ndarray, rung: np.ndarray) -> np.ndarray:
    """Finds the labels that groups own.

    Args:
      group: int, any shape, each in [0, G).
      rung: int, broadcasts with `group`, each in [0, LABELS_PER_GROUP).

    Returns:
      int64, the label whose probability, given the group, is
      `group_ladder[rung]`.
    """
    return self._label_ids[group * LABELS_PER_GROUP + rung]

  def topic_labels(self, topic: np.ndarray, rung: np.ndarray) -> np.ndarray:
    """Finds the labels that topics own.

    Args:
      topic: int, any shape, each in [0, T).
      rung: int, broadcasts with `topic`, each in [0, R).

    Returns:
      int64, the label whose probability, given the topic, is
      `topic_ladder[rung]`; -1 where a topic has no label on that rung.
    """
    slot = rung * self.spec.num_topics + topic
    exists = slot < self._num_topic_labels
    first = LABELS_PER_GROUP * self.spec.num_groups
    return np.where(exists, self._label_ids[first + slot * exists], -1)

  def _draw_features(
    self, draw: np.random.Generator, topics: np.ndarray
  ) -> csr_lib.Csr:
    lengths = _SHORTEST + draw.random(len(topics)) * (_LONGEST - _SHORTEST + 1)
    point = np.repeat(np.arange(len(topics)), lengths.astype(np.int64))
    source = np.searchsorted(np.cumsum(_SOURCES[:2]), draw.random(len(point)))
    uniform = draw.random(len(point))
    owners = (np.zeros_like(topics), self._group[topics], topics)
    word = np.empty(len(point), np.int64)  # [words]
    for index, (table, owner) in enumerate(zip(self._words, owners)):
      mine = source == index
      rank = np.searchsorted(
        np.cumsum(_power_law(table.shape[1], 1.0)), uniform[mine]
      )
      rank = np.minimum(rank, table.shape[1] - 1)  # sums round below 1
      word[mine] = table[owner[point[mine]], rank]
    key = point * self.spec.num_features + word
    key, count = np.unique(key, return_counts=True)
    return _csr(*np.divmod(key, self.spec.num_features), count, self._shape())

  def _draw_labels(
    self, draw: np.random.Generator, topics: np.ndarray
  ) -> csr_lib.Csr:
    rungs = len(self.group_ladder) + len(self.topic_ladder)
    ladder = np.concatenate([self.group_ladder, self.topic_ladder])
    point, rung = np.nonzero(draw.random((len(topics), rungs)) < ladder)
    of_group = rung < LABELS_PER_GROUP
    topic = topics[point]
    labels = np.where(
      of_group,
      self.group_labels(
        self._group[topic], np.minimum(rung, LABELS_PER_GROUP - 1)
      ),
      self.topic_labels(topic, np.maximum(rung - LABELS_PER_GROUP, 0)),
    )
    key = np.sort((point * self.spec.num_labels + labels)[labels >= 0])
    shape = len(topics), self.spec.num_labels
    return _csr(*np.divmod(key, self.spec.num_labels), None, shape)

  def _shape(self) -> tuple[int, int]:
    return _BLOCK, self.spec.num_features

  def _log_ratios(self) -> scipy.sparse.csr_array:
    """log p(word | topic) - log p(word | vocabulary alone); sparse [F, T]."""
    spec = self.spec
    by_source = [
      scipy.sparse.coo_array(
        (
          np.tile(share * _power_law(table.shape[1], 1.0), len(table)),
          (table.ravel(), np.repeat(np.arange(len(table)), table.shape[1])),
        ),
        shape=(spec.num_features, len(table)),
      ).tocsr()
      for share, table in zip(_SOURCES, self._words)
    ]
    vocabulary = by_source[0].toarray()[:, 0]  # [F]
    own = (by_source[1][:, self._group] + by_source[2]).tocoo()  # [F, T]
    ratios = np.log1p(own.data / vocabulary[own.coords[0]])
    return scipy.sparse.csr_array((ratios, own.coords), shape=own.shape)


def _power_law(size: int, exponent: float) -> np.ndarray:
  weights = np.arange(1, size + 1) ** -exponent
  return weights / weights.sum()


def _choose(
  draw: np.random.Generator, rows: int, size: int, total: int
) -> np.ndarray:
  """`rows` lists of `size` of `total` words; a list may repeat a word."""
  return (draw.random((rows, size)) * total).astype(np.int64)


def _csr(
  row: np.ndarray,
  column: np.ndarray,
  values: np.ndarray | None,
  shape: tuple[int, int],
) -> csr_lib.Csr:
  """A matrix from entries sorted by row and column."""
  indptr = np.searchsorted(row, np.arange(shape[0] + 1))
  return csr_lib.Csr(
    indptr.astype(np.int64),
    column.astype(np.int32),
    None if values is None else values.astype(np.float32),
    shape[1],
  )
