"""Logit adjustment: frequent labels start ahead while training."""

import dataclasses
from typing import Any

import jax

from xlj.losses import softmax
from xlj.ops import loss as loss_lib
from xlj.ops import targets as targets_lib


@dataclasses.dataclass(frozen=True)
class LogitAdjustment:
  """A loss on `z_l + strength * log(prior_l)`.

  What is learnt on top of the prior is then the balanced score: rank by z
  itself. Source: Menon et al. 2021, "Long-tail learning via logit adjustment",
  equation 10.

  Needs the values per label named "log_prior", finite.

  Attributes:
    strength: Factor of the log prior (tau in the paper).
    base: The loss on the adjusted logits.
  """

  strength: float = 1.0
  base: loss_lib.Loss = softmax.Softmax()

  def at(self, step: jax.Array) -> "LogitAdjustment":
    """The loss after so many steps."""
    return dataclasses.replace(self, base=loss_lib.at_step(self.base, step))

  def report(
    self, stats: Any, targets: targets_lib.Targets
  ) -> dict[str, jax.Array]:
    """What the loss on the adjusted logits reports."""
    return loss_lib.report(self.base, stats, targets)

  def init(self, num_examples: int, num_positives: int = 0) -> Any:
    """Statistics of no logits."""
    return self.base.init(num_examples, num_positives)

  def accumulate(
    self, stats: Any, z: jax.Array, positives: targets_lib.Positives
  ) -> Any:
    """Folds a chunk of logits `[N, c]` into the running statistics."""
    z = self._adjusted(z, positives)
    return self.base.accumulate(stats, z, positives)

  def merge(self, stats: Any, axes: tuple[str, ...]) -> Any:
    """Merges the statistics of all shards of the mesh axes `axes`."""
    return self.base.merge(stats, axes)

  def value_and_grad(
    self, stats: Any, z: jax.Array, positives: targets_lib.Positives
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    z = self._adjusted(z, positives)
    return self.base.value_and_grad(stats, z, positives)

  def _adjusted(
    self, z: jax.Array, positives: targets_lib.Positives
  ) -> jax.Array:
    log_prior = targets_lib.label_values(positives, "log_prior")
    return z + self.strength * positives.by_label(log_prior.astype(z.dtype))
