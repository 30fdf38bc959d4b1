"""Products of sparse examples with feature-major weights `V [F, c]`.

A linear one-vs-all model reads one row of V per feature of an example, so its
cost is (features per example) x labels and its gradient touches those rows
alone. Legend: N examples, K features per example (padded), F features,
c labels of this shard.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp


class SparseRows(NamedTuple):
  """Examples as padded lists of features.

  Attributes:
    ids: `[N, K]` int32 feature ids, the used ones first; 0 at padding.
    values: `[N, K]` float32, 0 at padding.
    lengths: `[N]` int32 number of used entries.
  """

  ids: jax.Array
  values: jax.Array
  lengths: jax.Array


def sparse_rows(ids: jax.Array, values: jax.Array) -> SparseRows:
  """Padded features to `SparseRows`; what trails the last non-zero is padding.

  Args:
    ids: `[N, K]` int32.
    values: `[N, K]` float32, 0 at padding.

  Returns:
    The examples.
  """
  width = ids.shape[1]
  trailing = jnp.argmax(values[:, ::-1] != 0, axis=1)
  lengths = jnp.where((values != 0).any(1), width - trailing, 0)
  return SparseRows(ids, values, lengths.astype(jnp.int32))


def sparse_matmul(rows: SparseRows, weights: jax.Array) -> jax.Array:
  """`S V`: the examples times the weights.

  Args:
    rows: N sparse examples.
    weights: `[F, c]` float32.

  Returns:
    `[N, c]` float32.
  """

  def example(row: SparseRows) -> jax.Array:
    def add(k: jax.Array, z: jax.Array) -> jax.Array:
      row_k = lax.dynamic_index_in_dim(weights, row.ids[k], 0, keepdims=False)
      return z + row.values[k] * row_k

    # Derived from the weights so that it varies over the same mesh axes.
    zero = jnp.zeros_like(weights[0])
    return lax.fori_loop(0, row.lengths, add, zero)

  return lax.map(example, rows)


def add_outer(
  weights: jax.Array, rows: SparseRows, grad: jax.Array, scale: jax.Array
) -> jax.Array:
  """`V + scale * S^T G`, in place when `weights` is donated.

  Only the rows of the features that occur are read or written.

  Args:
    weights: `[F, c]` float32.
    rows: N sparse examples.
    grad: `[N, c]` float32.
    scale: Scalar, minus the learning rate for a step of SGD.

  Returns:
    The new `[F, c]` weights.
  """

  def example(n: jax.Array, weights: jax.Array) -> jax.Array:
    grad_n = scale * grad[n]

    def add(k: jax.Array, weights: jax.Array) -> jax.Array:
      feature = rows.ids[n, k]
      row = lax.dynamic_index_in_dim(weights, feature, 0, keepdims=False)
      return lax.dynamic_update_index_in_dim(
        weights, row + rows.values[n, k] * grad_n, feature, 0
      )

    return lax.fori_loop(0, rows.lengths[n], add, weights)

  return lax.fori_loop(0, rows.ids.shape[0], example, weights)
