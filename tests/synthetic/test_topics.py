"""The generated data, and that its best possible score is one."""

import hashlib

import numpy as np
import pytest
from sklearn import preprocessing

from xlj.data import csr as csr_lib
from xlj.synthetic import process as process_lib
from xlj.synthetic import topics as synthetic

_SMALL = synthetic.Spec(
  num_labels=3000,
  num_train=6000,
  num_test=2000,
  num_features=1000,
  num_groups=4,
  topics_per_group=8,
)
_FILES = ("train.txt", "test.txt", "labels.txt", "oracle.npz")


def _digests(directory):
  return [
    hashlib.sha256((directory / name).read_bytes()).hexdigest()
    for name in _FILES
  ]


def _precision(labels: csr_lib.Csr, ids: np.ndarray) -> list[float]:
  truth = labels.to_scipy().toarray()
  hits = np.take_along_axis(truth, ids.astype(np.int64), axis=1)
  return [100 * float(hits[:, :k].mean()) for k in (1, 3, 5)]


def _top(scores: np.ndarray) -> np.ndarray:
  return np.argsort(-scores, axis=1, kind="stable")[:, :5]


@pytest.fixture(scope="module")
def process():
  return process_lib.Process(_SMALL)


@pytest.fixture(scope="module")
def train(process):
  return process.sample("train")


@pytest.fixture(scope="module")
def test(process):
  return process.sample("test")


def test_equal_specs_give_equal_files(tmp_path):
  for name in ("first", "second"):
    synthetic.generate(tmp_path / name, _SMALL)
  first = _digests(tmp_path / "first")
  assert first == _digests(tmp_path / "second")
  other = synthetic.Spec(**{**vars(_SMALL), "seed": 1})
  synthetic.generate(tmp_path / "second", other)
  assert all(a != b for a, b in zip(first, _digests(tmp_path / "second")))


def test_splits_are_independent_and_extend(process, train, test):
  assert (train[0].take([0]).indices.tolist()) != test[0].take(
    [0]
  ).indices.tolist()
  longer = process_lib.Process(
    synthetic.Spec(**{**vars(_SMALL), "num_train": 7000})
  ).sample("train")
  for long, short in zip(longer, train):
    np.testing.assert_array_equal(
      long.slice_rows(0, short.num_rows).indices, short.indices
    )


def test_matrices_are_valid(train, test):
  for split, count in ((train, 6000), (test, 2000)):
    features, labels = split
    features.validate()
    labels.validate()
    assert features.shape == (count, 1000)
    assert labels.shape == (count, 3000) and labels.values is None
    assert (features.values == np.floor(features.values)).all()
    assert np.diff(features.indptr).min() >= 1


def test_label_frequencies_follow_a_power_law(train):
  counts = np.bincount(train[1].indices, minlength=3000)
  ranked = np.sort(counts)[::-1]
  rank = np.arange(1, 301)
  slope, offset = np.polyfit(np.log(rank), np.log(ranked[:300]), 1)
  assert -1.2 < slope < -0.6
  residual = np.log(ranked[:300]) - slope * np.log(rank) - offset
  assert np.abs(residual).mean() < 0.2
  # Most labels are rare: the law's long tail.
  assert np.median(counts) <= 6 < ranked[0] / 100


def test_posterior_is_calibrated(process, test):
  """Of the labels given probability p, a share p is there."""
  oracle = synthetic.rank(process, test[0])
  truth = test[1].to_scipy().toarray()
  hits = np.take_along_axis(truth, oracle.labels.astype(np.int64), 1)
  edges = np.quantile(oracle.probabilities, np.linspace(0, 1, 9))
  bucket = np.clip(np.searchsorted(edges, oracle.probabilities) - 1, 0, 7)
  for index in range(8):
    mine = bucket == index
    expected = oracle.probabilities[mine].mean()
    error = np.sqrt(expected * (1 - expected) / mine.sum())
    assert abs(hits[mine].mean() - expected) < 4 * error + 1e-3


def test_posterior_by_brute_force(process):
  """Against probabilities of words written out from the word lists."""
  spec = _SMALL
  words = np.zeros((spec.num_topics, spec.num_features))
  for topic in range(spec.num_topics):
    owners = (0, topic // spec.topics_per_group, topic)
    for share, table, owner in zip(
      process_lib._SOURCES, process._words, owners
    ):
      size = table.shape[1]
      for rank, word in enumerate(table[owner], start=1):
        words[topic, word] += share / rank / np.sum(1 / np.arange(1, size + 1))
  np.testing.assert_allclose(words.sum(axis=1), 1)
  features, _ = process.sample("test")
  block = features.slice_rows(0, 50)
  log = block.to_scipy() @ np.log(words).T + np.log(process._prior)
  expected = np.exp(log - log.max(axis=1, keepdims=True))
  expected /= expected.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(
    process.topic_posterior(block), expected, rtol=1e-4, atol=1e-12
  )


def test_words_are_drawn_from_the_stated_distribution(process, train):
  """Word frequencies over all points match the mixture over topics."""
  share = np.zeros(1000)
  prior = process._prior.reshape(4, 8)
  weights = (np.ones(1), prior.sum(axis=1), prior.ravel())
  for source, table, weight in zip(
    process_lib._SOURCES, process._words, weights
  ):
    law = 1 / np.arange(1, table.shape[1] + 1)
    np.add.at(share, table, source * weight[:, None] * law / law.sum())
  features = train[0]
  counts = np.bincount(features.indices, features.values, minlength=1000)
  expected = share * counts.sum()
  chi = (counts - expected) ** 2 / expected
  assert chi[expected > 50].mean() < 1.6


def test_ranking_holds_the_best_of_all_labels(process, test):
  """Against the probabilities of all labels, written out."""
  features = test[0].slice_rows(0, 40)
  topics = process.topic_posterior(features)
  full = np.zeros((40, 3000))
  for topic in range(_SMALL.num_topics):
    for rung in range(len(process.topic_ladder)):
      label = int(process.topic_labels(np.array(topic), np.array(rung)))
      if label >= 0:
        full[:, label] += topics[:, topic] * process.topic_ladder[rung]
    for rung, chance in enumerate(process.group_ladder):
      label = process.group_labels(topic // 8, rung)
      full[:, label] += topics[:, topic] * chance
  oracle = synthetic.rank(process, features, k=12)
  np.testing.assert_allclose(
    oracle.probabilities, -np.sort(-full, axis=1)[:, :12], rtol=1e-5
  )
  np.testing.assert_allclose(
    np.take_along_axis(full, oracle.labels.astype(np.int64), 1),
    oracle.probabilities,
    rtol=1e-5,
  )


def test_the_oracle_bounds_other_methods(process, train, test):
  oracle = synthetic.rank(process, test[0])
  bound = list(synthetic.best_possible(oracle).values())
  realised = _precision(test[1], oracle.labels)
  np.testing.assert_allclose(realised, bound, atol=3)
  counts = np.bincount(train[1].indices, minlength=3000)
  popularity = _precision(test[1], np.tile(_top(counts[None]), (2000, 1)))
  # Nearest centroid: labels scored by the mean direction of their points.
  inputs = preprocessing.normalize(np.log1p(train[0].to_scipy()).tocsr())
  centroids = preprocessing.normalize((train[1].to_scipy().T @ inputs).tocsr())
  queries = preprocessing.normalize(np.log1p(test[0].to_scipy()).tocsr())
  nearest = _precision(test[1], _top((queries @ centroids.T).toarray()))
  for index in range(3):
    assert popularity[index] < bound[index] / 2
    assert nearest[index] < realised[index]
    assert 0 < popularity[index] < realised[index] < 100


def test_generated_files_hold_the_sample(tmp_path, process, test):
  synthetic.generate(tmp_path, _SMALL)
  lines = (tmp_path / "test.txt").read_text().splitlines()
  assert lines[0] == "2000 1000 3000" and len(lines) == 2001
  row = test[0].take([0]), test[1].take([0])
  cells = [f"{i}:{v:g}" for i, v in zip(row[0].indices, row[0].values)]
  labels = ",".join(map(str, row[1].indices))
  assert lines[1] == " ".join([labels, *cells])
  names = (tmp_path / "labels.txt").read_text().splitlines()
  assert len(names) == len(set(names)) == 3000
  stored = synthetic.load_oracle(tmp_path)
  expected = synthetic.rank(process, test[0])
  np.testing.assert_array_equal(stored.labels, expected.labels)
  np.testing.assert_array_equal(stored.probabilities, expected.probabilities)


def test_names_tell_where_labels_belong(process):
  names = process.label_names()
  assert names[process.group_labels(3, 2)] == "group 3, label 2"
  label = int(process.topic_labels(np.array(9), np.array(5)))
  assert names[label] == "group 1, topic 9, label 5"


def test_best_possible_by_hand():
  oracle = synthetic.Oracle(
    np.array([[0, 1, 2], [3, 4, 5]], np.int32),
    np.array([[0.9, 0.6, 0.3], [0.5, 0.4, 0.3]], np.float32),
  )
  got = synthetic.best_possible(oracle, ks=(1, 3))
  np.testing.assert_allclose([got["P@1"], got["P@3"]], [70, 50], rtol=1e-6)
  with pytest.raises(ValueError, match="3 ranks"):
    synthetic.best_possible(oracle)


@pytest.mark.parametrize(
  "field, value", [("num_labels", 600), ("num_train", 0), ("seed", -1)]
)
def test_impossible_sizes_are_refused(field, value):
  with pytest.raises(ValueError, match=f"{field} must be"):
    synthetic.Spec(**{field: value})
