"""Sparse examples times feature-major weights, against dense numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from xlj.ops import feature_rows

N, K, F, C = 6, 5, 30, 7


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


def test_matmul_equals_the_dense_product():
  rows, dense, _ = make_rows()
  weights = np.random.default_rng(1).normal(size=(F, C)).astype(np.float32)
  got = jax.jit(feature_rows.sparse_matmul)(rows, weights)
  np.testing.assert_allclose(got, dense @ weights, rtol=1e-5, atol=1e-5)


def test_matmul_reads_no_padding():
  rows, dense, _ = make_rows()
  weights = np.ones((F, C), np.float32)
  weights[~(dense != 0).any(0)] = np.nan
  assert np.isnan(weights[0]).all()
  got = jax.jit(feature_rows.sparse_matmul)(rows, weights)
  assert np.isfinite(got).all()


def test_add_outer_equals_the_dense_product():
  rows, dense, _ = make_rows()
  rng = np.random.default_rng(1)
  weights = rng.normal(size=(F, C)).astype(np.float32)
  grad = rng.normal(size=(N, C)).astype(np.float32)
  got = jax.jit(feature_rows.add_outer)(weights, rows, grad, -0.5)
  expected = weights - 0.5 * dense.T @ grad
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
  untouched = ~(dense != 0).any(0)
  np.testing.assert_array_equal(np.asarray(got)[untouched], weights[untouched])


def test_donated_weights_are_updated_in_place():
  num_features, columns = 1000, 500
  rows, _, _ = make_rows(num_features=num_features)
  compiled = (
    jax.jit(feature_rows.add_outer, donate_argnums=0)
    .lower(
      jax.ShapeDtypeStruct((num_features, columns), jnp.float32),
      rows,
      jax.ShapeDtypeStruct((N, columns), jnp.float32),
      jnp.float32(1),
    )
    .compile()
  )
  memory = compiled.memory_analysis()
  weights = 4 * num_features * columns
  assert memory.alias_size_in_bytes >= weights
  assert memory.temp_size_in_bytes < weights / 20
