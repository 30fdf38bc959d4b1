"""Losses of the positives' logits and two sums over all logits.

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
import jax.numpy as jnp


class Sums(NamedTuple):
  """Sums over the logits of all labels, or gradients with respect to them.

  Attributes:
    total: `[N]`, `s = sum o`.
    squares: `[N]`, `q = sum o^2`.
  """

  total: jax.Array
  squares: jax.Array


class Spherical(Protocol):
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
  loss: Spherical, logits: jax.Array, used: jax.Array, sums: Sums
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
    """See `Spherical`."""
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
    """See `Spherical`."""
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
    """See `Spherical`."""
    whole = jnp.log(self.num_labels + sums.total + sums.squares / 2)
    return _mean(whole[:, None] - jnp.log1p(logits + logits**2 / 2), used)


@dataclasses.dataclass(frozen=True)
class SquaredError:
  """`sum (o - y)^2` over all labels, y 1 at positives and 0 elsewhere."""

  def losses(self, logits: jax.Array, used: jax.Array, sums: Sums) -> jax.Array:
    """See `Spherical`."""
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
    """See `Spherical`."""
    observed = _mean((logits - 1) ** 2, used)
    return observed + self.weight / self.num_labels * sums.squares


def _mean(values: jax.Array, used: jax.Array) -> jax.Array:
  """`[N, P]` to the mean over positives `[N]`; 0 without any."""
  count = jnp.maximum(used.sum(1), 1)
  return jnp.where(used, values, 0).sum(1) / count
