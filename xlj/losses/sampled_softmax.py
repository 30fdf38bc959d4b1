"""Losses over a few candidates that stand for all labels.

Of all labels, the softmax needs the partition function `Z = sum exp(z)`. With
candidates S that row j is expected to be among `q_j` times, `sum over S of
exp(z_j - log q_j)` is Z on average. So the softmax of logits minus `log q` is
computed exactly over the candidates (Bengio & Senecal 2008, "Adaptive
importance sampling to accelerate training of a neural probabilistic language
model"; Jean et al. 2015, "On using very large target vocabulary for neural
machine translation"). Positives of the batch are candidates without fail, with
q = 1: they are not corrected, and a drawn row that is one of them is dropped.

Legend: N examples, K named rows of an example, D width, L label rows, C
candidates.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from xlj.losses import softmax
from xlj.ops import chunks
from xlj.ops import label_candidates
from xlj.ops import label_pass
from xlj.ops import label_sample
from xlj.ops import loss as loss_lib
from xlj.ops import shards as shards_lib
from xlj.ops import targets as targets_lib

_LOG_COUNT = "log_count"


def sampled_loss(
  x: jax.Array,
  rows: jax.Array,
  bias: jax.Array | None,
  targets: targets_lib.Targets,
  sample: label_sample.Sample | None = None,
  loss: loss_lib.Loss | None = None,
  *,
  include: jax.Array | None = None,
  label_share: jax.Array | None = None,
  correct_positives: bool = False,
  weigh: bool = False,
  reduce: bool = True,
  num_labels: int | None = None,
  label_values: targets_lib.LabelValues | None = None,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> jax.Array:
  """A loss of a batch over candidates in place of all labels.

  Differentiable like `xlj.ops.label_pass.label_loss`, and for the same meshes.
  The gradient of the rows is as large as these; where that is too much, call
  `find_candidates` and `gather_candidates` of `xlj.ops.label_candidates` and
  differentiate `candidate_loss` in the gathered rows.

  Example:
    sample = label_sample.uniform_sample(key, 65536, num_rows)  # Partial FC
    value = sampled_loss(x, rows, None, targets, sample)

    best_wrong = label_ranking.label_topk(x, rows, None, 8, exclude=targets.ids)
    value = sampled_loss(x, rows, None, targets, include=best_wrong[1])

  Args:
    x: `[N, D]` examples, floating.
    rows: `[L, D]` label rows, floating; row i is label i.
    bias: `[L]`, or None.
    targets: Positives and weights of the examples, sharded like `x`.
    sample: Drawn rows, see `xlj.ops.label_sample`; None for none.
    loss: One that is a function of the partition function, softmax by default;
      any loss whose terms of labels that are no positives can be weighed, if
      `weigh`.
    include: `[N, K]` int32 further candidates, see `find_candidates`.
    label_share: `[L]`; given, the batch is the sample, see `find_candidates`.
    correct_positives: Whether, where the batch is the sample, an example's own
      positives are corrected too, as in Yi et al. 2019 ("Sampling-bias-
      corrected neural modeling for large corpus item recommendations",
      equation 3), although they are there without fail.
    weigh: Whether `1 / q` is a weight of the terms of labels, as in a sum like
      binary cross-entropy, in place of `-log q` a shift of logits. For
      `xlj.losses.weighted_bce`, whose values per label "negative" are divided
      by q, and with "positive" are 1 unless given.
    reduce: Whether to return the weighted mean over the batch; otherwise the
      loss of each example, and `targets.weights` is not used.
    num_labels: Rows from this one on are padding; None for no padding.
    label_values: Vectors `[L]`, sharded like the rows, that the loss needs.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    Scalar, or `[N]` sharded like the examples; float32 or wider.

  Raises:
    ValueError: Shapes or options do not fit, or axes are missing.
  """
  candidates = label_candidates.find_candidates(
    rows,
    targets,
    sample,
    include=include,
    label_share=label_share,
    num_labels=num_labels,
    placement=placement,
  )
  rows, bias, label_values = label_candidates.gather_candidates(
    (rows, bias, label_values), candidates, placement=placement
  )
  return candidate_loss(
    x,
    rows,
    bias,
    candidates,
    loss,
    restore=label_share is not None and not correct_positives,
    weigh=weigh,
    reduce=reduce,
    label_values=label_values,
    placement=placement,
  )


def candidate_loss(
  x: jax.Array,
  rows: jax.Array,
  bias: jax.Array | None,
  candidates: label_candidates.Candidates,
  loss: loss_lib.Loss | None = None,
  *,
  restore: bool = False,
  weigh: bool = False,
  reduce: bool = True,
  label_values: targets_lib.LabelValues | None = None,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> jax.Array:
  """`sampled_loss` as a function of the candidates' rows alone.

  Its gradient in `rows`, beside `candidates.ids`, is a row-sparse gradient of
  all rows. An id is repeated only if the sample repeats it.

  Args:
    x: `[N, D]` examples.
    rows: `[C, D]` rows of the candidates.
    bias: `[C]`, or None.
    candidates: C candidates.
    loss: As in `sampled_loss`.
    restore: Whether an example's own positives are not corrected also where
      their expected count is not 1: with `label_share`.
    weigh: As in `sampled_loss`.
    reduce: As in `sampled_loss`.
    label_values: Vectors `[C]` that the loss needs.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    Scalar, or `[N]`.

  Raises:
    ValueError: Shapes or options do not fit, or axes are missing.
  """
  loss = softmax.Softmax() if loss is None else loss
  log_counts = candidates.log_counts
  values = dict(label_values or {})
  shift = jnp.zeros_like(log_counts, dtype=chunks.accumulator(x, rows))
  if bias is not None:
    shift += bias.astype(shift.dtype)
  if weigh:
    if restore:
      raise ValueError("weights of a batch that is the sample (weigh, restore)")
    ones = jnp.ones_like(log_counts)
    weight = jnp.exp(-log_counts).astype(log_counts.dtype)
    values["positive"] = values.get("positive", ones)
    values["negative"] = values.get("negative", ones) * weight
  else:
    shift -= log_counts
  if restore:
    values[_LOG_COUNT] = log_counts
    loss = _Restored(loss)
  # Losses take what has logit -inf for padding.
  shift = jnp.where(candidates.ids < 0, -jnp.inf, shift)
  return label_pass.label_loss(
    x,
    rows,
    shift,
    candidates.targets,
    loss,
    reduce=reduce,
    label_values=values or None,
    placement=placement,
  )


@dataclasses.dataclass(frozen=True)
class _Restored:
  """A loss on logits whose correction is undone at the example's positives."""

  base: loss_lib.Loss

  def init(self, num_examples: int, num_positives: int = 0) -> Any:
    """Statistics of no logits."""
    return self.base.init(num_examples, num_positives)

  def accumulate(
    self, stats: Any, z: jax.Array, positives: targets_lib.Positives
  ) -> Any:
    """Folds a chunk of logits `[N, c]` into the running statistics."""
    return self.base.accumulate(stats, _restored(z, positives), positives)

  def merge(self, stats: Any, axes: tuple[str, ...]) -> Any:
    """Merges the statistics of all shards of the mesh axes `axes`."""
    return self.base.merge(stats, axes)

  def value_and_grad(
    self, stats: Any, z: jax.Array, positives: targets_lib.Positives
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    return self.base.value_and_grad(stats, _restored(z, positives), positives)


def _restored(z: jax.Array, positives: targets_lib.Positives) -> jax.Array:
  """Logits `[N, c]` with the correction added again at positives."""
  log_counts = targets_lib.label_values(positives, _LOG_COUNT).astype(z.dtype)
  last = z.shape[positives.label_axis] - 1
  columns = jnp.minimum(positives.columns, last)
  return targets_lib.add_at_columns(z, positives, log_counts[columns])
