"""Softmax losses that remember what the model thought of each example.

Instead of a matrix of probabilities of all labels for all examples they keep
those of the M best labels of each (`Targets.memory`); what is remembered next
is what `report` says: "memory_ids" and "memory_values", `[N, M]`.

Legend: N examples, c labels of a chunk, M remembered labels of an example.
"""

import dataclasses
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.losses import softmax
from xlj.ops import targets as targets_lib
from xlj.ops import topk

_MOST = 1 - 1e-4  # of the product of target and probabilities


class Statistics(NamedTuple):
  """Running statistics.

  Attributes:
    softmax: Of the log-sum-exp.
    at_memory: `[N, M]` logits of the remembered labels.
    best: The M best logits and labels.
  """

  softmax: softmax.SoftmaxStatistics
  at_memory: jax.Array
  best: topk.Best


@dataclasses.dataclass(frozen=True)
class Remembering:
  """What both losses share: the statistics.

  Attributes:
    remembered: M, how many labels of each example are remembered.
  """

  remembered: int = 16

  def init(self, num_examples: int, num_positives: int = 0) -> Statistics:
    """Statistics of no logits."""
    return Statistics(
      softmax.Softmax().init(num_examples),
      jnp.zeros((num_examples, self.remembered)),
      topk.none(num_examples, self.remembered),
    )

  def accumulate(
    self,
    stats: Statistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> Statistics:
    """Folds a chunk of logits `[N, c]` into the running statistics."""
    at_memory = stats.at_memory
    if positives.memory is not None:
      here = targets_lib.in_chunk_of(positives, positives.memory.ids, z)
      at_memory += targets_lib.gather_columns(z, here)
    return Statistics(
      softmax.Softmax().accumulate(stats.softmax, z, positives),
      at_memory,
      topk.search(stats.best, z, positives.first, positives.label_axis),
    )

  def merge(self, stats: Statistics, axes: tuple[str, ...]) -> Statistics:
    """Merges the statistics of all shards of the mesh axes `axes`."""
    if not axes:
      return stats
    return Statistics(
      softmax.Softmax().merge(stats.softmax, axes),
      lax.psum(stats.at_memory, axes),
      topk.merge(stats.best, axes),
    )


@dataclasses.dataclass(frozen=True)
class EarlyLearning(Remembering):
  """Softmax cross-entropy that holds on to what was learnt before (ELR).

  `CE + strength * log(1 - <t, p>)`, with the probabilities p and a target t of
  each example, their moving average: `t <- momentum t + (1 - momentum) p`,
  updated before it is used, and constant in the gradient. Models learn the
  right labels before they memorise the wrong ones; the regulariser keeps the
  gradient of examples whose labels they disagree with small.

  Source: Liu et al. 2020, "Early-learning regularization prevents memorization
  of noisy labels", equations 4 and 6. The authors' code clamps each probability
  to 1e-4, which destroys the target from 10,000 labels on; here the product is
  kept below 1 - 1e-4 instead. Of t the M largest entries are kept.

  Attributes:
    strength: Lambda.
    momentum: Beta.
  """

  strength: float = 3.0
  momentum: float = 0.7

  def value_and_grad(
    self,
    stats: Statistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    base = softmax.Softmax().value_and_grad
    value, grad = base(stats.softmax, z, positives)
    if positives.memory is None:
      return value, grad
    target, probabilities = self._target(stats, positives.memory)
    counts = positives.count > 0
    inner = jnp.minimum((target.values * probabilities).sum(1), _MOST)
    # Each example's regulariser is counted once: with the first label.
    first = jnp.asarray(positives.first == 0)
    value += jnp.where(counts & first, self.strength * jnp.log1p(-inner), 0)
    factor = jnp.where(counts, self.strength / (1 - inner), 0)
    grad += softmax.probabilities(stats.softmax, z, positives, factor * inner)
    here = targets_lib.in_chunk_of(positives, target.ids, z)
    pull = factor[:, None] * target.values * probabilities
    pull = jnp.where(here.inside, pull, 0)
    return value, targets_lib.add_at_columns(grad, here, -pull)

  def report(
    self, stats: Statistics, targets: targets_lib.Targets
  ) -> dict[str, jax.Array]:
    """The targets to remember."""
    assert targets.memory is not None  # It is a training step.
    target, _ = self._target(stats, targets.memory)
    ids, values = map(jnp.asarray, target)
    return {"memory_ids": ids, "memory_values": values}

  def _target(
    self, stats: Statistics, memory: targets_lib.Memory
  ) -> tuple[targets_lib.Memory, jax.Array]:
    """The new targets, and the probabilities `[N, M]` of their labels."""
    known = jnp.asarray(memory.ids) >= 0
    old = jnp.exp(-softmax.costs(stats.softmax, stats.at_memory))
    old = jnp.where(known, old, 0)
    again = targets_lib.among(stats.best.ids, memory.ids)
    is_new = ~again & (stats.best.ids >= 0)
    new = jnp.exp(-softmax.costs(stats.softmax, stats.best.scores))
    new = jnp.where(is_new, new, 0)
    rest = 1 - self.momentum
    values = self.momentum * jnp.asarray(memory.values) + rest * old
    values = jnp.concatenate([jnp.where(known, values, 0), rest * new], 1)
    ids = jnp.concatenate([memory.ids, stats.best.ids], 1)
    values, places = lax.top_k(values, self.remembered)
    ids = jnp.take_along_axis(ids, places, 1)
    probabilities = jnp.concatenate([old, new], 1)
    probabilities = jnp.take_along_axis(probabilities, places, 1)
    target = targets_lib.Memory(jnp.where(values > 0, ids, -1), values)
    return target, probabilities


@dataclasses.dataclass(frozen=True)
class SelfDistillation(Remembering):
  """Softmax cross-entropy against labels mixed with what was predicted before.

  The target is `(1 - a) y + a p`, with y uniform over the positives, p the
  probabilities of the model when it saw the example the last time, and a = `a_T
  t / T` in epoch t of T. Source: Kim et al. 2021, "Self-knowledge distillation
  with progressive refinement of targets" (PS-KD), equations 2 and 8. Of p the M
  largest entries are kept; what is missing just counts less.

  Attributes:
    last: a_T, how much predictions count in the last epoch.
    steps_per_epoch: Steps of an epoch.
    num_epochs: T.
    step: Steps taken; see `at`.
  """

  last: float = 0.8
  steps_per_epoch: int = 1
  num_epochs: int = 1
  step: jax.Array | int = 0

  def at(self, step: jax.Array) -> "SelfDistillation":
    """The loss after so many steps."""
    return dataclasses.replace(self, step=step)

  def value_and_grad(
    self,
    stats: Statistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    memory = positives.memory
    if memory is None:
      return softmax.Softmax().value_and_grad(stats.softmax, z, positives)
    counts = positives.count > 0
    seen = (memory.ids >= 0).any(1) & counts
    mix = jnp.where(seen, self._mix(), 0).astype(z.dtype)
    labels = (1 - mix)[:, None] * targets_lib.shares(positives, z.dtype)
    here = targets_lib.in_chunk_of(positives, memory.ids, z)
    before = mix[:, None] * jnp.asarray(memory.values, z.dtype)
    at_memory = jnp.where(here.inside, before, 0)
    logits = targets_lib.gather_columns(z, positives)
    value = (labels * softmax.costs(stats.softmax, logits)).sum(1)
    logits = targets_lib.gather_columns(z, here)
    value += (at_memory * softmax.costs(stats.softmax, logits)).sum(1)
    mass = jnp.where(counts, 1 - mix, 0) + before.sum(1)
    grad = softmax.probabilities(stats.softmax, z, positives, mass)
    grad = targets_lib.add_at_columns(grad, positives, -labels)
    return value, targets_lib.add_at_columns(grad, here, -at_memory)

  def report(
    self, stats: Statistics, targets: targets_lib.Targets
  ) -> dict[str, jax.Array]:
    """The probabilities to remember."""
    costs = softmax.costs(stats.softmax, stats.best.scores)
    return {"memory_ids": stats.best.ids, "memory_values": jnp.exp(-costs)}

  def _mix(self) -> jax.Array:
    """How much predictions count in this step."""
    epoch = 1 + jnp.asarray(self.step) // self.steps_per_epoch
    return self.last * jnp.minimum(epoch / self.num_epochs, 1)
