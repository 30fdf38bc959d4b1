"""Losses of examples with label texts: the same on any mesh."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from tests import cases
from tests import meshes
from xlj import sharding
from xlj.config import dual as dual_config
from xlj.losses import contrastive
from xlj.model import dual

N, M, D, P, L = 24, 24, 6, 3, 30
assert_close = functools.partial(cases.assert_close, atol=2e-6, rtol=1e-5)


def settings(**fields):
  """The section `dual`."""
  section = ml_collections.ConfigDict()
  for name, value in dual_config.fields().items():
    section[name.removeprefix("dual.")] = value
  section.update({"temperature": 0.1, **fields})
  return section


def make_batch():
  """Examples, of which one is padding, and candidates."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, N, D)).astype("f")
  ids = np.stack([rng.permutation(L)[:P] for _ in range(N)]).astype(np.int32)
  ids[3:5] = -1
  chosen, weights = ids[:, 0].copy(), rng.uniform(0.5, 2, N).astype("f")
  weights[4] = 0
  labels = np.full(M, -1, np.int32)
  found = np.unique(np.append(chosen[chosen >= 0], [0, 1, 2]))
  labels[: len(found)] = found
  counts = rng.uniform(-2, 0, M).astype("f")
  return (x, ids, chosen, weights), (y, labels, counts)


def value_and_grads(section, shape, batch):
  def loss(x, y):
    (_, *of_x), (_, *of_y) = put
    return dual.pair_loss(section, (3, 5), (x, *of_x), (y, *of_y))

  with meshes.mesh(shape) as mesh:
    put = jax.device_put(batch, jax.NamedSharding(mesh, sharding.BATCH))
    run = jax.jit(jax.value_and_grad(loss, (0, 1)))
    return jax.tree.map(np.asarray, run(put[0][0], put[1][0]))


SETTINGS = {
  "softmax": {"loss": "softmax"},
  "decoupled": {"loss": "decoupled_softmax", "queries": 0.5},
  "triplet": {"loss": "triplet", "least_margin": 0.1, "queries": 1.0},
}


@pytest.mark.parametrize(
  ("name", "shape"), cases.covering(SETTINGS, [(8, 1), (1, 3)])
)
def test_gradients_on_a_mesh_are_those_of_one_device(name, shape):
  section = settings(**SETTINGS[name])
  got = value_and_grads(section, shape, make_batch())
  assert_close(got, value_and_grads(section, (1, 1), make_batch()))


def test_both_directions_are_means_of_the_losses_of_pairs():
  (x, ids, chosen, weights), (y, labels, counts) = make_batch()
  section = settings(loss="decoupled_softmax", queries=0.5)
  got, _ = value_and_grads(section, (2, 4), make_batch())
  unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y)]
  z = jnp.asarray(unit[0] @ unit[1].T / 0.1)
  pairs = contrastive.pairs(ids, chosen, labels)
  there = contrastive.decoupled_losses(z, pairs)
  pairs = pairs._replace(negative=pairs.negative & (weights > 0)[:, None])
  turned = pairs.transposed(3, 5, 0)
  back = contrastive.decoupled_losses(z.T, turned)
  some = np.asarray(turned.positive).any(1)
  expected = np.average(there, weights=weights)
  expected += 0.5 * np.asarray(back)[some].mean()
  assert 0 < some.sum() < (labels >= 0).sum()
  np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_labels_that_an_example_lacks():
  ids = jnp.array([[4, 2, 7, 1], [5, 2, -1, -1]])
  labels = jnp.array([[2, 4], [9, -1]])
  got = dual.without(ids, labels, 3)
  assert got.tolist() == [[7, 1, -1], [5, 2, -1]]
  assert dual.without(ids, labels, 5).shape == (2, 5)
