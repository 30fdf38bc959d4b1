"""Why a label, and which labels and rows are near, against brute force."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.sparse

from tests import dense_heads
from tests import meshes
from tests import runs
from xlj import config as config_lib
from xlj import sharding
from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.inference import contributions
from xlj.inference import predictor
from xlj.model import model as model_lib
from xlj.model import neighbours as neighbours_lib
from xlj.runs import directory

F, L, D = 12, 13, 5
COUNTS = np.random.default_rng(3).permutation(L) + 1
ORDER = label_order.LabelOrder.by_frequency(COUNTS)
FACTS = config_lib.DataFacts(99, F, L, 2.0, 3.0, False, "counts", "0" * 8)
ROW = {1: 2.0, 4: 1.0, 7: 3.0}


def make_run(facts=FACTS, **fields):
  """A run of random parameters that was never on disk, on eight devices."""
  # Otherwise features that are left out would change the values of others.
  given = {} if facts.dense else {"data__weighting": "none", "data__l2": False}
  given |= {"head__blocks": 8, "neighbours__count": 0}
  config = runs.resolved(facts, **given, **fields)
  config.predict.propensity_power = 0.0
  if config.head.wide:
    config.head.wide_pairs = F * -(-L // 8)
  mesh = meshes.make((4, 2))
  rng = np.random.default_rng(1)
  with jax.set_mesh(mesh):
    model = model_lib.Model(config)
    state = model.init(
      sharding.replicate(jax.random.key(0)),
      model.by_row(ORDER.data_ids, -1),
      model.by_row(COUNTS[ORDER.data_ids].astype(np.int32), 0),
      sharding.replicate(np.ones(facts.num_features, np.float32)),
    )
    specs = sharding.named(mesh, model.head.specs())
    head = jax.tree.map(
      lambda a: rng.normal(size=a.shape).astype(a.dtype), state.model["head"]
    )
    if config.head.wide:
      weights = rng.normal(size=(F, model.head.num_rows))
      weights *= rng.random(weights.shape) < 0.7
      head = dense_heads.with_wide(head, weights, 8)
    trees = {"model": state.model | {"head": jax.device_put(head, specs)}}
  run = directory.Run(Path("x"), config, mesh, 1, trees, ORDER)
  return predictor.Predictor(run)


@pytest.fixture(scope="module")
def linear():
  return make_run(family="linear")


@pytest.fixture(scope="module")
def network():
  return make_run(
    family="network",
    encoder__dim=D,
    encoder__hidden=(6,),
    encoder__activation="tanh",
    head__wide=True,
  )


@pytest.fixture(scope="module")
def dense():
  facts = dataclasses.replace(FACTS, dense=True, kind="dense")
  return make_run(facts, family="network", encoder__dim=D, head__cosine=True)


def label_vectors(run):
  """What labels are compared by, `[L, ...]` by id."""
  head = jax.tree.map(np.asarray, run.state["head"])
  rows = run.model.layout.row_of_label(ORDER.to_head(np.arange(L)))
  if run.config.encoder.dim:
    return np.asarray(run.model.head.rows(run.state["head"]))[rows]
  return dense_heads.wide(head, run.model.head.num_rows).T[rows]


@pytest.mark.parametrize("name", ["linear", "network", "dense"])
def test_neighbours_of_a_label(name, request):
  run = request.getfixturevalue(name)
  vectors = label_vectors(run)
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  for label in (0, 7):
    every = unit @ unit[label]
    every[label] = -1
    wanted = [i for i in np.argsort(-every) if every[i] > 0]
    ids, cosines = run.neighbours_of(label, 3)
    assert ids.tolist() == wanted[:3]
    np.testing.assert_allclose(cosines, every[ids], atol=1e-5)
    ids, _ = run.neighbours_of(label, 99)
    assert ids.tolist() == wanted


def scores_of(run, row, labels):
  """Scores of some labels."""
  scores, ids = run.topk([row] if isinstance(row, dict) else row, L)
  return scores[0][np.argsort(ids[0])[labels]]


@pytest.mark.parametrize("name", ["linear", "network", "dense"])
def test_a_feature_contributes_what_the_score_loses_without_it(name, request):
  run, labels = request.getfixturevalue(name), [2, 11]
  row = ROW if name != "dense" else [[ROW.get(i, 0) for i in range(F)]]
  told = run.why(row, labels, 99)
  whole = scores_of(run, row, labels)
  for place, reasons in enumerate(told):
    wanted = {}
    for feature in ROW:
      if name == "dense":
        without = [[0 if i == feature else v for i, v in enumerate(row[0])]]
      else:
        without = {i: v for i, v in row.items() if i != feature}
      wanted[feature] = (whole - scores_of(run, without, labels))[place]
    wanted = {f: c for f, c in wanted.items() if c > 0}
    assert [f for f, _ in reasons] == sorted(wanted, key=lambda f: -wanted[f])
    for feature, contribution in reasons:
      assert contribution == pytest.approx(wanted[feature], abs=1e-4)
  assert run.why(row, labels, 1) == [reasons[:1] for reasons in told]
  assert any(told)


def test_what_cannot_be_said_is_nothing():
  run = make_run(
    family="network",
    encoder__dim=D,
    head__type="dense",
    head__prototypes=2,
    head__wide=False,
  )
  assert run.why(ROW, [2, 11], 3) == [[], []]
  ids, cosines = run.neighbours_of(2, 3)
  assert len(ids) == len(cosines) == 0
  assert run.near_rows(ROW, 3) == []


@pytest.mark.parametrize(
  "label, why",
  [
    (L, "label 13: there are ids 0 to 12"),
    (-1, "label -1: there are ids 0 to 12"),
    (1.5, "label 1.5: label ids are whole numbers"),
    ("x", "label 'x': label ids are whole numbers"),
  ],
)
def test_what_is_no_label_is_refused(linear, label, why):
  for ask in (
    lambda: linear.neighbours_of(label, 3),
    lambda: linear.why(ROW, [label], 3),
  ):
    with pytest.raises(ValueError, match=why):
      ask()


def test_one_example_in_any_form(linear):
  told = linear.why(ROW, [2], 3)
  dense = np.zeros((1, F), np.float32)
  dense[0, list(ROW)] = list(ROW.values())
  for row in ([ROW], dense, scipy.sparse.csr_array(dense)):
    assert linear.why(row, [2], 3) == told
  with pytest.raises(ValueError, match="2 examples; give one alone"):
    linear.why([ROW, ROW], [2], 3)


def test_nearest_training_rows(network):
  features = csr_lib.Csr.from_rows(
    [[1, 4, 7], [0], [1, 9]], F, [[4.0, 2.0, 6.0], [1.0], [1.0, 1.0]]
  )
  labels = csr_lib.Csr.from_rows([[3], [5], [2, 8]], L)
  kept = neighbours_lib.Neighbours(features, labels, 2, 1.0, 0.1)
  network.neighbours = kept
  try:
    near = network.near_rows(ROW, 3)
  finally:
    network.neighbours = None
  assert [(r.row, r.labels) for r in near] == [(0, [3]), (2, [2, 8])]
  cosine = 2 / np.sqrt(14 * 2)
  np.testing.assert_allclose([r.cosine for r in near], [1, cosine], rtol=1e-5)


def test_reasons_are_embedded_in_parts():
  rng = np.random.default_rng(0)
  table, label_rows = rng.normal(size=(150, D)), rng.normal(size=(2, D))
  values = rng.normal(size=150)
  found = contributions.of_encoder(lambda v: v @ table, values, label_rows)
  np.testing.assert_allclose(
    found, (values[:, None] * table @ label_rows.T).T, atol=1e-5
  )
  empty = contributions.of_encoder(
    lambda v: v @ table[:0], values[:0], label_rows
  )
  assert empty.shape == (2, 0)
