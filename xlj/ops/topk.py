"""Exact top-k over a label-sharded axis: local top-k, then a merge."""

import jax
from jax import lax
import jax.numpy as jnp


def local_topk(z: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Top-k of this shard's logits.

  Args:
    z: `[N, c]` logits; -inf where a label may not be chosen.
    k: How many to keep. Shards with fewer columns are filled up.

  Returns:
    Scores `[N, k]`, descending, and int32 columns `[N, k]`; -inf and -1 where
    there are fewer than k columns.
  """
  scores, columns = lax.top_k(z, min(k, z.shape[1]))
  missing = ((0, 0), (0, k - scores.shape[1]))
  return (
    jnp.pad(scores, missing, constant_values=-jnp.inf),
    jnp.pad(columns.astype(jnp.int32), missing, constant_values=-1),
  )


def merge_topk(
  scores: jax.Array, ids: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
  """Top-k among gathered candidates.

  Args:
    scores: `[N, G k]` candidate scores of G shards, side by side.
    ids: `[N, G k]` their label ids.
    k: How many to keep.

  Returns:
    Scores `[N, k]`, descending, and ids `[N, k]`; the id of a score of -inf
    is -1 (fewer than k labels could be chosen).
  """
  scores, positions = lax.top_k(scores, k)
  ids = jnp.take_along_axis(ids, positions, axis=1)
  return scores, jnp.where(jnp.isneginf(scores), -1, ids)
