"""Losses that are a sum over labels: what they share.

Such a loss is `sum_{l negative} f(z_l) + sum_{p positive} g(z_p)`. It needs no
statistics: each chunk is on its own.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from xlj.losses import logistic
from xlj.ops import targets as targets_lib

ValueAndSlope = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Separable:
  """Base of the losses without statistics."""

  def init(self, num_examples: int, num_positives: int = 0) -> None:
    """No statistics."""

  def accumulate(
    self,
    stats: None,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> None:
    """No statistics."""

  def merge(self, stats: None, axes: tuple[str, ...]) -> None:
    """No statistics."""


def sum_of_terms(
  z: jax.Array,
  positives: targets_lib.Positives,
  negative: Callable[[jax.Array], ValueAndSlope],
  positive: Callable[[jax.Array], ValueAndSlope],
) -> tuple[jax.Array, jax.Array]:
  """This chunk's part of a sum over labels, and its gradient.

  Args:
    z: `[N, c]` logits of the chunk; -inf at padding labels.
    positives: The positives inside the chunk.
    negative: Value and derivative of f, for logits `[N, c]`; both 0 at -inf.
    positive: Value and derivative of g, for logits `[N, P]`.

  Returns:
    What `xlj.ops.Loss.value_and_grad` returns.
  """
  # Positives are taken out before the sum: subtracting f(z_p) after it would
  # cancel digits.
  rest, grad = negative(targets_lib.set_at_columns(z, positives, -jnp.inf))
  value, slope = positive(targets_lib.gather_columns(z, positives))
  value = jnp.where(positives.inside, value, 0).sum(1)
  value += rest.sum(positives.label_axis)
  return value, targets_lib.set_at_columns(grad, positives, slope)


def cross_entropy(z: jax.Array, target: float) -> ValueAndSlope:
  """`softplus(z) - target z` and its derivative; both 0 at -inf."""
  negative, p, complement = logistic.logistic(z)
  if not target:
    return negative, p
  # Not a difference of numbers as large as z, nor of probabilities near 1.
  value = (1 - target) * negative + target * logistic.logistic(-z).softplus
  slope = (1 - target) * p - target * complement
  is_label = ~jnp.isneginf(z)
  return jnp.where(is_label, value, 0), jnp.where(is_label, slope, 0)


def focal_term(x: jax.Array, gamma: float) -> ValueAndSlope:
  """`sigmoid(x)^gamma * softplus(x)` and its derivative; both 0 at -inf."""
  softplus, p, complement = logistic.logistic(x)
  weight = p**gamma
  slope = gamma * complement * softplus + p
  return weight * softplus, weight * slope
