"""Kernel: what the positives add to gradients, in one lookup of their rows.

The passes over labels know nothing of positives: to compare each logit's label
with the positives would cost more than the logit. Instead, a lookup of their
rows forms their logits again, and adds what their gradients differ by. Those
are not rounded to the type of the products, as the passes' are, so the lookup
takes off what was rounded there as well: else the gradient of a positive with
probability near 1, a small difference, would be nothing but rounding errors.

Legend: N examples, D width, l label rows, P positives.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp
import numpy as np

from xlj.ops.kernels import blocks
from xlj.ops.kernels import call
from xlj.ops.kernels import problem as problem_lib


class Positives(NamedTuple):
  """What is known of the positives that are rows of this device.

  Attributes:
    logits: `[P, N]` float32; 0 elsewhere.
    corrections: `[P, N]` float32, what to add to the gradients by logits.
    dx: `[N, D]` float32, what that adds to the gradient of the examples.
  """

  logits: jax.Array
  corrections: jax.Array
  dx: jax.Array


def positives(
  problem: problem_lib.Problem,
  x: jax.Array,
  rows: Mapping[str, jax.Array],
  bias: jax.Array | None,
  local: jax.Array,
  level: jax.Array,
  target: jax.Array,
) -> Positives:
  """Looks up the positives.

  Args:
    problem: The problem.
    x: `[N, D]` of the type that products are of.
    rows: Label rows `[l, ...]`, see `blocks.typed`.
    bias: `[l]` float32, or None.
    local: `[P, N]` int32 rows of this device, -1 for none.
    level: See `blocks.probabilities`; as long as all tiles of examples.
    target: Of each example, what its positives' gradients are less by; as long.

  Returns:
    What was found.
  """
  tile = problem_lib.Tile(problem.tiles.positives, 0, warps=4)
  size = tile.examples
  num_positives = local.shape[0]

  def label_positives(x_ref, rows_ref, bias_ref, local_ref, *refs):
    level_ref, target_ref, logits_ref, corrections_ref, dx_ref = refs
    example = pl.program_id(0) * size
    x = blocks.load(x_ref, example, size, problem.width)
    level = blocks.load(level_ref, example, size)
    target = blocks.load(target_ref, example, size)

    def body(p, dx):
      row = blocks.load(local_ref, example, size, lead=(p,))
      inside = row >= 0
      row = jnp.maximum(row, 0)
      rows = blocks.gather_rows(rows_ref, row, problem).astype(jnp.float32)
      z = (x.astype(jnp.float32) * rows).sum(1)
      if bias_ref is not None:
        z += plgpu.load(bias_ref.at[row])
      dense = blocks.probabilities(problem, z, level)
      lost = dense - dense.astype(x.dtype).astype(jnp.float32)
      correction = jnp.where(inside, lost - target, np.float32(0))
      z = jnp.where(inside, z, np.float32(0))
      blocks.store(logits_ref, example, z, (p,))
      blocks.store(corrections_ref, example, correction, (p,))
      return dx + correction[:, None] * rows

    none = jnp.zeros((size, problem.width), jnp.float32)
    dx = lax.fori_loop(0, num_positives, body, none)
    blocks.store(dx_ref, example, dx)

  by_positive = call.floats(num_positives, problem.num_examples)
  found = call.call(
    label_positives,
    (problem.example_tiles(tile),),
    (x, rows, bias, local, level, target),
    (by_positive, by_positive, call.floats(problem.num_examples, problem.dim)),
    tile,
    problem.interpret,
  )
  return Positives(*found)
