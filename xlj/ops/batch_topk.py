"""The largest scores of a whole batch, over all examples and labels.

They are found while chunks of scores pass by; of a chunk only those tiles of
labels are looked into that hold a score among the largest so far.

Legend: N examples, c labels of a chunk, K scores to keep, T tiles of a chunk.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import shards as shards_lib
from xlj.ops import tiles

_TILES = 16  # looked into at a time


class Largest(NamedTuple):
  """The K largest scores so far, descending; -inf and -1 if there are fewer.

  Attributes:
    scores: `[K]`.
    examples: `[K]` int32.
    labels: `[K]` int32.
  """

  scores: jax.Array
  examples: jax.Array
  labels: jax.Array


def none(k: int) -> Largest:
  """No scores yet."""
  missing = jnp.full((k,), -1, jnp.int32)
  return Largest(jnp.full((k,), -jnp.inf), missing, missing)


def add(
  best: Largest,
  z: jax.Array,
  first: jax.Array | int,
  label_axis: int = 1,
  *,
  exclude: jax.Array | None = None,
  used: jax.Array | None = None,
) -> Largest:
  """Takes a chunk of scores into account.

  Args:
    best: The largest scores of other chunks.
    z: `[N, c]` scores (`[c, N]` if `label_axis` is 0); -inf where there is
      none.
    first: Label of the first column.
    label_axis: The axis that labels lie on.
    exclude: `[N, P]` columns of the chunk that do not count, if any. They are
      left out where scores are looked into: a pass over all less.
    used: `[N]` whether the example counts; None for all.

  Returns:
    The largest scores. Of equal ones at the end, any may be kept.
  """
  tiled, tops = tiles.split(z, label_axis)
  num_tiles = tops.shape[label_axis]
  if used is not None:
    tops = jnp.where(jnp.expand_dims(used, label_axis), tops, -jnp.inf)
  at_a_time = min(_TILES, tops.size)

  def more(carry):
    best, tops = carry
    return (tops > best.scores[-1]).any()

  def look(carry):
    best, tops = carry
    highest, places = lax.top_k(tops.reshape(-1), at_a_time)
    if label_axis:
      example, tile = jnp.divmod(places, num_tiles)
      found = tiled[example, :, tile]
    else:
      tile, example = jnp.divmod(places, tops.shape[1])
      found = tiled[:, tile, example].T
    columns = tiles.columns(tile, num_tiles)
    out = jnp.isneginf(highest)[:, None]  # seen, or does not count
    if exclude is not None:
      out |= (columns[:, :, None] == exclude[example][:, None]).any(2)
    found = jnp.where(out, -jnp.inf, found)
    best = _merge(
      Largest(
        jnp.concatenate([best.scores, found.reshape(-1)]),
        jnp.concatenate([best.examples, jnp.repeat(example, columns.shape[1])]),
        jnp.concatenate([best.labels, (first + columns).reshape(-1)]),
      ),
      best.scores.shape[0],
    )
    tops = tops.reshape(-1).at[places].set(-jnp.inf).reshape(tops.shape)
    return best, tops

  return lax.while_loop(more, look, (best, tops))[0]


def merge(best: Largest, axes: tuple[str, ...]) -> Largest:
  """The largest scores of all shards of labels, the same on all.

  Args:
    best: Those of this shard.
    axes: Mesh axes that labels are split over.

  Returns:
    Those of all.
  """
  if not axes:
    return best
  every = Largest(*(shards_lib.of_all(a, axes, 0) for a in best))
  return _merge(every, best.scores.shape[0])


def kth(best: Largest, k: jax.Array) -> jax.Array:
  """The k-th largest score, a scalar.

  Args:
    best: The largest K scores.
    k: Scalar integer, at most K.

  Returns:
    The score; infinity if k is 0, -infinity if there are fewer than k.
  """
  last = best.scores[jnp.clip(k - 1, 0, best.scores.shape[0] - 1)]
  return jnp.where(k > 0, last, jnp.inf)


def _merge(candidates: Largest, k: int) -> Largest:
  """The largest k of some."""
  scores, places = lax.top_k(candidates.scores, k)
  is_score = ~jnp.isneginf(scores)
  return Largest(
    scores,
    jnp.where(is_score, candidates.examples[places], -1),
    jnp.where(is_score, candidates.labels[places], -1),
  )
