"""Probabilities of labels as mixtures of products over their digits.

`p(y | x) = sum_r pi_r(x) prod_h p_rh(d_h | x)`, with a softmax `p_rh` over the
`C_h` values of digit h. One product (Liang et al., "Multi-Head Encoding for
extreme label classification", TPAMI 2024, section 4.2) makes the digits of an
example independent; a mixture of R need not, at R times the cost, and is
normalised without a sum over all labels, as any mixture of products is.

Codes that stand for no label (ghosts, see `xlj.heads.product.mixed_radix`) get
no probability: what is left is divided by `P(real)`, the probability of all
codes below the first ghost with digits `l_1 .. l_H`. In lexicographic order
that is `sum_h p_1(l_1) .. p_{h-1}(l_{h-1}) p_h(d < l_h)`: H terms. Values of
the first digit that no label has are left out of its softmax.

Legend: N examples, R products, H digits, C_h length of digit h, S their sum,
T digits of the codes asked for.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy import special

from xlj.heads.product import mixed_radix


class Product(NamedTuple):
  """Distributions of N examples over labels.

  Attributes:
    log_probs: For each digit `[N, R, C_h]`, normalised over its values; -inf
      where all codes with that first digit are ghosts.
    log_weights: `[N, R]`, logarithm of `pi_r`.
    log_real: `[N, R]`, logarithm of the probability that product r gives to
      all labels together.
  """

  log_probs: tuple[jax.Array, ...]
  log_weights: jax.Array
  log_real: jax.Array

  @property
  def log_total(self) -> jax.Array:
    """`[N]` logarithm of the probability that the mixture gives to labels."""
    return special.logsumexp(self.log_weights + self.log_real, -1)


def from_logits(
  logits: jax.Array, weight_logits: jax.Array, radix: mixed_radix.MixedRadix
) -> Product:
  """Softmax of each digit, and of the weights of products.

  Args:
    logits: `[N, R, S]` float32, the digits side by side.
    weight_logits: `[N, R]` float32.
    radix: Lengths of digits and number of labels.

  Returns:
    The distributions.
  """
  first, *rest = split_digits(logits, radix.lengths)
  # Of ghosts alone: without this their gradient is not 0 but rounding, which an
  # optimizer may blow up.
  in_use = radix.num_first_digits
  if in_use < radix.lengths[0]:
    first = jnp.where(jnp.arange(radix.lengths[0]) < in_use, first, -jnp.inf)
  log_probs = tuple(jax.nn.log_softmax(part) for part in (first, *rest))
  return Product(
    log_probs,
    jax.nn.log_softmax(weight_logits),
    _log_real(log_probs, radix),
  )


def split_digits(logits: jax.Array, lengths: Sequence[int]) -> list[jax.Array]:
  """`[..., S]` to `[..., C_h]` for each digit."""
  return jnp.split(logits, _ends(lengths)[:-1], -1)


def log_likelihood(product: Product, digits: jax.Array) -> jax.Array:
  """Logarithm of the probability of one label per example.

  Args:
    product: Of N examples.
    digits: `[N, H]` int32 digits of labels; negative ones give a finite number
      that means nothing.

  Returns:
    `[N]`.
  """
  return log_scores(product, digits[:, None])[:, 0] - product.log_total


def log_scores(product: Product, digits: jax.Array) -> jax.Array:
  """As `log_likelihood`, for T codes of each example, and before the division.

  Args:
    product: Of N examples.
    digits: `[N, T, H]` int32.

  Returns:
    `[N, T]` logarithms of probabilities among all codes.
  """
  total = product.log_weights[:, :, None]  # [N, R, T]
  for h, log_probs in enumerate(product.log_probs):
    index = jnp.maximum(digits[:, None, :, h], 0)
    total = total + jnp.take_along_axis(log_probs, index, -1)
  return special.logsumexp(total, 1)


def joint_softmax_loss(
  logits: jax.Array, digits: jax.Array, lengths: Sequence[int]
) -> jax.Array:
  """One softmax over the values of all digits, which compete.

  `-sum_h log softmax(logits)[value h]`: the ImageNet script of the authors. Its
  minimum is `H log H`.

  Args:
    logits: `[N, S]`, the digits side by side.
    digits: `[N, H]` int32.
    lengths: `C_1 .. C_H`.

  Returns:
    `[N]`.
  """
  log_probs = jax.nn.log_softmax(logits)
  columns = _columns(digits, lengths)
  return -jnp.take_along_axis(log_probs, columns, 1).sum(1)


def bce_loss(
  logits: jax.Array, digits: jax.Array, lengths: Sequence[int]
) -> jax.Array:
  """Binary cross-entropy of the values of all digits, their mean.

  The CIFAR script of the authors. Given that each digit has one value, the
  probabilities are those of one softmax per digit.

  Args:
    logits: `[N, S]`, the digits side by side.
    digits: `[N, H]` int32.
    lengths: `C_1 .. C_H`.

  Returns:
    `[N]`.
  """
  columns = _columns(digits, lengths)
  positive = jnp.take_along_axis(logits, columns, 1).sum(1)
  return (jax.nn.softplus(logits).sum(1) - positive) / logits.shape[1]


def _log_real(
  log_probs: tuple[jax.Array, ...], radix: mixed_radix.MixedRadix
) -> jax.Array:
  """`[N, R]` logarithm of P(real) of each product."""
  prefix = jnp.zeros_like(log_probs[0][..., 0])
  limit = radix.limit
  if limit is None:
    return prefix
  terms = []
  for part, digit in zip(log_probs, limit):
    if digit:
      terms.append(prefix + special.logsumexp(part[..., :digit], -1))
    prefix = prefix + part[..., digit]
  return special.logsumexp(jnp.stack(terms, -1), -1)


def _columns(digits: jax.Array, lengths: Sequence[int]) -> jax.Array:
  """Where the values `[N, H]` are among all digits' side by side."""
  starts = jnp.array([0, *_ends(lengths)[:-1]], jnp.int32)
  return jnp.maximum(digits, 0) + starts


def _ends(lengths: Sequence[int]) -> list[int]:
  return [sum(lengths[: h + 1]) for h in range(len(lengths))]
