"""Kernel: the gradient of the examples, in one pass over rows, before them.

It covers what a loss's gradient by logits would be if there were no positives;
`positives` has the rest. The rows are split among programs, whose sums are
added up afterwards.

Legend: N examples, D width, l label rows, S parts they are split into.
"""

from collections.abc import Mapping

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from xlj.ops.kernels import blocks
from xlj.ops.kernels import call
from xlj.ops.kernels import exponentials
from xlj.ops.kernels import problem as problem_lib


def gradient(
  problem: problem_lib.Problem,
  first_row: jax.typing.ArrayLike,
  x: jax.Array,
  rows: Mapping[str, jax.Array],
  bias: jax.Array | None,
  level: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The gradient, and the sum of softplus of all logits.

  Args:
    problem: The problem.
    first_row: Number of this device's first row among those of all.
    x: `[N, D]` of the type that products are of.
    rows: Label rows `[l, ...]`, see `blocks.typed`.
    bias: `[l]` float32, or None.
    level: See `blocks.probabilities`; as long as all tiles of examples.

  Returns:
    `[N, D]` float32, and `[N]` float32, zeros unless binary cross-entropy.
  """
  tile = problem.tiles.gradient
  parts, each = problem.split(tile)
  row_tiles = problem.row_tiles(tile)

  def label_gradient(first_ref, x_ref, rows_ref, bias_ref, level_ref, *out):
    dx_ref, losses_ref = out
    first_row = first_ref[0].astype(jnp.int32)
    example = pl.program_id(0) * tile.examples
    part = pl.program_id(1)
    x = blocks.load(x_ref, example, tile.examples, problem.width)
    level = blocks.load(level_ref, example, tile.examples)

    def body(i, carry):
      dx, losses = carry
      rows = blocks.load_rows(rows_ref, i * tile.rows, tile.rows, problem)
      z = blocks.products(x, rows)
      offsets = blocks.label_offsets(
        problem, tile, bias_ref, first_row, i * tile.rows
      )
      if offsets is not None:
        z += offsets[None]
      grad = blocks.probabilities(problem, z, level[:, None])
      if problem.loss == "bce":
        e = exponentials.exp_of_minus_abs(z, problem.interpret)
        losses += exponentials.softplus(z, e, problem.interpret).sum(1)
      return dx + blocks.matmul(grad, rows), losses

    none = (
      jnp.zeros((tile.examples, problem.width), jnp.float32),
      jnp.zeros((tile.examples,), jnp.float32),
    )
    last = jnp.minimum((part + 1) * each, row_tiles)
    dx, losses = lax.fori_loop(part * each, last, body, none)
    blocks.store(dx_ref, example, dx, (part,))
    blocks.store(losses_ref, example, losses, (part,))

  dx, losses = call.call(
    label_gradient,
    (problem.example_tiles(tile), parts),
    (call.numbers(first_row), x, rows, bias, level),
    (
      call.floats(parts, problem.num_examples, problem.dim),
      call.floats(parts, problem.num_examples),
    ),
    tile,
    problem.interpret,
  )
  return dx.sum(0), losses.sum(0)
