"""Softmax over labels of which some have several rows, with logits by row.

The logit of a label is `G = logsumexp` of those of its rows, so that the
softmax over labels is that over rows, added up: a mixture of as many directions
for each label. Many examples of a frequent label need not lie in one direction;
with rows of their own, sub-classes do not have to (Hou et al. 2023,
"Subclass-balancing contrastive learning for long-tailed recognition", SBCL).

Legend: N examples, P positive labels of an example, R rows of a label, c rows
of a chunk.
"""

import dataclasses

import jax
import jax.numpy as jnp

from xlj.losses import decoupled_softmax
from xlj.losses import softmax
from xlj.ops import targets as targets_lib


@dataclasses.dataclass(frozen=True)
class PrototypeSoftmax:
  """`mean over positive labels of (logsumexp(z) - G_p)`, or decoupled.

  What an example's positives are is given by row: R in a row of `Targets.ids`
  for each label, -1 where it has fewer. An example without positives costs
  nothing. The rows of a positive share its gradient by their part
  `q_r = exp(z_r - G_p)` of it.

  Attributes:
    rows: R.
    decoupled: Leave the other positives out of the denominator, as in
      `decoupled_softmax`: `mean of log(1 + sum_{r negative} exp(z_r - G_p))`.
  """

  rows: int
  decoupled: bool = False

  def init(
    self, num_examples: int, num_positives: int
  ) -> decoupled_softmax.DecoupledStatistics:
    """Statistics of no logits."""
    return decoupled_softmax.DecoupledSoftmax().init(
      num_examples, num_positives
    )

  def accumulate(
    self,
    stats: decoupled_softmax.DecoupledStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> decoupled_softmax.DecoupledStatistics:
    """Folds a chunk of logits `[N, c]` into the running statistics."""
    others = self._others(z, positives)
    return decoupled_softmax.DecoupledStatistics(
      softmax.Softmax().accumulate(stats.negatives, others, positives),
      stats.positives + targets_lib.gather_columns(z, positives),
    )

  def merge(
    self,
    stats: decoupled_softmax.DecoupledStatistics,
    axes: tuple[str, ...],
  ) -> decoupled_softmax.DecoupledStatistics:
    """Merges the statistics of all shards of the mesh axes `axes`."""
    return decoupled_softmax.DecoupledSoftmax().merge(stats, axes)

  def value_and_grad(
    self,
    stats: decoupled_softmax.DecoupledStatistics,
    z: jax.Array,
    positives: targets_lib.Positives,
  ) -> tuple[jax.Array, jax.Array]:
    """This chunk's part of the loss, and its gradient."""
    at_rows = jnp.where(positives.used, stats.positives, -jnp.inf)
    at_rows = at_rows.reshape(at_rows.shape[0], -1, self.rows)  # [N, P, R]
    used = positives.used.reshape(at_rows.shape).any(2)
    at_rows = jnp.where(used[..., None], at_rows, 0)
    label = jax.nn.logsumexp(at_rows, axis=2)  # [N, P]
    part = jnp.exp(at_rows - label[..., None])
    share = used / jnp.maximum(used.sum(1, keepdims=True), 1)
    excess = softmax.costs(stats.negatives, label)
    cost, slope = excess, jnp.ones_like(excess)
    if self.decoupled:
      cost, slope = jax.nn.softplus(excess), jax.nn.sigmoid(excess)
    cost = jnp.where(used, cost, 0)

    def by_row(values: jax.Array) -> jax.Array:
      rows = (values[..., None] * part).reshape(positives.inside.shape)
      return jnp.where(positives.inside, rows, 0)

    value = by_row(share * cost).sum(1)
    grad = softmax.probabilities(
      stats.negatives,
      self._others(z, positives),
      positives,
      (share * slope).sum(1),
    )
    return value, targets_lib.add_at_columns(
      grad, positives, -by_row(share * slope)
    )

  def _others(
    self, z: jax.Array, positives: targets_lib.Positives
  ) -> jax.Array:
    """The logits that are in the denominator; -inf elsewhere."""
    if not self.decoupled:
      return z
    return targets_lib.set_at_columns(z, positives, -jnp.inf)
