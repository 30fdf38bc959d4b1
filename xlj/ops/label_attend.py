"""Attention over all labels, in the memory of a chunk of them.

Legend: N examples (n of this device), D width of keys, E of values, L label
rows (l of this device).
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import chunks
from xlj.ops import shards as shards_lib

P = jax.P


class _Plan(NamedTuple):
  """What is known when the function is traced."""

  scale: float
  rows: shards_lib.Plan


def label_attend(
  q: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  scale: float,
  *,
  num_labels: int | None = None,
  chunk_size: int | None = None,
  memory: int | None = None,
  row_axes: Sequence[str] | None = None,
  batch_axes: Sequence[str] | None = None,
) -> jax.Array:
  """`softmax(scale * q K^T) V` over all labels, differentiable in q, K and V.

  Maximum, sum of exponentials and weighted sum of values run over the chunks
  and are merged between devices. For meshes see
  `xlj.ops.label_pass.label_loss`; values are sharded like keys.

  Args:
    q: `[N, D]` queries.
    keys: `[L, D]`; row i is label i.
    values: `[L, E]`.
    scale: Factor of the products.
    num_labels: Rows from this one on are padding; None for no padding.
    chunk_size: Rows of a chunk on each device; None to derive it.
    memory: Bytes of temporaries to derive it from; None for the default.
    row_axes: Mesh axes that keys and values are split over.
    batch_axes: Mesh axes that queries are split over.

  Returns:
    `[N, E]` float32 (or wider), sharded like `q`.
  """
  shards = shards_lib.find(keys, q, row_axes, batch_axes)
  rows_plan = shards_lib.plan(shards, q, keys, num_labels, chunk_size, memory)
  plan = _Plan(scale, rows_plan)

  def local(q, keys, values):
    q = shards_lib.gather(q, shards)
    axes = tuple(chunks.varying(q))
    keys, values = chunks.vary((keys, values), axes)
    return shards_lib.total_of_own(_attend(plan, q, keys, values), shards)

  run = shards_lib.over(local, shards, (False, True, True), P(shards.batch))
  return run(q, keys, values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, q, keys, values):
  """This device's rows' part of the result, `[N, E]`."""
  return _attend_fwd(plan, q, keys, values)[0]


def _attend_fwd(plan, q, keys, values):
  def body(start, size, carry):
    maximum, total, mean = carry
    z, _, part = _chunk(plan, q, keys, values, start, size)
    new = jnp.maximum(maximum, z.max(1))
    safe = jnp.where(jnp.isneginf(new), 0, new)
    before = jnp.exp(maximum - safe)
    p = jnp.exp(z - safe[:, None])
    mean = mean * before[:, None] + _product(p, part)
    return new, total * before + p.sum(1), mean

  dtype = chunks.accumulator(q, keys, values)
  n = q.shape[0]
  carry = (
    jnp.full_like(q, -jnp.inf, shape=(n,), dtype=dtype),
    jnp.zeros_like(q, shape=(n,), dtype=dtype),
    jnp.zeros_like(q, shape=(n, values.shape[1]), dtype=dtype),
  )
  maximum, total, mean = chunks.for_chunks(
    keys.shape[0], plan.rows.chunk, body, carry
  )
  axes = plan.rows.shards.rows
  new = lax.pmax(maximum, axes) if axes else maximum  # N numbers
  own = jnp.exp(maximum - new)
  total = shards_lib.total(total * own, plan.rows.shards)  # N numbers
  mean *= (own / total)[:, None]
  return mean, (q, keys, values, new + jnp.log(total), mean)


def _attend_bwd(plan, residuals, dmean):
  q, keys, values, lse, mean = residuals
  # What the softmax's own sum takes off; of all rows. N numbers.
  taken = shards_lib.total((dmean * mean).sum(1), plan.rows.shards)

  def body(start, size, carry):
    dq, dkeys, dvalues = carry
    z, part, part_values = _chunk(plan, q, keys, values, start, size)
    p = jnp.exp(z - lse[:, None])
    dz = p * (_product(dmean, part_values.T) - taken[:, None]) * plan.scale
    dvalues = chunks.write(dvalues, _product(p.T, dmean), values, start)
    dkeys = chunks.write(dkeys, _product(dz.T, q), keys, start)
    return dq + _product(dz, part), dkeys, dvalues

  carry = (
    jnp.zeros_like(q, dtype=chunks.accumulator(q, keys, values)),
    *chunks.held_zeros((keys, values)),
  )
  dq, *held = chunks.for_chunks(keys.shape[0], plan.rows.chunk, body, carry)
  return dq.astype(q.dtype), *chunks.release_all(tuple(held), (keys, values))


_attend.defvjp(_attend_fwd, _attend_bwd)


def _chunk(plan, q, keys, values, start, size):
  """Scaled logits `[N, c]`, keys `[c, D]` and values `[c, E]` of a chunk."""
  part, part_values = chunks.take((keys, values), start, size)
  first = start + shards_lib.offset(plan.rows.shards, keys.shape[0])
  # Scaled after the product, so that padding stays -inf for any scale.
  z = chunks.matmul(q, part.T) * plan.scale
  is_label = plan.rows.layout.is_label(first + jnp.arange(size))
  return jnp.where(is_label[None], z, -jnp.inf), part, part_values


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  """A product of weights with rows, in the type of the rows."""
  dtype = min(a.dtype, b.dtype, key=lambda t: t.itemsize)
  return chunks.matmul(a.astype(dtype), b.astype(dtype))
