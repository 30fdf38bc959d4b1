"""Losses with a memory of each example equal those with a dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests import meshes
from tests.losses import table
from xlj import sharding
from xlj.losses import remembered
from xlj.model import example_memory
from xlj.ops import targets as targets_lib
from xlj.ops import topk

N, D, P = 16, 6, 4
NUM_LABELS = 203
ALL = NUM_LABELS  # remembered: the matrix of the paper


def make_head(loss):
  return table.make_head(loss, NUM_LABELS, D, init_scale=0.8)


def largest(dense_values, m):
  """The matrix with the m largest entries of each row alone."""
  kept = np.zeros_like(dense_values)
  order = np.argsort(-dense_values, axis=1)[:, :m]
  values = np.take_along_axis(dense_values, order, 1)
  np.put_along_axis(kept, order, values, 1)
  return kept


def sparse(dense_values, m):
  order = np.argsort(-dense_values, axis=1)[:, :m].astype(np.int32)
  values = np.take_along_axis(dense_values, order, 1).astype(np.float32)
  return targets_lib.Memory(np.where(values > 0, order, -1), values)


def to_dense(ids, values):
  out = np.zeros((len(ids), NUM_LABELS))
  for n, row in enumerate(ids):
    for m, label in enumerate(row):
      if label >= 0:
        assert out[n, label] == 0, "a label twice"
        out[n, label] = values[n, m]
  return out


def elr(loss, probabilities, memory):
  """New target, and the losses as a function of logits."""
  target = loss.momentum * memory + (1 - loss.momentum) * probabilities
  target = largest(target, loss.remembered)

  def losses(z, y):
    p = jax.nn.softmax(z)
    regulariser = jnp.log(1 - (jnp.asarray(target) * p).sum(1))
    cross = -(y * jax.nn.log_softmax(z)).sum(1)
    return cross + loss.strength * jnp.where(y.any(1), regulariser, 0)

  return target, losses


def ps_kd(loss, probabilities, memory):
  mix = loss.last * min(1, (1 + loss.step) / loss.num_epochs)
  mix = np.where(memory.any(1), mix, 0)[:, None]

  def losses(z, y):
    target = jnp.where(y.any(1)[:, None], (1 - mix) * y + mix * memory, 0)
    return -(target * jax.nn.log_softmax(z)).sum(1)

  return largest(probabilities, loss.remembered), losses


CASES = {
  "elr": (lambda m: remembered.EarlyLearning(m, 3.0, 0.6), elr),
  "ps_kd": (
    lambda m: remembered.SelfDistillation(m, num_epochs=5, step=2),
    ps_kd,
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  "name,m,shape,label_axis",
  [
    ("elr", 5, (1, 1), 1),
    ("elr", ALL, (2, 4), 0),
    ("elr", 5, (8, 1), 0),
    ("ps_kd", ALL, (1, 1), 0),
    ("ps_kd", 5, (2, 4), 1),
  ],
)
def test_a_step_equals_the_dense_matrix(
  name, m, shape, label_axis, monkeypatch
):
  table.put_labels_on(monkeypatch, label_axis)
  make, reference = CASES[name]
  loss = make(m)
  head = make_head(loss)
  targets = table.make_targets(table.CASES["softmax"], N, NUM_LABELS, P)
  y = table.dense_targets(targets, NUM_LABELS)
  y /= np.maximum(y.sum(1, keepdims=True), 1)
  rng = np.random.default_rng(4)
  x = rng.normal(size=(N, D)).astype(np.float32)
  before = largest(0.9 * rng.dirichlet(np.full(NUM_LABELS, 0.05), N), m)
  before[3] = 0  # not seen before
  before = before.astype(np.float32).astype(float)
  params = table.init(head)
  row = head.layout.row_of_label(np.arange(NUM_LABELS))
  with jax.enable_x64(True):
    z = x.astype(float) @ params["rows"][row].T.astype(float)
    target, losses = reference(loss, special.softmax(z, 1), before)

    @jax.jit
    def values_and_slopes(z):
      values, vjp = jax.vjp(lambda z: losses(z, y), z)
      return values, vjp(jnp.ones_like(values))[0]

    values, slopes = map(np.asarray, values_and_slopes(z))
  share = targets.weights / targets.weights.sum()
  slopes = slopes * share[:, None]
  targets = targets._replace(memory=sparse(before, m))
  found, dx, changes = table.take_step(head, params, x, targets, shape, step=2)
  np.testing.assert_allclose(found["loss"], values @ share, rtol=1e-5)
  np.testing.assert_allclose(dx, slopes @ params["rows"][row], atol=1e-5)
  np.testing.assert_allclose(changes["rows"][row], slopes.T @ x, atol=1e-5)
  kept = to_dense(found["memory_ids"], found["memory_values"])
  np.testing.assert_allclose(kept, target, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_without_a_memory_it_is_a_softmax(name):
  head = make_head(CASES[name][0](4))
  plain = make_head(table.CASES["softmax"].loss)
  targets = table.make_targets(table.CASES["softmax"], N, NUM_LABELS, P)
  x = np.random.default_rng(4).normal(size=(N, D)).astype(np.float32)
  with meshes.mesh((2, 4)) as mesh:
    params = jax.device_put(
      table.init(head), jax.NamedSharding(mesh, sharding.LABELS)
    )
    inputs = sharding.put_batch((x, targets))
    found, expected = (
      jax.jit(h.evaluate_loss)(params, inputs[0], None, inputs[1])
      for h in (head, plain)
    )
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_sure_target_stays_finite():
  loss = remembered.EarlyLearning(2)
  z = jnp.asarray([[60.0, 0.0, 0.0]])
  memory = targets_lib.Memory(
    jnp.asarray([[0, -1]], jnp.int32), jnp.asarray([[1.0, 0.0]])
  )
  positives = jax.jit(targets_lib.positives_in_chunk, static_argnums=(1, 2))(
    jnp.asarray([[1]]), 0, 3, memory=memory
  )

  @jax.jit
  def run(z, positives):
    stats = loss.accumulate(loss.init(1), z, positives)
    return loss.value_and_grad(stats, z, positives)

  value, grad = run(z, positives)
  assert np.isfinite(value).all() and np.isfinite(grad).all()


@pytest.mark.parametrize("shape", meshes.SHAPES)
def test_examples_are_remembered_wherever_they_are(shape):
  rng = np.random.default_rng(0)
  num_rows, m = 83, 3
  expected_ids = np.full((num_rows, m), -1)
  expected_values = np.zeros((num_rows, m))
  with meshes.mesh(shape):
    memory = jax.jit(
      lambda: example_memory.init(num_rows, m, 16),
      out_shardings=jax.NamedSharding(jax.sharding.get_mesh(), sharding.BATCH),
    )()
    for _ in range(4):
      rows = rng.choice(num_rows, 16, replace=False).astype(np.int32)
      rows[5] = rows[2]  # the first counts
      ids = rng.integers(-1, 50, (16, m)).astype(np.int32)
      values = rng.random((16, m)).astype(np.float32)
      placed = sharding.put_batch(rows)
      memory = jax.jit(example_memory.put)(
        memory, placed, *sharding.replicate((ids, values))
      )
      for i in reversed(range(16)):
        expected_ids[rows[i]] = ids[i]
        expected_values[rows[i]] = values[i].astype(np.float16)
      asked = rng.integers(0, num_rows, 24).astype(np.int32)
      found = jax.jit(example_memory.take)(memory, sharding.put_batch(asked))
      np.testing.assert_array_equal(found.ids, expected_ids[asked])
      np.testing.assert_allclose(found.values, expected_values[asked])


@pytest.mark.slow
@pytest.mark.parametrize("label_axis", [0, 1])
@pytest.mark.parametrize("k", [1, 16, 250])
def test_the_best_labels_of_chunks(k, label_axis):
  rng = np.random.default_rng(k)
  z = rng.normal(size=(9, 300)).astype(np.float32)
  z[rng.random(z.shape) < 0.3] = -np.inf
  best = topk.none(9, k)
  for first, stop in ((0, 170), (170, 171), (171, 300)):
    part = z[:, first:stop]
    part = part if label_axis else part.T
    add = jax.jit(topk.search, static_argnums=3)
    best = add(best, jnp.asarray(part), first, label_axis)
  scores, ids = map(np.asarray, best)
  np.testing.assert_array_equal(scores, -np.sort(-z, 1)[:, :k])
  there = ~np.isneginf(scores)
  at = np.take_along_axis(z, np.maximum(ids, 0), 1)
  np.testing.assert_array_equal(at[there], scores[there])
  assert (ids[~there] == -1).all()
