"""The best k labels of each example, found while chunks of scores pass by.

Legend: N examples (n of this device), c labels of a chunk, T tiles of it, G
devices that labels are split over.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import shards as shards_lib
from xlj.ops import tiles

_TILES = 2  # of each example, looked into at a time


class Best(NamedTuple):
  """The best k labels of each example so far; -inf and -1 if there are fewer.

  Attributes:
    scores: `[N, k]`, descending.
    ids: `[N, k]` int32.
  """

  scores: jax.Array
  ids: jax.Array


def none(
  num_examples: int, k: int, dtype: jax.typing.DTypeLike = jnp.float32
) -> Best:
  """No labels yet."""
  shape = num_examples, k
  return Best(jnp.full(shape, -jnp.inf, dtype), jnp.full(shape, -1, jnp.int32))


def add(best: Best, z: jax.Array, first: jax.Array | int) -> Best:
  """Takes a chunk of scores into account; of equal ones the lower id stays.

  Args:
    best: The best labels of the chunks before, with lower ids.
    z: `[N, c]` scores; -inf where a label may not be chosen.
    first: Label of the first column.

  Returns:
    The best labels.
  """
  k = best.scores.shape[1]
  scores, columns = lax.top_k(z, min(k, z.shape[1]))
  # The best so far come first: of equals, the lower id stays.
  return _best_of(best, scores, first + columns.astype(jnp.int32))


def search(
  best: Best, z: jax.Array, first: jax.Array | int, label_axis: int = 1
) -> Best:
  """Takes a chunk of scores into account; of equal ones any may be kept.

  Of the chunk only those tiles of labels are looked into that hold a score
  better than the k-th so far, a few of each example at a time.

  Args:
    best: The best labels of other chunks.
    z: `[N, c]` scores (`[c, N]` if `label_axis` is 0); -inf where there is
      none.
    first: Label of the first column.
    label_axis: The axis that labels lie on.

  Returns:
    The best labels.
  """
  tiled, tops = tiles.split(z, label_axis)
  num_tiles = tops.shape[label_axis]
  tops = tops if label_axis else tops.T  # [N, T]
  example = jnp.arange(tops.shape[0])[:, None]

  def more(carry: tuple[Best, jax.Array]) -> jax.Array:
    best, tops = carry
    return (tops > best.scores[:, -1:]).any()

  def look(carry: tuple[Best, jax.Array]) -> tuple[Best, jax.Array]:
    best, tops = carry
    highest, chosen = lax.top_k(tops, min(_TILES, num_tiles))
    if label_axis:
      found = tiled[example, :, chosen]  # [N, tiles, SIZE]
    else:
      found = jnp.moveaxis(tiled[:, chosen, example], 0, 2)
    # Where few tiles are left, those that were looked into come again.
    seen = jnp.isneginf(highest)[..., None]
    found = jnp.where(seen, -jnp.inf, found)
    ids = first + tiles.columns(chosen, num_tiles)
    flat = tops.shape[0], -1
    ids = ids.reshape(flat).astype(jnp.int32)
    best = _best_of(best, found.reshape(flat), ids)
    return best, tops.at[example, chosen].set(-jnp.inf)

  return lax.while_loop(more, look, (best, tops))[0]


def merge(
  best: Best, row_axes: Sequence[str], batch_axes: Sequence[str] = ()
) -> Best:
  """The best labels of all shards of labels; of equals, the first shard's.

  Args:
    best: Those of this shard, of all examples.
    row_axes: Mesh axes that labels are split over.
    batch_axes: Mesh axes that the result is split over by example, all or a
      part of `row_axes`.

  Returns:
    Those of all, `[n, k]`; the same on all devices along other axes.
  """
  if not row_axes:
    return best
  row_axes, batch_axes = tuple(row_axes), tuple(batch_axes)

  def gather(a: jax.Array) -> jax.Array:
    if row_axes == batch_axes:
      # N k scores and ids are sent and received.
      return lax.all_to_all(a, row_axes, 0, 1, tiled=True)
    every = shards_lib.of_all(a, row_axes, 1)  # N G k numbers
    return shards_lib.own(every, shards_lib.Shards(row_axes, batch_axes, True))

  k = best.scores.shape[1]
  return Best(*merge_topk(gather(best.scores), gather(best.ids), k))


def merge_topk(
  scores: jax.Array, ids: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
  """The best k of some labels; of equal ones the first.

  Args:
    scores: `[N, C]`.
    ids: `[N, C]` int32.
    k: How many to keep; fewer than k are filled up.

  Returns:
    Scores `[N, k]`, descending, and ids `[N, k]`; the id of a score of -inf is
    -1.
  """
  scores, positions = lax.top_k(scores, min(k, scores.shape[1]))
  ids = jnp.take_along_axis(ids, positions, axis=1)
  missing = ((0, 0), (0, k - scores.shape[1]))
  scores = jnp.pad(scores, missing, constant_values=-jnp.inf)
  ids = jnp.pad(ids, missing, constant_values=-1)
  return scores, jnp.where(jnp.isneginf(scores), -1, ids)


def _best_of(best: Best, scores: jax.Array, ids: jax.Array) -> Best:
  """The best with some more labels `[N, C]`."""
  scores = jnp.concatenate([best.scores, scores], 1)
  ids = jnp.concatenate([best.ids, ids], 1)
  return Best(*merge_topk(scores, ids, best.scores.shape[1]))
