"""One device's part of a training step of label rows, by kernels.

Four of them, in this order: log-sum-exp of the logits, merged over devices (not
for binary cross-entropy); the gradient of the examples; a lookup of positives;
and the update of the rows, in place. None writes logits to memory. The sum over
devices of the gradient of the examples can run during the update, which comes
last.

The XLA chunk loop (`xlj.ops.label_step`) does the same for any loss, optimizer
and device; it writes each logit to memory a few times, which costs more than
the products where D is small.

Legend: N examples, D width, l label rows of this device, P positives.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from xlj.ops import layout as layout_lib
from xlj.ops import row_format
from xlj.ops.kernels import blocks
from xlj.ops.kernels import exponentials
from xlj.ops.kernels import gradient
from xlj.ops.kernels import positives as positives_lib
from xlj.ops.kernels import problem as problem_lib
from xlj.ops.kernels import statistics
from xlj.ops.kernels import update

Statistics = tuple[jax.Array, jax.Array]


class Step(NamedTuple):
  """What a step gives.

  Attributes:
    stored: New stored rows.
    bias: New bias `[l]`, or None.
    dx: `[N, D]` float32, this device's part of the gradient of the examples.
    losses: `[N]` float32, this device's part of the losses, not scaled.
  """

  stored: dict[str, jax.Array]
  bias: jax.Array | None
  dx: jax.Array
  losses: jax.Array


def fused_step(
  x: jax.Array,
  stored: Mapping[str, jax.Array],
  bias: jax.Array | None,
  ids: jax.Array,
  scale: jax.Array,
  *,
  loss: str,
  dtype: str,
  learning_rate: jax.typing.ArrayLike,
  weight_decay: jax.typing.ArrayLike = 0.0,
  seed: jax.typing.ArrayLike = 0,
  step: jax.typing.ArrayLike,
  first_row: jax.typing.ArrayLike,
  layout: layout_lib.Layout,
  merge: Callable[[Statistics], Statistics] = lambda found: found,
  rounding: str = "stochastic",
  tiles: problem_lib.Tiles | None = None,
  interpret: bool = False,
) -> Step:
  """A step of stochastic gradient descent, `w <- w - rate * (g + decay * w)`.

  `g` is the gradient of the sum over examples of scale times loss: for softmax,
  the mean over positives of `logsumexp(z) - z_p`; for binary cross-entropy, the
  sum over labels. With "bfloat16" and "float8" the examples, label rows and
  gradients by logits are bfloat16 in products, which are summed in float32.
  "float32" products are as precise as the device makes them by default.

  Args:
    x: `[N, D]` all examples.
    stored: Stored rows of this device, `[l, ...]` (see `row_format`).
    bias: `[l]` float32, or None.
    ids: `[N, P]` int32 rows, over all devices, of the positives; -1 for
      padding. Those of an example are distinct.
    scale: `[N]` float32, not negative; usually weights over their sum.
    loss: "softmax" or "bce".
    dtype: How rows are stored.
    learning_rate: Scalar.
    weight_decay: Scalar; of rows and bias.
    seed: Of random bits.
    step: Number of steps taken.
    first_row: Number of this device's first row among those of all.
    layout: Which rows, of all devices, hold labels; there are no more rows.
    merge: Merges maxima and sums of exponentials `[N]` of all devices; by
      default there is one.
    rounding: "stochastic", with the bits of `rounding.hash_bits`, or "nearest".
    tiles: Sizes of the kernels; None for those of an H200.
    interpret: Whether to interpret the kernels instead of compiling them, on
      any device; inside `shard_map` that needs `check_vma=False`.

  Returns:
    The step.

  Raises:
    ValueError: The layout is one of other rows, or the kernels cannot do it.
  """
  num_examples, dim = x.shape
  num_rows = stored["rows"].shape[0]
  why_not = problem_lib.refusal(
    platform="gpu", loss=loss, dtype=dtype, num_rows=num_rows, dim=dim
  )
  if why_not:
    raise ValueError(why_not)
  if layout.num_rows % num_rows:
    raise ValueError(
      f"{num_rows} rows are no even share of the {layout.num_rows} of {layout}"
    )
  row_format_ = row_format.RowFormat(dtype)
  width = problem_lib.width_of(dim)
  problem = problem_lib.Problem(
    num_examples=num_examples,
    num_rows=num_rows,
    dim=dim,
    loss=loss,
    format=row_format_,
    layout=layout,
    has_bias=bias is not None,
    stochastic=rounding == "stochastic",
    tiles=tiles or problem_lib.tiles_for(width, dtype, loss, bias is not None),
    interpret=interpret,
  )
  rows = blocks.typed(stored, row_format_)
  x = x.astype(jnp.float32 if dtype == "float32" else jnp.bfloat16)
  count = (ids >= 0).sum(1).astype(jnp.float32)
  share = 1 / jnp.maximum(count, 1)
  lse = jnp.zeros_like(scale)
  level, target = scale, scale
  if loss == "softmax":
    found = statistics.statistics(problem, first_row, x, rows, bias)
    lse = statistics.log_sum_exp(merge(found))
    # The logarithm of 0 is -inf, which makes the probabilities 0.
    factor = jnp.where(count > 0, scale, 0)
    level = jnp.log2(factor) - exponentials.LOG2_E * lse
    target = scale * share
  level = _cover(problem, level, -np.inf if loss == "softmax" else 0)
  target = _cover(problem, target, 0)
  dx, losses = gradient.gradient(problem, first_row, x, rows, bias, level)

  local = _local(ids.T, first_row, problem.num_rows)
  found = positives_lib.positives(problem, x, rows, bias, local, level, target)
  dx += found.dx
  if loss == "softmax":
    losses = share * jnp.where(local >= 0, lse - found.logits, 0).sum(0)
  else:
    # What is left of the labels that are negatives is the difference of sums
    # of float32: no better than 1e-6 of the positives' logits, not below 0.
    as_negatives, as_positives = (
      jnp.where(local >= 0, jax.nn.softplus(z), 0).sum(0)
      for z in (found.logits, -found.logits)
    )
    losses = jnp.maximum(losses - as_negatives, 0) + as_positives

  entries = update.entries(problem, local, found.corrections)
  # The update writes over what the others read: they must be through.
  rows, bias, entries, dx = lax.optimization_barrier((rows, bias, entries, dx))
  rates = update.Rates(first_row, seed, step, learning_rate, weight_decay)
  new, new_bias = update.update(
    problem, rates, x, rows, bias, level, target, entries
  )
  return Step(blocks.untyped(new, row_format_), new_bias, dx, losses)


def _local(ids, first_row, num_rows):
  """Rows of this device of those of all; -1 elsewhere."""
  # Compared before they are subtracted: the difference may overflow.
  first_row = jnp.asarray(first_row, jnp.int32)
  inside = (ids >= first_row) & (ids - first_row < num_rows)
  return jnp.where(inside & (ids >= 0), ids - first_row, -1).astype(jnp.int32)


def _cover(problem, values, fill):
  """Values of examples, and of what fills up the last tile of any kernel."""
  tiles = problem.tiles
  sizes = (
    tiles.statistics.examples,
    tiles.gradient.examples,
    tiles.update.examples,
    tiles.positives,
  )
  rest = -problem.num_examples % max(sizes)
  return jnp.pad(values, (0, rest), constant_values=fill)
