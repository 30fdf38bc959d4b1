"""The best k labels of each example, in the memory of a chunk of labels.

Legend: N examples (n of this device), D width, L label rows (l of this
device), G devices that rows are split over, E excluded labels of an example.
"""

import jax
import jax.numpy as jnp

from xlj.ops import chunks
from xlj.ops import precision
from xlj.ops import shards as shards_lib
from xlj.ops import targets as targets_lib
from xlj.ops import topk as topk_lib

P = jax.P


@precision.exact
def label_topk(
  x: jax.Array,
  rows: jax.Array,
  bias: jax.Array | None,
  k: int,
  *,
  num_labels: int | None = None,
  exclude: jax.Array | None = None,
  placement: shards_lib.Placement = shards_lib.AUTO,
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
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    Scores `[N, k]`, descending, and int32 ids `[N, k]`, sharded like `x`; -inf
    and -1 where there are fewer than k labels.

  Raises:
    ValueError: Shapes do not fit, k is not a whole number from 1 on, or axes
      are missing.
  """
  shards_lib.check(x, rows, bias, by_example={"exclude": exclude})
  plan = shards_lib.plan(rows, x, num_labels, placement)
  shards = plan.shards
  if isinstance(k, bool) or not hasattr(k, "__index__") or k < 1:
    raise ValueError(f"k must be a whole number from 1 on: got {k!r}")

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
      return topk_lib.add(best, z, first)

    best = topk_lib.none(x.shape[0], k, chunks.accumulator(x, rows))
    best = chunks.mark_varying(best, tuple(chunks.varying(x)))
    best = chunks.for_chunks(rows.shape[0], plan.chunk, body, best)
    return tuple(topk_lib.merge(best, shards.rows, shards.batch))

  spec = P(shards.batch)
  run = shards_lib.over(local, shards, (False, False, True, True), (spec, spec))
  return run(x, exclude, rows, bias)
