"""ROLE over a sharded label matrix equals the formulas over a dense one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from tests.losses import table
from xlj import sharding
from xlj.losses import role
from xlj.ops import targets as targets_lib

N, D, L = 16, 6, 203


def objective(z, y, observed, weights, loss):
  """Of probabilities with logits z against estimates y, over the batch."""
  f = jax.nn.sigmoid(z)
  cross = -(y * jnp.log(f) + (1 - y) * jnp.log(1 - f)).sum(1)
  cross -= (observed * jnp.log(f)).sum(1)
  share = weights / weights.sum()
  excess = (f.sum(1) * share).sum() - loss.expected
  penalty = loss.strength * excess**2 / loss.num_labels
  return ((cross * share).sum() + penalty) / 2


@pytest.mark.parametrize("m,shape,label_axis", [(L, (2, 4), 0), (7, (1, 1), 1)])
def test_steps_equal_the_dense_matrices(m, shape, label_axis, monkeypatch):
  table.put_labels_on(monkeypatch, label_axis)
  loss = role.OnlineEstimation(L, 3.0, m, strength=2.0, rate=0.7)
  head = table.make_head(loss, L, D, init_scale=0.8, use_bias=False)
  rng = np.random.default_rng(0)
  ids = np.stack([rng.choice(L, 3, replace=False) for _ in range(N)])
  ids[:, 2] = -1
  ids[5] = -1
  observed = np.zeros((N, L))
  for n, row in enumerate(ids):
    observed[n, row[row >= 0]] = 1
  weights = np.ones(N)
  weights[-2:] = 0
  rows_of = head.layout.row_of_label(np.arange(L))
  ids = ids.astype(np.int32)
  mesh = meshes.make(shape)
  with jax.set_mesh(mesh):
    split = jax.NamedSharding(mesh, sharding.LABELS)
    params = jax.device_put(table.init(head), split)
    state = head.init_optimizer(params)
    w = np.asarray(params["rows"], float)[rows_of]
    memory = targets_lib.Memory(
      np.full((N, m), -1, np.int32), np.zeros((N, m), np.float32)
    )
    known = np.zeros((N, L), bool)
    theta = np.zeros((N, L))
    step = jax.jit(head.step)
    slope = jax.jit(jax.value_and_grad(objective), static_argnums=4)
    for i in range(3):
      x = rng.normal(size=(N, D)).astype(np.float32)
      targets = targets_lib.Targets(
        ids, weights.astype(np.float32), memory=memory
      )
      place = jax.NamedSharding(mesh, sharding.BATCH)
      x, targets = jax.device_put((x, targets), place)
      params, state, dx, found = step(
        params, state, jnp.int32(i), x, None, targets
      )
      # The same by hand.
      z = np.asarray(x, float) @ w.T
      order = np.argsort(-z, 1)[:, :m]
      new = np.zeros((N, L), bool)
      np.put_along_axis(new, order, True, 1)
      full = known.sum(1, keepdims=True) == m
      lowest = np.where(known, theta, np.inf).min(1, keepdims=True)
      new &= ~known & ~(full & (z < lowest))
      theta = np.where(new, z, theta)
      known |= new
      y = np.where(known, 1 / (1 + np.exp(-theta)), 0)
      value, dz = slope(z, y, observed, weights, loss)
      np.testing.assert_allclose(found["loss"], value, rtol=1e-5)
      np.testing.assert_allclose(dx, dz @ w, rtol=1e-4, atol=1e-6)
      w = w - np.asarray(dz).T @ np.asarray(x, float)
      now = np.asarray(params["rows"])[rows_of]
      np.testing.assert_allclose(now, w, rtol=1e-4, atol=1e-6)
      # Absent estimates are 0: far below any logit.
      at = np.where(known, theta, -50)
      believed = 1 / (1 + np.exp(-z))
      _, dtheta = slope(at, believed, observed * known, weights, loss)
      total = weights.sum() / np.where(weights > 0, weights, np.inf)
      theta = theta - loss.rate * np.asarray(dtheta) * total[:, None] * known
      keep = np.argsort(-np.where(known, theta, -np.inf), 1)[:, :m]
      stay = np.zeros((N, L), bool)
      np.put_along_axis(stay, keep, True, 1)
      known &= stay
      got = np.asarray(found["memory_ids"])
      values = np.asarray(found["memory_values"])
      for n in np.flatnonzero(weights):
        assert set(got[n]) == set(np.flatnonzero(known[n]))
        np.testing.assert_allclose(
          values[n], theta[n, got[n]], rtol=1e-4, atol=1e-5
        )
      # Examples without weight are not remembered by a run either.
      memory = targets_lib.Memory(got, values)
      for n in np.flatnonzero(weights == 0):
        theta[n, got[n]] = values[n]
        known[n] = False
        known[n, got[n]] = True
