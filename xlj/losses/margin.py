"""Margins on cosine logits: a positive must win by a distance."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from xlj.losses import softmax
from xlj.ops import loss as loss_lib
from xlj.ops import targets as targets_lib

_SMALLEST_SINE = 1e-3  # the derivative of the angle is infinite at sine 0


@dataclasses.dataclass(frozen=True)
class Margin:
  """A loss on cosine logits with the logits of the positives made smaller.

  Logits are `scale * cos(t)`, in [-scale, scale], t the angle between example
  and label. At positives they become `scale * (cos(t + angle) - cosine)`.
  `angle` alone is ArcFace (Deng et al. 2019, equation 3), `cosine` alone is
  CosFace (Wang et al. 2018, equation 4). Past `t = pi - angle`, where the
  cosine would rise again, it is continued by `cos(t) - angle * sin(angle)`, as
  in the code that the authors of ArcFace released.

  Attributes:
    scale: Scale of the logits; it is up to the head to have applied it.
    angle: Margin in radians, at least 0 and below pi.
    cosine: Margin in the cosine.
    base: The loss on the changed logits.
  """

  scale: float
  angle: float = 0.0
  cosine: float = 0.0
  base: loss_lib.Loss = softmax.Softmax()

  def init(self, num_examples: int, num_positives: int = 0) -> Any:
    """Statistics of no logits."""
    return self.base.init(num_examples, num_positives)

  def accumulate(
    self, stats: Any, z: jax.Array, positives: targets_lib.Positives
  ) -> Any:
    """Folds a chunk of logits `[N, c]` into the running statistics."""
    z, _ = self._with_margin(z, positives)
    return self.base.accumulate(stats, z, positives)

  def merge(self, stats: Any, axes: tuple[str, ...]) -> Any:
    """Merges the statistics of all shards of the mesh axes `axes`."""
    return self.base.merge(stats, axes)

  def value_and_grad(
    self, stats: Any, z: jax.Array, positives: targets_lib.Positives
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    z, slope = self._with_margin(z, positives)
    value, grad = self.base.value_and_grad(stats, z, positives)
    return value, targets_lib.multiply_at_columns(grad, positives, slope)

  def _with_margin(
    self, z: jax.Array, positives: targets_lib.Positives
  ) -> tuple[jax.Array, jax.Array]:
    """The changed logits, and how fast they change at positives, `[N, P]`."""
    cosine = targets_lib.gather_columns(z, positives) / self.scale
    sine = jnp.sqrt(jnp.maximum(1 - cosine**2, _SMALLEST_SINE**2))
    before = cosine > -math.cos(self.angle)  # t < pi - angle
    turned = cosine * math.cos(self.angle) - sine * math.sin(self.angle)
    beyond = cosine - self.angle * math.sin(self.angle)
    changed = jnp.where(before, turned, beyond) - self.cosine
    slope = math.cos(self.angle) + math.sin(self.angle) * cosine / sine
    z = targets_lib.set_at_columns(z, positives, self.scale * changed)
    return z, jnp.where(before, slope, 1)
