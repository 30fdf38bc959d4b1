"""Rows and logits of given labels, from rows that are split over devices.

The matrix stays where it is: each device looks up what it has, and the vectors
(or logits) are added up where the examples are. Gradients of rows are of the
size of all rows and split like them. For a gradient of the looked-up rows
alone, differentiate a function of what `label_rows` returns: with the ids it is
the row-sparse gradient, which `sum_duplicates` reduces to one vector a row.

Legend: N examples (n of this device), P ids of an example, D width, L label
rows (l of this device), B devices that examples are split over, M ids in a
list.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import chunks
from xlj.ops import shards as shards_lib

P = jax.P


def label_rows(
  rows: jax.Array,
  ids: jax.Array,
  *,
  num_labels: int | None = None,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> jax.Array:
  """The rows of the labels `ids`, differentiable in `rows`.

  Devices send and receive N P D numbers and N P ids. For meshes see
  `xlj.ops.label_pass.label_loss`.

  Args:
    rows: `[L, D]` label rows; row i is label i.
    ids: `[N, P]` int32 labels, split like examples; others than 0 ...
      num_labels - 1 are padding.
    num_labels: Rows from this one on are padding; None for no padding.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    `[N, P, D]`, split like `ids`, of the type of `rows`; 0 at padding.
  """
  split = shards_lib.split(rows, ids, num_labels, placement)
  shards = split.shards

  def local(ids, rows):
    rows = chunks.mark_varying(rows, tuple(chunks.varying(ids)))
    return _rows_of_all(split, placement.memory, ids, rows)

  spec = P(shards.batch)
  return shards_lib.over(local, shards, (False, True), spec)(ids, rows)


def label_logits(
  x: jax.Array,
  rows: jax.Array,
  bias: jax.Array | None,
  ids: jax.Array,
  *,
  fill: float = -jnp.inf,
  num_labels: int | None = None,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> jax.Array:
  """The logits of the labels `ids`, differentiable in `x`, `rows` and `bias`.

  Devices send and receive N D numbers and N P ids and logits. For meshes see
  `xlj.ops.label_pass.label_loss`.

  Args:
    x: `[N, D]` examples.
    rows: `[L, D]` label rows; row i is label i.
    bias: `[L]`, or None.
    ids: `[N, P]` int32 labels, sharded like `x`; others than 0 ...
      num_labels - 1 are padding.
    fill: What to return at padding.
    num_labels: Rows from this one on are padding; None for no padding.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    `[N, P]`, sharded like `x`, float32 or wider.
  """
  shards_lib.check(x, rows, bias, by_example={"ids": ids})
  split = shards_lib.split(rows, x, num_labels, placement)
  shards = split.shards

  def local(x, ids, rows, bias):
    is_label = _is_label(split, ids)
    x, ids = shards_lib.gather((x, ids), shards)
    rows, bias = chunks.mark_varying((rows, bias), tuple(chunks.varying(x)))
    index = _local_index(split, ids, rows)
    own = _local_logits(placement.memory, x, rows, bias, index)
    z = shards_lib.total_of_own(own, shards)
    return jnp.where(is_label, z, fill)

  spec = P(shards.batch)
  run = shards_lib.over(local, shards, (False, False, True, True), spec)
  return run(x, ids, rows, bias)


def sum_duplicates(
  ids: jax.Array, values: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Adds up the vectors of each id.

  Args:
    ids: `[M]` int32; negative ones are padding.
    values: `[M, D]`.

  Returns:
    Distinct ids `[M]`, ascending, then -1; and the sums `[M, D]` of their
    vectors, float32 or wider, 0 at padding.
  """
  none = jnp.iinfo(ids.dtype).max
  ids = jnp.where(ids < 0, none, ids)
  order = jnp.argsort(ids)
  ids, values = ids[order], values[order].astype(chunks.accumulator(values))
  is_first = jnp.concatenate([ids[:1] < none, ids[1:] != ids[:-1]])
  place = jnp.cumsum(is_first) - 1
  place = jnp.where(ids < none, place, ids.shape[0])
  sums = jnp.zeros_like(values).at[place].add(values, mode="drop")
  return jnp.full_like(ids, -1).at[place].set(ids, mode="drop"), sums


@jax.custom_vjp
def take(rows: jax.Array, index: jax.Array) -> jax.Array:
  """Rows of this device, `rows[index]`; its gradient is as large as `rows`.

  Args:
    rows: `[l, D]`.
    index: `[M]` int32; l (out of range) for a row of zeros.

  Returns:
    `[M, D]`.
  """
  held = chunks.to_bits(jnp.asarray(rows))
  part = held.at[index].get(mode="fill", fill_value=0)
  return chunks.from_bits(part, rows.dtype)


def _take_fwd(rows, index):
  return take(rows, index), (rows, index)


def _take_bwd(residuals, gradient):
  rows, index = residuals
  held = _add_rows(chunks.zeros_as_bits(rows), rows, index, gradient)
  return chunks.from_bits(held, rows.dtype), None


take.defvjp(_take_fwd, _take_bwd)


def _add_rows(
  held: jax.Array, like: jax.Array, index: jax.Array, values: jax.Array
) -> jax.Array:
  """Adds `values` `[M, D]` to the rows `index` `[M]` of what holds `[l, D]`."""
  if chunks.accumulator(like) == like.dtype:
    return held.at[index].add(values.astype(like.dtype), mode="drop")
  # A sum in a narrow type would lose what is small beside it.
  num_rows = like.shape[0]
  index = jnp.where(index < num_rows, index, -1)
  index, sums = sum_duplicates(index, values)
  index = jnp.where(index < 0, num_rows, index)
  before = chunks.from_bits(
    held.at[index].get(mode="fill", fill_value=0), like.dtype
  )
  after = chunks.to_bits((before + sums).astype(like.dtype))
  return held.at[index].set(after, mode="drop")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rows_of_all(split, memory, ids, rows):
  """Rows `[n, P, D]` of this device's ids `[n, P]`, of all devices' rows."""
  shape = *ids.shape, rows.shape[1]

  def body(start, size, out):
    index = _index_of_all(split, ids, rows, start, size)
    part = take(rows, index.reshape(-1)).reshape(-1, *shape[1:])
    # Only one device has a row: nothing is rounded.
    part = shards_lib.total_of_own(part, split.shards)
    return lax.dynamic_update_slice_in_dim(out, part, start, 0)

  out = jnp.zeros_like(ids, shape=shape, dtype=rows.dtype)
  others = tuple(chunks.varying(rows) - set(split.shards.rows))
  out = chunks.mark_varying(out, (*split.shards.batch, *others))
  size = _examples_at_a_time(split.shards, memory, ids, rows)
  return chunks.for_chunks(shape[0], size, body, out)


def _rows_of_all_fwd(split, memory, ids, rows):
  return _rows_of_all(split, memory, ids, rows), (ids, rows)


def _rows_of_all_bwd(split, memory, residuals, gradient):
  ids, rows = residuals

  def body(start, size, held):
    index = _index_of_all(split, ids, rows, start, size).reshape(-1)
    part = lax.dynamic_slice_in_dim(gradient, start, size)
    part = shards_lib.gather(part, split.shards)
    return _add_rows(held, rows, index, part.reshape(index.shape[0], -1))

  size = _examples_at_a_time(split.shards, memory, ids, rows)
  held = chunks.for_chunks(ids.shape[0], size, body, chunks.zeros_as_bits(rows))
  return None, chunks.from_bits(held, rows.dtype)


_rows_of_all.defvjp(_rows_of_all_fwd, _rows_of_all_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _local_logits(memory, x, rows, bias, index):
  """Logits `[N, P]` of this device's rows `index`; 0 elsewhere."""

  def body(start, size, out):
    x_part, index_part = chunks.take((x, index), start, size)
    part = take(rows, index_part.reshape(-1))
    part = part.reshape(*index_part.shape, -1)
    z = _product("nd,npd->np", x_part, part)
    if bias is not None:
      z += jnp.asarray(bias).at[index_part].get(mode="fill", fill_value=0)
    return lax.dynamic_update_slice_in_dim(out, z, start, 0)

  out = jnp.zeros_like(x, shape=index.shape, dtype=chunks.accumulator(x, rows))
  size = _examples_at_a_time(None, memory, index, rows)
  return chunks.for_chunks(x.shape[0], size, body, out)


def _local_logits_fwd(memory, x, rows, bias, index):
  return _local_logits(memory, x, rows, bias, index), (x, rows, bias, index)


def _local_logits_bwd(memory, residuals, gradient):
  x, rows, bias, index = residuals

  def body(start, size, carry):
    dx, held, dbias = carry
    parts = chunks.take((x, index, gradient), start, size)
    x_part, index_part, grad = parts
    flat = index_part.reshape(-1)
    part = take(rows, flat).reshape(*index_part.shape, -1)
    # A padding id may meet an infinite gradient.
    grad = jnp.where(index_part < rows.shape[0], grad, 0)
    dx_part = _product("np,npd->nd", grad, part).astype(x.dtype)
    dx = lax.dynamic_update_slice_in_dim(dx, dx_part, start, 0)
    outer = grad[:, :, None] * x_part[:, None].astype(grad.dtype)
    held = _add_rows(held, rows, flat, outer.reshape(flat.shape[0], -1))
    if bias is not None:
      dbias = dbias.at[index_part].add(grad, mode="drop")
    return dx, held, dbias

  dbias = None
  if bias is not None:
    dbias = jnp.zeros_like(bias, dtype=chunks.accumulator(bias))
  carry = jnp.zeros_like(x), chunks.zeros_as_bits(rows), dbias
  size = _examples_at_a_time(None, memory, index, rows)
  dx, held, dbias = chunks.for_chunks(x.shape[0], size, body, carry)
  if bias is not None and dbias is not None:
    dbias = dbias.astype(bias.dtype)
  return dx, chunks.from_bits(held, rows.dtype), dbias, None


_local_logits.defvjp(_local_logits_fwd, _local_logits_bwd)


def _product(how: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """An einsum in float32 or wider."""
  dtype = chunks.accumulator(a, b)
  return jnp.einsum(how, a.astype(dtype), b.astype(dtype))


def _is_label(split: shards_lib.Split, ids: jax.Array) -> jax.Array:
  """Whether ids are those of labels, `[...]`."""
  return (ids >= 0) & split.layout.is_label(ids)


def _local_index(
  split: shards_lib.Split, ids: jax.Array, rows: jax.Array
) -> jax.Array:
  """Where ids `[...]` lie among this device's rows; l for those elsewhere."""
  num_rows = rows.shape[0]
  index = ids - shards_lib.offset(split.shards, num_rows)
  inside = _is_label(split, ids) & (index >= 0) & (index < num_rows)
  return jnp.where(inside, index, num_rows)


def _index_of_all(split, ids, rows, start, size):
  """Local index `[B m, P]` of m examples of each device."""
  ids = lax.dynamic_slice_in_dim(ids, start, size)
  return _local_index(split, shards_lib.gather(ids, split.shards), rows)


def _examples_at_a_time(
  shards: shards_lib.Shards | None,
  memory: int | None,
  ids: jax.Array,
  rows: jax.Array,
) -> int:
  """How many examples' looked-up rows, twice, fit into the memory.

  All of them where an example has any number of ids.
  """
  if memory is None:
    memory = chunks.default_memory()
  devices = 1
  if shards is not None and shards.batch:
    devices = lax.axis_size(shards.batch)
  if not isinstance(ids.shape[1], int):  # of programs for any width
    return ids.shape[0]
  width = rows.shape[1] * chunks.accumulator(rows).itemsize
  example = 2 * devices * ids.shape[1] * width
  return max(min(memory // max(example, 1), ids.shape[0]), 1)
