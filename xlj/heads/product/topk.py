"""The best labels of a mixture of products, without scoring all of them.

One product: the best values of a digit and the best rests behind it, both
sorted, are merged; pair (i, j) has (i + 1)(j + 1) - 1 pairs that are as good at
least, so only `k log k` pairs are looked at. With ghosts the labels are at most
H boxes (the first digits those of the first ghost, the next one smaller, the
rest free), and each has its own list.

A mixture: the best m labels of each product are scored under all of them. Any
other label has at most the m-th best probability of each product, so at most
`sum_r pi_r p_r(m-th)`; if that is below the k-th best score, the list is exact
(the threshold algorithm: Fagin et al., "Optimal aggregation algorithms for
middleware", JCSS 2003). The examples for which it is not are searched with the
k-th best score as a bound, see `xlj.heads.product.search`.

Legend: N examples, R products, B = N R of them, H digits, C_h length of digit
h, E named labels of an example, T candidates, a, b lengths of lists.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.scipy import special
import numpy as np

from xlj.heads.product import distribution as product_lib
from xlj.heads.product import mixed_radix
from xlj.heads.product import search as product_search

_CANDIDATES = 32  # of each product, at least


def topk_of(
  product: product_lib.Product, digits: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
  """The k labels of highest probability among some.

  Args:
    product: Of N examples.
    digits: `[N, E, H]` int32 digits of different labels of each example; -1 is
      padding.
    k: How many labels.

  Returns:
    As `product_topk`.
  """
  scores = product_lib.log_scores(product, digits)
  scores = jnp.where((digits < 0).any(-1), -jnp.inf, scores)
  return _filled(product, scores, digits, k)


class _Best(NamedTuple):
  """Sorted lists: `scores [B, a]` descending, `digits [B, a, h]`."""

  scores: jax.Array
  digits: jax.Array


def product_topk(
  product: product_lib.Product,
  radix: mixed_radix.MixedRadix,
  k: int,
  exclude: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The k labels of highest probability, exactly; any of equal ones.

  Ghosts are never among them. Not differentiable. Inside `shard_map` it works
  on this device's examples and does not communicate.

  Args:
    product: Of N examples.
    radix: Lengths of digits and number of labels.
    k: How many labels.
    exclude: `[N, E, H]` int32 digits of labels never to be returned for that
      example; -1 is padding.

  Returns:
    Scores `[N, k]`, descending: log-probabilities, that would add up to
    probability 1 over all labels; and int32 digits `[N, k, H]`. -inf and -1
    where there are fewer than k labels.
  """
  number = k + (0 if exclude is None else exclude.shape[1])
  best = _all_topk(product, radix, min(number, radix.num_labels))
  scores = best.scores
  if exclude is not None:
    same = best.digits[:, :, None] == exclude[:, None]
    scores = jnp.where(same.all(-1).any(-1), -jnp.inf, scores)
  return _filled(product, scores, best.digits, k)


def _all_topk(
  product: product_lib.Product, radix: mixed_radix.MixedRadix, k: int
) -> _Best:
  """The k best labels of N examples; not more than there are labels."""
  num_products = product.log_weights.shape[1]
  if num_products == 1:
    return _product_topk(product.log_probs, radix, k)
  m = min(radix.num_labels, max(_CANDIDATES, 2 * k))
  own = _product_topk(product.log_probs, radix, m)
  by_product = own.scores.reshape(-1, num_products, m)
  unseen = special.logsumexp(product.log_weights + by_product[..., -1], -1)
  candidates = own.digits.reshape(-1, num_products * m, len(radix.lengths))
  scores = product_lib.log_scores(product, candidates)
  scores = jnp.where(_seen_before(candidates), -jnp.inf, scores)
  best = _Best(*_take_best(scores, candidates, k))
  certain = best.scores[:, -1] >= unseen
  if m == radix.num_labels:
    return best
  return _Best(*product_search.search(product, radix, certain, *best))


def _product_topk(
  log_probs: tuple[jax.Array, ...], radix: mixed_radix.MixedRadix, k: int
) -> _Best:
  """The best labels of each of the B = N R products, k or all there are."""
  parts = [part.reshape(-1, part.shape[-1]) for part in log_probs]
  num_products = parts[0].shape[0]
  limit = radix.limit
  rest = _Best(
    jnp.zeros_like(parts[0], shape=(num_products, 1)),
    jnp.zeros_like(parts[0], shape=(num_products, 1, 0), dtype=jnp.int32),
  )
  boxes = []
  for h in reversed(range(len(parts))):
    if limit is not None and limit[h]:
      box = _merge(parts[h][:, : limit[h]], rest, k)
      boxes.append(_behind(limit[:h], parts[:h], box))
    if h or limit is None:
      rest = _merge(parts[h], rest, k)
  if limit is None:
    return rest
  scores = jnp.concatenate([box.scores for box in boxes], 1)
  digits = jnp.concatenate([box.digits for box in boxes], 1)
  return _Best(*_take_best(scores, digits, k))


def _merge(part: jax.Array, rest: _Best, k: int) -> _Best:
  """The best pairs of a value of a digit `[B, C]` and a rest behind it."""
  own_scores, own_values = lax.top_k(part, min(k, part.shape[1]))
  i, j = _pairs(own_scores.shape[1], rest.scores.shape[1], k)
  scores, chosen = lax.top_k(
    own_scores[:, i] + rest.scores[:, j], min(k, len(i))
  )
  values = jnp.take_along_axis(own_values, jnp.asarray(i)[chosen], 1)
  digits = jnp.take_along_axis(
    rest.digits, jnp.asarray(j)[chosen][..., None], 1
  )
  return _Best(scores, jnp.concatenate([values[..., None], digits], -1))


def _pairs(a: int, b: int, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Positions in two sorted lists that may be among the best k pairs."""
  pairs = [
    (i, j) for i in range(min(a, k)) for j in range(min(b, k // (i + 1)))
  ]
  i, j = np.array(pairs, np.int32).T
  return i, j


def _behind(
  prefix: tuple[int, ...], parts: list[jax.Array], box: _Best
) -> _Best:
  """Puts fixed digits, with parts `[B, C_h]`, in front of all of a list."""
  scores, digits = box
  for part, value in reversed(list(zip(parts, prefix))):
    scores = scores + part[:, value, None]
    first = jnp.full_like(digits, value, shape=(*scores.shape, 1))
    digits = jnp.concatenate([first, digits], -1)
  return _Best(scores, digits)


def _seen_before(digits: jax.Array) -> jax.Array:
  """`[N, T]` whether a code `[N, T, H]` is there at an earlier place too."""
  num_digits = digits.shape[-1]
  place = lax.broadcasted_iota(jnp.int32, digits.shape[:2], 1)
  place = place + jnp.zeros_like(digits[..., 0])
  *ordered, place = lax.sort(
    [*(digits[..., h] for h in range(num_digits)), place],
    dimension=1,
    num_keys=num_digits,
  )
  same = jnp.ones_like(ordered[0][:, 1:], bool)
  for digit in ordered:
    same &= digit[:, 1:] == digit[:, :-1]
  same = jnp.pad(same, ((0, 0), (1, 0)))
  rows = lax.broadcasted_iota(jnp.int32, place.shape, 0)
  return jnp.zeros_like(same).at[rows, place].set(same)


def _filled(
  product: product_lib.Product, scores: jax.Array, digits: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
  """The best k of `[N, T]` and `[N, T, H]`, filled up with -inf and -1."""
  missing = max(0, k - scores.shape[1])
  scores = jnp.pad(scores, ((0, 0), (0, missing)), constant_values=-jnp.inf)
  digits = jnp.pad(digits, ((0, 0), (0, missing), (0, 0)))
  scores, digits = _take_best(scores, digits, k)
  digits = jnp.where(jnp.isneginf(scores)[..., None], -1, digits)
  return scores - product.log_total[:, None], digits


def _take_best(
  scores: jax.Array, digits: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
  """The best k of `[B, T]` and `[B, T, H]`, or all there are, sorted."""
  scores, chosen = lax.top_k(scores, min(k, scores.shape[1]))
  return scores, jnp.take_along_axis(digits, chosen[..., None], 1)
