"""The exact best labels of a mixture of products, by branch and bound.

Labels are a tree: a level for each digit, as long as more than a few thousand
codes are below a node. A node's labels have at most the probability
`sum_r w_r prod_h max p_rh`, with `w_r` for the weight times the probabilities
of the digits so far. Children are visited in descending order of that bound
until it is below the k-th best found. Below the last level all codes are
scored. Memory is a few thousand numbers for each product and level, whatever
the number of labels.

Legend: N examples, R products, H digits, C_h length of digit h, T codes below
a node of the last level.
"""

import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.scipy import special
import numpy as np

from xlj.heads.product import distribution as product_lib
from xlj.heads.product import mixed_radix

_LEAF = 4096  # codes scored at a time, unless the last digit alone has more
_ROUNDING = 1e-4  # what a logarithm may be off by, times 1 + its size

_Found = tuple[jax.Array, jax.Array]  # scores [k], digits [k, H]


def search(
  product: product_lib.Product,
  radix: mixed_radix.MixedRadix,
  certain: jax.Array,
  scores: jax.Array,
  digits: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Replaces lists of k labels by the best k, where they may not be.

  The examples in question are searched one after the other.

  Args:
    product: Of N examples.
    radix: Lengths of digits and number of labels, at least k.
    certain: `[N]` bool, whether the example's list is the best already.
    scores: `[N, k]` log-probabilities among all codes, descending, of k
      distinct labels.
    digits: `[N, k, H]` their int32 digits.

  Returns:
    Scores and digits, of the best k labels.
  """
  order = jnp.argsort(certain)  # those in question first

  def body(i, lists):
    n = order[i]
    one = [part[n] for part in product.log_probs]
    scores, digits = lists
    found = _search_one(
      one, product.log_weights[n], radix, (scores[n], digits[n])
    )
    return scores.at[n].set(found[0]), digits.at[n].set(found[1])

  number = jnp.sum(~certain, dtype=jnp.int32)
  return lax.fori_loop(0, number, body, (scores, digits))


def _search_one(
  log_probs: list[jax.Array],
  log_weights: jax.Array,
  radix: mixed_radix.MixedRadix,
  known: _Found,
) -> _Found:
  """The best labels of one example.

  Args:
    log_probs: For each digit `[R, C_h]`.
    log_weights: `[R]`.
    radix: Lengths of digits and number of labels.
    known: Any k labels, as good as possible: they are found again, and nodes
      below the last of them are not visited.

  Returns:
    The best labels.
  """
  leaf = _leaf_level(radix.lengths)
  table = log_probs[leaf]  # [R, T]: all codes of the digits from there on
  for part in log_probs[leaf + 1 :]:
    table = (table[:, :, None] + part[:, None]).reshape(part.shape[0], -1)
  tails = _leaf_digits(radix.lengths[leaf:])  # [T, H - leaf]
  reach = _best_rests(log_probs)
  limit = radix.limit
  last = known[0][-1]
  rounding = _ROUNDING * (1 + jnp.abs(last))

  def score_leaf(log_weights, prefix, tight, found):
    scores = special.logsumexp(log_weights[:, None] + table, 0)
    if limit is not None:
      scores = jnp.where(tight & ~_below(tails, limit[leaf:]), -jnp.inf, scores)
    best, chosen = lax.top_k(scores, min(found[0].shape[0], len(tails)))
    tail = jnp.asarray(tails)[chosen]
    head = jnp.broadcast_to(prefix, (len(best), leaf))
    return _merge(found, best, jnp.concatenate([head, tail], 1))

  def visit(level, log_weights, prefix, tight, found):
    if level == leaf:
      return score_leaf(log_weights, prefix, tight, found)
    below = log_weights[:, None] + log_probs[level]  # [R, C]
    bounds = special.logsumexp(below + reach[level + 1][:, None], 0)
    if limit is not None:
      ghost = np.arange(radix.lengths[level]) > limit[level]
      bounds = jnp.where(tight & ghost, -jnp.inf, bounds)
    bounds, order = lax.top_k(bounds, len(bounds))

    def promising(carry):
      i, found = carry
      at = bounds[jnp.minimum(i, len(bounds) - 1)]
      enough = at + rounding >= jnp.maximum(last, found[0][-1])
      return (i < len(bounds)) & enough & ~jnp.isneginf(at)

    def descend(carry):
      i, found = carry
      value = order[i]
      on_limit = tight
      if limit is not None:
        on_limit = tight & (value == limit[level])
      longer = jnp.concatenate([prefix, value[None]])
      return i + 1, visit(level + 1, below[:, value], longer, on_limit, found)

    start = jnp.zeros_like(order[0])
    return lax.while_loop(promising, descend, (start, found))[1]

  none = jnp.full_like(known[0], -jnp.inf), jnp.full_like(known[1], -1)
  prefix = jnp.zeros_like(known[1], shape=(0,))
  tight = jnp.full_like(last, limit is not None, dtype=bool)
  return visit(0, log_weights, prefix, tight, none)


def _leaf_level(lengths: tuple[int, ...]) -> int:
  """The first digit of those whose codes are scored at once."""
  level = len(lengths) - 1
  while level and math.prod(lengths[level - 1 :]) <= _LEAF:
    level -= 1
  return level


def _leaf_digits(lengths: tuple[int, ...]) -> np.ndarray:
  """Digits `[T, h]` int32 of all codes of these lengths, in order."""
  grid = np.indices(lengths, np.int32)
  return grid.reshape(len(lengths), -1).T


def _best_rests(log_probs: list[jax.Array]) -> list[Any]:
  """For each level h `[R]`: the best of the digits from h on, per product."""
  reach = [jnp.zeros_like(log_probs[0][:, 0])]
  for part in reversed(log_probs):
    reach.append(reach[-1] + part.max(1))
  return reach[::-1]


def _below(tails: np.ndarray, limit: tuple[int, ...]) -> np.ndarray:
  """`[T]` whether codes `[T, h]` come before the first ghost."""
  codes = np.arange(len(tails))
  is_limit = (tails == np.array(limit)).all(1)
  return codes < codes[is_limit].max()


def _merge(found: _Found, scores: jax.Array, digits: jax.Array) -> _Found:
  """The best k of those found and others `[T]`, `[T, H]`."""
  all_scores = jnp.concatenate([found[0], scores])
  all_digits = jnp.concatenate([found[1], digits])
  best, chosen = lax.top_k(all_scores, found[0].shape[0])
  return best, all_digits[chosen]
