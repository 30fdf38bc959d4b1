"""Sparse examples as padded lists of features."""

import jax.numpy as jnp
import numpy as np

from xlj.ops import feature_rows

N, K, F = 6, 5, 30


def make_rows(seed=0, num_features=F):
  """Rows of 0 to K features, one of them listed twice, and the same dense.

  No row has feature 0, which padding names.
  """
  rng = np.random.default_rng(seed)
  lengths = np.array([0, K, 3, 1, 2, 4])
  ids = rng.integers(1, num_features, (N, K))
  ids[1, 4] = ids[1, 0]
  used = np.arange(K) < lengths[:, None]
  values = np.where(used, rng.uniform(0.5, 2, (N, K)), 0).astype(np.float32)
  ids = np.where(used, ids, 0).astype(np.int32)
  dense = np.zeros((N, num_features), np.float32)
  np.add.at(dense, (np.arange(N)[:, None], ids), values)
  rows = feature_rows.sparse_rows(jnp.asarray(ids), jnp.asarray(values))
  return rows, dense, lengths


def test_lengths_end_at_the_last_value():
  rows, _, lengths = make_rows()
  np.testing.assert_array_equal(rows.lengths, lengths)
  assert rows.lengths.dtype == jnp.int32


def test_a_value_of_zero_in_the_middle_is_no_padding():
  values = jnp.array([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
  rows = feature_rows.sparse_rows(jnp.zeros((2, 4), jnp.int32), values)
  np.testing.assert_array_equal(rows.lengths, [3, 0])
