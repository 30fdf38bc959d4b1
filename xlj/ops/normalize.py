"""Unit rows with a gradient that stays finite at zero."""

import jax
from jax import lax
import jax.numpy as jnp


def unit_rows(x: jax.Array, eps: float = 1e-6) -> jax.Array:
  """Rows scaled to length 1; a row of zeros stays zero, gradient included.

  Args:
    x: `[..., D]`.
    eps: Added to the squared length.

  Returns:
    `[..., D]` of the same dtype.
  """
  return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + eps)
