"""Binary cross-entropy with a weight for each label: rare labels count more."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from xlj.losses import logistic
from xlj.losses import separable
from xlj.ops import targets as targets_lib


@dataclasses.dataclass(frozen=True)
class WeightedBinaryCrossEntropy(separable.Separable):
  """`sum_{l negative} v_l softplus(z_l) + sum_{p positive} w_p softplus(-z_p)`.

  Needs the values per label named "positive", w, and, unless all are 1,
  "negative", v. See `propensity_weights` and `class_balanced_weights`.

  Attributes:
    unbiased: A positive also costs `(1 - w_p) softplus(z_p)`. With w = 1 /
      propensity, the expected loss is then that of the complete labels, of
      which only some are observed (Qaraei et al. 2021, "Convex surrogates for
      unbiased loss functions in extreme classification with missing labels").
      It is not bounded from below.
  """

  unbiased: bool = False

  def value_and_grad(
    self, stats: None, z: jax.Array, positives: targets_lib.Positives
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    positive_weight = targets_lib.label_values(positives, "positive")
    positive_weight = positives.by_label(positive_weight.astype(z.dtype))
    positive_weight = jnp.broadcast_to(positive_weight, z.shape)
    weight = targets_lib.gather_columns(positive_weight, positives)

    def negative(z: jax.Array) -> separable.ValueAndSlope:
      value, slope, _ = logistic.logistic(z)
      if "negative" in (positives.labels or {}):
        scale = targets_lib.label_values(positives, "negative")
        scale = positives.by_label(scale)
        value, slope = scale * value, scale * slope
      return value, slope

    def positive(z: jax.Array) -> separable.ValueAndSlope:
      as_negative = logistic.logistic(z)
      value = weight * logistic.logistic(-z).softplus
      slope = -weight * as_negative.complement
      if self.unbiased:
        value += (1 - weight) * as_negative.softplus
        slope += (1 - weight) * as_negative.sigmoid
      return value, slope

    return separable.sum_of_terms(z, positives, negative, positive)


def propensity_weights(propensities: jax.Array) -> jax.Array:
  """`1 / p`: weights of positives observed with probability p.

  Source: Jain et al. 2016, "Extreme multi-label loss functions for
  recommendation, tagging, ranking and other missing label applications".

  Args:
    propensities: `[L]` in (0, 1].

  Returns:
    `[L]` weights.
  """
  return 1 / propensities


def class_balanced_weights(counts: jax.Array, beta: float) -> jax.Array:
  """`(1 - beta) / (1 - beta^n)`: inverse effective number of examples.

  Source: Cui et al. 2019, "Class-balanced loss based on effective number of
  samples", equation 4.

  Args:
    counts: `[L]` number n of examples of each label; 0 counts as 1.
    beta: In [0, 1); 0 gives weights of 1, near 1 gives 1 / n.

  Returns:
    `[L]` weights, at most 1.
  """
  if not beta:
    return jnp.ones_like(counts, jnp.float32)  # sharded as they are
  # math: beta is close to 1; expm1: so is beta^n.
  log_beta = math.log(beta)
  return (1 - beta) / -jnp.expm1(jnp.maximum(counts, 1) * log_beta)
