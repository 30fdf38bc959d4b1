"""Weighted bag of features, optionally followed by an MLP.

Legend: N examples, K features per example (padded), F features, D width.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from xlj.ops import feature_rows

Features = feature_rows.SparseRows | jax.Array


class BagEncoder(nnx.Module):
  """`sum_k v_k E[f_k]`, then residual blocks, then dropout.

  Sparse examples read one embedding row per feature; dense examples `[N, F]`
  are multiplied with the same `E [F, D]`.
  """

  def __init__(
    self,
    num_features: int,
    dim: int,
    *,
    hidden: tuple[int, ...] = (),
    activation: str = "relu",
    embedding_dropout: float = 0.0,
    hidden_dropout: float = 0.0,
    init_scale: float = 0.0,
    rngs: nnx.Rngs,
  ):
    """Creates the parameters.

    Args:
      num_features: F.
      dim: D, the width of the bag.
      hidden: Widths of the hidden layers that follow the bag.
      activation: Name of a function of `jax.nn`, applied after the bag and
        after every hidden layer when `hidden` is not empty.
      embedding_dropout: Dropout rate on the embedding that is returned.
      hidden_dropout: Dropout rate after every hidden activation.
      init_scale: Standard deviation of the initial embeddings; 0 means
        `1 / sqrt(dim)`.
      rngs: Source of random keys.
    """
    scale = init_scale or dim**-0.5
    self.table = nnx.Param(
      scale * jax.random.normal(rngs.params(), (num_features, dim))
    )
    widths = (dim, *hidden)
    self.bias = nnx.Param(jnp.zeros((dim,))) if hidden else None
    self.layers = nnx.List(
      nnx.Linear(a, b, rngs=rngs) for a, b in zip(widths[:-1], widths[1:])
    )
    self.activation = getattr(jax.nn, activation)
    self.hidden_dropout = nnx.Dropout(hidden_dropout)
    self.embedding_dropout = nnx.Dropout(embedding_dropout)

  def __call__(
    self, features: Features, *, rngs: nnx.Rngs | None = None
  ) -> jax.Array:
    """Encodes a batch.

    Args:
      features: Sparse examples, or dense `[N, F]`.
      rngs: Source of dropout keys; None means evaluation, no dropout.

    Returns:
      `[N, D]` float32 embeddings, D the last of `hidden` if there is one.
    """
    if isinstance(features, feature_rows.SparseRows):
      h = jnp.einsum(
        "nk,nkd->nd", features.values, self.table[features.ids]
      )
    else:
      h = features @ self.table[...]
    evaluate = rngs is None
    if self.bias is not None:
      h = self.activation(h + self.bias)
    for layer in self.layers:
      h = self.hidden_dropout(h, rngs=rngs, deterministic=evaluate)
      h = self.activation(layer(h))
    return self.embedding_dropout(h, rngs=rngs, deterministic=evaluate)
