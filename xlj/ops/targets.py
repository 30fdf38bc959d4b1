"""Positives of a batch, and the part of them that falls into a label chunk."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


class Targets(NamedTuple):
  """Sparse positives of a batch of N examples, at most P each.

  Attributes:
    ids: `[N, P]` int32 label ids; -1 is padding.
    weights: `[N]` float32 weight of each example; 0 for padding examples.
  """

  ids: Array
  weights: Array


class Positives(NamedTuple):
  """The positives of N examples that lie in one chunk of c labels.

  Attributes:
    columns: `[N, P]` int32 column in the chunk; c (out of range) where the
      positive is padding or belongs to another chunk.
    inside: `[N, P]` bool, whether the column is in the chunk.
    count: `[N]` float32 number of positives of the example over ALL labels.
  """

  columns: jax.Array
  inside: jax.Array
  count: jax.Array


def positives_in_chunk(
  ids: jax.Array, offset: jax.Array | int, size: int
) -> Positives:
  """Localises label ids to the chunk `[offset, offset + size)`.

  Args:
    ids: `[N, P]` int32 label ids, -1 for padding.
    offset: First label of the chunk.
    size: Number of labels in the chunk.

  Returns:
    The positives of the chunk.
  """
  inside = (ids >= offset) & (ids < offset + size)
  return Positives(
    columns=jnp.where(inside, ids - offset, size),
    inside=inside,
    count=(ids >= 0).sum(1).astype(jnp.float32),
  )


def gather_columns(z: jax.Array, positives: Positives) -> jax.Array:
  """Values of `z` `[N, c]` at the positives, `[N, P]`; 0 outside the chunk."""
  values = jnp.take_along_axis(
    z, jnp.minimum(positives.columns, z.shape[1] - 1), axis=1
  )
  return jnp.where(positives.inside, values, 0)


def add_at_columns(
  z: jax.Array, positives: Positives, values: jax.Array
) -> jax.Array:
  """Adds `values` `[N, P]` to `z` `[N, c]` at the positives of the chunk."""
  rows = jnp.arange(z.shape[0])[:, None]
  return z.at[rows, positives.columns].add(values, mode="drop")
