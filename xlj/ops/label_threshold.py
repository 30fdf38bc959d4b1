"""Counts above a threshold, and k-th largest values, of all labels' scores.

A score is a logit, or what a function makes of the logits of a chunk. The k-th
largest is found with 3 passes over the labels for any k (see
`xlj.ops.radix_select`), in the memory of a chunk and of counts.

Counts are int32; one of a whole batch may be greater, and then is 2**31 - 1.

Legend: N examples (n of this device), D width, L label rows (l of this
device), c rows of a chunk.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import chunks
from xlj.ops import radix_select
from xlj.ops import shards as shards_lib
from xlj.ops import targets as targets_lib

P = jax.P

Score = Callable[[jax.Array, targets_lib.Positives], jax.Array]


class _Inputs(NamedTuple):
  """What a pass reads on this device, besides examples, rows and bias."""

  ids: targets_lib.Array | None  # [N, P]
  values: targets_lib.Array | None  # [N, P]
  used: jax.Array | None  # [N] bool
  labels: targets_lib.LabelValues | None  # [l] each


def negatives(z: jax.Array, positives: targets_lib.Positives) -> jax.Array:
  """A score: the logit of labels that are not positives of the example."""
  return targets_lib.set_at_columns(z, positives, -jnp.inf)


def label_count(
  x: jax.Array,
  rows: jax.Array,
  bias: jax.Array | None,
  threshold: jax.typing.ArrayLike,
  targets: targets_lib.Targets | None = None,
  *,
  score: Score | None = None,
  batch: bool = False,
  num_labels: int | None = None,
  label_values: targets_lib.LabelValues | None = None,
  chunk_size: int | None = None,
  memory: int | None = None,
  row_axes: Sequence[str] | None = None,
  batch_axes: Sequence[str] | None = None,
) -> jax.Array:
  """How many labels' scores exceed a threshold.

  Not differentiable. For meshes see `xlj.ops.label_pass.label_loss`.

  Args:
    x: `[N, D]` examples.
    rows: `[L, D]` label rows; row i is label i.
    bias: `[L]`, or None.
    threshold: Scalar, or `[N]` sharded like `x`.
    targets: Positives, if the score reads them, and weights: examples of weight
      0 have no scores. None for no positives and equal weights.
    score: From a chunk's logits `[N, c]` and its positives to scores `[N, c]`;
      one of -inf is not there. None for the logits.
    batch: Whether to count over all examples together.
    num_labels: Rows from this one on are padding; None for no padding.
    label_values: Vectors `[L]`, sharded like the rows, that the score reads.
    chunk_size: Rows of a chunk on each device; None to derive it.
    memory: Bytes of temporaries to derive it from; None for the default.
    row_axes: Mesh axes that rows are split over.
    batch_axes: Mesh axes that examples are split over.

  Returns:
    int32 `[N]` sharded like `x`, or a scalar.
  """
  shards = shards_lib.find(rows, x, row_axes, batch_axes)
  plan = shards_lib.plan(shards, x, rows, num_labels, chunk_size, memory)
  # Added to zeros, it is sharded like the examples.
  zeros = jnp.zeros_like(x[:, 0], dtype=chunks.accumulator(x, rows))
  threshold = zeros + threshold

  def local(x, threshold, targets, rows, bias, label_values):
    x, threshold, targets = shards_lib.gather((x, threshold, targets), shards)
    inputs = _inputs(targets, label_values)

    def body(start, size, count):
      z = _scores(plan, score, x, rows, bias, inputs, start, size)
      return count + (z > threshold[:, None]).sum(1, dtype=jnp.int32)

    count = jnp.zeros_like(x, shape=x.shape[:1], dtype=jnp.int32)
    count = chunks.for_chunks(rows.shape[0], plan.chunk, body, count)
    count = shards_lib.total(count, shards)
    if batch:
      return lax.reduce(count, jnp.int32(0), radix_select.add, (0,))
    return shards_lib.own(count, shards)

  run = shards_lib.over(
    local,
    shards,
    (False, False, False, True, True, True),
    P() if batch else P(shards.batch),
  )
  return run(x, threshold, targets, rows, bias, label_values)


def label_kth(
  x: jax.Array,
  rows: jax.Array,
  bias: jax.Array | None,
  k: jax.typing.ArrayLike,
  targets: targets_lib.Targets | None = None,
  *,
  score: Score | None = None,
  batch: bool = False,
  num_labels: int | None = None,
  label_values: targets_lib.LabelValues | None = None,
  chunk_size: int | None = None,
  memory: int | None = None,
  row_axes: Sequence[str] | None = None,
  batch_axes: Sequence[str] | None = None,
) -> radix_select.Kth:
  """The k-th largest score over all labels, exactly, whatever k is.

  `above + equal >= k > above` if there are that many scores. Devices exchange 8
  KB of counts a pass and example, or 8 KB a pass for a batch. For a small k of
  each example, `xlj.ops.label_topk.label_topk` does with one pass.

  Not differentiable. For meshes see `xlj.ops.label_pass.label_loss`.

  Args:
    x: `[N, D]` examples.
    rows: `[L, D]` label rows; row i is label i.
    bias: `[L]`, or None.
    k: Integer, which may be traced; or, not for a batch, integers `[N]` sharded
      like `x`.
    targets: As in `label_count`.
    score: As in `label_count`. NaN is greater than all others.
    batch: Whether all examples' scores are ranked together, or each example's
      on their own.
    num_labels: Rows from this one on are padding; None for no padding.
    label_values: Vectors `[L]`, sharded like the rows, that the score reads.
    chunk_size: Rows of a chunk on each device; None to derive it.
    memory: Bytes of temporaries to derive it from; None for the default.
    row_axes: Mesh axes that rows are split over.
    batch_axes: Mesh axes that examples are split over.

  Returns:
    Values `[N]`, float32 or wider, and counts, sharded like `x`, or scalars.

  Raises:
    ValueError: `k` has a wrong shape.
  """
  shards = shards_lib.find(rows, x, row_axes, batch_axes)
  plan = shards_lib.plan(shards, x, rows, num_labels, chunk_size, memory)
  k = jnp.asarray(k, jnp.int32)
  if k.ndim > (0 if batch else 1):
    raise ValueError(f"k must be {'a scalar' if batch else '[N]'}: {k.shape}")
  # Added to zeros, it is sharded like the examples.
  k += jnp.zeros_like(x[:, 0], dtype=jnp.int32)

  def local(x, k, targets, rows, bias, label_values):
    x, k, targets = shards_lib.gather((x, k, targets), shards)
    inputs = _inputs(targets, label_values)
    dtype = chunks.accumulator(x, rows)

    def histogram(shift, prefix):
      """Counts of the next digit of keys that begin with the prefix."""

      def body(start, size, counts):
        z = _scores(plan, score, x, rows, bias, inputs, start, size)
        leading = radix_select.keys(z) >> shift
        known = (
          leading >> radix_select.DIGIT == prefix[:, None]
        ) & ~jnp.isneginf(z)
        digit = (leading & (2**radix_select.DIGIT - 1)).astype(jnp.int32)
        digit = jnp.where(known, digit, 2**radix_select.DIGIT)
        example = 0 if batch else jnp.arange(z.shape[0])[:, None]
        new = jnp.zeros_like(counts).at[example, digit].add(1, mode="drop")
        return radix_select.add(counts, new)

      shape = 1 if batch else x.shape[0], 2**radix_select.DIGIT
      counts = jnp.zeros_like(x, shape=shape, dtype=jnp.int32)
      counts = chunks.for_chunks(rows.shape[0], plan.chunk, body, counts)
      return _total(counts, shards)

    wanted = _same(k[:1] if batch else k, shards)
    found = radix_select.search(histogram, wanted, dtype)
    if batch:
      return jax.tree.map(lambda a: a[0], found)
    return jax.tree.map(lambda a: shards_lib.own(a, shards), found)

  run = shards_lib.over(
    local,
    shards,
    (False, False, False, True, True, True),
    P() if batch else P(shards.batch),
  )
  return run(x, k, targets, rows, bias, label_values)


def _inputs(
  targets: targets_lib.Targets | None,
  label_values: targets_lib.LabelValues | None,
) -> _Inputs:
  """The parts of the targets, of all examples, that a pass reads."""
  if targets is None:
    return _Inputs(None, None, None, label_values)
  used = jnp.asarray(targets.weights) > 0
  return _Inputs(targets.ids, targets.values, used, label_values)


def _scores(plan, score, x, rows, bias, inputs, start, size):
  """Scores `[N, c]` of a chunk of local rows; -inf where there is none."""
  first = start + shards_lib.offset(plan.shards, rows.shape[0])
  part, bias, labels = chunks.take((rows, bias, inputs.labels), start, size)
  is_label = plan.layout.is_label(first + jnp.arange(size))
  z = chunks.logits(x, part, bias, is_label, start)
  if score is not None:
    ids = inputs.ids
    if ids is None:
      ids = jnp.full_like(x, -1, shape=(x.shape[0], 0), dtype=jnp.int32)
    positives = targets_lib.positives_in_chunk(
      ids, first, size, inputs.values, labels
    )
    z = score(z, positives).astype(z.dtype)
  is_score = is_label[None]
  if inputs.used is not None:
    is_score &= inputs.used[:, None]
  return jnp.where(is_score, z, -jnp.inf)


def _total(counts: jax.Array, shards: shards_lib.Shards) -> jax.Array:
  """The sum of counts over shards of rows, at most 2**31 - 1."""
  # In halves, as a sum over up to 2**15 devices could otherwise overflow.
  halves = jnp.stack([counts >> 16, counts & 0xFFFF])
  high, low = shards_lib.total(halves, shards)
  high += low >> 16
  exact = (high << 16) | (low & 0xFFFF)
  return jnp.where(high < 2**15, exact, radix_select.MOST)


def _same(a: jax.Array, shards: shards_lib.Shards) -> jax.Array:
  """An array that is the same on all shards of rows, and typed so."""
  return lax.pmax(a, shards.rows) if shards.rows else a
