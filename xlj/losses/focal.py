"""Focal loss: labels that are already told apart count little."""

import dataclasses

import jax

from xlj.losses import separable
from xlj.ops import targets as targets_lib


@dataclasses.dataclass(frozen=True)
class Focal(separable.Separable):
  """`-a (1 - p)^g log p` for positives, `-(1 - a) p^g log(1 - p)` otherwise.

  p is `sigmoid(z)`; the sum over labels is taken. Source: Lin et al. 2017,
  "Focal loss for dense object detection", equation 5.

  Attributes:
    gamma: Focusing exponent g.
    alpha: Weight a of positives.
  """

  gamma: float = 2.0
  alpha: float = 0.25

  def value_and_grad(
    self, stats: None, z: jax.Array, positives: targets_lib.Positives
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""

    def negative(z: jax.Array) -> separable.ValueAndSlope:
      value, slope = separable.focal_term(z, self.gamma)
      return (1 - self.alpha) * value, (1 - self.alpha) * slope

    def positive(z: jax.Array) -> separable.ValueAndSlope:
      value, slope = separable.focal_term(-z, self.gamma)
      return self.alpha * value, -self.alpha * slope

    return separable.sum_of_terms(z, positives, negative, positive)
