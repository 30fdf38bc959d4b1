"""Distances of embeddings to label rows: to the nearest, and to all others.

`|x - c|^2 = |x|^2 - 2 (x . c - |c|^2 / 2)`: the nearest row is the one of the
highest logit with the bias `-|c|^2 / 2`, and the sum over all rows needs but
their sum and the sum of their squares. No distance to a row other than the
nearest is ever kept (the reference of Liu et al. 2019 forms `[N, L, D]`).

Legend: N examples, P positives, D width, L label rows, k nearest.
"""

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import chunks
from xlj.ops import label_gather
from xlj.ops import label_ranking
from xlj.ops import precision
from xlj.ops import shards as shards_lib


def half_squares(
  rows: jax.Array, is_label: jax.Array | None = None
) -> jax.Array:
  """`-|c|^2 / 2` of each row, the bias with which the nearest is the best.

  Args:
    rows: `[L, D]`.
    is_label: `[L]` bool, False at rows never to be found; None for none.

  Returns:
    `[L]` float32 (or wider), split like the rows.
  """
  rows = rows.astype(chunks.accumulator(rows))
  bias = -0.5 * jnp.square(rows).sum(1)
  return bias if is_label is None else jnp.where(is_label, bias, -jnp.inf)


@precision.exact
def nearest(
  x: jax.Array,
  rows: jax.Array,
  k: int,
  *,
  is_label: jax.Array | None = None,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> jax.Array:
  """The k rows at the least Euclidean distance, exactly; the lower of equals.

  Not differentiable. For meshes see `xlj.ops.label_pass.label_loss`.

  Args:
    x: `[N, D]`.
    rows: `[L, D]`.
    k: How many.
    is_label: `[L]` bool, split like the rows, False at rows never to be found;
      None for none.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    int32 rows `[N, k]`, nearest first, split like `x`; -1 where there are
    fewer.
  """
  x, rows = lax.stop_gradient((x, rows))
  _, ids = label_ranking.label_topk(
    x,
    rows,
    half_squares(rows, is_label),
    k,
    placement=placement,
  )
  return ids


@precision.exact
def min_distance(
  x: jax.Array,
  rows: jax.Array,
  *,
  is_label: jax.Array | None = None,
  least: float = 1e-6,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> jax.Array:
  """Distance of each embedding to the nearest row, differentiable in both.

  Its inverse is the reachability of an embedding (Liu et al. 2019, dynamic
  meta-embedding).
  The nearest row is looked up, and the distance formed of the difference: that
  of the squares would be lost to rounding where an embedding is close to it.

  Args:
    x: `[N, D]`.
    rows: `[L, D]`.
    is_label: `[L]` bool, split like the rows, False at rows that do not count;
      None for none.
    least: What a smaller distance counts as; it has no gradient then.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    `[N]` float32 (or wider), split like `x`.
  """
  ids = nearest(
    x,
    rows,
    1,
    is_label=is_label,
    placement=placement,
  )
  found = label_gather.label_rows(rows, ids, placement=placement)
  dtype = chunks.accumulator(x, rows)
  squares = jnp.square(x.astype(dtype) - found[:, 0].astype(dtype)).sum(1)
  return jnp.sqrt(jnp.maximum(squares, least**2))


def others_distance(
  x: jax.Array,
  own: jax.Array,
  is_own: jax.Array,
  total: jax.Array,
  squares: jax.Array,
  num_labels: int,
) -> jax.Array:
  """Mean squared distance to the rows of the labels that are not positives.

  `sum_c |x - c|^2 = L |x|^2 - 2 x . sum c + sum |c|^2`, less the positives'
  part. The sums do not depend on the examples: see
  `xlj.ops.label_statistics`, or add up the rows. It is what the margin loss of
  Liu et al. 2019 pushes up to a margin.

  Args:
    x: `[N, D]`.
    own: `[N, P, D]` rows of the positives.
    is_own: `[N, P]` bool, False at padding.
    total: `[D]` sum of all rows.
    squares: Scalar, sum of their squares.
    num_labels: L; the mean is over all L, as in the authors' code.

  Returns:
    `[N]`.
  """
  every = num_labels * jnp.square(x).sum(1) - 2 * x @ total + squares
  to_own = jnp.square(x[:, None] - own).sum(2)
  return (every - jnp.where(is_own, to_own, 0).sum(1)) / num_labels
