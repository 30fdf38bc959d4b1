"""Attention over all labels, in the memory of a chunk of them.

The memory feature of Liu et al. 2019 ("Large-scale long-tailed recognition in
an open world"), and the expected embedding of the labels that a
classifier finds likely (`xlj.open_world.loki`).

Legend: N examples (n of this device), D width of keys, E of values, L label
rows (l of this device), k labels attended to.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import chunks
from xlj.ops import label_gather
from xlj.ops import label_ranking
from xlj.ops import precision
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
  bias: jax.Array | None = None,
  num_labels: int | None = None,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> jax.Array:
  """`softmax(scale * q K^T + b) V` over all labels.

  Differentiable in q, K, V and b, by a second pass over the chunks; what is
  not asked for a gradient costs none of its products if jitted.

  Maximum, sum of exponentials and weighted sum of values run over the chunks
  and are merged between devices. For meshes see
  `xlj.ops.label_pass.label_loss`; values are sharded like keys.

  Args:
    q: `[N, D]` queries.
    keys: `[L, D]`; row i is label i.
    values: `[L, E]`.
    scale: Factor of the products.
    bias: `[L]`, sharded like keys, or None; -inf leaves a row out.
    num_labels: Rows from this one on are padding; None for no padding.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    `[N, E]` float32 (or wider), sharded like `q`.
  """
  shards_lib.check(q, keys, bias, by_label={"values": values})
  rows_plan = shards_lib.plan(keys, q, num_labels, placement)
  shards = rows_plan.shards
  plan = _Plan(scale, rows_plan)

  def local(q, keys, values, bias):
    q = shards_lib.gather(q, shards)
    rows = _Rows(
      *chunks.mark_varying((keys, values, bias), tuple(chunks.varying(q)))
    )
    return shards_lib.total_of_own(_attend(plan, q, rows), shards)

  in_rows = (False, True, True, True)
  run = shards_lib.over(local, shards, in_rows, P(shards.batch))
  return run(q, keys, values, bias)


@precision.exact
def label_attend_topk(
  q: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  scale: float,
  k: int,
  *,
  bias: jax.Array | None = None,
  num_labels: int | None = None,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> jax.Array:
  """`label_attend` to the k keys of highest logit alone.

  One pass finds them; what follows, gradients included, does not depend on L
  but for where the gradients of rows are added. With very many labels a
  softmax over all of them is almost flat: the many small weights outweigh the
  few that matter.

  Args:
    q: `[N, D]` queries.
    keys: `[L, D]`; row i is label i.
    values: `[L, E]`.
    scale: Factor of the products.
    k: How many.
    bias: `[L]`, sharded like keys, or None; -inf leaves a row out.
    num_labels: Rows from this one on are padding; None for no padding.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    `[N, E]` float32 (or wider), sharded like `q`.
  """
  where: Any = {"num_labels": num_labels, "placement": placement}
  q = q * scale
  _, ids = label_ranking.label_topk(
    *lax.stop_gradient((q, keys, bias)), k, **where
  )
  z = label_gather.label_logits(q, keys, bias, ids, **where)
  rows = label_gather.label_rows(values, ids, **where)
  p = jax.nn.softmax(z)
  return jnp.einsum("nk,nke->ne", p, rows, preferred_element_type=p.dtype)


class _Rows(NamedTuple):
  """What is split by label, `[l, ...]` on this device."""

  keys: jax.Array
  values: jax.Array
  bias: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, q, rows):
  """This device's rows' part of the result, `[N, E]`."""
  return _attend_fwd(plan, q, rows)[0]


def _attend_fwd(plan, q, rows):
  def body(start, size, carry):
    maximum, total, mean = carry
    z, part = _chunk(plan, q, rows, start, size)
    new = jnp.maximum(maximum, z.max(1))
    safe = jnp.where(jnp.isneginf(new), 0, new)
    before = jnp.exp(maximum - safe)
    p = jnp.exp(z - safe[:, None])
    mean = mean * before[:, None] + _product(p, part.values)
    return new, total * before + p.sum(1), mean

  dtype = chunks.accumulator(q, rows.keys, rows.values)
  n = q.shape[0]
  carry = (
    jnp.full_like(q, -jnp.inf, shape=(n,), dtype=dtype),
    jnp.zeros_like(q, shape=(n,), dtype=dtype),
    jnp.zeros_like(q, shape=(n, rows.values.shape[1]), dtype=dtype),
  )
  maximum, total, mean = chunks.for_chunks(
    rows.keys.shape[0], plan.rows.chunk, body, carry
  )
  axes = plan.rows.shards.rows
  new = lax.pmax(maximum, axes) if axes else maximum  # N numbers
  own = jnp.exp(maximum - new)
  total = shards_lib.total(total * own, plan.rows.shards)  # N numbers
  mean *= (own / total)[:, None]
  return mean, (q, rows, new + jnp.log(total), mean)


def _attend_bwd(plan, residuals, dmean):
  q, rows, lse, mean = residuals
  # What the softmax's own sum takes off; of all rows. N numbers.
  taken = shards_lib.total((dmean * mean).sum(1), plan.rows.shards)

  def body(start, size, carry):
    dq, held = carry
    z, part = _chunk(plan, q, rows, start, size)
    p = jnp.exp(z - lse[:, None])
    dz = p * (_product(dmean, part.values.T) - taken[:, None])
    parts = _Rows(
      _product(dz.T, q) * plan.scale,
      _product(p.T, dmean),
      None if rows.bias is None else dz.sum(0),
    )
    held = jax.tree.map(
      lambda h, a, like: chunks.write(h, a, like, start), held, parts, rows
    )
    return dq + _product(dz, part.keys) * plan.scale, held

  dtype = chunks.accumulator(q, rows.keys, rows.values)
  carry = jnp.zeros_like(q, dtype=dtype), chunks.zeros_as_bits(rows)
  num_rows = rows.keys.shape[0]
  dq, held = chunks.for_chunks(num_rows, plan.rows.chunk, body, carry)
  return dq.astype(q.dtype), chunks.all_from_bits(held, rows)


_attend.defvjp(_attend_fwd, _attend_bwd)


def _chunk(plan, q, rows, start, size):
  """Logits `[N, c]` of a chunk of rows, and the chunk."""
  part = chunks.take(rows, start, size)
  first = start + shards_lib.offset(plan.rows.shards, rows.keys.shape[0])
  # Scaled after the product, so that padding stays -inf for any scale.
  z = chunks.matmul(q, part.keys.T) * plan.scale
  if part.bias is not None:
    z += part.bias.astype(z.dtype)
  is_label = plan.rows.layout.is_label(first + jnp.arange(size))
  return jnp.where(is_label[None], z, -jnp.inf), part


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  """A product of weights with rows, in the type of the rows."""
  dtype = min(a.dtype, b.dtype, key=lambda t: t.itemsize)
  return chunks.matmul(a.astype(dtype), b.astype(dtype))
