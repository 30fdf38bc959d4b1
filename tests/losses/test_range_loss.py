"""The range loss of a batch equals loops over its pairs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from xlj import sharding
from xlj.losses import range_loss

N, D = 16, 5


def by_loops(x, labels, margin, farthest):
  """Of float64 lists."""
  by_label = {i: x[labels == i] for i in set(labels.tolist()) if i >= 0}
  intra = 0.0
  for rows in by_label.values():
    pairs = [((a - b) ** 2).sum() for a, b in itertools.combinations(rows, 2)]
    widest = sorted(pairs)[-farthest:]
    if widest:
      intra += len(widest) / sum(1 / d for d in widest)
  means = [rows.mean(0) for rows in by_label.values()]
  between = [((a - b) ** 2).sum() for a, b in itertools.combinations(means, 2)]
  return intra, max(0.0, margin - min(between, default=np.inf))


CASES = {
  # Of four, three, two and one example, and some that do not count.
  "tail": [7, 7, 2, 7, 2, 7, 2, 5, 5, 9, -1, 4, -1, 3, -1, 2**30],
  "one_label": [3] * N,
  "none": [-1] * N,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("farthest", [2, 3])
def test_losses_and_gradients_equal_loops(case, farthest):
  x = np.random.default_rng(0).normal(size=(N, D))
  labels = np.array(CASES[case], np.int32)
  got = range_loss.range_losses(
    jnp.asarray(x), jnp.asarray(labels), 9.0, farthest
  )
  expected = by_loops(x, labels, 9.0, farthest)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
  if case == "tail":
    assert min(expected) > 0


@pytest.mark.parametrize("shape", meshes.SHAPES[1:2])
def test_gradients_on_a_mesh_are_those_of_differences(shape):
  """Of random sums of both losses, by central differences in float64."""
  rng = np.random.default_rng(1)
  x, labels = rng.normal(size=(N, D)), np.array(CASES["tail"], np.int32)

  def of_batch(x, labels):
    x, labels = jax.reshard((x, labels), jax.P())
    intra, inter = range_loss.range_losses(x, labels, 9.0)
    return 0.3 * intra + 0.7 * inter

  with meshes.mesh(shape) as mesh:
    batch = jax.device_put(
      (x.astype(np.float32), labels), jax.NamedSharding(mesh, sharding.BATCH)
    )
    got = np.asarray(jax.jit(jax.grad(of_batch))(*batch))

  def value(x):
    intra, inter = by_loops(x, labels, 9.0, 2)
    return 0.3 * intra + 0.7 * inter

  expected = np.zeros_like(x)
  for place in np.ndindex(*x.shape):
    step = np.zeros_like(x)
    step[place] = 1e-6
    expected[place] = (value(x + step) - value(x - step)) / 2e-6
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
  assert np.abs(expected).max() > 0.1
