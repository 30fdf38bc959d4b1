"""Binary cross-entropy over all labels: one logistic regression per label."""

import dataclasses

import jax

from xlj.losses import separable
from xlj.ops import targets as targets_lib


@dataclasses.dataclass(frozen=True)
class BinaryCrossEntropy(separable.Separable):
  """`sum_{l negative} softplus(z_l) + sum_{p positive} softplus(-z_p)`.

  The sum over labels (not their mean) keeps the gradient of a positive at
  order one whatever the number of labels. It needs no statistics.
  """

  def value_and_grad(
    self, stats: None, z: jax.Array, positives: targets_lib.Positives
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    return separable.sum_of_terms(
      z,
      positives,
      lambda z: separable.cross_entropy(z, 0),
      lambda z: separable.cross_entropy(z, 1),
    )
