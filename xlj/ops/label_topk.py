"""The best k labels of each example, in the memory of a chunk of labels.

Legend: N examples (n of this device), D width, L label rows (l of this
device), G devices that rows are split over, E excluded labels of an example.
"""

from collections.abc import Sequence

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import chunks
from xlj.ops import shards as shards_lib
from xlj.ops import targets as targets_lib
from xlj.ops import topk as topk_lib

P = jax.P


def label_topk(
  x: jax.Array,
  rows: jax.Array,
  bias: jax.Array | None,
  k: int,
  *,
  num_labels: int | None = None,
  exclude: jax.Array | None = None,
  chunk_size: int | None = None,
  memory: int | None = None,
  row_axes: Sequence[str] | None = None,
  batch_axes: Sequence[str] | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The k labels with the highest logits, exactly; the lower id of equals.

  Not differentiable. For meshes see `xlj.ops.label_pass.label_loss`.

  Args:
    x: `[N, D]` examples.
    rows: `[L, D]` label rows; row i is label i.
    bias: `[L]`, or None.
    k: How many labels.
    num_labels: Rows from this one on are padding; None for no padding.
    exclude: `[N, E]` int32 labels never to be returned for that example; -1 is
      padding. Sharded like `x`.
    chunk_size: Rows of a chunk on each device; None to derive it.
    memory: Bytes of temporaries to derive it from; None for the default.
    row_axes: Mesh axes that rows are split over.
    batch_axes: Mesh axes that examples are split over.

  Returns:
    Scores `[N, k]`, descending, and int32 ids `[N, k]`, sharded like `x`; -inf
    and -1 where there are fewer than k labels.
  """
  shards = shards_lib.find(rows, x, row_axes, batch_axes)
  plan = shards_lib.plan(shards, x, rows, num_labels, chunk_size, memory)

  def local(x, exclude, rows, bias):
    x, exclude = shards_lib.gather((x, exclude), shards)
    first_row = shards_lib.offset(shards, rows.shape[0])

    def body(start, size, best):
      first = start + first_row
      part, part_bias = chunks.take((rows, bias), start, size)
      is_label = plan.layout.is_label(first + jnp.arange(size))
      z = chunks.logits(x, part, part_bias, is_label, start)
      if exclude is not None:
        hidden = targets_lib.positives_in_chunk(exclude, first, size)
        z = targets_lib.set_at_columns(z, hidden, -jnp.inf)
      return topk_lib.best_of(best, z, first)

    shape = x.shape[0], k
    none = (
      jnp.full_like(
        x, -jnp.inf, shape=shape, dtype=chunks.accumulator(x, rows)
      ),
      jnp.full_like(x, -1, shape=shape, dtype=jnp.int32),
    )
    best = chunks.for_chunks(rows.shape[0], plan.chunk, body, none)
    return topk_lib.merge_topk(*_candidates(best, shards), k)

  spec = P(shards.batch)
  run = shards_lib.over(local, shards, (False, False, True, True), (spec, spec))
  return run(x, exclude, rows, bias)


def _candidates(
  best: tuple[jax.Array, jax.Array], shards: shards_lib.Shards
) -> tuple[jax.Array, jax.Array]:
  """`[N, k]` of each shard of rows to `[n, G k]` of this device's examples."""
  if not shards.rows:
    return best
  if shards.batch == shards.rows:
    # N k scores and ids are sent and received.
    scores, ids = (
      lax.all_to_all(a, shards.rows, 0, 1, tiled=True) for a in best
    )
    return scores, ids
  # N G k numbers.
  scores, ids = (topk_lib.side_by_side(a, shards.rows) for a in best)
  return shards_lib.own(scores, shards), shards_lib.own(ids, shards)
