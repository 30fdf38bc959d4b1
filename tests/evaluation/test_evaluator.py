"""Scoring a split: rankings and metrics against brute force."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.sparse

from tests import dense_heads
from tests import meshes
from xlj import config as config_lib
from xlj import sharding
from xlj.config import families
from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.data import store
from xlj.evaluation import evaluator
from xlj.evaluation import metrics
from xlj.model import label_choice
from xlj.model import model as model_lib

N, F, L, BATCH, K = 21, 12, 13, 8, 5
COUNTS = np.random.default_rng(3).permutation(L) + 1
KS = (1, 3, 5)
ORDER = label_order.LabelOrder.by_frequency(COUNTS)


def make_rows(rng, num_columns, longest, values=False):
  """Sparse rows, the first of them empty."""
  ids = [
    np.sort(rng.permutation(num_columns)[: rng.integers(0, longest + 1)])
    for _ in range(N)
  ]
  ids[0] = ids[0][:0]
  floats = [rng.uniform(0.5, 2, len(row)) for row in ids] if values else None
  return csr_lib.Csr.from_rows([list(row) for row in ids], num_columns, floats)


def make_split(reciprocal):
  rng = np.random.default_rng(0)
  return store.Split(
    features=make_rows(rng, F, 6, values=True),
    labels=make_rows(rng, L, 4),
    filter=make_rows(rng, L, L - 2) if reciprocal else None,
    name="made",
    fingerprint="0" * 8,
  )


def make_linear(loss):
  """A linear model with random weights, and its logits' weights by data id."""
  config = config_lib.base()
  config.family = "linear"
  config.head.loss = loss
  config.head.blocks = 8
  config.predict.propensity_power = 0.0
  facts = families.DataFacts(N, F, L, 2.0, 3.0, False, "weighted", "0" * 8)
  config = config_lib.resolve(config, facts)
  config.head.wide_pairs = F * -(-L // 8)
  weights = np.random.default_rng(1).normal(size=(F, L)).astype(np.float32)
  with meshes.mesh((2, 4)) as mesh:
    model = model_lib.Model(config)
    state = model.init(
      sharding.replicate(jax.random.key(0)),
      model.by_row(ORDER.data_ids, -1),
      model.by_row(COUNTS[ORDER.data_ids].astype(np.int32), 0),
      sharding.replicate(np.ones(F, np.float32)),
    ).model
    rows = model.head.layout.row_of_label(ORDER.to_head(np.arange(L)))
    wide = np.zeros((F, model.head.num_rows), np.float32)
    wide[:, rows] = weights
    head = dense_heads.with_wide(state["head"], wide, 8)
    specs = sharding.named(mesh, model.head.specs())
    state["head"] = jax.device_put(head, specs)
  return model, state, weights


@pytest.fixture(scope="module")
def linear():
  return make_linear("bce")


def make_evaluator(model, split, **options):
  return evaluator.Evaluator(
    model, split, None, ORDER, batch_size=BATCH, num_labels=L, ks=KS, **options
  )


def brute_force(split, weights, rows):
  """Scores `[n, K]` and labels of the rows; filtered labels are left out."""
  z = split.features.take(rows).to_scipy() @ weights - 6.0
  for n, row in enumerate(rows):
    if split.filter is not None:
      z[n, split.filter.take([row]).indices] = -np.inf
  ids = np.argsort(-z, axis=1, kind="stable")[:, :K]
  scores = np.take_along_axis(z, ids, 1)
  return scores, np.where(np.isneginf(scores), -1, ids)


@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("subset", [False, True])
def test_rankings_equal_brute_force(reciprocal, subset, linear):
  model, state, weights = linear
  split = make_split(reciprocal)
  # More than a batch, in an order of its own, and no whole number of them.
  rows = np.array([20, 3, 4, 0, 9, 11, 12, 2, 7]) if subset else None
  with meshes.mesh((2, 4)):
    parts = list(make_evaluator(model, split, rows=rows).rank(state, K))
  wanted = np.arange(N) if rows is None else rows
  np.testing.assert_array_equal(
    np.concatenate([part.rows for part in parts]), wanted
  )
  got = np.concatenate([part.ids for part in parts])
  scores, ids = brute_force(split, weights, wanted)
  np.testing.assert_allclose(
    np.concatenate([part.scores for part in parts]), scores, atol=1e-5
  )
  featureless = split.features.row_lengths[wanted] == 0  # all scores are equal
  assert 0 < featureless.sum() < 5
  np.testing.assert_array_equal(got[~featureless], ids[~featureless])
  # Of equal scores, the label whose row comes first.
  if split.filter is None:
    label_rows = model.layout.row_of_label(ORDER.to_head(got[featureless]))
    first = np.sort(model.layout.row_of_label(np.arange(L)))[:K]
    np.testing.assert_array_equal(label_rows, [first] * len(label_rows))
  if split.filter is not None:
    assert (ids == -1).any()  # some rows allow fewer than K labels
    for row, chosen in zip(wanted, got):
      forbidden = split.filter.take([row]).indices
      assert len(forbidden) == 0 or not np.isin(chosen, forbidden).any()


@pytest.mark.parametrize("reciprocal", [False, True])
def test_metrics_are_those_of_the_rankings(reciprocal, linear):
  model, state, weights = linear
  split = make_split(reciprocal)
  about = {
    "propensities": np.linspace(0.1, 1, L),
    "deciles": np.arange(L) % 10 + 1,
    "label_counts": COUNTS,
  }
  with meshes.mesh((2, 4)):
    scorer = make_evaluator(model, split, **about)
    first, again = scorer.run(state), scorer.run(state)
    parts = list(scorer.rank(state, K))
  expected = metrics.Ranking(L, ks=KS, **about)
  expected.update(np.concatenate([part.ids for part in parts]), split.labels)
  assert first.num_points == N
  assert first.compute() == again.compute()
  # Other batches, other orders of sums.
  assert first.compute() == pytest.approx(expected.compute())
  for found, decile in zip(first.deciles(), expected.deciles(), strict=True):
    assert found == pytest.approx(decile)
  assert 0 < first.compute()["P@1"] < 100


@pytest.mark.parametrize("excluding", [False, True])
def test_labels_that_no_model_knows_are_missed(excluding, linear):
  model, state, weights = linear
  split = make_split(False)
  rng = np.random.default_rng(5)
  labels = [
    row.tolist()
    for row in np.split(split.labels.indices, split.labels.indptr[1:-1])
  ]
  unknown = [[L + 1, L + 3][: rng.integers(0, 3)] for _ in labels]
  wide = csr_lib.Csr.from_rows([a + b for a, b in zip(labels, unknown)], L + 4)
  about = {"ks": (1, 3, 20), "propensities": np.linspace(0.1, 1, L + 4)}
  choice = label_choice.LabelChoice()
  if excluding:
    none = scipy.sparse.csr_array((N, L), dtype=np.float32)
    choice = label_choice.LabelChoice(exclude=none)
  with meshes.mesh((2, 4)):
    scorer = evaluator.Evaluator(
      model, dataclasses.replace(split, labels=wide), None, ORDER,
      batch_size=BATCH, num_labels=L + 4, choice=choice, **about,
    )  # fmt: skip
    got = scorer.run(state)
    scorer.loss(state)
    parts = list(make_evaluator(model, split).rank(state, L))
  ids = np.concatenate([part.ids for part in parts])
  expected = metrics.Ranking(L + 4, **about)
  expected.update(np.pad(ids, ((0, 0), (0, 7)), constant_values=-1), wide)
  assert got.compute() == pytest.approx(expected.compute())
  assert got.compute()["Recall@20"] < 100


def test_metrics_of_some_rows(linear):
  model, state, weights = linear
  split, rows = make_split(False), np.array([5, 1, 8])
  with meshes.mesh((2, 4)):
    got = make_evaluator(model, split, rows=rows).run(state)
  expected = metrics.Ranking(L, ks=KS)
  expected.update(brute_force(split, weights, rows)[1], split.labels.take(rows))
  assert got.num_points == 3
  assert got.compute() == pytest.approx(expected.compute())


@pytest.mark.parametrize("batch_size", [8, 16, 64])
def test_the_loss_is_the_mean_over_rows_at_any_batch_size(
  batch_size, monkeypatch
):
  model, state, weights = make_linear("softmax")
  monkeypatch.setattr(type(model.head), "is_likelihood", True, raising=False)
  split = make_split(False)
  rows = np.array([20, 3, 4, 0, 9, 11, 12, 2, 7, 5, 6])
  with meshes.mesh((2, 4)):
    found = evaluator.Evaluator(
      model, split, None, ORDER, batch_size=batch_size, num_labels=L, ks=KS,
      rows=rows,
    ).loss(state)  # fmt: skip
  z = (split.features.take(rows).to_scipy() @ weights).astype(np.float64)
  log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
  expected = []
  for n, row in enumerate(rows):
    labels = split.labels.take([row]).indices
    expected.append(-log_p[n, labels].mean() if len(labels) else 0)
  assert found["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
  assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))


def test_a_loss_that_is_no_likelihood_has_no_perplexity(linear, monkeypatch):
  model, state, _ = linear
  monkeypatch.setattr(type(model.head), "is_likelihood", False, raising=False)
  with meshes.mesh((2, 4)):
    assert make_evaluator(model, make_split(False)).loss(state) == {}


def test_nothing_by_label_leaves_out_what_needs_it(linear):
  model, state, _ = linear
  split = make_split(False)
  with meshes.mesh((2, 4)):
    found = make_evaluator(model, split, per_label=False).run(state)
    everything = make_evaluator(model, split).run(state).compute()
  names = {name.split("@")[0] for name in found.compute()}
  assert names == {"P", "nDCG", "Recall"}
  assert all(everything[k] == value for k, value in found.compute().items())
  sizes = [np.size(sums) for sums in found.state.values()]
  assert max(sizes) == 2 * len(KS)


def test_popularity_predicts_the_most_frequent_labels():
  split = make_split(False)
  counts = np.zeros(L, np.int64)
  counts[[7, 2, 9, 4, 1]] = [50, 40, 30, 20, 10]
  ranking = metrics.Ranking(L, ks=(1, 3, 5))
  found = evaluator.popularity(split, counts, ranking)
  hot = split.labels.to_scipy().toarray()
  assert found is ranking and found.num_points == N
  values = found.compute()
  np.testing.assert_allclose(values["P@1"], 100 * hot[:, 7].mean())
  np.testing.assert_allclose(values["P@3"], 100 * hot[:, [7, 2, 9]].mean())
  assert values["P@1"] > 0


def test_popularity_of_more_rows_than_a_block():
  num_rows = 5000
  labels = csr_lib.Csr(
    np.arange(num_rows + 1, dtype=np.int64),
    (np.arange(num_rows) % 4).astype(np.int32),
    None,
    4,
  )
  split = store.Split(labels, labels, None, "made", "0")
  ranking = metrics.Ranking(4, ks=(1,))
  evaluator.popularity(split, np.array([0, 3, 2, 1]), ranking)
  assert ranking.num_points == num_rows
  np.testing.assert_allclose(ranking.compute()["P@1"], 25.0)


def test_popularity_leaves_out_what_the_filter_forbids():
  labels = csr_lib.Csr.from_rows([[0], [1], [2]], num_columns=3)
  forbidden = csr_lib.Csr.from_rows([[1], [0], [0, 1]], num_columns=3)
  split = store.Split(labels, labels, forbidden, "made", "0")
  ranking = metrics.Ranking(3, ks=(1,))
  evaluator.popularity(split, np.array([30, 20, 10]), ranking)
  assert ranking.compute()["P@1"] == 100  # row 0: 0, row 1: 1, row 2: 2
