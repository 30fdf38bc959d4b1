"""Top-k by shards and a merge equals sorting everything."""

import jax.numpy as jnp
import numpy as np
import pytest

from xlj.ops import topk

N, SHARDS, C = 5, 4, 6


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
  scores, ids = [], []
  for shard in range(SHARDS):
    found = topk.local_topk(jnp.asarray(z[:, shard * C :][:, :C]), k)
    assert found[0].shape == found[1].shape == (N, k)
    scores.append(found[0])
    ids.append(jnp.where(found[1] < 0, -1, found[1] + shard * C))
  got = topk.merge_topk(jnp.hstack(scores), jnp.hstack(ids), k)
  order = np.argsort(-z, axis=1)[:, :k]
  expected = np.take_along_axis(z, order, 1)
  np.testing.assert_array_equal(got[0], expected)
  np.testing.assert_array_equal(got[1], np.where(expected > -np.inf, order, -1))
  assert got[1].dtype == jnp.int32


def test_a_shard_with_fewer_columns_is_filled_up():
  scores, columns = topk.local_topk(jnp.array([[1.0, 3.0]]), 4)
  np.testing.assert_array_equal(scores, [[3, 1, -np.inf, -np.inf]])
  np.testing.assert_array_equal(columns, [[1, 0, -1, -1]])


def test_of_equal_scores_the_first_column_wins():
  _, columns = topk.local_topk(jnp.array([[1.0, 2.0, 2.0, 2.0]]), 2)
  np.testing.assert_array_equal(columns, [[1, 2]])
