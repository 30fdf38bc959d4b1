"""Large losses: unobserved labels that are probably missing positives.

Early in training a model learns what most labels say; an unobserved label whose
loss is then among the largest is more likely a missing positive than a
negative. Source: Kim et al. 2022, "Large loss matters in weakly supervised
multi-label classification" (CVPR), sections 3.3 and 4.

The softplus is monotone, so the largest losses of unobserved labels are the
largest logits: no matrix of losses is needed, and the k largest of a batch are
found while chunks pass by (see `xlj.ops.batch_topk`).

Legend: N examples, L labels, k labels to modify in a step.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from xlj.losses import logistic
from xlj.losses import separable
from xlj.ops import batch_topk
from xlj.ops import targets as targets_lib

SCHEMES = ("reject", "correct", "correct_forever")
_TINY = 1e-6


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How many unobserved labels count as missing, or from which loss on.

  In the first epoch none does. One of `share`, `per_example` and `threshold` is
  given.

  Attributes:
    steps_per_epoch: Steps of an epoch; the t-th has t = 1 + step // that.
    num_epochs: How many there are.
    share: Of the N L labels of a batch, per epoch (the paper's relative delta,
      over 100); k = ceil(N L (t - 1) share).
    per_example: Labels of each example, per epoch: k = ceil(N (t - 1)
      per_example). What the paper's best settings come to is 0.02 to 1.6,
      whatever L is.
    threshold: Loss from which on a label is missing in the first epoch, R_0.
    decay: By which it falls with each epoch: R(t) = R_0 - t decay.
    grows: Whether k grows with the epochs; otherwise it is that of t = 2 in all
      but the first, as in the scheme "correct_forever".
  """

  steps_per_epoch: int
  num_epochs: int = 1
  share: float = 0.0
  per_example: float = 0.0
  threshold: float = 0.0
  decay: float = 0.0
  grows: bool = True

  def __post_init__(self) -> None:
    """Refuses none, or several, of the three ways.

    Raises:
      ValueError: Naming them.
    """
    given = [
      name
      for name in ("share", "per_example", "threshold")
      if getattr(self, name) > 0
    ]
    if len(given) != 1:
      raise ValueError(
        "one of share, per_example and threshold must be above 0; these are:"
        f" {', '.join(given) or 'none'}"
      )

  def epoch(self, step: jax.Array) -> jax.Array:
    """The epoch t, from 1, of a step, from 0."""
    return 1 + step // self.steps_per_epoch

  def count(
    self, step: jax.Array, num_examples: int, num_labels: int
  ) -> jax.Array:
    """How many labels of a batch to modify, a scalar int32."""
    past = self.epoch(step) - 1
    if not self.grows:
      past = jnp.minimum(past, 1)
    # Without the subtraction 0.1 * 3 * 10 would be 4 after rounding up.
    found = jnp.ceil(past * self._per_epoch(num_examples, num_labels) - _TINY)
    most = num_examples * num_labels
    return jnp.clip(found, 0, min(most, 2**31 - 1)).astype(jnp.int32)

  def most(self, num_examples: int, num_labels: int) -> int:
    """The largest count that there can be."""
    past = max(0, self.num_epochs - 1)
    if not self.grows:
      past = min(past, 1)
    found = past * self._per_epoch(num_examples, num_labels)
    return min(max(1, math.ceil(found - _TINY)), num_examples * num_labels)

  def logit(self, step: jax.Array) -> jax.Array:
    """The logit whose loss as a negative is the threshold, a scalar."""
    loss = self.threshold - self.epoch(step) * self.decay
    # softplus(z) = R at z = log(e^R - 1).
    z = jnp.log(jnp.expm1(jnp.maximum(loss, 0)))
    return jnp.where(self.epoch(step) > 1, z, jnp.inf)

  def _per_epoch(self, num_examples: int, num_labels: int) -> float:
    return num_examples * (self.per_example or num_labels * self.share)


class Statistics(NamedTuple):
  """The largest logits of unobserved labels."""

  largest: batch_topk.Largest


@dataclasses.dataclass(frozen=True)
class LargeLoss:
  """Binary cross-entropy whose unobserved labels of large loss are modified.

  With "reject" (LL-R) they do not count, with "correct" (LL-Ct) they count as
  positives in this step, and with "correct_forever" (LL-Cp) `report` says which
  ones have a loss above the k-th largest, to be positives from now on. Labels
  whose loss equals the k-th largest are modified as well, observed positives
  never are.

  Attributes:
    schedule: How many, or from which loss on.
    num_labels: L, all labels.
    scheme: One of `SCHEMES`.
    step: Steps taken; see `at`.
  """

  schedule: Schedule
  num_labels: int
  scheme: str = "reject"
  step: jax.Array | int = 0

  def __post_init__(self) -> None:
    """Refuses an unknown scheme, and one that has no count.

    Raises:
      ValueError: Naming it.
    """
    if self.scheme not in SCHEMES:
      raise ValueError(f"scheme is {self.scheme!r}; use one of {SCHEMES}")
    if self.scheme == "correct_forever" and self.schedule.threshold:
      raise ValueError(
        "the scheme correct_forever needs a share, or per_example"
      )

  def at(self, step: jax.Array) -> "LargeLoss":
    """The loss after so many steps."""
    return dataclasses.replace(self, step=step)

  def init(
    self, num_examples: int, num_positives: int = 0
  ) -> Statistics | None:
    """No largest logits yet; None where the threshold is known."""
    if self.schedule.threshold:
      return None
    most = self.schedule.most(num_examples, self.num_labels)
    return Statistics(batch_topk.none(most))

  def accumulate(
    self,
    stats: Statistics | None,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> Statistics | None:
    """Folds a chunk of logits `[N, c]` into the largest so far."""
    if stats is None:
      return None
    weights = positives.weights
    largest = batch_topk.add(
      stats.largest,
      z,
      positives.first,
      positives.label_axis,
      exclude=positives.columns,
      used=None if weights is None else weights > 0,
    )
    return Statistics(largest)

  def merge(
    self, stats: Statistics | None, axes: tuple[str, ...]
  ) -> Statistics | None:
    """Merges the largest logits of all shards of the mesh axes `axes`."""
    if stats is None:
      return None
    return Statistics(batch_topk.merge(stats.largest, axes))

  def value_and_grad(
    self,
    stats: Statistics | None,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    limit = self._limit(stats, z.shape[1 - positives.label_axis])
    limit = jnp.maximum(limit, jnp.finfo(z.dtype).min)  # not at padding

    def negative(z: jax.Array) -> separable.ValueAndSlope:
      modified = z >= limit
      if self.scheme == "reject":
        value, slope, _ = logistic.logistic(jnp.where(modified, -jnp.inf, z))
        return value, slope
      value, slope, _ = logistic.logistic(jnp.where(modified, -z, z))
      return value, jnp.where(modified, -slope, slope)

    return separable.sum_of_terms(
      z, positives, negative, lambda z: separable.cross_entropy(z, 1)
    )

  def report(
    self, stats: Statistics | None, targets: targets_lib.Targets
  ) -> dict[str, jax.Array]:
    """The labels to correct: `corrected_ids [K]` of `corrected_examples [K]`.

    Args:
      stats: Merged statistics over all labels.
      targets: Of all examples.

    Returns:
      The labels whose loss is above the k-th largest, and the place of their
      examples in the batch; -1 is none. Nothing with the other schemes.
    """
    if stats is None or self.scheme != "correct_forever":
      return {}
    best = stats.largest
    corrections = best.scores > self._limit(stats, targets.ids.shape[0])
    return {
      "corrected_ids": jnp.where(corrections, best.labels, -1),
      "corrected_examples": jnp.where(corrections, best.examples, -1),
    }

  def _limit(self, stats: Statistics | None, num_examples: int) -> jax.Array:
    """The logit from which on unobserved labels are modified."""
    step = jnp.asarray(self.step)
    if stats is None:
      return self.schedule.logit(step)
    count = self.schedule.count(step, num_examples, self.num_labels)
    return batch_topk.kth(stats.largest, count)
