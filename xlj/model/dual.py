"""Terms of the loss on embeddings: of a batch's examples, and of label texts.

A dual encoder embeds the texts of labels as it does those of examples. The
candidates of a step are the labels of the whole batch's examples, one of each,
and hard negatives: every device scores its examples with those of all (see
`xlj.losses.contrastive`). Beside that, an encoder may learn from label texts
alone: two views of a text, with a part of its features each, are nearer to each
other than to views of other texts (Yao et al. 2021, "Self-supervised learning
for large-scale item recommendations").

Legend: N examples (n of this device), P labels of an example, M candidates (m
of this device), K features, D width.
"""

from collections.abc import Sequence

import jax
from jax import lax
import jax.numpy as jnp
import ml_collections

from xlj import sharding
from xlj.losses import contrastive
from xlj.losses import range_loss
from xlj.model import inputs as inputs_lib
from xlj.ops import chunks
from xlj.ops import normalize


def losses(
  config: ml_collections.ConfigDict,
  x: jax.Array,
  embedded: Sequence[jax.Array],
  inputs: inputs_lib.Inputs,
  step: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The weighted sum of all terms on embeddings, and each of them.

  Args:
    config: A resolved config.
    x: `[N, D]` embeddings of the examples.
    embedded: Those of `inputs.dual.texts`; none without.
    inputs: The batch.
    step: Scalar int32, number of steps taken.

  Returns:
    Scalar, and scalars by name.
  """
  total, found = jnp.float32(0), {}
  settings = config.range
  if settings.intra or settings.inter:
    total = found["range"] = _range_loss(settings, x, inputs)
  settings, dual = config.dual, inputs.dual
  if dual is None:
    return total, found
  y, *views = embedded
  found["dual"] = pair_loss(
    settings,
    (config.seed, step),
    (x, jnp.asarray(inputs.label_ids), dual.chosen, inputs.weights),
    (y, dual.candidates.label_ids, dual.log_counts),
  )
  total += settings.weight * found["dual"]
  if views:
    found["self"] = _view_loss(settings, views, dual.views[0].label_ids)
    total += settings.self_weight * found["self"]
  return total, found


def pair_loss(
  settings: ml_collections.ConfigDict,
  seeds: tuple[jax.typing.ArrayLike, jax.typing.ArrayLike],
  examples: tuple[jax.typing.ArrayLike, ...],
  candidates: tuple[jax.typing.ArrayLike, ...],
) -> jax.Array:
  """The loss of all examples of a batch with all of its candidates.

  Args:
    settings: The section `dual` of a config.
    seeds: Two numbers that what is drawn depends on.
    examples: `[N, D]` embeddings, `[N, P]` labels, `[N]` chosen ones, `[N]`
      weights.
    candidates: `[M, D]` embeddings, `[M]` labels, `[M]` log counts.

  Returns:
    Scalar, the weighted mean over the examples, and with `dual.queries` so many
    times that over the candidates that are a label of an example.
  """

  @jax.shard_map(
    in_specs=(sharding.REPLICATED, sharding.BATCH, sharding.BATCH),
    out_specs=sharding.REPLICATED,
  )
  def run(seeds, examples, candidates):
    x, ids, chosen, weights = examples
    y, labels, log_counts = candidates
    x, y = (normalize.unit_rows(a.astype(jnp.float32)) for a in (x, y))
    all_y, all_labels, all_counts = sharding.gather_batch(
      (y, labels, log_counts)
    )
    found = contrastive.pairs(ids, chosen, all_labels)
    value = _mean(
      _losses(settings, chunks.matmul(x, all_y.T), found, all_counts), weights
    )
    if settings.queries:
      first = lax.axis_index(sharding.AXES) * len(labels)
      all_x, ids, chosen, weights = sharding.gather_batch(
        (x, ids, chosen, weights)
      )
      found = contrastive.pairs(ids, chosen, labels)
      used = weights[:, None] > 0
      found = found._replace(negative=found.negative & used)
      found = found.transposed(seeds[0], seeds[1], first)
      turned = _losses(settings, chunks.matmul(y, all_x.T), found)
      some = found.positive.any(1).astype(jnp.float32)
      value += settings.queries * _mean(turned, some)
    return value

  return run(tuple(map(jnp.asarray, seeds)), examples, candidates)


def without(ids: jax.Array, labels: jax.Array, k: int) -> jax.Array:
  """The first of some labels that are no labels of an example.

  Args:
    ids: `[N, C]` int32 labels in their order; -1 for padding.
    labels: `[N, P]` int32 labels to leave out.
    k: How many.

  Returns:
    `[N, k]` int32, -1 where there are fewer.
  """
  out = (ids < 0) | (ids[:, :, None] == labels[:, None]).any(2)
  order = jnp.argsort(out, axis=1, stable=True)
  kept = jnp.take_along_axis(jnp.where(out, -1, ids), order, 1)[:, :k]
  missing = k - kept.shape[1]
  return jnp.pad(kept, ((0, 0), (0, missing)), constant_values=-1)


def _view_loss(
  settings: ml_collections.ConfigDict,
  views: Sequence[jax.Array],
  label_ids: inputs_lib.Array,
) -> jax.Array:
  """How well the view of a text is told from those of others."""
  label_ids = jnp.asarray(label_ids)
  weights = (label_ids >= 0).astype(jnp.float32)
  own = ml_collections.ConfigDict(
    {"loss": "softmax", "temperature": settings.self_temperature, "queries": 0}
  )
  examples = views[0], label_ids[:, None], label_ids, weights
  return pair_loss(own, (0, 0), examples, (views[1], label_ids, 0 * weights))


def _losses(
  settings: ml_collections.ConfigDict,
  cosines: jax.Array,
  pairs: contrastive.Pairs,
  log_counts: jax.Array | None = None,
) -> jax.Array:
  """The loss `[N]` that the section asks for."""
  if settings.loss == "triplet":
    return contrastive.triplet_losses(
      cosines,
      pairs,
      settings.margin,
      least_margin=settings.least_margin or None,
      hardest=settings.hardest,
      temperature=settings.temperature,
    )
  z = cosines / settings.temperature
  if settings.loss == "decoupled_softmax":
    return contrastive.decoupled_losses(z, pairs)
  return contrastive.softmax_losses(z, pairs, log_counts)


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
  """The weighted mean over all devices; 0 without weights."""
  total, weight = lax.psum(
    ((values * weights).sum(), weights.sum()), sharding.AXES
  )
  return total / jnp.where(weight > 0, weight, 1)


def _range_loss(
  settings: ml_collections.ConfigDict, x: jax.Array, inputs: inputs_lib.Inputs
) -> jax.Array:
  """The weighted range loss of a batch, a scalar."""
  used = jnp.asarray(inputs.weights) > 0
  labels = jnp.where(used, jnp.asarray(inputs.label_ids)[:, 0], -1)
  x, labels = jax.reshard((x, labels), sharding.REPLICATED)
  intra, inter = range_loss.range_losses(
    x, labels, settings.margin, settings.farthest
  )
  return settings.intra * intra + settings.inter * inter
