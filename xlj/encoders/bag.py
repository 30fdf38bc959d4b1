"""Weighted bag of features, optionally followed by an MLP.

Legend: N examples, K features per example (padded), F features, D width.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from xlj.ops import feature_rows
from xlj.ops import normalize

Features = feature_rows.SparseRows | jax.Array

# With few features, a product with zeros in it is faster than reading one row
# per feature: products run near peak, reads and their gradients do not.
_DENSE_WITHIN = 32


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
    std: float | None = None,
    identity: bool = False,
    input_scale: float = 1.0,
    scale: float = 0.0,
    fixed_scale: bool = False,
    rngs: nnx.Rngs,
  ):
    """Creates the parameters.

    Args:
      num_features: F.
      dim: D, the width of the bag.
      hidden: Widths of the hidden layers that follow the bag.
      activation: Name of a function of `jax.nn`, applied after the bag (plus
        a bias) and after every hidden layer; empty for a linear encoder.
      embedding_dropout: Dropout rate on the embedding that is returned.
      hidden_dropout: Dropout rate after every hidden activation.
      std: Standard deviation of the initial table; default `1 / sqrt(dim)`.
      identity: Start at the identity instead, which embeds dense features of
        width D as they are.
      input_scale: Factor on the features.
      scale: If positive, embeddings are normalised to unit length and
        multiplied by a trained scale that starts here (cosine logits).
      fixed_scale: Whether the scale stays as it is.
      rngs: Source of random keys.
    """
    std = dim**-0.5 if std is None else std
    self.table = nnx.Param(
      jnp.eye(num_features, dim)
      if identity
      else std * jax.random.normal(rngs.params(), (num_features, dim))
    )
    # The logarithm, so that Adam changes the scale by a share of itself; of a
    # strong type, or steps would be compiled again when it becomes one.
    trained = scale and not fixed_scale
    self.log_scale = nnx.Param(jnp.log(jnp.float32(scale))) if trained else None
    self.scale = 0.0 if trained else scale
    widths = (dim, *hidden)
    self.bias = nnx.Param(jnp.zeros((dim,))) if activation else None
    self.input_scale = input_scale
    self.layers = nnx.List(
      nnx.Linear(a, b, rngs=rngs) for a, b in zip(widths[:-1], widths[1:])
    )
    self.activation = getattr(jax.nn, activation or "identity")
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
    h = self.input_scale * _bag(features, self.table[...])
    evaluate = rngs is None
    if self.bias is not None:
      h = self.activation(h + self.bias[...])
    for layer in self.layers:
      h = self.hidden_dropout(h, rngs=rngs, deterministic=evaluate)
      h = self.activation(layer(h))
    if self.log_scale is not None:
      h = jnp.exp(self.log_scale[...]) * normalize.unit_rows(h)
    elif self.scale:
      h = self.scale * normalize.unit_rows(h)
    return self.embedding_dropout(h, rngs=rngs, deterministic=evaluate)


def _bag(features: Features, table: jax.Array) -> jax.Array:
  """`S E`, `[N, D]`, of sparse or dense examples."""
  if not isinstance(features, feature_rows.SparseRows):
    return features @ table
  num_features, width = table.shape[0], features.ids.shape[1]
  is_known = isinstance(width, int)  # or it is left open in an export
  if not is_known or num_features > _DENSE_WITHIN * width:
    return jnp.einsum("nk,nkd->nd", features.values, table[features.ids])

  def dense(ids: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.zeros((num_features,), values.dtype).at[ids].add(values)

  return jax.vmap(dense)(features.ids, features.values) @ table
