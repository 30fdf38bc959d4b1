"""What the label pass needs of a loss."""

from typing import Any, Protocol

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
    """Partial losses `[N]` and `[N, c]` gradient of a chunk of logits."""
