"""Losses of the spherical family through the label pass: the same in O(L).

For rows and optimizers that `xlj.heads.spherical` cannot have, and to compare
with. Sums of logits and of their squares are collected first, with the logits
of the positives; see `xlj.losses.spherical_sums` for the losses.
"""

import dataclasses
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.losses import spherical_sums as spherical_loss
from xlj.ops import chunks
from xlj.ops import targets as targets_lib


class SphericalStatistics(NamedTuple):
  """Sums over all logits, and the logits of the positives `[N, P]`."""

  sums: spherical_loss.Sums
  positives: jax.Array


@dataclasses.dataclass(frozen=True)
class Spherical:
  """A loss of positives' logits and sums over all logits, as a `Loss`.

  Attributes:
    of: The loss.
  """

  of: spherical_loss.Spherical

  def init(self, num_examples: int, num_positives: int) -> SphericalStatistics:
    """Statistics of no logits."""
    zeros = jnp.zeros((num_examples,))
    return SphericalStatistics(
      spherical_loss.Sums(zeros, zeros),
      jnp.zeros((num_examples, num_positives)),
    )

  def accumulate(
    self,
    stats: SphericalStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> SphericalStatistics:
    """Folds a chunk of logits `[N, c]` into the running statistics."""
    (total, squares), at_positives = stats
    of_labels = _of_labels(z)
    axis = positives.label_axis
    return SphericalStatistics(
      spherical_loss.Sums(
        total + of_labels.sum(axis), squares + (of_labels**2).sum(axis)
      ),
      at_positives + targets_lib.gather_columns(z, positives),
    )

  def merge(
    self, stats: SphericalStatistics, axes: tuple[str, ...]
  ) -> SphericalStatistics:
    """Merges the statistics of all shards of the mesh axes `axes`."""
    return jax.tree.map(lambda a: lax.psum(a, axes), stats)

  def value_and_grad(
    self,
    stats: SphericalStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient.

    Args:
      stats: Merged statistics over all labels.
      z: `[N, c]` float32 logits of the chunk; -inf at padding labels.
      positives: The positives inside the chunk.

    Returns:
      `[N]` partial losses (they add up over chunks) and `[N, c]` d loss / d z.
    """
    # A gradient by what is the same on all devices would be summed over them.
    stats = chunks.mark_varying(stats, tuple(chunks.varying(z)))
    losses, by_logits, by_sums = spherical_loss.losses_and_gradients(
      self.of, stats.positives, positives.used, stats.sums
    )
    of_labels = _of_labels(z)
    # What is not of positives goes by squares, for examples without any.
    squares = (of_labels**2).sum(positives.label_axis)
    part = squares / jnp.where(stats.sums.squares > 0, stats.sums.squares, 1)
    own = targets_lib.shares(positives, z.dtype).sum(1)
    part = jnp.where(positives.count > 0, own, part)
    grad = 2 * of_labels * positives.by_example(by_sums.squares)
    grad += positives.by_example(by_sums.total)
    grad = jnp.where(jnp.isneginf(z), 0, grad)
    by_logits = jnp.where(positives.inside, by_logits, 0)
    grad = targets_lib.add_at_columns(grad, positives, by_logits)
    return losses * part, grad


def _of_labels(z: jax.Array) -> jax.Array:
  """Logits, 0 at padding."""
  return jnp.where(jnp.isneginf(z), 0, z)
