"""Which blocks of label rows a training step visits, of all that there are.

Multi-Head Sampling (Liang et al. 2024, "Multi-head encoding for extreme label
classification", TPAMI, section on MHS) computes the softmax over some groups of
labels alone: those of the batch's labels and random others. Like Partial FC (An
et al. 2022, "Killing two birds with one stone", section 3.2), with blocks in
place of labels, so that rows are read and written in long runs.

Blocks with a positive of the batch are visited without fail, and so are those
that are hard for it. Of the other blocks each is visited with the same
probability q. `-log q` is added to the logits of those, whereby the sum of
`exp(z)` over all labels visited is on average, over what is drawn, that over
all labels (Bengio & Senecal 2008; see `xlj.losses.sampled_softmax`).

What is chosen does not depend on how rows are split among devices: each of them
makes the choice for all.

Legend: N examples, P positives, D width, C blocks, B blocks of this device,
G rows of a block.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import chunks
from xlj.ops import label_step
from xlj.ops import rounding

_COLUMN = -1  # of the random bits; none that rows are rounded with
_MOST_BLOCKS = 16  # that are averaged at a time


class Choice(NamedTuple):
  """What a step visits.

  Attributes:
    visited: `[C]` bool.
    shift: `[C]` float32 to add to the logits of a block's labels if it is
      visited.
  """

  visited: jax.Array
  shift: jax.Array


class State(NamedTuple):
  """The optimizer's state of rows, with what finds hard blocks.

  Attributes:
    rows: The state of rows.
    centroids: `[C, D]` float32, the mean row of each block when it was last
      visited.
  """

  rows: Any
  centroids: Any


def of_positives(rows: jax.Array, size: int, blocks: int) -> jax.Array:
  """Which blocks have a positive.

  Args:
    rows: `[N, P]` rows of positives, -1 for padding.
    size: Rows of a block G.
    blocks: Number of blocks C.

  Returns:
    `[C]` bool.
  """
  at = jnp.where(rows < 0, blocks, rows // size).reshape(-1)
  return jnp.zeros(blocks, bool).at[at].set(True, mode="drop")


def random_keys(
  seed: jax.typing.ArrayLike, step: jax.typing.ArrayLike, blocks: int
) -> jax.Array:
  """A random number for each block in this step, `[C]` uint32."""
  columns = jnp.full(1, _COLUMN)
  return rounding.hash_bits(seed, step, jnp.arange(blocks), columns)[:, 0]


def choose(
  positive: jax.Array,
  size: int,
  keys: jax.Array,
  scores: jax.Array | None = None,
  hard: int = 0,
) -> Choice:
  """Chooses blocks.

  Args:
    positive: `[C]` bool, blocks with a positive; all of them are chosen.
    size: How many to choose. If more have a positive or are hard, those are
      chosen, and no others: then what is not chosen counts for nothing.
    keys: `[C]` random numbers; the least of the others are chosen.
    scores: `[C]` float32 how hard each block is; None without.
    hard: How many of those of greatest score are chosen without fail, beside
      those with a positive.

  Returns:
    The choice.
  """
  blocks = positive.shape[0]
  sure = positive
  if scores is not None:
    _, best = lax.top_k(
      jnp.where(positive, -jnp.inf, scores), min(hard, blocks)
    )
    sure = sure.at[best].set(True)
  num_sure = sure.sum()
  others = jnp.maximum(min(size, blocks) - num_sure, 0)
  share = jnp.maximum(others, 1) / jnp.maximum(blocks - num_sure, 1)
  return Choice(
    sure | _least(keys, ~sure, others),
    jnp.where(sure, 0, -jnp.log(share.astype(jnp.float32))),
  )


def _least(keys: jax.Array, allowed: jax.Array, count: jax.Array) -> jax.Array:
  """Which `[C]` are the `count` least allowed keys; of equals, the first."""
  last = jnp.asarray(jnp.iinfo(keys.dtype).max, keys.dtype)
  ordered = jnp.sort(jnp.where(allowed, keys, last))
  limit = jnp.where(count > 0, ordered[count - 1], 0)
  less = allowed & (keys < limit)
  equal = allowed & (keys == limit)
  return less | (equal & (jnp.cumsum(equal) <= count - less.sum()))


def of_device(choice: Choice, first: Any, blocks: int) -> label_step.Visit:
  """A device's part of a choice.

  Args:
    choice: What is visited on all devices.
    first: The first block of the device; it may be traced.
    blocks: Number of its blocks B.

  Returns:
    What it visits, in the order of blocks.
  """
  # Behind the last block there may be empty ones.
  visited, shift = (jnp.pad(a, (0, blocks)) for a in choice)
  visited, shift = chunks.take((visited, shift), first, blocks)
  before = jnp.cumsum(visited, dtype=jnp.int32)
  numbers = jnp.arange(blocks, dtype=jnp.int32)
  slots = jnp.where(visited, before - 1, before[-1] + numbers - before)
  order = jnp.zeros_like(slots).at[slots].set(numbers, unique_indices=True)
  return label_step.Visit(order, before[-1], shift[order])


def scores(
  x: jax.Array, weights: jax.Array, centroids: jax.Array, memory: int | None
) -> jax.Array:
  """How hard blocks are: the greatest product of an example and a centroid.

  Args:
    x: `[N, D]`.
    weights: `[N]`; examples of weight 0 do not count.
    centroids: `[B, D]`.
    memory: Bytes of temporaries; None for the default.

  Returns:
    `[B]` float32.
  """
  blocks, dim = centroids.shape
  size = chunks.chunk_size(
    memory or chunks.default_memory(), blocks, x.shape[0], dim
  )

  def part(start, size, found):
    z = chunks.matmul(
      chunks.take(centroids, start, size), x.astype(jnp.float32).T
    )
    best = jnp.where(weights > 0, z, -jnp.inf).max(1)
    return lax.dynamic_update_slice_in_dim(found, best, start, 0)

  empty = jnp.zeros_like(centroids[:, 0])
  return chunks.for_chunks(blocks, size, part, empty)


def refreshed(
  rows: label_step.LabelRows,
  params: dict[str, jax.Array],
  centroids: jax.Array,
  visit: label_step.Visit,
) -> jax.Array:
  """Centroids after the rows of some blocks have changed.

  Args:
    rows: What is known of this device's rows.
    params: Stored rows `[B G, ...]`.
    centroids: `[B, D]` float32 before.
    visit: The blocks.

  Returns:
    `[B, D]` means of the rows as logits are made of them, without padding.
  """
  size, layout = rows.layout.rows_per_block, rows.layout
  stored = {name: a for name, a in params.items() if name != "bias"}

  def part(_, blocks, centroids):
    values, _ = rows.decoded(chunks.take_blocks(stored, blocks, size))
    values = values.astype(jnp.float32).reshape(-1, size, values.shape[1])
    ids = blocks[:, None] * size + jnp.arange(size) + rows.first_row()
    used = layout.is_label(ids)
    total = jnp.where(used[..., None], values, 0).sum(1)
    means = total / jnp.maximum(used.sum(1, keepdims=True), 1)
    return chunks.write_blocks(centroids, means, blocks, 1)

  centroids = chunks.mark_varying(centroids, rows.axes)
  return chunks.for_blocks(
    visit.blocks, visit.count, _MOST_BLOCKS, part, centroids
  )
