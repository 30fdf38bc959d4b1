"""A transformer over items in order, each of which sees those before it.

Kang and McAuley 2018, "Self-attentive sequential recommendation" (SASRec).

Legend: N sequences, T items of a sequence (padded), D width.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from xlj.encoders import block
from xlj.ops import feature_rows

_STD = 0.02  # of tables at the start


class CausalTransformer(nnx.Module):
  """Items to states; the state of an item knows it and those before it.

  Places are counted from the end, as if padding were on the left, so that the
  newest item is always at the same one; states do not depend on how far a
  sequence is padded.
  """

  def __init__(
    self,
    num_items: int,
    dim: int,
    *,
    depth: int,
    heads: int,
    positions: int,
    tied: bool = False,
    hidden_dropout: float = 0.0,
    embedding_dropout: float = 0.0,
    rngs: nnx.Rngs,
  ):
    """Creates the parameters.

    Args:
      num_items: How many items there are.
      dim: D.
      depth: Blocks.
      heads: Of the attention; they divide D.
      positions: Newest items of a sequence that are read.
      tied: Items have no vectors here: they are given with the sequences, and
        normalised with their place.
      hidden_dropout: Dropout rate on the input and on what blocks add to it.
      embedding_dropout: Dropout rate on the states that are returned.
      rngs: Source of random keys.
    """

    def table(*shape: int) -> nnx.Param:
      return nnx.Param(_STD * jax.random.normal(rngs.params(), shape))

    # Vectors that are given have the lengths that they were made for.
    self.input_norm = nnx.LayerNorm(dim, rngs=rngs) if tied else None
    if not tied:
      self.items = table(num_items, dim)
    self.positions = table(positions, dim)
    self.blocks = nnx.List(
      block.Block(
        dim,
        heads,
        4 * dim,
        dropout=hidden_dropout,
        rngs=rngs,
      )
      for _ in range(depth)
    )
    self.norm = nnx.LayerNorm(dim, rngs=rngs)
    self.hidden_dropout = nnx.Dropout(hidden_dropout)
    self.embedding_dropout = nnx.Dropout(embedding_dropout)

  def every(
    self,
    sequences: feature_rows.SparseRows,
    items: jax.Array | None = None,
    *,
    rngs: nnx.Rngs | None = None,
  ) -> jax.Array:
    """Encodes each sequence up to each of its items.

    Args:
      sequences: Ids of items, oldest first, `[N, T]`; values are not 0 where
        there is an item to read.
      items: `[N, T, D]`, their vectors; None for the encoder's own.
      rngs: Source of dropout keys; None means evaluation, no dropout.

    Returns:
      `[N, T, D]`; nothing that counts behind the last item, nor where an item
      is older than there are positions.
    """
    evaluate = rngs is None
    places = jnp.arange(sequences.ids.shape[1])
    ages = sequences.lengths[:, None] - 1 - places  # [N, T], 0 for the last
    last = len(self.positions[...]) - 1
    read = (sequences.values != 0) & (ages <= last)
    h = self.items[...][sequences.ids] if items is None else items
    h += self.positions[...][jnp.clip(ages, 0, last)]
    if self.input_norm is not None:
      h = self.input_norm(h)
    h = self.hidden_dropout(h, rngs=rngs, deterministic=evaluate)
    before = places <= places[:, None]  # [T, T]
    mask = (read[:, None, :] & before)[:, None]
    for each in self.blocks:
      h = each(h, mask=mask, rngs=rngs)
    h = self.norm(h)
    return self.embedding_dropout(h, rngs=rngs, deterministic=evaluate)

  def __call__(
    self,
    sequences: feature_rows.SparseRows,
    items: jax.Array | None = None,
    *,
    rngs: nnx.Rngs | None = None,
  ) -> jax.Array:
    """Encodes whole sequences: `[N, D]`, zeros of those without items."""
    h = self.every(sequences, items, rngs=rngs)
    newest = jnp.maximum(sequences.lengths - 1, 0)[:, None, None]
    x = jnp.take_along_axis(h, newest, axis=1)[:, 0]
    return jnp.where(sequences.lengths[:, None] > 0, x, 0)
