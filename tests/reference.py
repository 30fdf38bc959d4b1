"""Textbook losses on full logits: short, dense, unsharded; for tests.

`hot [N, L]` is 1 at positives and 0 elsewhere.
Legend: N examples, L labels.
"""

import jax
import jax.numpy as jnp


def multi_hot(ids: jax.Array, num_labels: int) -> jax.Array:
  """`[N, P]` ids with -1 padding to a dense `[N, L]` 0/1 matrix."""
  return jax.nn.one_hot(ids, num_labels).sum(1)


def softmax_loss(logits: jax.Array, hot: jax.Array) -> jax.Array:
  """Mean over positives of the softmax cross-entropy, `[N]`."""
  target = hot / jnp.maximum(hot.sum(1, keepdims=True), 1)
  return -(target * jax.nn.log_softmax(logits)).sum(1)


def bce_loss(logits: jax.Array, hot: jax.Array) -> jax.Array:
  """Binary cross-entropy summed over labels, `[N]`."""
  return (
    -hot * jax.nn.log_sigmoid(logits) - (1 - hot) * jax.nn.log_sigmoid(-logits)
  ).sum(1)


def decoupled_softmax_loss(logits: jax.Array, hot: jax.Array) -> jax.Array:
  """Mean over positives of their softmax loss against the negatives, `[N]`."""
  negatives = jnp.where(hot > 0, 0, jnp.exp(logits)).sum(1, keepdims=True)
  probability = jnp.exp(logits) / (jnp.exp(logits) + negatives)
  target = hot / jnp.maximum(hot.sum(1, keepdims=True), 1)
  return -(target * jnp.log(probability)).sum(1)


def weighted_bce_loss(
  logits: jax.Array,
  hot: jax.Array,
  positive: jax.Array,
  negative: jax.Array,
  unbiased: bool,
) -> jax.Array:
  """Binary cross-entropy with weights `[L]` of either side, `[N]`."""
  as_positive = -jax.nn.log_sigmoid(logits)
  as_negative = -jax.nn.log_sigmoid(-logits)
  at_positives = positive * as_positive
  if unbiased:
    at_positives += (1 - positive) * as_negative
  return jnp.where(hot > 0, at_positives, negative * as_negative).sum(1)


def focal_loss(
  logits: jax.Array, hot: jax.Array, gamma: float, alpha: float
) -> jax.Array:
  """Focal loss summed over labels, `[N]`."""
  p = jax.nn.sigmoid(logits)
  positive = -alpha * (1 - p) ** gamma * jnp.log(p)
  negative = -(1 - alpha) * p**gamma * jnp.log(1 - p)
  return jnp.where(hot > 0, positive, negative).sum(1)


def asymmetric_loss(
  logits: jax.Array,
  hot: jax.Array,
  gamma_positive: float,
  gamma_negative: float,
  clip: float,
  constant_weights: bool,
) -> jax.Array:
  """Asymmetric loss summed over labels, `[N]`."""
  p = jax.nn.sigmoid(logits)
  q = jnp.maximum(p - clip, 0)
  weight = jnp.where(hot > 0, (1 - p) ** gamma_positive, q**gamma_negative)
  if constant_weights:
    weight = jax.lax.stop_gradient(weight)
  return -(weight * jnp.log(jnp.where(hot > 0, p, 1 - q))).sum(1)


def squared_hinge_loss(logits: jax.Array, hot: jax.Array) -> jax.Array:
  """Squared hinge loss summed over labels, `[N]`."""
  return (jnp.maximum(0, 1 - (2 * hot - 1) * logits) ** 2).sum(1)


def with_margin(
  logits: jax.Array, hot: jax.Array, scale: float, angle: float, cosine: float
) -> jax.Array:
  """Cosine logits with margins at the positives, `[N, L]`."""
  theta = jnp.arccos(logits / scale)
  turned = jnp.cos(theta + angle)
  beyond = jnp.cos(theta) - angle * jnp.sin(angle)
  changed = jnp.where(theta + angle < jnp.pi, turned, beyond) - cosine
  return jnp.where(hot > 0, scale * changed, logits)


def label_smoothing_loss(
  logits: jax.Array, hot: jax.Array, smoothing: float
) -> jax.Array:
  """Softmax cross-entropy against smoothed positives, `[N]`."""
  count = hot.sum(1, keepdims=True)
  target = (1 - smoothing) * hot / jnp.maximum(count, 1)
  target += jnp.where(count > 0, smoothing / logits.shape[1], 0)
  return -(target * jax.nn.log_softmax(logits)).sum(1)


def z_loss(logits: jax.Array, hot: jax.Array) -> jax.Array:
  """Squared log-sum-exp of the examples that have positives, `[N]`."""
  return jnp.where(hot.any(1), jax.nn.logsumexp(logits, axis=1) ** 2, 0)


def soft_target_loss(
  logits: jax.Array, target: jax.Array, temperature: float
) -> jax.Array:
  """Softmax cross-entropy at a temperature against targets `[N, L]`, `[N]`."""
  log_p = jax.nn.log_softmax(logits / temperature)
  return -(temperature**2) * (target * log_p).sum(1)


def weighted_mean(losses: jax.Array, weights: jax.Array) -> jax.Array:
  """`sum(w * loss) / sum(w)`; 0 when all weights are 0."""
  total = weights.sum()
  return (losses * weights).sum() / jnp.where(total > 0, total, 1)
