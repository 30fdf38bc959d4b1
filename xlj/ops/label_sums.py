"""Sums over all label rows: `W^T W` and `W^T 1`, and changes of them.

With them, what a loss or a regulariser needs of all labels' logits `o = W h` up
to second order costs nothing per label: `sum o = h . W^T 1` and `sum o^2 =
h . W^T W h` (Vincent et al. 2015, "Efficient exact gradient update for training
deep networks with very large sparse targets").

Legend: D width, L label rows (l of this device), c rows of a chunk, M changed
rows.
"""

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import chunks
from xlj.ops import precision
from xlj.ops import shards as shards_lib

P = jax.P


class RowSums(NamedTuple):
  """Sums over label rows, the same on all devices.

  Attributes:
    gram: `[D, D]`, `W^T W`.
    total: `[D]`, `W^T 1`.
  """

  gram: jax.Array
  total: jax.Array

  @property
  def squares(self) -> jax.Array:
    """Sum of the squares of all weights, scalar."""
    return jnp.trace(self.gram)


@precision.exact
def label_statistics(
  rows: jax.Array,
  *,
  num_labels: int | None = None,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> RowSums:
  """`W^T W` and `W^T 1` over all labels, differentiable in the rows.

  Chunks are added with compensation (Kahan 1965), so the error does not grow
  with their number. For meshes see `xlj.ops.label_pass.label_loss`.

  Args:
    rows: `[L, D]` label rows, floating; row i is label i.
    num_labels: Rows from this one on are padding; None for no padding.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    The sums, float32 or wider.
  """
  plan = shards_lib.plan(rows, None, num_labels, placement)
  shards = plan.shards

  def local(rows):
    sums = _local_sums(plan, rows)
    return jax.tree.map(lambda a: shards_lib.total(a, shards), sums)

  return shards_lib.over(local, shards, (True,), P())(rows)


@precision.exact
def update_statistics(
  sums: RowSums,
  before: jax.Array,
  after: jax.Array,
  *,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> RowSums:
  """The sums after some rows have changed, in time that does not depend on L.

  Errors add up: call `label_statistics` again from time to time.

  Args:
    sums: Sums before.
    before: `[M, D]` values of the rows before; each row is given once.
    after: `[M, D]` values of them after; those that do not change, like
      padding, do not matter.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    Sums after.

  Raises:
    ValueError: Inside `shard_map` the axes are not given.
  """
  shards = shards_lib.find(before, None, placement)

  def local(before, after):
    dtype = sums.gram.dtype
    before, after = before.astype(dtype), after.astype(dtype)
    step = after - before
    # after^T after - before^T before, without subtracting large numbers.
    changes = RowSums(
      chunks.matmul(step.T, after) + chunks.matmul(before.T, step),
      step.sum(0),
    )
    return jax.tree.map(lambda a: shards_lib.total(a, shards), changes)

  changes = shards_lib.over(local, shards, (True, True), P())(before, after)
  return jax.tree.map(jnp.add, sums, changes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _local_sums(plan, rows):
  """Sums over this device's rows."""

  def body(start, size, carry):
    part = _labels(plan, rows, start, size)
    gram = chunks.matmul(chunks.transposed(part, start), part)
    total = part.astype(gram.dtype).sum(0)
    return _compensated(carry, RowSums(gram, total))

  dtype = chunks.accumulator(rows)
  dim = rows.shape[1]
  zeros = RowSums(
    jnp.zeros_like(rows, shape=(dim, dim), dtype=dtype),
    jnp.zeros_like(rows, shape=(dim,), dtype=dtype),
  )
  carry = chunks.for_chunks(rows.shape[0], plan.chunk, body, (zeros, zeros))
  return carry[0]


def _local_sums_fwd(plan, rows):
  return _local_sums(plan, rows), rows


def _local_sums_bwd(plan, rows, gradient):
  symmetric = gradient.gram + gradient.gram.T

  def body(start, size, drows):
    part = _labels(plan, rows, start, size)
    grad = chunks.matmul(part.astype(symmetric.dtype), symmetric)
    is_label = _is_label(plan, rows, start, size)
    grad += jnp.where(is_label, gradient.total[None], 0)
    return chunks.write(drows, grad, rows, start)

  held = chunks.zeros_as_bits(rows)
  held = chunks.for_chunks(rows.shape[0], plan.chunk, body, held)
  return (chunks.from_bits(held, rows.dtype),)


_local_sums.defvjp(_local_sums_fwd, _local_sums_bwd)


def _is_label(plan, rows, start, size):
  """`[c, 1]`, False at padding."""
  first = start + shards_lib.offset(plan.shards, rows.shape[0])
  return plan.layout.is_label(first + jnp.arange(size))[:, None]


def _labels(plan, rows, start, size):
  """A chunk of local rows `[c, D]`, 0 at padding."""
  part = chunks.take(rows, start, size)
  return jnp.where(_is_label(plan, rows, start, size), part, 0)


def _compensated(
  carry: tuple[RowSums, RowSums], new: RowSums
) -> tuple[RowSums, RowSums]:
  """Adds to sums, and keeps what was rounded away to add it the next time."""
  sums, missing = carry
  new = jax.tree.map(jnp.subtract, new, missing)
  after = jax.tree.map(jnp.add, sums, new)
  # The barrier keeps the compiler from cancelling this to zero.
  added = jax.tree.map(jnp.subtract, lax.optimization_barrier(after), sums)
  return after, jax.tree.map(jnp.subtract, added, new)
