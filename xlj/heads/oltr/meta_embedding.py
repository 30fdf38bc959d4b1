"""Embeddings mixed with a memory of label centroids: open long-tailed.

Liu et al. 2019, "Large-scale long-tailed recognition in an open world" (OLTR),
as in the authors' code where that differs from the paper. All of it is
differentiable but in the memory, which has a rule of its own (`attracted`), and
runs on memories that are split over devices, in the memory of a chunk.

Legend: N examples, P positives, D width, L rows of the memory, padding
included.
"""

import math

import jax
import jax.numpy as jnp

from xlj.ops import label_distance

EPS = 1e-12


def cosine_scale(num_labels: int, most: float = 0.9998) -> float:
  """The scale of cosine logits at which a probability can reach `most`.

  Of L labels, one at cosine 1 and the others at 0 have probabilities
  `e^s / (e^s + L - 1)` and less: a scale that does not grow with log L leaves
  no label likely. The default is 15.4 for 1,000 labels, where the authors have
  16, and 29.2 for 10^9.

  Args:
    num_labels: L.
    most: Below 1.

  Returns:
    `log((L - 1) most / (1 - most))`, at least 1.
  """
  odds = max(num_labels - 1, 1) * most / (1 - most)
  return max(1.0, math.log(odds))


def meta_embedding(
  x: jax.Array,
  remembered: jax.Array,
  selector: jax.Array,
  selector_bias: jax.Array,
  distance: jax.Array,
  reach: float = 10.0,
) -> jax.Array:
  """`reach / distance (x + tanh(x T + t) * remembered)`.

  Args:
    x: `[N, D]` direct embeddings.
    remembered: `[N, D]` memory feature: the memory as attended to by x (see
      `xlj.ops.label_attend`).
    selector: `[D, D]` T, of how much of which concept is taken.
    selector_bias: `[D]` t.
    distance: `[N]` to the nearest row of the memory, of
      `xlj.ops.label_distance`.
    reach: The authors' 10; 1 in the paper.

  Returns:
    `[N, D]`, long where labels are near.
  """
  chosen = jnp.tanh(x @ selector + selector_bias)
  return (reach / distance)[:, None] * (x + chosen * remembered)


def squashed(x: jax.Array) -> jax.Array:
  """`x / (1 + |x|)`: the direction, and a length below 1; `[N, D]` both."""
  squares = jnp.square(x).sum(1, keepdims=True)
  return x / (1 + jnp.sqrt(squares + EPS))


def centre_losses(
  x: jax.Array,
  own: jax.Array,
  is_own: jax.Array,
  total: jax.Array,
  squares: jax.Array,
  num_labels: int,
) -> tuple[jax.Array, jax.Array]:
  """How far examples are from their own centroids, and from all others.

  Args:
    x: `[N, D]` direct embeddings.
    own: `[N, P, D]` rows of the memory of the positives.
    is_own: `[N, P]` bool, False at padding.
    total: `[D]` sum of the memory.
    squares: Scalar, sum of its squares.
    num_labels: L.

  Returns:
    Half the mean squared distance to the own, `[N]`, and the mean squared
    distance to the others, `[N]`.
  """
  to_own = jnp.where(is_own, jnp.square(x[:, None] - own).sum(2), 0)
  count = jnp.maximum(is_own.sum(1), 1)
  others = label_distance.others_distance(
    x, own, is_own, total, squares, num_labels
  )
  return 0.5 * to_own.sum(1) / count, others


def attracted(
  memory: jax.Array,
  columns: jax.Array,
  x: jax.Array,
  rate: float,
) -> jax.Array:
  """This device's memory, moved to the examples of each label.

  `c -= rate * sum (c - x) / (1 + n)` over the n examples of its label (Wen et
  al. 2016, "A discriminative feature learning approach for deep face
  recognition", equation 4).

  Args:
    memory: `[l, D]`.
    columns: `[N, P]` int32 rows of the positives; l where there is none here.
    x: `[N, D]` direct embeddings of all examples.
    rate: Of the step.

  Returns:
    `[l, D]`.
  """
  flat = columns.reshape(-1)
  by_row = jnp.zeros_like(memory[:, 0]).at[flat].add(1.0, mode="drop")
  count = by_row.at[flat].get(mode="fill", fill_value=0)
  rows = memory.at[flat].get(mode="fill", fill_value=0)
  step = rate * (rows - jnp.repeat(x, columns.shape[1], axis=0))
  step = (step / (1 + count)[:, None]).astype(memory.dtype)
  return memory.at[flat].add(-step, mode="drop")
