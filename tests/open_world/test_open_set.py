"""Figures of open sets equal counting by hand and those of scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from xlj.open_world import open_set

TRUTH = np.array([0, 0, 1, 1, 2, -1, -1, -1])
FOUND = np.array([0, 1, 1, -1, 2, -1, 2, 0])


def test_f_measures_by_hand():
  # 3 right, 2 wrong (one of them rejected), 2 of no label not rejected
  precision, recall = 3 / 5, 3 / 5
  expected = 100 * 2 * precision * recall / (precision + recall)
  assert np.isclose(open_set.open_f_measure(FOUND, TRUTH), expected)
  precision = 3 / 4
  expected = 100 * 2 * precision * recall / (precision + recall)
  got = open_set.open_f_measure(FOUND, TRUTH, "published")
  assert np.isclose(got, expected)
  nothing = np.full(8, -1)
  assert open_set.open_f_measure(nothing, TRUTH) == 0
  with pytest.raises(ValueError, match="use one of"):
    open_set.open_f_measure(FOUND, TRUTH, "macro")
  with pytest.raises(ValueError, match="shapes are"):
    open_set.open_f_measure(FOUND, TRUTH[1:])


def test_rejecting_costs_the_published_one_nothing():
  rng = np.random.default_rng(0)
  truth = rng.integers(-1, 5, 400)
  found = np.where(rng.random(400) < 0.6, truth, rng.integers(0, 5, 400))
  found = np.maximum(found, 0)
  sure = rng.random(400)  # tells nothing
  measures = {
    name: [
      open_set.open_f_measure(open_set.rejected(found, sure, t), truth, name)
      for t in np.linspace(0, 0.9, 10)
    ]
    for name in open_set.MEASURES
  }
  published, corrected = measures["published"], measures["corrected"]
  assert published[-1] > published[0] - 5  # random rejection is not punished
  assert corrected[-1] < corrected[0] / 2
  assert (np.array(published) >= corrected).all()


def test_ranks_equal_those_of_sklearn():
  rng = np.random.default_rng(0)
  truth = rng.integers(-1, 2, 200)
  sure = np.round(rng.normal(size=200) + (truth >= 0), 1)  # with ties
  expected = 100 * metrics.roc_auc_score(truth >= 0, sure)
  assert np.isclose(open_set.auroc(sure, truth), expected)
  assert np.isnan(open_set.auroc(sure, np.zeros(200, int)))


def test_shots_by_hand():
  counts = np.array([100, 21, 20, 0, 500])
  got = open_set.by_shots(FOUND, TRUTH, counts)
  expected = {
    "many": 50,  # label 0; label 4 is not tested
    "medium": 50,  # label 1
    "few": 100,  # label 2
    "all": 200 / 3,
    "accuracy": 60,
  }
  assert got == pytest.approx(expected)
  assert np.isnan(open_set.by_shots(FOUND, TRUTH, counts, many=1000)["many"])
  with pytest.raises(ValueError, match="2 are counted"):
    open_set.by_shots(FOUND, TRUTH, counts[:2])


def test_the_best_threshold_is_the_best_of_all():
  rng = np.random.default_rng(0)
  truth = rng.integers(-1, 3, 150)
  found = np.where(rng.random(150) < 0.8, truth, rng.integers(0, 3, 150))
  found = np.maximum(found, 0)
  sure = rng.normal(size=150) + 2 * (truth >= 0)

  def score(limit, measure):
    kept = open_set.rejected(found, sure, limit)
    return open_set.open_f_measure(kept, truth, measure)

  for measure in open_set.MEASURES:
    limit = open_set.best_threshold(found, sure, truth, measure)
    best = max(score(value, measure) for value in sure)
    assert score(limit, measure) == best > score(sure.min(), measure)


def test_a_threshold_keeps_a_share():
  sure = np.random.default_rng(0).random(1000)
  limit = open_set.threshold_keeping(sure, 0.9)
  kept = open_set.rejected(np.zeros(1000, int), sure, limit) == 0
  assert 0.9 <= kept.mean() <= 0.902
  with pytest.raises(ValueError, match="has no threshold"):
    open_set.threshold_keeping(sure[:0])


@pytest.mark.parametrize(
  "call,message",
  [
    (lambda: open_set.rejected([1, 2], [0.1, np.nan], 0.5), r"nce\[1\] is NaN"),
    (lambda: open_set.rejected([1, 2], [0.1, 0.2], np.nan), "threshold.* NaN"),
    (lambda: open_set.rejected([1, 2], [0.1], 0.5), "shapes"),
    (lambda: open_set.rejected([0.5], [0.1], 0.5), "give label ids, and -1"),
    (lambda: open_set.threshold_keeping(np.array([np.nan])), "is NaN"),
    (lambda: open_set.auroc([0.1, np.nan], [1, -1]), "is NaN"),
    (lambda: open_set.open_f_measure([1.5, 2], [1, 2]), "predictions is float"),
    (lambda: open_set.by_shots([1, 2], [1.0, 2], [3, 3, 3]), "truth is float"),
  ],
)
def test_what_is_neither_above_nor_below_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
