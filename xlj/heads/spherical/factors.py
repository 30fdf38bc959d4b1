"""SGD on all label rows at a cost that does not depend on their number.

For a loss of the positives' logits, the sum and the sum of squares of all of an
example's logits (see `xlj.losses.spherical`), the gradient by label rows
`W [L, D]` is

  `2 W H^T diag(dq) H  +  1 (H^T ds)^T  +  Y^T H`,

Y sparse: a product from the right, the same vector for all rows, and changes of
the positives' rows. So `W = V U + 1 w^T` is kept factored, and of the large V
only the rows of positives ever change. `W^T W` and `W^T 1`, which give the sums
over logits, follow by products of small matrices. Every step equals one of
plain SGD on W. Nothing else does: momentum, or a rate of each weight, has no
such form.

Source: Vincent et al. 2015, "Efficient exact gradient update for training deep
networks with very large sparse targets", algorithm 1, here with decay of
weights, several positives, and U inverted anew in each step: an inverse that is
carried along gathers errors. Those of W's sums add up all the same, and U
becomes ill-conditioned (see `condition`), as it shrinks in the directions that
examples have: from time to time V is multiplied out, see `refactored`.

Functions of small arrays alone are the same on all devices; V is split by rows,
and is read and written where its rows are.

Legend: N examples, D width, P positives, L labels, l label rows of this device,
M changed rows.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.losses import spherical as spherical_losses
from xlj.ops import chunks
from xlj.ops import label_gather
from xlj.ops import label_sums
from xlj.ops import layout as layout_lib
from xlj.ops import shards as shards_lib


class Factors(NamedTuple):
  """Everything but V, the same on all devices.

  Attributes:
    u: `[D, D]`, U.
    offset: `[D]`, w.
    gram: `[D, D]`, `W^T W` over all labels.
    total: `[D]`, `W^T 1`.
  """

  u: jax.Array
  offset: jax.Array
  gram: jax.Array
  total: jax.Array


class Gradient(NamedTuple):
  """The gradient by label rows, in parts.

  Attributes:
    curvature: `[D, D]`, `H^T diag(dq) H`.
    common: `[D]`, `H^T ds`.
    rows: `[M, D]`, those of `Y^T H` that are not 0, each label once.
    by_example: `[N, D]`, `Y W`.
    scores: `[N]`, the sums `Y 1` of each example's gradients.
  """

  curvature: jax.Array
  common: jax.Array
  rows: jax.Array
  by_example: jax.Array
  scores: jax.Array


def unfactored(sums: label_sums.RowSums) -> Factors:
  """The factors where V is W itself.

  Args:
    sums: Sums over its rows.

  Returns:
    U the identity, w 0.
  """
  identity = jnp.eye(sums.gram.shape[0], dtype=sums.gram.dtype)
  zero = jnp.zeros_like(sums.total)
  return Factors(identity, zero, sums.gram, sums.total)


def sums_of_logits(factors: Factors, x: jax.Array) -> spherical_losses.Sums:
  """Sums over the logits of all labels, for examples `[N, D]`."""
  squares = (x * dot(x, factors.gram)).sum(1)
  return spherical_losses.Sums(dot(x, factors.total), squares)


def embedded(factors: Factors, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Vectors `[N, D]`, and what to add `[N]`, for logits from rows of V."""
  return dot(x, factors.u.T), dot(x, factors.offset)


def gradient(
  factors: Factors,
  x: jax.Array,
  ids: jax.Array,
  by_logits: jax.Array,
  by_sums: spherical_losses.Sums,
  by_rows: jax.Array,
) -> tuple[Gradient, jax.Array]:
  """The gradient by label rows, and that by examples.

  Args:
    factors: Before the step.
    x: `[N, D]` examples.
    ids: `[N, P]` labels or rows of positives; negative ones are padding.
    by_logits: `[N, P]` gradients by the positives' logits, Y; 0 at padding.
    by_sums: `[N]` gradients by sums over logits.
    by_rows: `[N, D]`, `Y V`.

  Returns:
    The gradient by rows, and `[N, D]` by examples.
  """
  scores = by_logits.sum(1)
  by_example = dot(by_rows, factors.u) + scores[:, None] * factors.offset
  dx = by_example + by_sums.total[:, None] * factors.total
  dx += 2 * by_sums.squares[:, None] * dot(x, factors.gram)
  each = by_logits[..., None] * x[:, None]
  _, rows = label_gather.sum_duplicates(
    ids.reshape(-1), each.reshape(-1, x.shape[1])
  )
  curvature = dot(x.T, by_sums.squares[:, None] * x)
  common = dot(x.T, by_sums.total)
  return Gradient(curvature, common, rows, by_example, scores), dx


def updated(
  factors: Factors,
  x: jax.Array,
  grad: Gradient,
  rate: jax.Array,
  decay: float,
  num_labels: int,
) -> Factors:
  """The factors after `W <- W - rate * (gradient + decay * W)`.

  That is `W A + 1 r^T - rate * Y^T H`, of which Gram matrix and sum are
  expanded. V is still to be changed, by the new U: see `add_to_rows`.

  Args:
    factors: Before.
    x: `[N, D]` examples.
    grad: The gradient by label rows.
    rate: Learning rate, a scalar.
    decay: Weight decay.
    num_labels: L.

  Returns:
    After.
  """
  u, offset, gram, total = factors
  identity = jnp.eye(x.shape[1], dtype=x.dtype)
  less = 2 * rate * grad.curvature + rate * decay * identity  # I - A
  r = -rate * grad.common
  of_positives = rate * dot(x.T, grad.scores)

  def shrunk(a: jax.Array) -> jax.Array:
    return a - dot(less, a)

  # Only what changes is formed, so that only it is rounded.
  product = dot(less, gram)
  cross = jnp.outer(total, r) - rate * dot(grad.by_example.T, x)
  cross = shrunk(cross) - jnp.outer(r, of_positives)
  own = num_labels * jnp.outer(r, r) + rate**2 * dot(grad.rows.T, grad.rows)
  change = cross + cross.T + own - product - product.T + dot(product, less)
  return Factors(
    u - dot(u, less),
    shrunk(offset) + r,
    gram + (change + change.T) / 2,
    shrunk(total) + num_labels * r - of_positives,
  )


def condition(u: jax.Array, inverse: jax.Array) -> jax.Array:
  """How far U `[D, D]` is from a multiple of a rotation, for which it is 1.

  The condition number by Frobenius norms, over D. Singular values of 1 and 1/c
  give about `c / 2` where they are equally many, `c / sqrt(D)` where one of
  them is small.
  """
  return jnp.linalg.norm(u) * jnp.linalg.norm(inverse) / u.shape[0]


# --- of this device's rows ----------------------------------------------------


def add_to_rows(
  rows: jax.Array,
  index: jax.Array,
  by_logits: jax.Array,
  x: jax.Array,
  inverse: jax.Array,
  rate: jax.Array,
) -> jax.Array:
  """V after a step: the rows of positives alone change.

  Args:
    rows: `[l, D]`, V; updated in place where it is donated.
    index: `[N, P]` rows of this device; l for those of others and padding.
    by_logits: `[N, P]` gradients by the positives' logits.
    x: `[N, D]` examples.
    inverse: The inverse of U after the step.
    rate: Learning rate, a scalar.

  Returns:
    New rows.
  """
  step = -rate * by_logits[..., None] * dot(x, inverse)[:, None]
  step = step.reshape(-1, x.shape[1]).astype(rows.dtype)
  return rows.at[index.reshape(-1)].add(step, mode="drop")


def refactored(
  rows: jax.Array,
  factors: Factors,
  due: jax.Array,
  layout: layout_lib.Layout,
  first: jax.Array | int,
  chunk_size: int,
  axes: tuple[str, ...],
) -> tuple[jax.Array, Factors]:
  """V multiplied out where it is due: U is the identity again, w 0.

  Rows are not sent anywhere. Where it is not due, the loop over rows ends
  before it begins: unlike in a branch, V is then never copied.

  Args:
    rows: `[l, D]`, V.
    factors: The rest.
    due: Scalar bool.
    layout: Which rows, of all devices, hold labels.
    first: First row of this device.
    chunk_size: Rows at a time.
    axes: Mesh axes that rows are split over.

  Returns:
    Rows and factors of the same W.
  """
  size = min(chunk_size, rows.shape[0])
  full, rest = divmod(rows.shape[0], size)

  def multiply(start, size, rows):
    part = lax.dynamic_slice_in_dim(rows, start, size)
    part = dot(part, factors.u) + factors.offset
    is_label = layout.is_label(first + start + jnp.arange(size))
    part = jnp.where(is_label[:, None], part, 0)
    return lax.dynamic_update_slice_in_dim(rows, part, start, 0)

  times = jnp.where(due, full, 0)
  rows = lax.fori_loop(
    0, times, lambda i, rows: multiply(i * size, size, rows), rows
  )
  if rest:
    once = jnp.where(due, 1, 0)
    rows = lax.fori_loop(
      0, once, lambda _, rows: multiply(full * size, rest, rows), rows
    )

  def again(rows):
    placement = shards_lib.Placement(row_axes=axes, chunk_size=size)
    sums = label_sums.label_statistics(rows, placement=placement)
    return unfactored(sums)

  return rows, lax.cond(due, again, lambda _: factors, rows)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """`a @ b` in the full precision of its types: errors add up over steps."""
  dtype = chunks.accumulator(a, b)
  return jnp.matmul(
    a.astype(dtype), b.astype(dtype), precision=lax.Precision.HIGHEST
  )
