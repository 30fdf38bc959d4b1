"""Exact top-k over a label-sharded axis: local top-k, then a merge."""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import label_groups

_GROUPS = 2  # of each example, looked into at a time


class Best(NamedTuple):
  """The best k labels of each example so far; -inf and -1 if there are fewer.

  Attributes:
    scores: `[N, k]`, descending.
    ids: `[N, k]` int32.
  """

  scores: jax.Array
  ids: jax.Array


def none(num_examples: int, k: int) -> Best:
  """No labels yet."""
  shape = num_examples, k
  return Best(jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32))


def add(
  best: Best, z: jax.Array, first: jax.Array | int, label_axis: int = 1
) -> Best:
  """Takes a chunk of scores into account.

  Of the chunk only those groups of labels are looked into that hold a score
  better than the k-th so far, a few of each example at a time.

  Args:
    best: The best labels of other chunks.
    z: `[N, c]` scores (`[c, N]` if `label_axis` is 0); -inf where there is
      none.
    first: Label of the first column.
    label_axis: The axis that labels lie on.

  Returns:
    The best labels; of equal ones any may be kept.
  """
  k = best.scores.shape[1]
  grouped, tops = label_groups.grouped(z, label_axis)
  num_groups = tops.shape[label_axis]
  tops = tops if label_axis else tops.T  # [N, G]
  example = jnp.arange(tops.shape[0])[:, None]

  def more(carry: tuple[Best, jax.Array]) -> jax.Array:
    best, tops = carry
    return (tops > best.scores[:, -1:]).any()

  def look(carry: tuple[Best, jax.Array]) -> tuple[Best, jax.Array]:
    best, tops = carry
    highest, groups = lax.top_k(tops, min(_GROUPS, num_groups))
    if label_axis:
      found = grouped[example, :, groups]  # [N, groups, SIZE]
    else:
      found = jnp.moveaxis(grouped[:, groups, example], 0, 2)
    # Where few groups are left, those that were looked into come again.
    seen = jnp.isneginf(highest)[..., None]
    found = jnp.where(seen, -jnp.inf, found)
    ids = first + label_groups.columns(groups, num_groups)
    rows = tops.shape[0], -1
    merged = merge_topk(
      jnp.concatenate([best.scores, found.reshape(rows)], 1),
      jnp.concatenate([best.ids, ids.reshape(rows).astype(jnp.int32)], 1),
      k,
    )
    return Best(*merged), tops.at[example, groups].set(-jnp.inf)

  return lax.while_loop(more, look, (best, tops))[0]


def merge(best: Best, axes: tuple[str, ...]) -> Best:
  """The best labels of all shards of labels, the same on all.

  Args:
    best: Those of this shard.
    axes: Mesh axes that labels are split over.

  Returns:
    Those of all.
  """
  if not axes:
    return best
  k = best.scores.shape[1]
  scores, ids = (side_by_side(a, axes) for a in best)
  return Best(*merge_topk(scores, ids, k))


def side_by_side(a: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """What all shards of labels have, `[N, k]` each, as `[N, G k]` on all.

  Args:
    a: `[N, k]` of this shard.
    axes: Mesh axes that labels are split over.

  Returns:
    `[N, G k]`. It is a sum of what each of the G shards puts in its place:
    unlike the result of an all-gather it is known to be the same on all.
  """
  index, count = lax.axis_index(axes), lax.axis_size(axes)
  shape = a.shape[0], count, a.shape[1]
  alone = jnp.zeros(shape, a.dtype).at[:, index].set(a)
  return lax.psum(alone, axes).reshape(a.shape[0], -1)


def best_of(
  best: tuple[jax.Array, jax.Array], z: jax.Array, first: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
  """Takes a chunk of scores into account, exactly: the lower id of equals.

  Args:
    best: Scores and ids `[N, k]` of the chunks before.
    z: `[N, c]` scores; -inf where a label may not be chosen.
    first: Id of the first column.

  Returns:
    Scores and ids `[N, k]`.
  """
  k = best[0].shape[1]
  scores, columns = lax.top_k(z, min(k, z.shape[1]))
  # The best so far come first: of equals, the lower id stays.
  return merge_topk(
    jnp.concatenate([best[0], scores], 1),
    jnp.concatenate([best[1], first + columns.astype(jnp.int32)], 1),
    k,
  )


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
    scores: `[N, c]` candidate scores, such as those of shards side by side.
    ids: `[N, c]` their label ids.
    k: How many to keep; fewer than k candidates are filled up.

  Returns:
    Scores `[N, k]`, descending, and ids `[N, k]`; the id of a score of -inf
    is -1 (fewer than k labels could be chosen).
  """
  scores, positions = local_topk(scores, k)
  ids = jnp.take_along_axis(ids, positions, axis=1)
  return scores, jnp.where(jnp.isneginf(scores), -1, ids)
