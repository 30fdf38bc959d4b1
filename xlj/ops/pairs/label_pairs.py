"""Weights for pairs of a feature and a label, in blocks of label rows.

A linear one-vs-all model needs no weight where a feature and a label never meet
in a training row: such weights are a small negative background that ranks
nothing. Those that are left are stored for each block of label rows (see
`xlj.ops.layout`) by feature, so that an example reads the pairs of its features
alone, and every block is computed in the same way on whatever device it is.

On CPUs compiled loops do the work in place (`host_loops`), elsewhere, and in
programs for other processes, sorted segment sums (`segment_sums`).

Legend: N examples, K features per example (padded), F features, P pairs of a
block (padded), B blocks of this device, R label rows of a block, T positives
per example (padded).
"""

from collections.abc import Iterator
import contextlib
import contextvars
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import chunks
from xlj.ops import feature_rows
from xlj.ops.pairs import host_call
from xlj.ops.pairs import segment_sums

ArrayLike = jax.typing.ArrayLike


class LabelPairs(NamedTuple):
  """The pairs of a device's blocks, and their weights.

  Attributes:
    starts: `[B, F + 1]` int32; pairs `starts[b, f]` to `starts[b, f + 1]` of
      block b are those of feature f.
    columns: `[B, P]` uint16 or uint32, the row of each pair in its block,
      ascending for each feature.
    weights: `[B, P]` float32; 0 at padding.
  """

  starts: jax.Array
  columns: jax.Array
  weights: jax.Array


class Rates(NamedTuple):
  """How far a step by example goes.

  Attributes:
    weights: Scalar, learning rate of the weights.
    bias: Scalar, that of the biases.
    threshold: Scalar; labels of which an example is no positive, and whose
      logit is not above it, get no gradient. What is left out of an example's
      gradient of a logit is at most the sigmoid of it.
  """

  weights: ArrayLike
  bias: ArrayLike
  threshold: ArrayLike


def column_dtype(rows_per_block: int) -> type:
  """The type of `columns`: the narrowest that numbers the rows of a block."""
  return jnp.uint16 if rows_per_block <= 2**16 else jnp.uint32


def logits(
  pairs: LabelPairs, features: feature_rows.SparseRows, rows_per_block: int
) -> jax.Array:
  """The sum of an example's weights for each label row.

  Args:
    pairs: Pairs of this device.
    features: N sparse examples.
    rows_per_block: R.

  Returns:
    `[N, B * R]` float32.
  """

  def on_host(*args: jax.Array) -> jax.Array:
    shape = features.ids.shape[0], len(pairs.starts) * rows_per_block
    return host_call.logits(jax.ShapeDtypeStruct(shape, jnp.float32), *args)

  def elsewhere(*args: jax.Array) -> jax.Array:
    return segment_sums.logits(*args, rows_per_block=rows_per_block)

  if _portable.get():
    on_host = functools.partial(
      segment_sums.logits, rows_per_block=rows_per_block, is_sorted=False
    )
  return _by_platform(on_host, elsewhere, *pairs, *features)


def add_outer(
  pairs: LabelPairs,
  features: feature_rows.SparseRows,
  grad: jax.Array,
  scale: jax.Array,
) -> jax.Array:
  """Adds `scale` times each pair's gradient to its weight, in place if donated.

  The gradient of a weight is the sum over examples of the feature's value times
  the gradient of the label's logit.

  Args:
    pairs: Pairs of this device.
    features: N sparse examples.
    grad: `[N, B * R]` float32, gradient of the logits.
    scale: Scalar, minus the learning rate for a step of SGD.

  Returns:
    New weights `[B, P]`.
  """
  scale = jnp.asarray(scale, jnp.float32)
  return _by_platform(
    host_call.add_outer,
    segment_sums.add_outer,
    *(*pairs, *features, grad, scale),
  )


def step_by_example(
  pairs: LabelPairs,
  bias: jax.Array,
  row_rates: jax.Array,
  features: feature_rows.SparseRows,
  positives: jax.Array,
  example_weights: jax.Array,
  rates: Rates,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """SGD on the binary cross-entropy of each label, one example after another.

  Every example sees what those before it have changed. Labels do not depend on
  each other, and so the result does not depend on how they are divided among
  devices or threads.

  Args:
    pairs: Pairs of this device.
    bias: `[B * R]` float32.
    row_rates: `[B * R]` float32, what both learning rates are multiplied by for
      each label row.
    features: N sparse examples.
    positives: `[N, T]` int32, rows of this device; other numbers are none.
    example_weights: `[N]` float32; 0 leaves an example out.
    rates: Learning rates, and what to leave out.

  Returns:
    New weights `[B, P]`, new bias `[B * R]`, and the loss of each block `[B]`,
    a sum over examples and those labels that got a gradient.
  """
  scalars = jnp.stack([jnp.asarray(r, jnp.float32) for r in rates])
  return _by_platform(
    host_call.step_by_example,
    segment_sums.step_by_example,
    *(*pairs, bias, row_rates, *features, positives, example_weights, scalars),
  )


_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
  """Logits that are traced in here need no loops of this process."""
  token = _portable.set(True)
  try:
    yield
  finally:
    _portable.reset(token)


def _by_platform(on_host, elsewhere, *args):
  """One of two functions that compute the same, as the platform has it."""
  axes = frozenset().union(*(chunks.varying(a) for a in args))

  def varying(run):
    return lambda *args: chunks.mark_varying(run(*args), sorted(axes))

  return lax.platform_dependent(
    *args, cpu=varying(on_host), default=varying(elsewhere)
  )
