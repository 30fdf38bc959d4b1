"""What to make of unobserved labels: the plain remedies.

Source: Cole et al. 2021, "Multi-label learning from single positive labels",
section 4.
"""

import dataclasses

import jax

from xlj.losses import separable
from xlj.ops import targets as targets_lib


@dataclasses.dataclass(frozen=True)
class AssumeNegative(separable.Separable):
  """Binary cross-entropy that takes unobserved labels for negatives, or less.

  `sum over negatives of w f(z, e / 2) + sum over positives of f(z, 1 - e / 2)`
  with `f(z, t) = softplus(z) - t z`: weighted (WAN, w = 1 / (L - 1)), smoothed
  (LSAN, e = 0.1), or ignored (IU, w = 0).

  Attributes:
    weight: w, of an unobserved label.
    smoothing: e.
  """

  weight: float = 1.0
  smoothing: float = 0.0

  def value_and_grad(
    self, stats: None, z: jax.Array, positives: targets_lib.Positives
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    return separable.sum_of_terms(
      z,
      positives,
      lambda z: _scaled(separable.cross_entropy(z, self._rest), self.weight),
      lambda z: separable.cross_entropy(z, 1 - self._rest),
    )

  @property
  def _rest(self) -> float:
    return self.smoothing / 2


def _scaled(
  term: separable.ValueAndSlope, weight: float
) -> separable.ValueAndSlope:
  return weight * term[0], weight * term[1]
