"""Binary cross-entropy over all labels: one logistic regression per label."""

import dataclasses

import jax

from xlj.losses import logistic
from xlj.losses import separable
from xlj.ops import targets as targets_lib


@dataclasses.dataclass(frozen=True)
class BinaryCrossEntropy(separable.Separable):
  """`sum_l softplus(z_l) - sum_{p positive} z_p`, summed over labels.

  The sum over labels (not their mean) keeps the gradient of a positive at
  order one whatever the number of labels. It needs no statistics.
  """

  def value_and_grad(
    self, stats: None, z: jax.Array, positives: targets_lib.Positives
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    softplus, grad, _ = logistic.logistic(z)
    value = softplus.sum(positives.label_axis)
    value -= targets_lib.gather_columns(z, positives).sum(1)
    grad = targets_lib.add_at_columns(
      grad, positives, -positives.inside.astype(z.dtype)
    )
    return value, grad
