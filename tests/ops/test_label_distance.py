"""Distances to label rows equal those of all pairs, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from tests import meshes
from xlj import sharding
from xlj.ops import label_distance
from xlj.ops import shards

N, D, L, K = 16, 6, 48, 5


def make_inputs():
  rng = np.random.default_rng(0)
  x, rows = rng.normal(size=(N, D)), 1 + rng.normal(size=(L, D))
  rows[7] = x[3]  # at no distance
  rows[9] = x[5] + 1e-4  # nearer than rounding of the squares
  is_label = rng.random(L) < 0.7
  is_label[[7, 9]] = True
  return x.astype(np.float32), rows.astype(np.float32), is_label


def expected_of(x, rows, is_label):
  """Nearest rows, the least distance, and its gradients by x and rows."""
  x, rows = x.astype(np.float64), rows.astype(np.float64)
  step = x[:, None] - rows
  distance = np.linalg.norm(step, axis=2)
  distance[:, ~is_label] = np.inf
  order = np.argsort(distance, axis=1, kind="stable")[:, :K]
  least = distance.min(1)
  unit = step[np.arange(N), order[:, 0]]
  unit = np.where(least[:, None] > 1e-6, unit / (least[:, None] + 1e-300), 0)
  drows = np.zeros_like(rows)
  np.add.at(drows, order[:, 0], -unit)
  return order, least, unit, drows


@jax.jit
def both(x, rows, is_label):
  def total(x, rows):
    least = label_distance.min_distance(
      x, rows, is_label=is_label, placement=shards.Placement(chunk_size=5)
    )
    return least.sum(), least

  grads, least = jax.grad(total, (0, 1), has_aux=True)(x, rows)
  found = label_distance.nearest(
    x, rows, K, is_label=is_label, placement=shards.Placement(chunk_size=5)
  )
  return found, least, *grads


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_the_nearest(shape):
  inputs = make_inputs()
  expected = expected_of(*inputs)
  with meshes.mesh(shape) as mesh:
    args = jax.device_put(inputs, jax.NamedSharding(mesh, sharding.BATCH))
    got = both(*args)
  np.testing.assert_array_equal(got[0], expected[0])
  for a, b in zip(got[1:], expected[1:]):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6)


def test_fewer_rows_than_asked_for():
  x, rows, _ = make_inputs()
  is_label = np.arange(L) < 2
  got = label_distance.nearest(x, rows, 3, is_label=jnp.asarray(is_label))
  assert (np.asarray(got)[:, 2] == -1).all()
  assert (np.asarray(got)[:, :2] < 2).all()


def test_all_others():
  x, rows, _ = make_inputs()
  ids = np.array([[i % L, (5 * i) % L if i % 2 else -1] for i in range(N)])
  distance = np.square(x[:, None].astype(np.float64) - rows).sum(2)
  for n, own in enumerate(ids):
    distance[n, own[own >= 0]] = 0
  got = label_distance.others_distance(
    x, rows[ids], ids >= 0, rows.sum(0), np.square(rows).sum(), L
  )
  np.testing.assert_allclose(got, distance.sum(1) / L, rtol=1e-5)


@pytest.mark.parametrize("devices", cases.some([1, 8], [8]))
def test_a_million_labels_in_the_memory_of_a_chunk(devices):
  n, d, num_rows, chunk = 64, 32, 10**6, 2048
  least = functools.partial(
    label_distance.min_distance, placement=shards.Placement(chunk_size=chunk)
  )
  with meshes.mesh((devices, 1)) as mesh:
    split = jax.NamedSharding(mesh, sharding.BATCH)
    abstract = [
      jax.ShapeDtypeStruct(s, jnp.float32, sharding=split)
      for s in ((n, d), (num_rows, d))
    ]
    run = jax.jit(lambda x, rows: jax.grad(lambda x: least(x, rows).sum())(x))
    compiled = run.lower(*abstract).compile()
  by_row = 4 * num_rows // devices  # one number of each
  one_chunk = 4 * chunk * (n + d)
  temporaries = compiled.memory_analysis().temp_size_in_bytes
  assert temporaries <= by_row + 4 * one_chunk
