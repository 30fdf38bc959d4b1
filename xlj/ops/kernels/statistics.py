"""Kernel: log-sum-exp of the logits of each example, in one pass over rows.

The rows are split among programs, whose maxima and sums are merged afterwards
(Milakov & Gimelshein 2018, "Online normalizer calculation for softmax").

Legend: N examples, D width, l label rows, S parts they are split into.
"""

from collections.abc import Mapping

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

from xlj.ops.kernels import blocks
from xlj.ops.kernels import call
from xlj.ops.kernels import exponentials
from xlj.ops.kernels import problem as problem_lib


def statistics(
  problem: problem_lib.Problem,
  first_row: jax.typing.ArrayLike,
  x: jax.Array,
  rows: Mapping[str, jax.Array],
  bias: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """Maximum of the logits, and sum of exponentials of them minus it.

  Args:
    problem: The problem.
    first_row: Number of this device's first row among those of all.
    x: `[N, D]` of the type that products are of.
    rows: Label rows `[l, ...]`, see `blocks.typed`.
    bias: `[l]` float32, or None.

  Returns:
    Two vectors `[N]` float32, of this device's rows; -inf and 0 without labels.
  """
  tile = problem.tiles.statistics
  parts, each = problem.split(tile)
  row_tiles = problem.row_tiles(tile)

  def label_statistics(first_ref, x_ref, rows_ref, bias_ref, *out):
    maxima_ref, totals_ref = out
    first_row = first_ref[0].astype(jnp.int32)
    example = pl.program_id(0) * tile.examples
    part = pl.program_id(1)
    x = blocks.load(x_ref, example, tile.examples, problem.width)

    def body(i, carry):
      maximum, total = carry
      rows = blocks.load_rows(rows_ref, i * tile.rows, tile.rows, problem)
      z = blocks.products(x, rows)
      offsets = blocks.label_offsets(
        problem, tile, bias_ref, first_row, i * tile.rows
      )
      if offsets is not None:
        z += offsets[None]
      new = jnp.maximum(maximum, z.max(1))
      offset = -_finite(new) * exponentials.LOG2_E
      total *= exponentials.exp(maximum, offset, problem.interpret)
      total += exponentials.exp(z, offset[:, None], problem.interpret).sum(1)
      return new, total

    none = (
      jnp.full((tile.examples,), -np.inf, jnp.float32),
      jnp.zeros((tile.examples,), jnp.float32),
    )
    last = jnp.minimum((part + 1) * each, row_tiles)
    maximum, total = lax.fori_loop(part * each, last, body, none)
    blocks.store(maxima_ref, example, maximum, (part,))
    blocks.store(totals_ref, example, total, (part,))

  by_part = call.floats(parts, problem.num_examples)
  maxima, totals = call.call(
    label_statistics,
    (problem.example_tiles(tile), parts),
    (call.numbers(first_row), x, rows, bias),
    (by_part, by_part),
    tile,
    problem.interpret,
  )
  maximum = maxima.max(0)
  return maximum, (totals * jnp.exp(maxima - _finite(maximum))).sum(0)


def _finite(maximum: jax.Array) -> jax.Array:
  """Replaces the -inf of no labels by 0."""
  return jnp.where(maximum == -np.inf, np.float32(0), maximum)


def log_sum_exp(found: tuple[jax.Array, jax.Array]) -> jax.Array:
  """`log sum exp` of the logits `[N]`, of maxima and sums."""
  maximum, total = found
  return _finite(maximum) + jnp.log(total)
