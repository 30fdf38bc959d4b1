"""Losses of a dual encoder: scores of examples beside labels of the batch.

An encoder embeds the texts of examples and of a few labels, the candidates;
what is scored is pairs of the two. Each loss is a function of all scores, and
of which pairs are positives, negatives, or neither, and returns the loss of
each example: 0 without positives. Read along the other axis, with the roles of
examples and labels exchanged, it is a loss from labels to examples.

Legend: N examples, P positives of an example, M candidates, k hard negatives.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import rounding

ArrayLike = jax.typing.ArrayLike

_FAR = -1e9  # the score of what is no pair; finite, as it is in differences


class Pairs(NamedTuple):
  """What examples and candidates are to each other; `[N, M]` bool, disjoint.

  Attributes:
    positive: Pairs to learn.
    negative: Pairs that are none of the data set.
    other: Further pairs of the data set: labels of the example that are not
      its positive in this step.
  """

  positive: jax.Array
  negative: jax.Array
  other: jax.Array

  def transposed(
    self, seed: ArrayLike, step: ArrayLike, first: ArrayLike
  ) -> "Pairs":
    """Pairs `[M, N]` from candidates to examples, one positive of each.

    Args:
      seed: Scalar integer, of what is drawn.
      step: Scalar integer, likewise.
      first: Number of the first of these candidates among all.

    Returns:
      The pairs; the positive of a candidate is drawn among all its examples.
    """
    own = (self.positive | self.other).T
    columns = jnp.arange(own.shape[1])
    rows = jnp.asarray(first + jnp.arange(own.shape[0]))
    bits = rounding.hash_bits(seed, step, rows, columns) >> 1
    best = jnp.argmax(jnp.where(own, bits.astype(jnp.int32), -1), 1)
    positive = own & (columns == best[:, None])
    return Pairs(positive, self.negative.T, own & ~positive)


def pairs(ids: jax.Array, chosen: jax.Array, candidates: jax.Array) -> Pairs:
  """The pairs of a batch, with one positive of each example.

  One positive of each row in each step is what Gupta et al. 2024, "Dual-
  encoders for extreme multi-label classification" (DEXML), sample: its text is
  the only one of the example's labels that has to be encoded.

  Args:
    ids: `[N, P]` int32 labels of each example; -1 is padding.
    chosen: `[N]` int32 one of them each, -1 for none.
    candidates: `[M]` int32 distinct labels; -1 is padding.

  Returns:
    The pairs; candidates that are other labels of an example are no negatives.
  """
  used = candidates >= 0
  own = used & (ids[:, :, None] == candidates).any(1)
  positive = used & (chosen[:, None] == candidates)
  return Pairs(positive, used & ~(own | positive), own & ~positive)


def softmax_losses(
  scores: jax.Array, pairs: Pairs, log_counts: jax.Array | None = None
) -> jax.Array:
  """`mean over positives of log sum_all exp(s) - s_p`: all compete with it.

  Candidates that are drawn, as labels of other examples are, stand for all
  labels if the logarithm of how often they are expected is taken from their
  scores (Yi et al. 2019, "Sampling-bias-corrected neural modeling for large
  corpus item recommendations", equation 3). An example's own positive is there
  without fail: its score stays (see `xlj.losses.sampled_softmax`).

  Args:
    scores: `[N, M]`.
    pairs: Of them.
    log_counts: `[M]` logarithms of the expected counts; None for zeros.

  Returns:
    `[N]`.
  """
  z = scores
  if log_counts is not None:
    z = jnp.where(pairs.positive, scores, scores - log_counts)
  used = pairs.positive | pairs.negative | pairs.other
  total = jax.nn.logsumexp(jnp.where(used, z, _FAR), axis=1, keepdims=True)
  return _mean(total - z, pairs.positive)


def decoupled_losses(scores: jax.Array, pairs: Pairs) -> jax.Array:
  """`mean over positives of log(1 + sum over negatives of exp(s_n - s_p))`.

  As in `DecoupledSoftmax`, but among candidates: what DEXML trains with.

  Args:
    scores: `[N, M]`.
    pairs: Of them.

  Returns:
    `[N]`.
  """
  others = jnp.where(pairs.negative, scores, _FAR)
  total = jax.nn.logsumexp(others, axis=1, keepdims=True)
  return _mean(jax.nn.softplus(total - scores), pairs.positive)


def triplet_losses(
  scores: jax.Array,
  pairs: Pairs,
  margin: float,
  *,
  least_margin: float | None = None,
  hardest: int = 10,
  temperature: float = 0.1,
) -> jax.Array:
  """`sum over the hardest negatives of w_n max(0, s_n - s_p + margin)`.

  The weights are a softmax of the scores of those k negatives. With a fixed
  margin they are those of NGAME (Dahiya et al. 2023, "NGAME: Negative mining-
  aware mini-batching for extreme classification", and its code): a negative
  that is far enough below has the score 0 in the softmax. With a least margin
  they are those of PRIME (Dahiya et al. 2025, "Prototypical extreme multi-label
  classification with a dynamic margin loss"): such a negative has no weight,
  and the margin of a pair is `|s_n - s_p|`, held constant, within the two.

  Args:
    scores: `[N, M]` cosines.
    pairs: Of them, with one positive of each example.
    margin: Of every pair, or the greatest.
    least_margin: The least; None for a fixed margin.
    hardest: k.
    temperature: Of the softmax.

  Returns:
    `[N]`.
  """
  at_positive = jnp.where(pairs.positive, scores, 0).sum(1, keepdims=True)
  negatives = jnp.where(pairs.negative, scores, _FAR)
  hard, _ = lax.top_k(negatives, min(hardest, scores.shape[1]))
  some = hard > _FAR
  hard = jnp.where(some, hard, 0)
  space: float | jax.Array = margin
  if least_margin is not None:
    distance = lax.stop_gradient(jnp.abs(at_positive - hard))
    space = jnp.clip(distance, least_margin, margin)
  excess = jnp.where(some, jnp.maximum(0, hard - at_positive + space), 0)
  within = excess > 0
  z = hard / temperature
  if least_margin is None:
    z = jnp.where(some, jnp.where(within, z, 0), _FAR)
  else:
    z = jnp.where(within, z, _FAR)
  losses = (jax.nn.softmax(z, axis=1) * excess).sum(1)
  return jnp.where(pairs.positive.any(1), losses, 0)


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean of each row where the mask is set; 0 where it is nowhere."""
  total = jnp.where(mask, values, 0).sum(1)
  return total / jnp.maximum(mask.sum(1), 1)
