"""Sparse examples as padded lists of features.

Legend: N examples, K features per example (padded).
"""

from typing import NamedTuple

import jax
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


def ages(rows: SparseRows) -> jax.Array:
  """How many entries come after each, `[N, K]`; below 0 at padding."""
  return rows.lengths[:, None] - 1 - jnp.arange(rows.ids.shape[1])
