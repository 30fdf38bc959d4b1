"""Asymmetric loss: easy and probably mislabelled negatives count little."""

import dataclasses

import jax
import jax.numpy as jnp

from xlj.losses import logistic
from xlj.losses import separable
from xlj.ops import targets as targets_lib


@dataclasses.dataclass(frozen=True)
class Asymmetric(separable.Separable):
  """`-(1 - p)^g+ log p` for positives, `-q^g- log(1 - q)` for negatives.

  p is `sigmoid(z)`, `q = max(p - clip, 0)`: negatives with p below `clip` cost
  nothing. The sum over labels is taken. Source: Ridnik et al. 2021,
  "Asymmetric loss for multi-label classification", equations 4 to 7.

  Attributes:
    gamma_positive: Exponent g+.
    gamma_negative: Exponent g-.
    clip: Shift of the probability of negatives.
    constant_weights: Whether the factors `(1 - p)^g+` and `q^g-` count as
      constants in the gradient, as in the code that the authors released.
  """

  gamma_positive: float = 0.0
  gamma_negative: float = 4.0
  clip: float = 0.05
  constant_weights: bool = False

  def value_and_grad(
    self, stats: None, z: jax.Array, positives: targets_lib.Positives
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    return separable.sum_of_terms(z, positives, self._negative, self._positive)

  def _positive(self, z: jax.Array) -> separable.ValueAndSlope:
    value, slope = separable.focal_term(-z, self.gamma_positive)
    if self.constant_weights:
      slope = jax.nn.sigmoid(-z) ** (self.gamma_positive + 1)
    return value, -slope

  def _negative(self, z: jax.Array) -> separable.ValueAndSlope:
    softplus, p, complement = logistic.logistic(z)
    dp = p * complement
    if self.clip:
      q = jnp.maximum(p - self.clip, 0)
      cost = -jnp.log1p(-q)
      cost_slope = jnp.where(q > 0, dp / (1 - q), 0)
    else:  # 1 - q would underflow where the logit is large.
      q, cost, cost_slope = p, softplus, p
    gamma = self.gamma_negative
    if not gamma:
      return cost, cost_slope
    per_q = jnp.where(q > 0, q ** (gamma - 1), 0)
    slope = per_q * q * cost_slope
    if not self.constant_weights:
      slope += gamma * per_q * dp * cost  # d q^g / dz = g q^(g - 1) dp
    return per_q * q * cost, slope
