"""Prototypes of new labels, calibrated by the labels that are known.

Wang et al. 2023, "Few-shot class-incremental learning via training-free
prototype calibration" (TEEN), equations 5 and 6: means of few examples lean
towards those labels with many examples that are similar, so they are moved
there a little more on purpose, as their examples would.

Legend: K new labels, L label rows, D width.
"""

import jax
import jax.numpy as jnp

from xlj.ops import label_attention


def calibrated(
  prototypes: jax.Array,
  rows: jax.Array,
  is_label: jax.Array,
  *,
  share: float = 0.5,
  scale: float = 16.0,
  neighbours: int = 50,
) -> jax.Array:
  """`(1 - share) p + share unit(sum_b softmax_b(scale cos(p, w_b)) unit(w_b))`.

  Args:
    prototypes: `[K, D]` of new labels; their direction counts.
    rows: `[L, D]` of known ones, float32, split over devices.
    is_label: bool `[L]`, split likewise; False leaves a row out.
    share: Of the known labels in the result.
    scale: Of cosines; the inverse temperature.
    neighbours: How many known labels each new one is compared with: the
      nearest. Over very many, a softmax is almost flat.

  Returns:
    `[K, D]`, split like `prototypes`; not of length 1.
  """
  p, w = unit(prototypes), unit(rows)
  bias = jnp.where(is_label, 0.0, -jnp.inf)
  near = label_attention.label_attend_topk(
    p, w, w, scale, neighbours, bias=bias
  )
  return (1 - share) * p + share * unit(near)


def unit(a: jax.Array) -> jax.Array:
  """Rows `[N, D]` of length 1; those of length 0 stay."""
  norm = jnp.linalg.norm(a, axis=-1, keepdims=True)
  return a / jnp.maximum(norm, 1e-12)
