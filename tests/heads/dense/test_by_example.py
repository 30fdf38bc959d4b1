"""Steps by each example equal plain SGD over the pairs, on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import cases
from tests import dense_heads
from tests import meshes
from xlj import sharding
from xlj.heads.dense import wide
from xlj.losses import bce
from xlj.ops import feature_rows
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib

N, F, K, T, BLOCKS = 24, 30, 6, 3, 24
NUM_LABELS = 83  # padded to 96 rows, as many blocks of 4
SHAPES = [(1, 1), (3, 1), (2, 4)]
ROWS = np.arange(NUM_LABELS) % BLOCKS * 4 + np.arange(NUM_LABELS) // BLOCKS
PAIRS = np.random.default_rng(0).random((F, NUM_LABELS)) < 0.3


def make_head(threshold):
  return dense_heads.make(
    num_labels=NUM_LABELS,
    dim=0,
    loss=bce.BinaryCrossEntropy(),
    optimizer=row_optimizer.RowOptimizer(optax.sgd(0.1)),
    wide_features=F,
    wide_learning_rate=lambda step: 0.4 / (1 + step),
    by_example=wide.ByExample(lambda step: 0.2 / (1 + step), threshold),
    blocks=BLOCKS,
    init_bias=-0.5,
  )


def by_row(values, fill):
  """Values `[..., num_labels]` at the rows of the labels."""
  values = np.asarray(values)
  found = np.full((*values.shape[:-1], 4 * BLOCKS), fill, values.dtype)
  found[..., ROWS] = values
  return found


def make_batch(seed):
  """Features, their dense matrix, and positives: some rows have none."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(0, K + 1, N).astype(np.int32)
  used = np.arange(K) < lengths[:, None]
  ids = np.stack([rng.choice(F, K, replace=False) for _ in range(N)])
  ids = np.where(used, ids, 0).astype(np.int32)
  values = np.where(used, rng.normal(size=ids.shape), 0).astype(np.float32)
  x = np.zeros((N, F))
  np.add.at(x, (np.arange(N)[:, None], ids), values)
  targets = targets_lib.Targets(*cases.some_labels(rng, N, T, NUM_LABELS))
  return feature_rows.SparseRows(ids, values, lengths), x, targets


def reference_step(weights, bias, label_rates, threshold, step, x, targets):
  """One example after another in float64; changes weights and bias."""
  rate, bias_rate = 0.4 / (1 + step), 0.2 / (1 + step)
  loss = 0
  for row, ids, weight in zip(x, targets.ids, targets.weights):
    z = row @ weights + bias
    y = np.isin(np.arange(NUM_LABELS), ids)
    p = 1 / (1 + np.exp(-z))
    used = weight * (y | (p > threshold))
    loss -= (used * np.log(np.where(y, p, 1 - p))).sum()
    grad = label_rates * used * (p - y)
    weights -= rate * PAIRS * np.outer(row, grad)
    bias -= bias_rate * grad
  return loss / targets.weights.sum()


@pytest.mark.parametrize("threshold,shape", cases.covering([0.4, 1e-6], SHAPES))
def test_steps_losses_and_rankings_equal_the_reference(threshold, shape):
  head = make_head(threshold)
  rng = np.random.default_rng(1)
  weights = rng.normal(size=PAIRS.shape).astype(np.float32) * PAIRS
  bias = rng.normal(-0.5, 1, NUM_LABELS).astype(np.float32)
  label_rates = rng.uniform(0.3, 2, NUM_LABELS).astype(np.float32)
  # As `Rows.init` has them: padding starts where labels do.
  params = dense_heads.with_wide(
    {"bias": by_row(bias, -0.5)}, by_row(weights, 0), BLOCKS
  )
  values = {"rate": by_row(label_rates, 1)}
  weights, bias = weights.astype(np.float64), bias.astype(np.float64)
  with meshes.mesh(shape) as mesh:
    params = jax.device_put(params, sharding.named(mesh, head.specs()))
    values = jax.device_put(values, jax.NamedSharding(mesh, sharding.LABELS))
    state = head.init_optimizer(params)
    own_step = jax.jit(head.step)
    for step in range(3):
      features, x, targets = make_batch(step)
      batch = sharding.put_batch((features, targets))
      expected = reference_step(
        weights, bias, label_rates, threshold, step, x, targets
      )
      params, state, dx, metrics = own_step(
        *(params, state, jnp.int32(step), None, *batch, values)
      )
      assert dx is None
      np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    features, x, targets = make_batch(3)
    placed, targets_there = sharding.put_batch((features, targets))
    loss = jax.jit(head.evaluate_loss)(params, None, placed, targets_there)
    scores, ids = jax.jit(head.topk, static_argnums=3)(params, None, placed, 7)
  found = dense_heads.wide(params, head.num_rows)
  close = dict(rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found[:, ROWS], weights, **close)
  np.testing.assert_allclose(np.asarray(params["bias"])[ROWS], bias, **close)
  # A validation's loss is that of all labels.
  z = x @ weights + bias
  y = np.stack([np.isin(np.arange(NUM_LABELS), i) for i in targets.ids])
  losses = (np.logaddexp(0, z) - y * z).sum(1)
  expected = (targets.weights * losses).sum() / targets.weights.sum()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  order = np.argsort(-z, 1)[:, :7]
  np.testing.assert_array_equal(ids, order)
  np.testing.assert_allclose(scores, np.take_along_axis(z, order, 1), **close)
