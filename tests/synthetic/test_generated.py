"""Generated splits: rows by number, learnable, and without a trace of L."""

import tracemalloc

import numpy as np
import pytest

from xlj.data import pipeline
from xlj.data import statistics
from xlj.synthetic import generated

SPEC = generated.Spec(
  rows=3000, test_rows=500, factors=(7, 5, 6), features=30, noise=0.5
)


def features_and_labels(spec, split):
  opened = generated.open_split(spec, split)
  return opened.features[:], opened.labels.indices


def digits_of(labels, factors):
  found = []
  for size in reversed(factors):
    found.insert(0, labels % size)
    labels = labels // size
  return found


def test_features_are_sums_of_the_vectors_of_digits_and_noise():
  features, labels = features_and_labels(SPEC, "train")
  assert features.shape == (3000, 30)
  assert features.dtype == np.float32
  digits = digits_of(labels, SPEC.factors)
  one_hot = np.concatenate(
    [np.eye(size)[d] for size, d in zip(SPEC.factors, digits)], axis=1
  )
  fit, *_ = np.linalg.lstsq(one_hot, features, rcond=None)
  residual = features - one_hot @ fit
  assert residual.std() == pytest.approx(SPEC.noise, rel=0.03)
  assert features.std() ** 2 == pytest.approx(3 + 0.25, rel=0.3)


def test_the_noise_is_normal_and_without_correlation():
  spec = generated.Spec(4000, 10, (1,), features=6, noise=2.0)
  features, labels = features_and_labels(spec, "train")
  assert not labels.any()
  noise = (features - features.mean(axis=0)) / 2
  covariance = np.cov(noise.T)
  np.testing.assert_allclose(covariance, np.eye(6), atol=0.1)
  assert (np.abs(noise) > 1.96).mean() == pytest.approx(0.05, abs=0.01)
  assert abs(np.mean(noise[1:] * noise[:-1])) < 0.03


def test_a_row_is_the_same_wherever_it_is_asked_for():
  split = generated.open_split(SPEC)
  everything = split.features[:]
  rows = np.array([7, 2999, 7, 0])
  np.testing.assert_array_equal(split.features[rows], everything[rows])
  np.testing.assert_array_equal(split.features[5:9], everything[5:9])
  assert split.features[[]].shape == (0, 30)
  for outside in ([-1], [3000]):
    with pytest.raises(IndexError, match="of 3000"):
      split.features[outside]


def test_labels_do_not_depend_on_how_many_are_computed_at_a_time(monkeypatch):
  expected = generated.labels(SPEC, "train").indices
  monkeypatch.setattr(generated, "_CHUNK", 7)
  found = generated.labels(SPEC, "train")
  found.validate()
  np.testing.assert_array_equal(found.indices, expected)


def test_splits_share_the_vectors_but_no_row():
  train, train_labels = features_and_labels(SPEC, "train")
  test, test_labels = features_and_labels(SPEC, "test")
  assert len(test) == 500
  assert not np.isin(test[:, 0], train[:, 0]).all()
  means = np.stack([train[train_labels == i].mean(0) for i in range(210)])
  means = np.nan_to_num(means)
  nearest = np.argmin(((test[:, None] - means) ** 2).sum(-1), axis=1)
  assert (nearest == test_labels).mean() > 0.9


def test_digits_are_uniform_or_skewed():
  spec = generated.Spec(100_000, 1, (4, 10))
  first, second = digits_of(generated.labels(spec, "train").indices, (4, 10))
  np.testing.assert_allclose(np.bincount(first) / 1e5, 1 / 4, atol=0.01)
  np.testing.assert_allclose(np.bincount(second) / 1e5, 1 / 10, atol=0.01)
  assert abs(np.corrcoef(first, second)[0, 1]) < 0.01
  spec = generated.Spec(100_000, 1, (4,), skew=1.0)
  counts = np.bincount(generated.labels(spec, "train").indices) / 1e5
  np.testing.assert_allclose(counts, np.array([12, 6, 4, 3]) / 25, atol=0.01)


def test_specs_differ_in_fingerprint_and_content():
  prints, labels = set(), []
  for seed, split in ((0, "train"), (1, "train"), (0, "test")):
    spec = generated.Spec(50, 50, (100, 100), seed=seed)
    opened = generated.open_split(spec, split)
    prints.add(opened.fingerprint)
    labels.append(opened.labels.indices)
  assert len(prints) == 3
  assert (labels[0] != labels[1]).any() and (labels[0] != labels[2]).any()


def test_a_billion_labels_take_no_memory_of_their_own():
  spec = generated.Spec(10_000, 100, (1000, 1000, 1000), features=16)
  tracemalloc.start()
  split = generated.open_split(spec)
  stats = statistics.compute(split, by_label=False)
  batches = pipeline.train_batches(
    split, None, batch_size=64, seed=0, num_threads=0
  )
  batch = next(batches)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 20e6
  assert stats.label_counts is None and stats.feature_kind == "dense"
  assert split.num_labels == 10**9
  assert split.labels.indices.max() > 9 * 10**8
  np.testing.assert_array_equal(
    batch.feature_values, split.features[batch.rows]
  )
  np.testing.assert_array_equal(
    batch.label_ids[:, 0], split.labels.indices[batch.rows]
  )


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"rows": 0}, "rows 0"),
    ({"factors": ()}, "factors"),
    ({"factors": (2, 0)}, "positive"),
    ({"factors": (2**16, 2**16)}, "4294967296 labels"),
    ({"noise": -1.0}, "noise -1.0"),
  ],
)
def test_wrong_specs_are_refused(fields, message):
  right = {"rows": 5, "test_rows": 5, "factors": (3,)}
  with pytest.raises(ValueError, match=message):
    generated.Spec(**(right | fields))
