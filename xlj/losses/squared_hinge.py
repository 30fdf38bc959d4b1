"""Squared hinge loss: one L2 support vector machine per label."""

import dataclasses

import jax
import jax.numpy as jnp

from xlj.losses import separable
from xlj.ops import targets as targets_lib


@dataclasses.dataclass(frozen=True)
class SquaredHinge(separable.Separable):
  """`sum_l max(0, 1 - y_l z_l)^2` with y 1 for positives and -1 otherwise.

  The loss of DiSMEC (Babbar and Schoelkopf 2017, equation 1) and of the linear
  rankers of PECOS. Past the margin gradients are exactly 0.
  """

  def value_and_grad(
    self, stats: None, z: jax.Array, positives: targets_lib.Positives
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""

    def negative(z: jax.Array) -> separable.ValueAndSlope:
      short = jnp.maximum(1 + z, 0)
      return short**2, 2 * short

    def positive(z: jax.Array) -> separable.ValueAndSlope:
      short = jnp.maximum(1 - z, 0)
      return short**2, -2 * short

    return separable.sum_of_terms(z, positives, negative, positive)
