"""Top-k by shards and a merge equals sorting everything."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from xlj import sharding
from xlj.ops import chunks
from xlj.ops import topk

N, SHARDS, C = 5, 4, 6
P = jax.P


def make_logits():
  """`[N, SHARDS * C]` with forbidden labels; row 1 allows 2, row 2 none."""
  rng = np.random.default_rng(0)
  z = rng.normal(size=(N, SHARDS * C)).astype(np.float32)
  z[0, rng.permutation(SHARDS * C)[:9]] = -np.inf
  z[1] = -np.inf
  z[1, [3, 20]] = [-5.0, 7.0]
  z[2] = -np.inf
  return z


@pytest.mark.parametrize("k", [1, 4, C, 9, SHARDS * C])
def test_merged_shards_equal_sorting(k):
  z = make_logits()
  found = []
  for shard in range(SHARDS):
    part = jnp.asarray(z[:, shard * C :][:, :C])
    found.append(topk.add(topk.none(N, k), part, shard * C))
    assert found[-1].scores.shape == found[-1].ids.shape == (N, k)
  scores, ids = (jnp.hstack(a) for a in zip(*found))
  got = topk.merge_topk(scores, ids, k)
  order = np.argsort(-z, axis=1)[:, :k]
  expected = np.take_along_axis(z, order, 1)
  np.testing.assert_array_equal(got[0], expected)
  np.testing.assert_array_equal(got[1], np.where(expected > -np.inf, order, -1))
  assert got[1].dtype == jnp.int32


@pytest.mark.parametrize("split", [(), sharding.AXES[1:], sharding.AXES])
def test_shards_on_a_mesh_equal_one_device(split):
  n, k = 8, 4
  z = np.random.default_rng(1).integers(0, 5, (n, 8 * C)).astype(np.float32)

  @jax.jit
  @jax.shard_map(in_specs=P(None, sharding.AXES), out_specs=P(split))
  def run(z):
    none = chunks.mark_varying(topk.none(n, k), sharding.AXES)
    best = topk.add(none, z, lax.axis_index(sharding.AXES) * C)
    return topk.merge(best, sharding.AXES, split)

  with meshes.mesh((2, 4)) as mesh:
    place = jax.NamedSharding(mesh, P(None, sharding.AXES))
    got = run(jax.device_put(z, place))
  order = np.argsort(-z, axis=1, kind="stable")[:, :k]
  np.testing.assert_array_equal(got.ids, order)
  np.testing.assert_array_equal(got.scores, np.take_along_axis(z, order, 1))


def test_a_chunk_with_fewer_labels_is_filled_up():
  best = topk.add(topk.none(1, 4), jnp.array([[1.0, 3.0]]), 0)
  np.testing.assert_array_equal(best.scores, [[3, 1, -np.inf, -np.inf]])
  np.testing.assert_array_equal(best.ids, [[1, 0, -1, -1]])


def test_fewer_candidates_are_filled_up():
  scores, ids = topk.merge_topk(jnp.array([[1.0, 3.0]]), jnp.array([[5, 6]]), 3)
  np.testing.assert_array_equal(scores, [[3, 1, -np.inf]])
  np.testing.assert_array_equal(ids, [[6, 5, -1]])


def test_of_equal_scores_the_first_label_wins():
  best = topk.add(topk.none(1, 2), jnp.array([[1.0, 2.0, 2.0, 2.0]]), 0)
  np.testing.assert_array_equal(best.ids, [[1, 2]])
  best = topk.add(best, jnp.array([[2.0, 0.0]]), 4)
  np.testing.assert_array_equal(best.ids, [[1, 2]])
