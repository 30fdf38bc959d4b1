"""A transformer over items in order, each of which sees those before it.

Kang and McAuley 2018, "Self-attentive sequential recommendation" (SASRec), with
distances between items in place of positions, as in Shaw et al. 2018,
"Self-attention with relative position representations": what is learned of one
place of a sequence holds for every other.

Legend: N sequences, T items of a sequence (padded), D width, P distances.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from xlj.encoders import block
from xlj.ops import feature_rows

_STD = 0.02  # of tables at the start


class Distances(nnx.Module):
  """What attention knows of how far back an item is."""

  def __init__(self, count: int, dim: int, heads: int, *, rngs: nnx.Rngs):
    """Creates the parameters.

    Args:
      count: P.
      dim: D.
      heads: Of the attention.
      rngs: Source of random keys.
    """
    self.bias = nnx.Param(jnp.zeros((count, heads)))
    self.values = nnx.Param(
      _STD * jax.random.normal(rngs.params(), (count, dim))
    )

  def __call__(self, back: jax.Array) -> dict[str, jax.Array]:
    """What a block adds, by distance `[T, T]`, below 0 for later items."""
    back = jnp.clip(back, 0, len(self.bias[...]) - 1)  # others are not read
    bias = jnp.moveaxis(self.bias[...][back], 2, 0)[None]
    return {"bias": bias, "values": self.values[...][back]}


class CausalTransformer(nnx.Module):
  """Items to states; the state of an item knows it and those before it.

  States do not depend on how far a sequence is padded.
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
      positions: P, newest items of a sequence that are read.
      tied: Items have no vectors here: they are given with the sequences, and
        normalised.
      hidden_dropout: Dropout rate on the input and on what blocks add to it.
      embedding_dropout: Dropout rate on the states that are returned.
      rngs: Source of random keys.
    """

    self.num_positions = positions
    # Vectors that are given have the lengths that they were made for.
    self.input_norm = nnx.LayerNorm(dim, rngs=rngs) if tied else None
    if not tied:
      items = jax.random.normal(rngs.params(), (num_items, dim))
      self.items = nnx.Param(_STD * items)
    self.distances = nnx.List(
      Distances(positions, dim, heads, rngs=rngs) for _ in range(depth)
    )
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
    there = sequences.values != 0
    h = self.items[...][sequences.ids] if items is None else items
    h = jnp.where(there[..., None], h, 0)
    if self.input_norm is not None:
      h = self.input_norm(h)
    h = self.hidden_dropout(h, rngs=rngs, deterministic=evaluate)
    places = jnp.arange(h.shape[1])
    back = places[:, None] - places  # [T, T]
    is_new = feature_rows.ages(sequences) < self.num_positions
    read = (there & is_new)[:, None]
    # A place that has lost its item to dropout reads itself if nothing else.
    mask = (read & (back >= 0) | (back == 0))[:, None]
    for each, distances in zip(self.blocks, self.distances):
      h = each(h, mask=mask, rngs=rngs, **distances(back))
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
