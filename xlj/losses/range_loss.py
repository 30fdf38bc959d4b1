"""Range loss: the widest pairs of a label nearer, the nearest labels apart.

Zhang et al. 2017, "Range loss for deep face recognition with long-tailed
training data". It is a term on the embeddings of a batch, beside a softmax: a
label with many examples and one with few count the same, each by its widest
pairs alone.

Legend: N examples, D width, K pairs of a label.
"""

import jax
from jax import lax
import jax.numpy as jnp

_LEAST = 1e-6  # what a smaller squared distance counts as


def range_losses(
  x: jax.Array, labels: jax.Array, margin: float, farthest: int = 2
) -> tuple[jax.Array, jax.Array]:
  """How wide labels are, and how near to each other, within a batch.

  The first is the sum over labels of the harmonic mean of their K greatest
  squared distances between two examples (equation 2), the second
  `max(0, margin - d)` of the least squared distance between the means of two
  labels (equation 4). A label with fewer pairs has the mean of those.

  Args:
    x: `[N, D]` embeddings.
    labels: `[N]` int32; examples with a negative one do not count.
    margin: Squared distance from which on labels are far enough apart.
    farthest: K.

  Returns:
    Two float32 (or wider) scalars, 0 where there are no pairs or no two labels.
    Their memory is that of `[N, N K]` numbers.
  """
  number = jnp.arange(len(labels))
  counted = labels >= 0
  same = (labels[:, None] == labels) & counted & counted[:, None]
  first = counted & (jnp.argmax(same, 1) == number)

  later = same & (number[:, None] < number)
  k = min(farthest, len(labels))
  of_example, _ = lax.top_k(jnp.where(later, _squares(x), -1), k)
  of_label = jnp.where(same[:, :, None], of_example, -1).reshape(len(x), -1)
  widest, _ = lax.top_k(of_label, k)
  is_pair = widest >= 0
  inverse = jnp.where(is_pair, 1 / jnp.maximum(widest, _LEAST), 0).sum(1)
  is_wide = first & is_pair[:, 0]
  mean = is_pair.sum(1) / jnp.where(is_wide, inverse, 1)
  intra = jnp.where(is_wide, mean, 0).sum()

  shares = same / jnp.maximum(same.sum(1, keepdims=True), 1)
  between = _squares(_dot(shares.astype(x.dtype), x))
  between = jnp.where(first & first[:, None] & ~same, between, jnp.inf)
  return intra, jnp.maximum(0, margin - between.min())


def _squares(x: jax.Array) -> jax.Array:
  """`[N, N]` squared distances."""
  lengths = jnp.square(x).sum(1)
  return jnp.maximum(lengths[:, None] + lengths - 2 * _dot(x, x.T), 0)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.dot(a, b, precision=lax.Precision.HIGHEST)
