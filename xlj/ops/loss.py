"""What the label pass needs of a loss."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax

from xlj.ops import targets as targets_lib


class Loss(Protocol):
  """A loss on logits that arrive in chunks of labels, in any order.

  A pass calls `accumulate` on every chunk, then `merge` once, then
  `value_and_grad` on every chunk. Padding labels have logit -inf, and must
  not count. The positives of an example are distinct. See `xlj.losses` for
  examples.
  """

  def init(self, num_examples: int, num_positives: int) -> Any:
    """Statistics of no logits, for N examples with up to P positives."""

  def accumulate(
    self, stats: Any, z: jax.Array, positives: targets_lib.Positives
  ) -> Any:
    """Folds a chunk of logits `[N, c]` into the statistics."""

  def merge(self, stats: Any, axes: tuple[str, ...]) -> Any:
    """Merges the statistics of all shards; no axes, nothing to merge."""

  def value_and_grad(
    self, stats: Any, z: jax.Array, positives: targets_lib.Positives
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient.

    Args:
      stats: Merged statistics of all labels.
      z: `[N, c]` float32 (or wider) logits of the chunk, `[c, N]` if
        `positives.label_axis` is 0; -inf at padding labels.
      positives: The positives inside the chunk, and values per label.

    Returns:
      `[N]` partial losses, which add up over chunks, and the derivative of
      their sum by z, shaped like it.
    """


@runtime_checkable
class Scheduled(Protocol):
  """A loss that changes while a model is trained."""

  def at(self, step: jax.Array) -> Loss:
    """The loss after so many steps, a scalar int32."""


@runtime_checkable
class Reporting(Protocol):
  """A loss that finds something out about the examples of a step."""

  def report(
    self, stats: Any, targets: targets_lib.Targets
  ) -> dict[str, jax.Array]:
    """What it found, by name, from the merged statistics.

    Args:
      stats: Merged statistics.
      targets: Of all examples.

    Returns:
      Arrays, the same on all devices. Names of arrays of label ids end with
      "_ids"; -1 is none.
    """


def at_step(loss: Loss, step: jax.Array) -> Loss:
  """The loss as it is after so many steps."""
  return loss.at(step) if isinstance(loss, Scheduled) else loss


def report(
  loss: Loss, stats: Any, targets: targets_lib.Targets
) -> dict[str, jax.Array]:
  """What a loss reports of a step; nothing from most."""
  return loss.report(stats, targets) if isinstance(loss, Reporting) else {}
