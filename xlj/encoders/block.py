"""A block of attention, of images, texts and sequences.

Legend: N examples, T places of an example, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp


class Lora(NamedTuple):
  """Weights that are trained beside a matrix, which stays as it is.

  The product with `W [A, B]` becomes that with `W + alpha / rank U V`, of
  `U [A, rank]` and `V [rank, B]`, which begins as zeros. Source: Hu et al.
  2022, "LoRA: low-rank adaptation of large language models".

  Attributes:
    rank: Of their product.
    alpha: How much they count.
  """

  rank: int
  alpha: float


class Linear(nnx.Linear):
  """A linear layer, which may have weights beside its matrix."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    lora: Lora | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    rngs: nnx.Rngs,
  ):
    """Creates the parameters.

    Args:
      inputs: A.
      outputs: B.
      lora: Weights beside the matrix, or None.
      dtype: That is computed in.
      rngs: Source of random keys.
    """
    super().__init__(inputs, outputs, dtype=dtype, rngs=rngs)
    self.lora = lora
    if lora:
      down = jax.random.normal(rngs.params(), (inputs, lora.rank))
      self.down = nnx.Param(inputs**-0.5 * down)
      self.up = nnx.Param(jnp.zeros((lora.rank, outputs)))

  def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
    """`[..., B]` of `[..., A]`."""
    y = super().__call__(inputs, out_sharding)
    if self.lora is None:
      return y
    inputs = inputs.astype(y.dtype)
    down, up = (p[...].astype(y.dtype) for p in (self.down, self.up))
    return y + self.lora.alpha / self.lora.rank * (inputs @ down @ up)


def _attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array | None,
  mask: jax.Array | None,
  values: jax.Array | None,
) -> jax.Array:
  """Attention `[N, T, heads, E]` of `[N, T, heads, E]`; see `Block`."""
  if values is None:
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask)
  scores = jnp.einsum("nthe,nshe->nhts", q, k) / q.shape[-1] ** 0.5
  if bias is not None:
    scores += bias
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
  shares = jax.nn.softmax(scores)
  values = values.reshape(*values.shape[:2], *q.shape[2:])
  mixed = jnp.einsum("nhts,nshe->nthe", shares, v)
  return mixed + jnp.einsum("nhts,tshe->nthe", shares, values)


class Block(nnx.Module):
  """Attention, then a layer for each place; both are added to the input."""

  def __init__(
    self,
    dim: int,
    heads: int,
    hidden: int,
    *,
    activation: Callable[[jax.Array], jax.Array] = nnx.gelu,
    after: bool = False,
    epsilon: float = 1e-6,
    dropout: float = 0.0,
    lora: Lora | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    rngs: nnx.Rngs,
  ):
    """Creates the parameters.

    Args:
      dim: D.
      heads: Of the attention; they divide D.
      hidden: Width of the layer for each place.
      activation: In the middle of that layer.
      after: Normalise after each sum, as Vaswani et al. 2017, instead of
        before each part.
      epsilon: Of the normalisation.
      dropout: Rate, of what is added.
      lora: Weights beside each matrix, or None.
      dtype: That is computed in; statistics are float32.
      rngs: Source of random keys.
    """
    self.heads = heads
    self.after = after
    self.activation = activation
    self.norms = nnx.List(
      nnx.LayerNorm(dim, epsilon=epsilon, rngs=rngs) for _ in range(2)
    )

    def linear(inputs: int, outputs: int) -> Linear:
      return Linear(inputs, outputs, lora=lora, dtype=dtype, rngs=rngs)

    self.qkv = linear(dim, 3 * dim)
    self.mix = linear(dim, dim)
    self.expand = linear(dim, hidden)
    self.shrink = linear(hidden, dim)
    self.dropout = nnx.Dropout(dropout)

  def __call__(
    self,
    x: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    values: jax.Array | None = None,
    rngs: nnx.Rngs | None = None,
  ) -> jax.Array:
    """The next states.

    Args:
      x: `[N, T, D]`.
      mask: `[N, 1, T, T]` or, for all places alike, `[N, 1, 1, T]`: where there
        is something to attend to; None for everywhere.
      bias: `[1, heads, T, T]`, added to the scores; or None.
      values: `[T, T, D]`, added to what a place (first) takes from another; or
        None.
      rngs: Source of dropout keys; None means evaluation, no dropout.

    Returns:
      `[N, T, D]`.
    """

    def attend(x: jax.Array) -> jax.Array:
      n, t, dim = x.shape
      qkv = self.qkv(x).reshape(n, t, 3, self.heads, -1)
      q, k, v = jnp.moveaxis(qkv, 2, 0)
      mixed = _attention(q, k, v, bias, mask, values)
      return self.mix(mixed.reshape(n, t, dim))

    def change(x: jax.Array) -> jax.Array:
      return self.shrink(self.activation(self.expand(x).astype(jnp.float32)))

    for norm, part in zip(self.norms, (attend, change)):
      added = part(x if self.after else norm(x))
      added = self.dropout(added, rngs=rngs, deterministic=rngs is None)
      x = norm(x + added) if self.after else x + added
    return x
