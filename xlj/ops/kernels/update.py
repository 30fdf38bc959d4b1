"""Kernel: gradient of label rows and their update, in one pass over examples.

Each program has a tile of rows, goes through all examples, adds what their
positives differ by, and writes the rows back in place.

Legend: N examples, D width, l label rows, P positives, T tiles of rows, E the
positives of all examples (N * P).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp
import numpy as np

from xlj.ops import rounding
from xlj.ops.kernels import blocks
from xlj.ops.kernels import call
from xlj.ops.kernels import problem as problem_lib


class Entries(NamedTuple):
  """The positives in order of rows.

  Attributes:
    starts: `[T + 1]` int32, where those of each tile of rows start.
    rows: `[E]` int32 rows of this device; l for those of other devices.
    examples: `[E]` int32.
    corrections: `[E]` float32, what to add to the gradients by logits.
  """

  starts: jax.Array
  rows: jax.Array
  examples: jax.Array
  corrections: jax.Array


class Rates(NamedTuple):
  """What the update depends on besides the gradient.

  Attributes:
    first_row: Number of this device's first row among those of all.
    seed: Of random bits.
    step: Number of steps taken.
    learning_rate: Scalar.
    weight_decay: Scalar.
  """

  first_row: jax.typing.ArrayLike
  seed: jax.typing.ArrayLike
  step: jax.typing.ArrayLike
  learning_rate: jax.typing.ArrayLike
  weight_decay: jax.typing.ArrayLike


def entries(
  problem: problem_lib.Problem, local: jax.Array, corrections: jax.Array
) -> Entries:
  """Sorts positives by row.

  Args:
    problem: The problem.
    local: `[P, N]` int32 rows of this device, -1 for none.
    corrections: `[P, N]` float32.

  Returns:
    The entries.
  """
  tile = problem.tiles.update
  rows = jnp.where(local >= 0, local, problem.num_rows).ravel()
  examples = lax.broadcasted_iota(jnp.int32, local.shape, 1).ravel()
  # By row, then example: so sums do not depend on the order of positives.
  rows, examples, corrections = lax.sort(
    (rows, examples, corrections.ravel()), num_keys=2
  )
  bounds = jnp.arange(problem.row_tiles(tile) + 1, dtype=jnp.int32) * tile.rows
  bounds = jnp.minimum(bounds, problem.num_rows)
  starts = jnp.searchsorted(rows, bounds, method="scan_unrolled")
  return Entries(starts.astype(jnp.int32), rows, examples, corrections)


def update(
  problem: problem_lib.Problem,
  rates: Rates,
  x: jax.Array,
  rows: Mapping[str, jax.Array],
  bias: jax.Array | None,
  level: jax.Array,
  target: jax.Array,
  entries: Entries,
) -> tuple[dict[str, jax.Array], jax.Array | None]:
  """Updates the rows, `w <- w - rate * (gradient + decay * w)`, and the bias.

  Args:
    problem: The problem.
    rates: What the update depends on.
    x: `[N, D]` of the type that products are of.
    rows: Label rows `[l, ...]`, see `blocks.typed`.
    bias: `[l]` float32, or None.
    level: See `blocks.probabilities`; as long as all tiles of examples.
    target: Of each example, what its positives' gradients are less by; as long.
    entries: The positives.

  Returns:
    New label rows and bias, in place of the old ones if those are donated.
  """
  tile = problem.tiles.update
  example_tiles = problem.example_tiles(tile)

  def label_update(params_ref, numbers_ref, rates_ref, x_ref, *refs):
    level_ref, target_ref, entries_ref, new_ref = refs
    rows_ref, bias_ref = params_ref
    first_row = numbers_ref[0].astype(jnp.int32)
    tile_id = pl.program_id(0)
    start = tile_id * tile.rows
    rows = blocks.load_rows(rows_ref, start, tile.rows, problem)
    offsets = blocks.label_offsets(problem, tile, bias_ref, first_row, start)

    def body(i, carry):
      drows, dbias = carry
      x = blocks.load(x_ref, i * tile.examples, tile.examples, problem.width)
      level = blocks.load(level_ref, i * tile.examples, tile.examples)
      # Rows first: their gradient is a product with them as it is.
      z = blocks.products(rows, x)
      if offsets is not None:
        z += offsets[:, None]
      grad = blocks.probabilities(problem, z, level[None])
      if problem.has_bias:
        dbias += grad.sum(1)
      return drows + blocks.matmul(grad, x), dbias

    def add_entry(e, carry):
      drows, dbias = carry
      example = entries_ref.examples[e]
      x = blocks.load_row(x_ref, example, problem.width).astype(jnp.float32)
      here = start + lax.iota(jnp.int32, tile.rows) == entries_ref.rows[e]
      grad = jnp.where(here, entries_ref.corrections[e], np.float32(0))
      drows += grad[:, None] * x[None]
      if problem.has_bias:
        # Summed up without rounding, so there is nothing but this to correct.
        dbias -= jnp.where(here, target_ref[example], np.float32(0))
      return drows, dbias

    grads = (
      jnp.zeros((tile.rows, problem.width), jnp.float32),
      jnp.zeros((tile.rows,), jnp.float32),
    )
    grads = lax.fori_loop(0, example_tiles, body, grads)
    drows, dbias = lax.fori_loop(
      entries_ref.starts[tile_id],
      entries_ref.starts[tile_id + 1],
      add_entry,
      grads,
    )

    def descend(value, grad):
      return value - rates_ref[0] * (grad + rates_ref[1] * value)

    # Read again, from what is the same memory, rather than kept in registers.
    new_rows_ref, new_bias_ref = new_ref
    rows = blocks.load_rows(new_rows_ref, start, tile.rows, problem)
    values = descend(rows.astype(jnp.float32), drows)
    new_bias = None
    if bias_ref is not None:
      new_bias = descend(blocks.load(bias_ref, start, tile.rows), dbias)
    if not problem.interpret:
      # Several threads may read the same number; none may write it before.
      plgpu.debug_barrier()
    bits = None
    if problem.stochastic and problem.format.dtype != "float32":
      bits = rounding.hash_bits(
        numbers_ref[1],
        numbers_ref[2],
        first_row + start + lax.iota(jnp.int32, tile.rows),
        lax.iota(jnp.int32, problem.width),
      )
    for name, value in blocks.encode(values, bits, problem.format).items():
      blocks.store(new_rows_ref[name], start, value)
    if new_bias is not None:
      blocks.store(new_bias_ref, start, new_bias)

  params = (dict(rows), bias)
  num_arrays = len(jax.tree.leaves(params))
  scalars = [
    jnp.asarray(rate, jnp.float32)
    for rate in (rates.learning_rate, rates.weight_decay)
  ]
  [new] = call.call(
    label_update,
    (problem.row_tiles(tile),),
    (
      params,
      call.numbers(rates.first_row, rates.seed, rates.step),
      jnp.stack(scalars),
      x,
      level,
      target,
      entries,
    ),
    (jax.tree.map(call.like, params),),
    tile,
    problem.interpret,
    aliases={i: i for i in range(num_arrays)},
  )
  return new
