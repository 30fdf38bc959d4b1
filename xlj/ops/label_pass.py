"""A loss over all labels as a differentiable function of rows and examples.

The logits `x W^T + b` and the gradient with respect to them exist for one chunk
of labels at a time. Two passes over the chunks: one accumulates what the loss
needs to know of all labels, the other forms each chunk's gradient at once.

Legend: N examples (n of this device), D width, L label rows (l of this
device), c rows of a chunk, P positives.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xlj.ops import chunks
from xlj.ops import loss as loss_lib
from xlj.ops import shards as shards_lib
from xlj.ops import targets as targets_lib

P = jax.P


class _Plan(NamedTuple):
  """What is known when the function is traced."""

  loss: loss_lib.Loss
  rows: shards_lib.Plan


class _Inputs(NamedTuple):
  """What a pass reads on this device, besides examples, rows and bias."""

  ids: jax.Array  # [N, P]
  values: jax.Array | None  # [N, P]
  labels: targets_lib.LabelValues | None  # [l] each


def label_loss(
  x: jax.Array,
  rows: jax.Array,
  bias: jax.Array | None,
  targets: targets_lib.Targets,
  loss: loss_lib.Loss,
  *,
  num_labels: int | None = None,
  reduce: bool = True,
  label_values: targets_lib.LabelValues | None = None,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> jax.Array:
  """The loss of a batch over all labels, in the memory of a chunk of them.

  Differentiable (once, in reverse) in `x`, `rows`, `bias` and the examples'
  weights; `targets.values` and `label_values` count as constants. Gradients
  are sharded like what they are of.

  Rows and examples may be split over a mesh, see `xlj.ops.shards.Placement`.

  With `reduce`, gradients are formed while the loss is: 2 matrix products of
  N x D x L for the statistics, if the loss has any, and 3 for the gradients.
  Without, the logits are computed once more.

  Example:
    >>> targets = Targets(ids=tokens[:, None], weights=mask)
    >>> loss, grads = jax.value_and_grad(label_loss, (0, 1))(
    ...   hidden, embedding, None, targets, softmax.Softmax())

  Args:
    x: `[N, D]` examples, floating.
    rows: `[L, D]` label rows, floating; row i is label i.
    bias: `[L]`, or None.
    targets: Positives and weights of the examples, sharded like `x`. Outside
      of `jit` ids are checked; inside, those beyond the labels are padding, and
      `xlj.ops.check_ids` looks for them.
    loss: What to compute of the logits.
    num_labels: Rows from this one on are padding; None for no padding.
    reduce: Whether to return the weighted mean over the batch; otherwise the
      loss of each example, and `targets.weights` is not used.
    label_values: Vectors `[L]`, sharded like the rows, that the loss needs.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    Scalar, or `[N]` sharded like the examples; float32 or wider.

  Raises:
    ValueError: Shapes do not fit, ids are not of labels or repeated, or axes
      are missing.
  """
  _check(x, rows, bias, targets, label_values or {}, reduce)
  plan = _Plan(loss, shards_lib.plan(rows, x, num_labels, placement))
  targets_lib.look_at_ids(targets.ids, plan.rows.layout.num_labels)
  shards = plan.rows.shards

  def local(x, targets, rows, bias, label_values):
    return _local_loss(plan, reduce, x, targets, rows, bias, label_values)

  run = shards_lib.over(
    local,
    shards,
    (False, False, True, True, True),
    P() if reduce else P(shards.batch),
  )
  return run(x, targets, rows, bias, label_values)


def _local_loss(plan, reduce, x, targets, rows, bias, label_values):
  """`label_loss` of this device's parts."""
  shards = plan.rows.shards
  x, targets = shards_lib.gather((x, targets), shards)
  # Rows that a user's own mesh axes do not split get the sum over those.
  rows, bias = chunks.mark_varying((rows, bias), tuple(chunks.varying(x)))
  # Else ids beyond the labels would have a share of the loss.
  ids = jnp.asarray(targets.ids)
  ids = jnp.where(plan.rows.layout.is_label(ids), ids, -1)
  inputs = _Inputs(*jax.lax.stop_gradient((ids, targets.values, label_values)))
  if not reduce:
    partial = _losses(plan, x, rows, bias, inputs)
    return shards_lib.total_of_own(partial, shards)
  weights = targets.weights.astype(chunks.accumulator(x, rows))
  sum_of_weights = weights.sum()
  weights /= jnp.where(sum_of_weights > 0, sum_of_weights, 1)
  partial = _weighted_sum(plan, x, rows, bias, weights, inputs)
  return shards_lib.total(partial, shards)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(plan, x, rows, bias, inputs):
  """This device's rows' parts of the losses, `[N]`."""
  return _losses_fwd(plan, x, rows, bias, inputs)[0]


def _losses_fwd(plan, x, rows, bias, inputs):
  stats = _statistics(plan, x, rows, bias, inputs)
  losses = _values(plan, stats, x, rows, bias, inputs)
  return losses, (stats, x, rows, bias, inputs)


def _losses_bwd(plan, residuals, scale):
  stats, x, rows, bias, inputs = residuals
  _, dx, drows, dbias = _gradients(plan, stats, x, rows, bias, inputs, scale)
  return dx, drows, dbias, None


_losses.defvjp(_losses_fwd, _losses_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sum(plan, x, rows, bias, weights, inputs):
  """This device's rows' part of the sum of weighted losses, scalar."""
  return (weights * _losses_fwd(plan, x, rows, bias, inputs)[0]).sum()


def _weighted_sum_fwd(plan, x, rows, bias, weights, inputs):
  # The gradient is known but for a factor: forming it now saves computing the
  # logits once more.
  stats = _statistics(plan, x, rows, bias, inputs)
  losses, dx, drows, dbias = _gradients(
    plan, stats, x, rows, bias, inputs, weights
  )
  return (weights * losses).sum(), (dx, drows, dbias, losses)


def _weighted_sum_bwd(plan, residuals, factor):
  scaled = jax.tree.map(lambda a: (factor * a).astype(a.dtype), residuals)
  return *scaled, None


_weighted_sum.defvjp(_weighted_sum_fwd, _weighted_sum_bwd)


def _chunk(plan, x, rows, bias, inputs, start, size):
  """Logits `[N, c]`, positives and rows `[c, D]` of a chunk of local rows."""
  axis = chunks.label_axis(jnp.result_type(x, rows), x.shape[0])
  first = start + shards_lib.offset(plan.rows.shards, rows.shape[0])
  part, bias, labels = chunks.take((rows, bias, inputs.labels), start, size)
  is_label = plan.rows.layout.is_label(first + jnp.arange(size))
  z = chunks.logits(x, part, bias, is_label, start, axis)
  positives = targets_lib.positives_in_chunk(
    inputs.ids, first, size, inputs.values, labels, axis
  )
  return z, positives, part


def _statistics(plan, x, rows, bias, inputs):
  """First pass: the loss's statistics of all labels, merged."""

  def body(start, size, stats):
    z, positives, _ = _chunk(plan, x, rows, bias, inputs, start, size)
    return plan.loss.accumulate(stats, z, positives)

  stats = plan.loss.init(*inputs.ids.shape)
  stats = chunks.mark_varying(stats, tuple(chunks.varying(x)))
  stats = chunks.for_chunks(rows.shape[0], plan.rows.chunk, body, stats)
  axes = plan.rows.shards.rows
  return plan.loss.merge(stats, axes) if axes else stats


def _values(plan, stats, x, rows, bias, inputs):
  """Second pass without gradients: partial losses `[N]`."""

  def body(start, size, total):
    z, positives, _ = _chunk(plan, x, rows, bias, inputs, start, size)
    return total + plan.loss.value_and_grad(stats, z, positives)[0]

  dtype = chunks.accumulator(x, rows)
  total = jnp.zeros_like(x, shape=x.shape[:1], dtype=dtype)
  return chunks.for_chunks(rows.shape[0], plan.rows.chunk, body, total)


def _gradients(plan, stats, x, rows, bias, inputs, scale):
  """Second pass: partial losses, and gradients of their sum times `scale`.

  Args:
    plan: What is known.
    stats: Merged statistics.
    x: `[N, D]`.
    rows: `[l, D]`.
    bias: `[l]`, or None.
    inputs: The rest.
    scale: `[N]` factor of each example's loss in the gradient.

  Returns:
    Unscaled losses `[N]`, and gradients of x, rows and bias (None without).
  """

  def body(start, size, carry):
    losses, dx, drows, dbias = carry
    z, positives, part = _chunk(plan, x, rows, bias, inputs, start, size)
    value, grad = plan.loss.value_and_grad(stats, z, positives)
    grad *= positives.by_example(scale)
    axis = positives.label_axis
    if bias is not None:
      dbias = chunks.write(dbias, grad.sum(1 - axis), bias, start)
    grad = grad.astype(jnp.result_type(x, rows))  # products of narrow types
    by_example, by_label = chunks.both_ways(grad, axis, start)
    dx += chunks.matmul(by_example, part)
    drows = chunks.write(drows, chunks.matmul(by_label, x), rows, start)
    return losses + value, dx, drows, dbias

  dtype = chunks.accumulator(x, rows)
  carry = (
    jnp.zeros_like(x, shape=x.shape[:1], dtype=dtype),
    jnp.zeros_like(x, dtype=dtype),
    *chunks.zeros_as_bits((rows, bias)),
  )
  carry = chunks.for_chunks(rows.shape[0], plan.rows.chunk, body, carry)
  losses, dx, drows, dbias = carry
  drows, dbias = chunks.all_from_bits((drows, dbias), (rows, bias))
  return losses, dx.astype(x.dtype), drows, dbias


def _check(x, rows, bias, targets, label_values, reduce):
  """Raises a ValueError where shapes do not fit."""
  ids, weights, values = targets.ids, targets.weights, targets.values
  shards_lib.check(
    x,
    rows,
    bias,
    by_example={"targets.ids": ids, "targets.values": values},
    by_label={f"label_values[{k!r}]": v for k, v in label_values.items()},
  )
  if values is not None and values.shape != ids.shape:
    raise ValueError(
      f"targets.values must be [N, P]: got {values.shape} with {ids.shape}"
    )
  if reduce and np.shape(weights) != x.shape[:1]:
    raise ValueError(
      f"targets.weights must be [N]: got {np.shape(weights)} with x {x.shape}"
    )
