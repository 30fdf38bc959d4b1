"""The spherical family: losses of positives' logits and two sums over all.

Of the other labels they need nothing but `s = sum o` and `q = sum o^2` (Vincent
et al. 2015, "Efficient exact gradient update for training deep networks with
very large sparse targets"), which cost nothing per label where `W^T W` and
`W^T 1` are known: see `xlj.heads.spherical.factors`. Those that are a mean over
positives are 0 for an example without any.

Legend: N examples, P positives, L labels.
"""

import dataclasses
import statistics
from typing import NamedTuple, Protocol

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import chunks
from xlj.ops import targets as targets_lib


class Sums(NamedTuple):
  """Sums over the logits of all labels, or gradients with respect to them.

  Attributes:
    total: `[N]`, `s = sum o`.
    squares: `[N]`, `q = sum o^2`.
  """

  total: jax.Array
  squares: jax.Array


class FunctionOfSums(Protocol):
  """A loss of positives' logits and sums over all logits."""

  def losses(self, logits: jax.Array, used: jax.Array, sums: Sums) -> jax.Array:
    """The losses of examples.

    Args:
      logits: `[N, P]` of the positives, 0 at padding.
      used: `[N, P]` bool, False at padding.
      sums: Over all labels.

    Returns:
      `[N]`.
    """


def losses_and_gradients(
  loss: FunctionOfSums, logits: jax.Array, used: jax.Array, sums: Sums
) -> tuple[jax.Array, jax.Array, Sums]:
  """Losses `[N]`, and the gradients of each by its logits and its sums."""
  values, vjp = jax.vjp(lambda z, s: loss.losses(z, used, s), logits, sums)
  by_logits, by_sums = vjp(jnp.ones_like(values))
  return values, jnp.where(used, by_logits, 0), by_sums


@dataclasses.dataclass(frozen=True)
class ZLoss:
  """`log(1 + exp(a (b - z))) / a`, z the logit's standard score.

  `z = (o - mean) / deviation` over the logits of all labels, so that neither a
  shift nor a scale of them matters. The loss fades for positives that exceed
  `threshold` deviations. Source: de Brébisson and Vincent 2016, "The Z-loss: a
  shift and scale invariant classification loss belonging to the spherical
  family", equation 7. Mean over positives.

  Attributes:
    num_labels: L.
    threshold: b; see `threshold_of`.
    sharpness: a.
    epsilon: Added to the variance.
  """

  num_labels: int
  threshold: float
  sharpness: float = 1.0
  epsilon: float = 1e-12

  def losses(self, logits: jax.Array, used: jax.Array, sums: Sums) -> jax.Array:
    """See `FunctionOfSums`."""
    mean = sums.total / self.num_labels
    # Rounding may take the difference of two large numbers below zero.
    variance = jnp.maximum(sums.squares / self.num_labels - mean**2, 0)
    scores = (logits - mean[:, None]) * jax.lax.rsqrt(variance + self.epsilon)[
      :, None
    ]
    short = self.sharpness * (self.threshold - scores)
    return _mean(jnp.logaddexp(0, short) / self.sharpness, used)


def threshold_of(num_labels: int, k: int = 5) -> float:
  """Deviations that k of L normal scores exceed: what the top k have to reach.

  Args:
    num_labels: L.
    k: How many labels are predicted.

  Returns:
    `Phi^-1(1 - k / L)`; 0 where k is more than half of the labels.
  """
  share = min(0.5, k / num_labels)
  return -statistics.NormalDist().inv_cdf(share)


@dataclasses.dataclass(frozen=True)
class SphericalSoftmax:
  """`-log((o^2 + eps) / sum (o^2 + eps))`, mean over positives.

  Source: de Brébisson and Vincent 2016, "An exploration of softmax alternatives
  belonging to the spherical loss family", equation 5.

  Attributes:
    num_labels: L.
    epsilon: Added to the square of each logit.
  """

  num_labels: int
  epsilon: float = 1e-2

  def losses(self, logits: jax.Array, used: jax.Array, sums: Sums) -> jax.Array:
    """See `FunctionOfSums`."""
    whole = jnp.log(sums.squares + self.num_labels * self.epsilon)
    return _mean(whole[:, None] - jnp.log(logits**2 + self.epsilon), used)


@dataclasses.dataclass(frozen=True)
class TaylorSoftmax:
  """`-log(t(o) / sum t(o))` with `t(o) = 1 + o + o^2 / 2`, mean over positives.

  Source: as of `SphericalSoftmax`, equation 6.

  Attributes:
    num_labels: L.
  """

  num_labels: int

  def losses(self, logits: jax.Array, used: jax.Array, sums: Sums) -> jax.Array:
    """See `FunctionOfSums`."""
    whole = jnp.log(self.num_labels + sums.total + sums.squares / 2)
    return _mean(whole[:, None] - jnp.log1p(logits + logits**2 / 2), used)


@dataclasses.dataclass(frozen=True)
class SquaredError:
  """`sum (o - y)^2` over all labels, y 1 at positives and 0 elsewhere."""

  def losses(self, logits: jax.Array, used: jax.Array, sums: Sums) -> jax.Array:
    """See `FunctionOfSums`."""
    return sums.squares + jnp.where(used, 1 - 2 * logits, 0).sum(1)


@dataclasses.dataclass(frozen=True)
class Gramian:
  """`mean over positives of (o - 1)^2 + weight * mean over labels of o^2`.

  The second term keeps the logits of labels that were not observed near 0: it
  is `weight * <h h^T, W^T W / L>`. Source: Krichene et al. 2019, "Efficient
  training on very large corpora via Gramian estimation", equation 4; where
  `W^T W` is known it need not be estimated.

  Attributes:
    num_labels: L.
    weight: Of the second term, lambda there.
  """

  num_labels: int
  weight: float = 10.0

  def losses(self, logits: jax.Array, used: jax.Array, sums: Sums) -> jax.Array:
    """See `FunctionOfSums`."""
    observed = _mean((logits - 1) ** 2, used)
    return observed + self.weight / self.num_labels * sums.squares


class SphericalStatistics(NamedTuple):
  """Sums over all logits, and the logits of the positives `[N, P]`."""

  sums: Sums
  positives: jax.Array


@dataclasses.dataclass(frozen=True)
class Spherical:
  """One of the losses above through the label pass: the same in O(L).

  For rows and optimizers that `xlj.heads.spherical` cannot have, and to compare
  with. Sums of logits and of their squares are collected first, with the logits
  of the positives.

  Attributes:
    of: The loss.
  """

  of: FunctionOfSums

  def init(self, num_examples: int, num_positives: int) -> SphericalStatistics:
    """Statistics of no logits."""
    zeros = jnp.zeros((num_examples,))
    return SphericalStatistics(
      Sums(zeros, zeros),
      jnp.zeros((num_examples, num_positives)),
    )

  def accumulate(
    self,
    stats: SphericalStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> SphericalStatistics:
    """Folds a chunk of logits `[N, c]` into the running statistics."""
    (total, squares), at_positives = stats
    of_labels = _of_labels(z)
    axis = positives.label_axis
    return SphericalStatistics(
      Sums(total + of_labels.sum(axis), squares + (of_labels**2).sum(axis)),
      at_positives + targets_lib.gather_columns(z, positives),
    )

  def merge(
    self, stats: SphericalStatistics, axes: tuple[str, ...]
  ) -> SphericalStatistics:
    """Merges the statistics of all shards of the mesh axes `axes`."""
    return jax.tree.map(lambda a: lax.psum(a, axes), stats)

  def value_and_grad(
    self,
    stats: SphericalStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    # A gradient by what is the same on all devices would be summed over them.
    stats = chunks.mark_varying(stats, tuple(chunks.varying(z)))
    losses, by_logits, by_sums = losses_and_gradients(
      self.of, stats.positives, positives.used, stats.sums
    )
    of_labels = _of_labels(z)
    # What is not of positives goes by squares, for examples without any.
    squares = (of_labels**2).sum(positives.label_axis)
    part = squares / jnp.where(stats.sums.squares > 0, stats.sums.squares, 1)
    own = targets_lib.shares(positives, z.dtype).sum(1)
    part = jnp.where(positives.count > 0, own, part)
    grad = 2 * of_labels * positives.by_example(by_sums.squares)
    grad += positives.by_example(by_sums.total)
    grad = jnp.where(jnp.isneginf(z), 0, grad)
    by_logits = jnp.where(positives.inside, by_logits, 0)
    grad = targets_lib.add_at_columns(grad, positives, by_logits)
    return losses * part, grad


def _of_labels(z: jax.Array) -> jax.Array:
  """Logits, 0 at padding."""
  return jnp.where(jnp.isneginf(z), 0, z)


def _mean(values: jax.Array, used: jax.Array) -> jax.Array:
  """`[N, P]` to the mean over positives `[N]`; 0 without any."""
  count = jnp.maximum(used.sum(1), 1)
  return jnp.where(used, values, 0).sum(1) / count
