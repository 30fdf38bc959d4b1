"""ROLE: labels that were not observed are estimated along with the model.

The estimates are a matrix of logits, examples times labels; of each example
the M largest are kept (`Targets.memory`), all of them if M is the number of
labels, and the other labels count as negatives. About as many as an example has
positives do better than all (see docs/missing_wrong_rare_labels.md).

Source: Cole et al. 2021, "Multi-label learning from single positive labels",
section 5 (ROLE), equations 7 to 11, times the number of labels like the other
losses here.

Legend: N examples, c labels of a chunk, L labels, M remembered labels of an
example, P positives.
"""

import dataclasses
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.losses import bce
from xlj.losses import logistic
from xlj.ops import targets as targets_lib
from xlj.ops import topk


class Statistics(NamedTuple):
  """Running statistics.

  Attributes:
    total: `[N]` sum of the probabilities of all labels.
    at_memory: `[N, M]` logits of the remembered labels.
    best: The M best logits and labels.
  """

  total: jax.Array
  at_memory: jax.Array
  best: topk.Best


@dataclasses.dataclass(frozen=True)
class OnlineEstimation:
  """Binary cross-entropy against estimated labels, whose number is expected.

  `(sum_l H(y_l, f_l) - sum_{p positive} log f_p + r (k(f) - k)^2 / L) / 2` for
  probabilities f and estimates y, with H the binary cross-entropy and k(f) the
  mean of the sums of f over a batch. The estimates follow the gradient of the
  same thing with the roles of f and y exchanged. A label's first estimate is
  what the model thinks of it (the authors draw it at random).

  Attributes:
    num_labels: L.
    expected: k, how many positives an example has on average.
    remembered: M.
    strength: r.
    rate: The learning rate of the estimates' logits.
  """

  num_labels: int
  expected: float
  remembered: int
  strength: float = 1.0
  rate: float = 10.0

  def init(self, num_examples: int, num_positives: int = 0) -> Statistics:
    """Statistics of no logits."""
    return Statistics(
      jnp.zeros(num_examples),
      jnp.zeros((num_examples, self.remembered)),
      topk.none(num_examples, self.remembered),
    )

  def accumulate(
    self, stats: Statistics, z: jax.Array, positives: targets_lib.Positives
  ) -> Statistics:
    """Folds a chunk of logits `[N, c]` into the running statistics."""
    at_memory = stats.at_memory
    if positives.memory is not None:
      here = targets_lib.in_chunk_of(positives, positives.memory.ids, z)
      at_memory += targets_lib.gather_columns(z, here)
    return Statistics(
      stats.total + jax.nn.sigmoid(z).sum(positives.label_axis),
      at_memory,
      topk.search(stats.best, z, positives.first, positives.label_axis),
    )

  def merge(self, stats: Statistics, axes: tuple[str, ...]) -> Statistics:
    """Merges the statistics of all shards of the mesh axes `axes`."""
    if not axes:
      return stats
    total, at_memory = lax.psum((stats.total, stats.at_memory), axes)
    return Statistics(total, at_memory, topk.merge(stats.best, axes))

  def value_and_grad(
    self, stats: Statistics, z: jax.Array, positives: targets_lib.Positives
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    memory = positives.memory
    if memory is None:
      return bce.BinaryCrossEntropy().value_and_grad(None, z, positives)
    ids, estimates = self._known(stats, memory)
    here = targets_lib.in_chunk_of(positives, ids, z)
    y = jnp.where(here.inside, jax.nn.sigmoid(estimates), 0)
    softplus, p, complement = logistic.logistic(z)
    # Taken out before the sum, as in `separable.sum_of_terms`.
    rest = targets_lib.set_at_columns(softplus, here, 0)
    value = rest.sum(positives.label_axis)
    at_memory = targets_lib.gather_columns(z, here)
    known = (1 - y) * logistic.logistic(at_memory).softplus
    known += y * logistic.logistic(-at_memory).softplus
    value += jnp.where(here.inside, known, 0).sum(1)
    # The excess of positives is a batch's; it is counted with the first label.
    excess = _mean(stats.total, positives.weights) - self.expected
    scale = self.strength / self.num_labels
    first = jnp.asarray(positives.first == 0)
    value += jnp.where(first, scale * excess**2, 0)
    grad = p + 2 * scale * excess * p * complement
    grad = targets_lib.add_at_columns(grad, here, -y)
    at_positives = targets_lib.gather_columns(z, positives)
    missed = logistic.logistic(-at_positives)
    value += jnp.where(positives.inside, missed.softplus, 0).sum(1)
    miss = jnp.where(positives.inside, missed.sigmoid, 0)
    grad = targets_lib.add_at_columns(grad, positives, -miss)
    return value / 2, grad / 2

  def report(
    self, stats: Statistics, targets: targets_lib.Targets
  ) -> dict[str, jax.Array]:
    """The estimates to remember, as logits."""
    assert targets.memory is not None  # It is a training step.
    ids, estimates = self._known(stats, targets.memory)
    logits = jnp.concatenate([stats.at_memory, stats.best.scores], 1)
    known = ids >= 0
    y = jnp.where(known, jax.nn.sigmoid(estimates), 0)
    grad = y - jax.nn.sigmoid(logits)
    observed = targets_lib.among(ids, targets.ids) & known
    grad -= jnp.where(observed, 1 - y, 0)
    excess = _mean(y.sum(1), targets.weights) - self.expected
    grad += 2 * self.strength / self.num_labels * excess * y * (1 - y)
    estimates -= self.rate * grad / 2
    kept, places = lax.top_k(
      jnp.where(known, estimates, -jnp.inf), self.remembered
    )
    ids = jnp.take_along_axis(ids, places, 1)
    return {
      "memory_ids": ids,
      "memory_values": jnp.where(ids < 0, 0, kept),
    }

  def _known(
    self, stats: Statistics, memory: targets_lib.Memory
  ) -> tuple[jax.Array, jax.Array]:
    """Labels `[N, 2 M]` that are remembered or new, and their estimates."""
    best = stats.best
    again = targets_lib.among(best.ids, memory.ids)
    full = (jnp.asarray(memory.ids) >= 0).all(1, keepdims=True)
    lowest = jnp.min(memory.values, 1, keepdims=True)
    # It would be forgotten at once.
    again |= full & (best.scores < lowest)
    ids = jnp.concatenate([memory.ids, jnp.where(again, -1, best.ids)], 1)
    estimates = jnp.concatenate([memory.values, best.scores], 1)
    return ids, jnp.where(ids < 0, 0, estimates)


def _mean(values: jax.Array, weights: targets_lib.Array | None) -> jax.Array:
  """The mean over the examples that count."""
  if weights is None:
    return values.mean()
  weights = jnp.asarray(weights)
  return (values * weights).sum() / jnp.maximum(weights.sum(), 1e-9)
