"""Which labels may be chosen, and what single examples add to their scores.

Legend: N examples, E labels that are named for an example, R rows.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from xlj import sharding
from xlj.ops import targets as targets_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
  """What ranks labels beside their logits; nothing by default.

  Attributes:
    ids: `[N, E]` int32 labels of each example; -1 is padding. None for no word
      about single examples.
    only: Whether those of `ids` may be chosen and no others; otherwise they may
      not, and all others may.
    allowed: bool `[R]` by row, for all examples, sharded like rows; None for
      all.
    extra: `[N, E]` int32 labels of each example, -1 for padding, and `[N, E]`
      float32 to be added to their scores; None for nothing.
  """

  ids: jax.Array | None = None
  only: bool = dataclasses.field(default=False, metadata={"static": True})
  allowed: jax.Array | None = None
  extra: tuple[jax.Array, jax.Array] | None = None

  def specs(self) -> "Choice":
    """The partition of each array."""
    return dataclasses.replace(
      self,
      ids=None if self.ids is None else sharding.BATCH,
      allowed=None if self.allowed is None else sharding.LABELS,
      extra=None if self.extra is None else sharding.BATCH,
    )

  def gathered(self) -> "Choice":
    """That of the examples of all devices; inside `shard_map`."""
    ids, extra = sharding.gather_batch((self.ids, self.extra))
    return dataclasses.replace(self, ids=ids, extra=extra)

  def map(self, function: Callable[[jax.Array], jax.Array]) -> "Choice":
    """The same with other numbers of the labels of each example."""
    ids, extra = self.ids, self.extra
    return dataclasses.replace(
      self,
      ids=None if ids is None else function(ids),
      extra=None if extra is None else (function(extra[0]), extra[1]),
    )

  def offset(self, offset: jax.Array | None) -> jax.Array | None:
    """What is added to scores by row, with -inf for rows not allowed.

    Args:
      offset: `[R]` likewise, or None for nothing.

    Returns:
      `[R]`, or None for nothing.
    """
    if self.allowed is None:
      return offset
    return jnp.where(self.allowed, 0.0 if offset is None else offset, -jnp.inf)

  def apply(self, z: jax.Array, first: jax.Array | int) -> jax.Array:
    """Scores as single examples have them, -inf for what they may not choose.

    Args:
      z: `[N, c]` scores of a chunk.
      first: Label of the first column.

    Returns:
      `[N, c]`.
    """
    if self.extra is not None:
      ids, values = self.extra
      named = targets_lib.positives_in_chunk(ids, first, z.shape[1])
      z = targets_lib.add_at_columns(z, named, values)
    if self.ids is None:
      return z
    named = targets_lib.positives_in_chunk(self.ids, first, z.shape[1])
    if not self.only:
      return targets_lib.set_at_columns(z, named, -jnp.inf)
    shown = targets_lib.set_at_columns(jnp.zeros_like(z), named, 1)
    return jnp.where(shown > 0, z, -jnp.inf)


def of(choice: Choice | None) -> Choice:
  """The choice, or that of all labels where there is none."""
  return Choice() if choice is None else choice
