"""Metrics against plain loops written from the definitions."""

import math

from absl.testing import absltest
import hypothesis
from hypothesis import strategies
import numpy as np
import pytest
import sklearn.metrics

from xlj.evaluation import metrics
from xlj.evaluation import pairs

KS = (1, 3, 5)


def rows_of(sets) -> pairs.LabelRows:
  """CSR rows of a list of sets of ids."""
  indptr = np.cumsum([0, *map(len, sets)])
  indices = np.array([i for s in sets for i in sorted(s)], np.int32)
  return pairs.LabelRows(indptr, indices)


def expected_metrics(predictions, truths, propensities, ks) -> dict:
  """The definitions, one point and one label at a time, in [0, 1]."""
  result = {}
  for k in ks:
    precision, ndcg, recalls = [], [], []
    psp = psp_best = psndcg = psndcg_best = 0.0
    for predicted, truth in zip(predictions, truths):
      top = [label for label in predicted[:k]]
      precision.append(sum(label in truth for label in top) / k)
      if not truth:
        ndcg.append(0.0)
        continue
      ideal = sum(
        1 / math.log2(rank + 1) for rank in range(1, min(k, len(truth)) + 1)
      )
      dcg = 0.0
      for rank, label in enumerate(top, start=1):
        if label in truth:
          dcg += 1 / math.log2(rank + 1)
          psp += 1 / propensities[label]
          psndcg += 1 / propensities[label] / math.log2(rank + 1) / ideal
      ndcg.append(dcg / ideal)
      recalls.append(len(truth & set(top)) / len(truth))
      best = sorted((1 / propensities[label] for label in truth), reverse=True)
      for rank, gain in enumerate(best[:k], start=1):
        psp_best += gain
        psndcg_best += gain / math.log2(rank + 1) / ideal
    result[f"P@{k}"] = sum(precision) / len(precision)
    result[f"nDCG@{k}"] = sum(ndcg) / len(ndcg)
    result[f"Recall@{k}"] = sum(recalls) / len(recalls) if recalls else 0.0
    result[f"PSP@{k}"] = psp / psp_best if psp_best else 0.0
    result[f"PSnDCG@{k}"] = psndcg / psndcg_best if psndcg_best else 0.0
    macro = macro_figures(predictions, truths, set().union(*truths), k)
    result[f"Coverage@{k}"] = macro["Coverage"]
    result[f"MacroF1@{k}"] = macro["MacroF1"]
  return result


def macro_figures(predictions, truths, labels, k) -> dict:
  """Means over `labels`, those without a true instance left out."""
  covered, precisions, recalls, f1s = [], [], [], []
  for label in labels:
    true = {i for i, truth in enumerate(truths) if label in truth}
    said = {i for i, row in enumerate(predictions) if label in row[:k]}
    if not true:
      continue
    both = len(true & said)
    precision = both / len(said) if said else 0.0
    recall = both / len(true)
    covered.append(float(both > 0))
    precisions.append(precision)
    recalls.append(recall)
    f1s.append(2 * precision * recall / (precision + recall) if both else 0.0)
  count = max(len(f1s), 1)
  return {
    "Coverage": sum(covered) / count,
    "MacroPrecision": sum(precisions) / count,
    "MacroRecall": sum(recalls) / count,
    "MacroF1": sum(f1s) / count,
  }


@strategies.composite
def problems(draw):
  """A small data set with predictions: some short, some labels absent."""
  num_labels = draw(strategies.integers(1, 12))
  num_points = draw(strategies.integers(1, 9))
  label = strategies.integers(0, num_labels - 1)
  truths = draw(
    strategies.lists(
      strategies.sets(label), min_size=num_points, max_size=num_points
    )
  )
  predictions = draw(
    strategies.lists(
      strategies.lists(label, unique=True, max_size=7),
      min_size=num_points,
      max_size=num_points,
    )
  )
  propensity = strategies.floats(0.01, 1.0)
  propensities = draw(
    strategies.lists(propensity, min_size=num_labels, max_size=num_labels)
  )
  return num_labels, predictions, truths, np.array(propensities)


def padded(predictions, width=7) -> np.ndarray:
  ids = np.full((len(predictions), width), -1, np.int32)
  for row, labels in zip(ids, predictions):
    row[: len(labels)] = labels
  return ids


class RankingTest(absltest.TestCase):
  @hypothesis.settings(deadline=None, max_examples=150)
  @hypothesis.given(problems())
  def test_equals_the_definitions(self, problem):
    num_labels, predictions, truths, propensities = problem
    ranking = metrics.Ranking(num_labels, propensities=propensities, ks=KS)
    ranking.update(padded(predictions), rows_of(truths))
    expected = expected_metrics(predictions, truths, propensities, KS)
    found = ranking.compute()
    self.assertCountEqual(found, expected)
    for name, value in expected.items():
      self.assertAlmostEqual(found[name], 100 * value, places=9, msg=name)

  @hypothesis.settings(deadline=None, max_examples=60)
  @hypothesis.given(problems(), strategies.integers(0, 9))
  def test_parts_merge_to_the_whole(self, problem, cut):
    num_labels, predictions, truths, propensities = problem
    parts = []
    for part in (slice(0, cut), slice(cut, None), slice(None)):
      ranking = metrics.Ranking(num_labels, propensities=propensities, ks=KS)
      ranking.update(padded(predictions)[part], rows_of(truths[part]))
      parts.append(ranking)
    first, second, whole = parts
    first.merge(second)
    self.assertEqual(first.num_points, whole.num_points)
    for name, value in whole.compute().items():
      self.assertAlmostEqual(first.compute()[name], value, places=9, msg=name)

  @hypothesis.settings(deadline=None, max_examples=60)
  @hypothesis.given(problems(), strategies.randoms())
  def test_deciles_equal_the_definitions(self, problem, random):
    num_labels, predictions, truths, _ = problem
    deciles = np.array([random.randint(1, 10) for _ in range(num_labels)])
    counts = np.arange(num_labels) * 3
    ranking = metrics.Ranking(
      num_labels, deciles=deciles, label_counts=counts, ks=KS
    )
    ranking.update(padded(predictions), rows_of(truths))
    rows = ranking.deciles()
    self.assertEqual([r["decile"] for r in rows], sorted(set(deciles)))
    for row in rows:
      members = set(np.flatnonzero(deciles == row["decile"]).tolist())
      self.assertEqual(row["labels"], len(members))
      self.assertEqual(row["max_count"], 3 * max(members))
      self.assertEqual(
        row["test_instances"], sum(len(t & members) for t in truths)
      )
      for k in KS:
        expected = macro_figures(predictions, truths, members, k)
        for name, value in expected.items():
          self.assertAlmostEqual(row[f"{name}@{k}"], 100 * value, msg=name)
    for k in KS:
      total = sum(row[f"P@{k}"] for row in rows)
      self.assertAlmostEqual(total, ranking.compute()[f"P@{k}"])

  def test_by_hand(self):
    # Point 0: rank 1 misses, rank 2 hits label 0 of {0, 1}.
    # Point 1: rank 1 hits label 3 of {3}. Point 2: no labels.
    ranking = metrics.Ranking(
      5, ks=(1, 2), propensities=np.array([0.5, 0.25, 1, 0.2, 1])
    )
    truth = rows_of([{0, 1}, {3}, set()])
    ranking.update(np.array([[2, 0], [3, 0], [1, 2]]), truth)
    found = ranking.compute()
    second = 1 / math.log2(3)
    expected = {
      "P@1": 1 / 3,
      "P@2": 2 / 6,
      "nDCG@1": 1 / 3,
      "nDCG@2": (second / (1 + second) + 1) / 3,
      "Recall@1": 1 / 2,
      "Recall@2": (1 / 2 + 1) / 2,
      "PSP@1": 5 / (4 + 5),
      "PSP@2": (2 + 5) / (4 + 2 + 5),
      "PSnDCG@1": 5 / (4 + 5),
      "PSnDCG@2": (2 * second / (1 + second) + 5)
      / ((4 + 2 * second) / (1 + second) + 5),
      "Coverage@1": 1 / 3,  # label 3 of {0, 1, 3}
      "Coverage@2": 2 / 3,
      "MacroF1@1": 1 / 3,
      "MacroF1@2": (2 / 3 + 0 + 1) / 3,  # label 0: 1 tp, 1 fp
    }
    self.assertCountEqual(found, expected)
    for name, value in expected.items():
      self.assertAlmostEqual(found[name], 100 * value, msg=name)

  def test_ndcg_equals_scikit_learn(self):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 30))
    truth = rng.random((40, 30)) < 0.2
    ranking = metrics.Ranking(30, ks=KS)
    ids = np.argsort(-scores, axis=1)[:, :5]
    ranking.update(ids, rows_of([set(np.flatnonzero(t)) for t in truth]))
    for k in KS:
      expected = sklearn.metrics.ndcg_score(truth, scores, k=k)
      self.assertAlmostEqual(ranking.compute()[f"nDCG@{k}"], 100 * expected)

  def test_perfect_predictions_reach_100(self):
    truths = [{0, 1, 2, 3, 4, 5}, {6, 7, 8, 9, 1}]
    ranking = metrics.Ranking(10, propensities=np.linspace(0.1, 1, 10))
    # Rarest (least propensity) first is what PSnDCG calls best.
    ids = np.array([sorted(truth)[:5] for truth in truths])
    ranking.update(ids, rows_of(truths))
    for name in ("P", "nDCG", "PSP", "PSnDCG"):
      for k in KS:
        self.assertAlmostEqual(ranking.compute()[f"{name}@{k}"], 100)

  def test_padding_points_are_left_out(self):
    truth = rows_of([{1}, {2}])
    ids = np.array([[1], [0]])
    ranking = metrics.Ranking(3, ks=(1,), propensities=np.ones(3))
    ranking.update(ids, truth, weights=np.array([1.0, 0.0]))
    self.assertEqual(ranking.num_points, 1)
    self.assertEqual(set(ranking.compute().values()), {100.0})

  def test_padding_ids_are_never_hits(self):
    # With combined keys, -1 of row 1 and 3 of row 0 are other rows' labels.
    truth = rows_of([{2}, {0}])
    ranking = metrics.Ranking(3, ks=(1,))
    ranking.update(np.array([[3], [-1]]), truth)
    self.assertEqual(ranking.compute()["P@1"], 0)

  def test_fewer_labels_than_the_cut_off(self):
    ranking = metrics.Ranking(2, ks=(1, 5))
    ranking.update(np.array([[1, 0]]), rows_of([{0}]))
    self.assertAlmostEqual(ranking.compute()["P@5"], 20)
    self.assertAlmostEqual(ranking.compute()["Recall@5"], 100)

  def test_without_counts_per_label(self):
    ranking = metrics.Ranking(2**31, ks=(1,), per_label=False)
    top = 2**31 - 1
    rows = pairs.LabelRows(np.array([0, 1, 2]), np.array([top, top]))
    ranking.update(np.array([[top], [0]]), rows)
    self.assertEqual(
      ranking.compute(), {"P@1": 50, "nDCG@1": 50, "Recall@1": 50}
    )
    with self.assertRaisesRegex(ValueError, "per_label"):
      ranking.deciles()

  def test_refusals(self):
    ranking = metrics.Ranking(4, ks=(1, 2))
    one = rows_of([{0}])
    cases = [
      ("nothing to average", ranking.compute),
      ("expected 2", lambda: ranking.update(np.zeros((1, 1), int), one)),
      (
        "1 rows of labels for 2",
        lambda: ranking.update(np.eye(2, 2, 0, int), one),
      ),
      ("twice", lambda: ranking.update(np.array([[1, 1]]), one)),
      (
        "expected ids in",
        lambda: ranking.update(np.array([[0, 1]]), rows_of([{4}])),
      ),
      (
        "ascend",
        lambda: ranking.update(
          np.array([[0, 1]]),
          pairs.LabelRows(np.array([0, 2]), np.array([1, 0])),
        ),
      ),
      ("cut-offs differ", lambda: ranking.merge(metrics.Ranking(4, ks=(1, 3)))),
      ("other labels", lambda: ranking.merge(metrics.Ranking(5, ks=(1, 2)))),
      ("k >= 1", lambda: metrics.Ranking(4, ks=(0,))),
      ("expected 1 to 10", lambda: metrics.Ranking(2, deciles=np.arange(2))),
      ("propensities has", lambda: metrics.Ranking(4, propensities=np.ones(3))),
    ]
    for message, call in cases:
      with self.subTest(message), self.assertRaisesRegex(ValueError, message):
        call()

  def test_is_fast(self):
    rng = np.random.default_rng(0)
    n, num_labels = 10_000, 100_000
    start = rng.integers(0, num_labels, (n, 1))
    ids = (start + np.arange(100) * 7) % num_labels
    labels = np.sort((start + np.arange(10) * 21) % num_labels, axis=1)
    truth = pairs.LabelRows(np.arange(n + 1) * 10, labels.ravel())
    ranking = metrics.Ranking(
      num_labels,
      propensities=rng.uniform(0.1, 1, num_labels),
      ks=(*KS, 100),
    )
    ranking.update(ids, truth)
    ranking.compute()
    self.assertAlmostEqual(ranking.compute()["Recall@100"], 100)


@pytest.mark.parametrize(
  "options,ids,weights,message",
  [
    (dict(ks=(1.5,)), None, None, "cut-offs are .* whole numbers"),
    (dict(propensities=[0.5, np.nan, 1]), None, None, "label 1 is nan"),
    (dict(propensities=[0.5, 1, 2]), None, None, r"label 2 is 2.0, .* \(0, 1"),
    ({}, np.array([0, 1]), None, r"are int64 \(2,\), expected label ids \[N"),
    ({}, np.array([[0.0], [np.nan]]), None, "are float64"),
    ({}, np.array([[0], [1]]), [1, 1, 0], r"weights have shape \(3,\)"),
  ],
)
def test_figures_of_what_is_no_ranking_are_refused(
  options, ids, weights, message
):
  truth = pairs.LabelRows(np.array([0, 1, 2]), np.array([0, 1]))
  with pytest.raises(ValueError, match=message):
    metrics.Ranking(3, **({"ks": (1,)} | options)).update(ids, truth, weights)


def expected_recommendation(predictions, truths, counts, ks) -> dict:
  """The definitions in NumPy, over a dense 0/1 matrix, one point at a time."""
  found = {}
  asked = [i for i, truth in enumerate(truths) if truth]
  for k in ks:
    tops = [np.array(row[:k], int) for row in predictions]
    hits = [np.isin(top, sorted(truth)) for top, truth in zip(tops, truths)]
    ranks = [np.flatnonzero(hit)[:1] + 1 for hit in hits]
    popularity = [counts[top].mean() for top in tops if len(top)]
    gains = [(hit / np.log2(np.arange(len(hit)) + 2)).sum() for hit in hits]
    ideal = [
      (1 / np.log2(np.arange(min(k, len(truth))) + 2)).sum() for truth in truths
    ]
    found |= {
      f"Recall@{k}": np.mean([hits[i].sum() / len(truths[i]) for i in asked]),
      f"nDCG@{k}": np.sum([gains[i] / ideal[i] for i in asked]) / len(truths),
      f"HR@{k}": np.mean([hits[i].any() for i in asked]),
      f"MRR@{k}": np.mean([(1 / ranks[i]).sum() for i in asked]),
      f"CatalogCoverage@{k}": len(np.unique(np.concatenate(tops)))
      / len(counts),
      f"ARP@{k}": np.mean(popularity),
    }
  return found


@pytest.mark.parametrize("cuts", [(), (7,), (3, 4, 20)])
def test_figures_of_recommendation_in_one_batch_or_several(cuts):
  rng = np.random.default_rng(0)
  num_labels, ks, rows = 30, (1, 4, 10), 24
  counts = rng.integers(0, 50, num_labels)
  predictions = [rng.permutation(num_labels)[:10].tolist() for _ in range(rows)]
  predictions[5], predictions[6] = [], predictions[6][:3]  # no more may be
  truths = [
    set(rng.permutation(num_labels)[: rng.integers(0, 7)]) for _ in range(rows)
  ]
  assert set() in truths
  about = {"label_counts": counts, "figures": "recommendation", "ks": ks}
  ranking = metrics.Ranking(num_labels, **about)
  ids = padded(predictions, 10)
  for part in map(slice, (0, *cuts), (*cuts, rows)):
    one = metrics.Ranking(num_labels, **about)  # as of another process
    one.update(ids[part], rows_of(truths[part]))
    ranking.add_state(one.state)
  found = ranking.compute()
  expected = expected_recommendation(predictions, truths, counts, ks)
  assert list(found) == [f"{name}@{k}" for name in (
    "nDCG", "Recall", "HR", "MRR", "ARP", "CatalogCoverage"
  ) for k in ks]  # fmt: skip
  assert found == pytest.approx(expected, rel=1e-12)
  assert all(0 < found[f"{name}@10"] < 1 for name in ("Recall", "HR", "MRR"))


def test_figures_of_recommendation_without_counts():
  ranking = metrics.Ranking(
    4, ks=(2,), per_label=False, figures="recommendation"
  )
  ranking.update(np.array([[1, 0], [2, 3]]), rows_of([{0}, {1, 2}]))
  assert ranking.compute() == pytest.approx(
    {
      "Recall@2": 3 / 4,
      "nDCG@2": (1 / math.log2(3) + 1 / (1 + 1 / math.log2(3))) / 2,
      "HR@2": 1,
      "MRR@2": 3 / 4,
    }
  )


if __name__ == "__main__":
  absltest.main()
