"""A transformer over tokens, as BERT and its kin have it.

Vaswani et al. 2017, "Attention is all you need"; Devlin et al. 2019, "BERT";
Sanh et al. 2019, "DistilBERT"; Liu et al. 2019, "RoBERTa"; Song et al. 2020,
"MPNet"; Wang et al. 2020, "MiniLM". They are one network once what is the same
for all tokens has been added to the positions (see `xlj.encoders.pretrained`).

Legend: N texts, T tokens of a text (padded), V known tokens, D width of the
blocks, E width of an embedding.
"""

from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from xlj.encoders import block
from xlj.ops import feature_rows
from xlj.ops import normalize

_STD = 0.02  # of tables at the start, BERT's
_FAR = 128  # tokens apart, beyond which relative positions are one (MPNet)
POOLINGS = ("mean", "cls")
ACTIVATIONS = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
  "relu": jax.nn.relu,
}


class Sizes(NamedTuple):
  """What the parameters of a transformer are made of.

  Attributes:
    num_tokens: V.
    width: D.
    depth: Blocks.
    heads: Of the attention.
    hidden: Width of the layer for each token.
    positions: Most tokens of a text.
    buckets: Of relative positions; 0 for absolute ones alone.
    epsilon: Of the normalisation.
    activation: One of `ACTIVATIONS`.
  """

  num_tokens: int
  width: int
  depth: int
  heads: int
  hidden: int
  positions: int
  buckets: int = 0
  epsilon: float = 1e-12
  activation: str = "gelu"


class Transformer(nnx.Module):
  """Tokens to states, block by block, then the mean of the last ones.

  An embedding does not depend on how far a text is padded.
  """

  def __init__(
    self,
    sizes: Sizes,
    dim: int | None = None,
    *,
    pooling: str = "mean",
    layers: int = 1,
    hidden_dropout: float = 0.0,
    embedding_dropout: float = 0.0,
    lora: block.Lora | None = None,
    scale: float = 0.0,
    remat: bool = False,
    dtype: str = "float32",
    rngs: nnx.Rngs,
  ):
    """Creates the parameters.

    Args:
      sizes: Of the network.
      dim: E, of a linear map after pooling, which starts as the identity if
        it is D; None for no such map.
      pooling: "mean" over the tokens of a text, or "cls", the first of them.
      layers: That are pooled: the mean of the last so many.
      hidden_dropout: Dropout rate on the input and on what blocks add to it.
      embedding_dropout: Dropout rate on the embedding that is returned.
      lora: Weights beside each matrix of the blocks, or None.
      scale: If positive, embeddings are normalised to unit length and
        multiplied by a trained scale that starts here (cosine logits).
      remat: Computes the inside of blocks again for the gradient, instead of
        keeping it.
      dtype: That blocks compute in, "float32" or "bfloat16"; parameters,
        statistics and embeddings are float32.
      rngs: Source of random keys.

    Raises:
      ValueError: If heads do not divide D, or `layers` are not there.
    """
    if sizes.width % sizes.heads:
      raise ValueError(
        f"width is {sizes.width}, which {sizes.heads} heads do not divide"
      )
    if not 1 <= layers <= sizes.depth:
      raise ValueError(f"layers is {layers}, and depth {sizes.depth}")
    self.pooling, self.layers, self.remat = pooling, layers, remat
    self.dtype = jnp.dtype(dtype)

    def table(*shape: int) -> nnx.Param:
      return nnx.Param(_STD * jax.random.normal(rngs.params(), shape))

    self.tokens = table(sizes.num_tokens, sizes.width)
    self.positions = table(sizes.positions, sizes.width)
    self.relative = table(sizes.buckets, sizes.heads) if sizes.buckets else None
    self.norm = nnx.LayerNorm(sizes.width, epsilon=sizes.epsilon, rngs=rngs)
    self.blocks = nnx.List(
      block.Block(
        sizes.width,
        sizes.heads,
        sizes.hidden,
        activation=ACTIVATIONS[sizes.activation],
        after=True,
        epsilon=sizes.epsilon,
        dropout=hidden_dropout,
        lora=lora,
        dtype=self.dtype,
        rngs=rngs,
      )
      for _ in range(sizes.depth)
    )
    projection = None
    if dim is not None:
      projection = nnx.Linear(sizes.width, dim, rngs=rngs)
      if dim == sizes.width:
        projection.kernel[...] = jnp.eye(dim)
    self.projection = projection
    self.log_scale = nnx.Param(jnp.log(jnp.float32(scale))) if scale else None
    self.hidden_dropout = nnx.Dropout(hidden_dropout)
    self.embedding_dropout = nnx.Dropout(embedding_dropout)

  def __call__(
    self,
    texts: feature_rows.SparseRows,
    *,
    rngs: nnx.Rngs | None = None,
  ) -> jax.Array:
    """Encodes a batch.

    Args:
      texts: Ids of tokens in order, `[N, T]`; values are not 0 where there is
        a token to read. Those beyond the positions are not read.
      rngs: Source of dropout keys; None means evaluation, no dropout.

    Returns:
      `[N, E]` float32 embeddings, E = D if there is no map; zeros (before the
      map) of a text without tokens.
    """
    evaluate = rngs is None
    length = min(texts.ids.shape[1], len(self.positions[...]))
    mask = texts.values[:, :length] != 0
    h = self.tokens[...][texts.ids[:, :length]] + self.positions[...][:length]
    h = self.norm(h)
    h = self.hidden_dropout(h, rngs=rngs, deterministic=evaluate)
    bias = None
    if self.relative is not None:
      most = len(self.positions[...])
      places = jnp.arange(length)
      apart = places[None, :] - places[:, None] + most - 1
      apart = _buckets(most, len(self.relative[...]))[apart]  # [T, T]
      bias = jnp.moveaxis(self.relative[...][apart], -1, 0)[None]
    run = nnx.remat(_run) if self.remat else _run
    pooled = []
    for each in self.blocks:
      h = run(each, h, mask[:, None, None, :], bias, rngs)
      pooled.append(self._pool(h, mask))
    x = jnp.stack(pooled[-self.layers :]).mean(0)
    if self.projection is not None:
      x = self.projection(x)
    if self.log_scale is not None:
      x = jnp.exp(self.log_scale[...]) * normalize.unit_rows(x)
    return self.embedding_dropout(x, rngs=rngs, deterministic=evaluate)

  def _pool(self, h: jax.Array, mask: jax.Array) -> jax.Array:
    """States `[N, T, D]` to embeddings `[N, D]`."""
    if self.pooling == "cls":
      return jnp.where(mask[:, :1], h[:, 0].astype(jnp.float32), 0)
    counts = jnp.maximum(mask.sum(1, keepdims=True), 1)
    total = jnp.where(mask[..., None], h, 0).sum(1, dtype=jnp.float32)
    return total / counts


def rate(
  path: tuple[Any, ...], depth: int, *, decay: float, frozen: str
) -> float:
  """A factor on the learning rate of a parameter.

  Source of the decay: Clark et al. 2020, "ELECTRA".

  Args:
    path: Names on the way to it.
    depth: Blocks.
    decay: Of each block in the rate of what is above it.
    frozen: What stays as it is: "none", "embeddings" (what is below the
      blocks), or "all" but map, scale and weights beside a matrix.

  Returns:
    0 for what is frozen.
  """
  part = path[0]
  if part in ("projection", "log_scale"):
    return 1.0
  in_block = part == "blocks"
  if frozen == "all" and path[-1] not in ("down", "up"):
    return 0.0
  if frozen == "embeddings" and not in_block:
    return 0.0
  return decay ** (depth - path[1] if in_block else depth + 1)


def _run(
  each: block.Block,
  h: jax.Array,
  mask: jax.Array,
  bias: jax.Array | None,
  rngs: nnx.Rngs | None,
) -> jax.Array:
  return each(h, mask=mask, bias=bias, rngs=rngs)


def _buckets(length: int, number: int) -> jax.Array:
  """Which relative position a key has, `[2 T - 1]` from -T + 1 to T - 1 ahead.

  Half of the buckets are for keys behind, half for those ahead; in each half
  the near ones are told apart and the far ones by the logarithm of how far.
  Source: Raffel et al. 2020, "Exploring the limits of transfer learning".
  """
  ahead = np.arange(1 - length, length)
  half = number // 2
  near = half // 2
  far = np.abs(ahead)
  share = np.log(np.maximum(far, 1) / near) / np.log(_FAR / near)
  later = np.minimum(near + (share * (half - near)).astype(int), half - 1)
  found = np.where(ahead > 0, half, 0) + np.where(far < near, far, later)
  return jnp.asarray(found)
