"""One device's part of a training step of label rows: pass and update in one.

The gradient of a chunk of rows goes to the optimizer as soon as it is formed,
and the chunk is written back in place: neither all logits nor the gradient of
all rows ever exist. Everything here runs inside `shard_map`, or on one device.

A step may visit some blocks of rows alone. They count as if they lay one after
the other: chunks are whole blocks, as many as there are to visit.

Legend: N examples, D width, l label rows of this device, c rows of a chunk,
P positives, w labels of this device with a logit from elsewhere, B blocks of
this device, m blocks of a chunk.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import choice as choice_lib
from xlj.ops import chunks
from xlj.ops import layout as layout_lib
from xlj.ops import loss as loss_lib
from xlj.ops import normalize
from xlj.ops import precision
from xlj.ops import row_format
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib
from xlj.ops import topk as topk_lib

Metrics = dict[str, jax.Array]
_MOST_BLOCKS = 16  # of a chunk, where each is read and written by itself


class Visit(NamedTuple):
  """Which blocks of this device's rows a step visits.

  Attributes:
    blocks: `[B]` int32 numbers of all its blocks, those to visit first.
    count: Scalar int32, how many to visit.
    shift: `[B]` float32 to add to the logits of each, in that order.
  """

  blocks: jax.Array
  count: jax.Array
  shift: jax.Array


class Inputs(NamedTuple):
  """The batch as a device sees it: all examples, its own label rows.

  Attributes:
    x: `[N, D]` embeddings, or None.
    logits: `[N, w]` float32 to add to those of the first rows of each block, or
      None.
    targets: Positives by row (not by label), -1 for padding; None to predict.
    label_values: Vectors `[l]` by row that the loss needs, by name, or None.
    visit: The blocks that a step visits, among them those of all positives on
      this device; None for all.
  """

  x: jax.Array | None
  logits: jax.Array | None
  targets: targets_lib.Targets | None = None
  label_values: targets_lib.LabelValues | None = None
  visit: Visit | None = None


@dataclasses.dataclass(frozen=True)
class LabelRows:
  """What is known of a device's label rows when a step is traced.

  Attributes:
    layout: Which rows hold labels, over all devices.
    format: How rows are stored.
    axes: Mesh axes that they are split over; none on one device.
    unit: Whether rows count by their direction alone.
    wide_rows: How many rows of each block have logits from elsewhere.
    kahan_rows: How many rows of each block have compensation.
    chunk_size: Rows of a chunk; None to derive it.
    memory: Bytes of temporaries to derive it from; None for the default.
    skip_below: Chunks without a gradient of a logit of at least this size are
      left out of the sums (see `xlj.heads.dense.rows`).
    keep_logits: The type that the first pass's logits `[N, l]` are kept in for
      the second, which forms them again otherwise; None not to keep them.
  """

  layout: layout_lib.Layout
  format: row_format.RowFormat
  axes: tuple[str, ...] = ()
  unit: bool = False
  wide_rows: int = 0
  kahan_rows: int = 0
  chunk_size: int | None = None
  memory: int | None = None
  keep_logits: str | None = None
  skip_below: float = 0.0

  @jax.named_scope("pass")
  def step(
    self,
    loss: loss_lib.Loss,
    optimizer: row_optimizer.RowOptimizer,
    step: jax.Array,
    params: dict[str, jax.Array],
    state: row_optimizer.RowState,
    inputs: Inputs,
  ) -> tuple[Any, Any, jax.Array | None, jax.Array | None, Metrics]:
    """Updates the rows.

    Rows of blocks that are not visited stay as they are, and so does the
    optimizer's state of them.

    Args:
      loss: Loss on a chunk of logits.
      optimizer: How rows are stored and updated.
      step: Scalar int32, number of steps taken.
      params: Stored rows `[l, ...]`, `bias [l]`, or both.
      state: The optimizer's state of them.
      inputs: The batch.

    Returns:
      New params, new state, this device's part of the gradients of `x` `[N, D]`
      float32 and of `logits` (None without), and "loss", its part of the
      weighted mean loss, with what the loss reports (see `ops.loss.Reporting`),
      rows in place of labels.
    """
    inputs = self._in_order(inputs)
    loss = loss_lib.at_step(loss, step)
    targets = inputs.targets
    assert targets is not None  # This is a step.
    scale = share_of_weights(targets)
    stats, kept = self._statistics(loss, params, inputs)
    by_row, others = optimizer.split(state)
    finished = optimizer.finish(params, state)
    arrays = (params, by_row, state.master, state.kahan)
    x, axis = inputs.x, self._label_axis(inputs)
    # Neither the step nor where a chunk starts need be traced.
    unknown = lax.bitcast_convert_type(scale[0], jnp.int32) & 1

    def chunk(place, part, wide, z, losses, dx):
      params, by_row, master, kahan = part
      rows, rows_vjp = self.decoded(params)
      z = self._kept_logits(z, axis, place)
      if z is None:
        z = self._logits(inputs, rows, params, wide, axis, place)
      positives = self._positives(inputs, axis, place)
      value, grad = loss.value_and_grad(stats, z, positives)
      share = positives.by_example(scale)
      used = share != 0  # padding examples do not keep a chunk
      # What is not finite matters, so that it is seen.
      small = jnp.where(used, jnp.abs(grad), 0) < self.skip_below
      matters = ~jnp.all(small)
      grad *= share
      by_label = grad.sum(1 - axis) if "bias" in params else None
      grads = {} if by_label is None else {"bias": by_label}
      dwide = None if wide is None else grad
      if x is not None:

        def products(grad, dx):
          by_example, by_label = chunks.both_ways(
            grad.astype(rows.dtype), axis, place.start
          )
          dx += chunks.matmul(by_example, rows)
          drows = chunks.matmul(by_label, x.astype(rows.dtype))
          return dx, rows_vjp(drows)

        def nothing(grad, dx):
          zero = jnp.zeros_like(rows, dtype=jnp.float32)
          return dx, chunks.mark_varying(zero, tuple(chunks.varying(dx)))

        if self.skip_below:
          dx, grads["rows"] = lax.cond(matters, products, nothing, grad, dx)
        else:
          dx, grads["rows"] = products(grad, dx)
      known = optimizer.join(state, by_row, others)
      known = known._replace(master=master, kahan=kahan)
      new, known = optimizer.update(
        step, self._row_ids(place), params, known, grads
      )
      new_arrays = new, optimizer.split(known)[0], known.master, known.kahan
      new_arrays = self._of_visited(inputs.visit, place, new_arrays, part)
      return new_arrays, dwide, losses + value, dx

    def body(place, carry):
      arrays, wide, losses, dx = carry
      wide_start, kahan_start = place.parts
      part = self._take(arrays, place)
      z = _kept_part(kept, place)
      part, dwide, losses, dx = chunks.isolated(
        unknown,
        lambda *args: chunk(place, *args),
        part,
        _columns(wide, wide_start, place.size),
        z,
        losses,
        dx,
      )
      arrays = self._write(arrays, part, place)
      if dwide is not None:
        wide = lax.dynamic_update_slice_in_dim(wide, dwide, wide_start, 1)
      return arrays, wide, losses, dx

    dx = None if x is None else jnp.zeros_like(x, dtype=jnp.float32)
    losses = jnp.zeros_like(scale)
    arrays, wide, losses, dx = self._for_chunks(
      inputs, body, (arrays, inputs.logits, losses, dx)
    )
    params, by_row, master, kahan = arrays
    state = optimizer.join(state, by_row, finished)
    state = state._replace(master=master, kahan=kahan)
    metrics = {"loss": (losses * scale).sum()}
    metrics |= loss_lib.report(loss, stats, targets)
    return params, state, dx, wide, metrics

  def loss(
    self,
    loss: loss_lib.Loss,
    params: dict[str, jax.Array],
    inputs: Inputs,
  ) -> jax.Array:
    """This device's part of the weighted mean loss, without an update."""
    stats, kept = self._statistics(loss, params, inputs)

    axis = self._label_axis(inputs)

    def body(place, total):
      z = self._kept_logits(_kept_part(kept, place), axis, place)
      if z is None:
        z = self._chunk_logits(params, inputs, axis, place)
      positives = self._positives(inputs, axis, place)
      return total + loss.value_and_grad(stats, z, positives)[0]

    scale = share_of_weights(inputs.targets)
    losses = self._for_chunks(inputs, body, jnp.zeros_like(scale))
    return (losses * scale).sum()

  @precision.exact
  @jax.named_scope("pass")
  def topk(
    self,
    params: dict[str, jax.Array],
    inputs: Inputs,
    k: int,
    choice: choice_lib.Choice,
    offset: jax.Array | None,
  ) -> topk_lib.Best:
    """The best k of this device's rows.

    Args:
      params: Stored rows, bias, or both.
      inputs: The batch.
      k: How many.
      choice: The rows of each example that may be chosen.
      offset: `[l]` to add to the logits, or None.

    Returns:
      Scores `[N, k]`, descending, and int32 rows `[N, k]`; -inf and -1 where
      there are fewer than k.
    """

    def body(place, best):
      z = self._chunk_logits(params, inputs, 1, place)
      first = place.start + self.first_row()
      if offset is not None:
        z += chunks.take(offset, place.start, place.size)
      return topk_lib.add(best, choice.apply(z, first), first)

    like = inputs.logits if inputs.x is None else inputs.x
    assert like is not None  # A head has one of them.
    none = topk_lib.none(like.shape[0], k)
    none = chunks.mark_varying(none, tuple(chunks.varying(like)))
    return self._for_chunks(inputs, body, none)

  def statistics(
    self,
    loss: loss_lib.Loss,
    params: dict[str, jax.Array],
    inputs: Inputs,
  ) -> Any:
    """The loss's statistics of all labels, of all devices; no gradient."""
    return self._statistics(loss, params, inputs)[0]

  # --- parts of a pass -------------------------------------------------------

  def _statistics(self, loss, params, inputs):
    """The loss's statistics of all labels, merged, and logits if kept."""
    targets, axis = inputs.targets, self._label_axis(inputs)
    stats = loss.init(*targets.ids.shape)
    if not jax.tree.leaves(stats):
      return stats, None
    stats = chunks.mark_varying(stats, tuple(chunks.varying(targets.weights)))
    kept = None
    if self.keep_logits is not None:
      # A chunk's logits take the place of as many rows, however they lie, so
      # that they are written and read in one piece.
      shape = self._num_rows(), targets.ids.shape[0]
      dtype = jnp.dtype(self.keep_logits)
      kept = jnp.zeros_like(targets.weights, shape=shape, dtype=dtype)
      kept = chunks.to_bits(kept)

    def body(place, carry):
      stats, kept = carry
      z = self._chunk_logits(params, inputs, axis, place)
      stats = loss.accumulate(stats, z, self._positives(inputs, axis, place))
      if kept is not None:
        limit = jnp.finfo(self.keep_logits).max.astype(z.dtype)
        z = chunks.to_bits(jnp.minimum(z, limit).astype(self.keep_logits))
        z = z.reshape(place.size, -1)
        kept = lax.dynamic_update_slice_in_dim(kept, z, place.start, 0)
      return stats, kept

    stats, kept = self._for_chunks(inputs, body, (stats, kept))
    if self.axes:
      with jax.named_scope("collectives"):
        stats = loss.merge(stats, self.axes)
    return stats, kept

  def _label_axis(self, inputs):
    """Which axis of the logits of a chunk labels lie on."""
    if inputs.logits is not None:  # They lie there as [N, w].
      return 1
    assert inputs.x is not None  # A head has one of them.
    return chunks.label_axis(self.format.decoded, inputs.x.shape[0])

  def _kept_logits(self, part, axis, place):
    """Logits `[N, c]` of a chunk if they were kept, or None."""
    if part is None or self.keep_logits is None:
      return None
    z = chunks.from_bits(part, self.keep_logits)
    z = z.reshape(-1, place.size) if axis else z
    return z.astype(jnp.float32)

  def _chunk_logits(self, params, inputs, axis, place):
    """Logits `[N, c]` of a chunk."""
    part = self._take_rows(params, place)
    wide = _columns(inputs.logits, place.parts[0], place.size)
    rows, _ = self.decoded(part)
    return self._logits(inputs, rows, part, wide, axis, place)

  def _logits(self, inputs, rows, part, wide, axis, place):
    """Logits `[N, c]` of the rows of a chunk, -inf at padding."""
    is_label = None
    if self.layout.num_rows > self.layout.num_labels:
      is_label = self.layout.is_label(self._row_ids(place))
    bias = part.get("bias")
    if inputs.visit is not None:
      shift = self._shift(inputs.visit, place)
      bias = shift if bias is None else bias + shift
    if inputs.x is not None:
      x = inputs.x.astype(rows.dtype)
      z = chunks.logits(x, rows, bias, is_label, place.start, axis)
      return z if wide is None else z + wide
    z = jnp.zeros(place.size) if bias is None else bias
    z = (z if is_label is None else jnp.where(is_label, z, -jnp.inf))[None]
    if wide is not None:
      return z + wide
    shape = inputs.logits.shape[0], place.size
    return jnp.broadcast_to(z, shape)

  def decoded(self, part) -> tuple[Any, Any]:
    """Rows `[c, D]` as products use them, None without, and their VJP."""
    if "rows" not in part:
      return None, None
    rows = self.format.decode(part)
    if not self.unit:
      return rows, lambda drows: drows
    unit, vjp = jax.vjp(normalize.unit_rows, rows.astype(jnp.float32))
    return unit.astype(rows.dtype), lambda drows: vjp(drows)[0]

  def _positives(self, inputs, axis, place):
    """The positives of a chunk."""
    labels = self._take_rows(inputs.label_values, place)
    targets = inputs.targets
    return targets_lib.positives_in_chunk(
      targets.ids,
      place.start + self.first_row(),
      place.size,
      targets.values,
      labels,
      axis,
      targets.weights,
      targets.memory,
    )

  def _row_ids(self, place):
    """The numbers `[c]` of a chunk's rows among those of all devices."""
    if place.blocks is None:
      return place.start + self.first_row() + jnp.arange(place.size)
    size = self.layout.rows_per_block
    rows = place.blocks[:, None] * size + jnp.arange(size)
    return self.first_row() + rows.reshape(-1)

  def _take_rows(self, arrays, place):
    """The chunk's part of arrays with one entry per row."""
    if place.blocks is None:
      return chunks.take(arrays, place.start, place.size)
    return chunks.take_blocks(arrays, place.blocks, self.layout.rows_per_block)

  def _take(self, arrays, place):
    """The chunk's part of params, state, master rows and compensation."""
    if place.blocks is not None:
      return self._take_rows(arrays, place)
    *whole, kahan = arrays
    part = chunks.take(tuple(whole), place.start, place.size)
    kahan_start = place.parts[1]
    if kahan is not None and kahan_start is not None:
      return *part, chunks.take(kahan, kahan_start, place.size)
    return *part, None

  def _write(self, arrays, part, place):
    """The arrays with the chunk's part replaced."""
    if place.blocks is not None:
      size = self.layout.rows_per_block
      return chunks.write_blocks(arrays, part, place.blocks, size)
    *whole, kahan = arrays
    *new, new_kahan = part

    def write(array, part):
      return lax.dynamic_update_slice_in_dim(array, part, place.start, 0)

    whole = jax.tree.map(write, tuple(whole), tuple(new))
    if new_kahan is not None:
      kahan = lax.dynamic_update_slice_in_dim(
        kahan, new_kahan, place.parts[1], 0
      )
    return *whole, kahan

  def _for_chunks(self, inputs, body, carry):
    """Runs `body(place, carry)` on the chunks of this device's rows."""
    like = inputs.logits if inputs.x is None else inputs.x
    num_rows = self._num_rows()
    size = self.chunk_size
    if size is None:
      size = chunks.chunk_size(
        self.memory or chunks.default_memory(),
        num_rows,
        like.shape[0],
        0 if inputs.x is None else like.shape[1],
        # Half of the numbers are float32, half of the products' type.
        (4 + self.format.decoded.itemsize) / 2,
      )
    if inputs.visit is not None:
      return self._for_visited(inputs.visit, size, body, carry)
    return chunks.for_places(
      num_rows,
      num_rows // self.layout.rows_per_block,
      (self.wide_rows, self.kahan_rows),
      size,
      body,
      carry,
    )

  # --- blocks to visit -------------------------------------------------------

  def _for_visited(self, visit, size, body, carry):
    """Runs `body(place, carry)` on chunks of the blocks to visit."""
    per_block = self.layout.rows_per_block

    def part(first, blocks, carry):
      size = blocks.shape[0] * per_block
      place = chunks.Place(first * per_block, size, (None, None), blocks)
      return body(place, carry)

    most = max(1, min(_MOST_BLOCKS, size // per_block))
    carry = chunks.mark_varying(carry, self.axes)
    return chunks.for_blocks(visit.blocks, visit.count, most, part, carry)

  def _in_order(self, inputs: Inputs) -> Inputs:
    """The batch with positives where they lie in the order of the visit."""
    if inputs.visit is None:
      return inputs
    targets, size = inputs.targets, self.layout.rows_per_block
    assert targets is not None  # This is a step.
    local = targets.ids - self.first_row()
    here = (targets.ids >= 0) & (local >= 0) & (local < self._num_rows())
    blocks = inputs.visit.blocks
    slots = jnp.zeros_like(blocks).at[blocks].set(jnp.arange(blocks.shape[0]))
    slot = slots.at[local // size].get(mode="clip")
    ids = self.first_row() + slot * size + local % size
    ids = jnp.where(here, ids, targets.ids).astype(jnp.int32)
    return inputs._replace(targets=targets._replace(ids=ids))

  def _visited(self, visit, place):
    """Whether each block `[m]` of a chunk is to be visited, and which."""
    slots = place.start // self.layout.rows_per_block
    slots += jnp.arange(place.blocks.shape[0])
    return slots < visit.count, slots

  def _shift(self, visit, place):
    """What to add to the logits of a chunk, `[c]`: -inf if not to visit."""
    visited, slots = self._visited(visit, place)
    shift = jnp.where(visited, visit.shift[slots], -jnp.inf)
    return jnp.repeat(shift, self.layout.rows_per_block)

  def _of_visited(self, visit, place, new, old):
    """`new` arrays of a chunk, but `old` ones of blocks not to visit."""
    if visit is None:
      return new
    visited, _ = self._visited(visit, place)
    visited = jnp.repeat(visited, self.layout.rows_per_block)

    def one(a, b):
      return jnp.where(visited.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(one, new, old)

  # --- this device -----------------------------------------------------------

  def _num_rows(self) -> int:
    """Rows of this device."""
    shards = lax.axis_size(self.axes) if self.axes else 1
    return self.layout.num_rows // shards

  def first_row(self) -> jax.Array | int:
    """The number of this device's first row among those of all."""
    if not self.axes:
      return 0
    index = lax.axis_index(self.axes)
    return (index * self._num_rows()).astype(jnp.int32)


def share_of_weights(targets):
  """Each example's share of the sum of weights, `[N]`."""
  total = targets.weights.sum()
  return targets.weights / jnp.maximum(total, 1e-9)


def _kept_part(kept, place):
  """What was kept for a chunk, or None."""
  if kept is None:
    return None
  return lax.dynamic_slice_in_dim(kept, place.start, place.size)


def _columns(a, start, size):
  """`a[:, start : start + size]`, or None where there is none."""
  if a is None or start is None:
    return None
  return lax.dynamic_slice_in_dim(a, start, size, 1)
