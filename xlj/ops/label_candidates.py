"""The few rows that a sampled loss computes with, in place of all.

Candidates are all positives of the batch, rows that are named, both without
fail, and drawn ones. Each device has those of its own rows: none is moved.

Legend: N examples (n of this device), P positives, K named rows of an example,
L label rows (l of this device), S drawn rows, C candidates (of all devices),
M = N (P + K) sure ones at most.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import label_gather
from xlj.ops import label_sample
from xlj.ops import shards as shards_lib
from xlj.ops import targets as targets_lib

P = jax.P

_NONE = 2**31 - 1


class Candidates(NamedTuple):
  """Rows that stand for all, and where the positives are among them.

  Attributes:
    ids: `[C]` int32 rows, sharded like rows, each one of its device; -1 is
      padding.
    log_counts: `[C]` float32, sharded alike: logarithm of how often the row is
      expected among the candidates; 0 for sure ones.
    targets: Of the examples, with positions among the candidates for ids.
  """

  ids: jax.Array
  log_counts: jax.Array
  targets: targets_lib.Targets


def find_candidates(
  rows: jax.Array,
  targets: targets_lib.Targets,
  sample: label_sample.Sample | None = None,
  *,
  include: jax.Array | None = None,
  label_share: jax.Array | None = None,
  num_labels: int | None = None,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> Candidates:
  """Candidates for a batch. A drawn row that is there for sure is left out.

  So a sum over the candidates, each divided by its expected count, is on
  average the sum over all labels, whatever the batch is.

  A device has room for `min(l, N (P + K))` sure candidates and its part of the
  sample.

  Args:
    rows: `[L, D]` label rows, of which only shape and sharding matter; row i is
      label i.
    targets: Positives and weights of the examples, split over devices or not.
    sample: Drawn rows, the same on all devices; padding rows in it do not
      count. None for none.
    include: `[N, K]` int32 rows that are to be candidates too, as the best
      wrong ones that `xlj.ops.label_topk` finds; -1 is padding. Sharded like
      the targets.
    label_share: `[L]` share of all examples that have the label, sharded like
      rows. Given, the batch is taken for a sample as well: candidates are its
      positives, and their expected count is the probability
      `1 - (1 - share)^(n - 1)` that one of the other n - 1 examples (of
      positive weight) has them.
    num_labels: Rows from this one on are padding; None for no padding.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    The candidates.

  Raises:
    ValueError: There are other rows beside a batch that is taken for a sample,
      or more candidates than int32 can count.
  """
  if label_share is not None and not (sample is None and include is None):
    raise ValueError(
      "where the batch is the sample (label_share), there cannot be other "
      "candidates (sample, include)"
    )
  given = jnp.asarray(targets.ids)
  split = shards_lib.split(rows, given, num_labels, placement)
  targets_lib.look_at_ids(targets.ids, split.layout.num_labels)
  shards = split.shards

  def local(targets, include, rows, label_share, sample):
    return _local_candidates(
      split, rows.shape[0], targets, include, label_share, sample
    )

  run = local
  if not shards.manual and shards.rows:
    by_row, batch = P(shards.rows), P(shards.batch)
    run = jax.shard_map(
      local,
      in_specs=(batch, batch, by_row, by_row, P()),
      out_specs=(by_row, by_row, batch),
    )
  found = run(targets, include, rows, label_share, sample)
  ids, log_counts, positions = found
  return Candidates(ids, log_counts, targets._replace(ids=positions))


def gather_candidates(
  tree: Any,
  candidates: Candidates,
  *,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> Any:
  """What is given per label, as rows or bias, for the candidates alone.

  Differentiable; the gradient is as large as what is given. To have one of the
  candidates alone, differentiate a function of what this returns.

  Args:
    tree: Arrays `[L, ...]`, sharded by rows.
    candidates: C candidates.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    Arrays `[C, ...]`, sharded alike; 0 at padding.
  """

  def one(array):
    shards = shards_lib.find(array, None, placement)

    def local(array, ids):
      index = ids - shards_lib.offset(shards, array.shape[0])
      index = jnp.where(ids < 0, array.shape[0], index)
      flat = array.reshape(array.shape[0], -1)
      part = label_gather.take(flat, index)
      return part.reshape(-1, *array.shape[1:])

    run = shards_lib.over(local, shards, (True, True), P(shards.rows))
    return run(array, candidates.ids)

  return jax.tree.map(one, tree)


def _local_candidates(split, num_rows, targets, include, label_share, sample):
  """This device's candidates, and positions of its examples' positives."""
  shards = split.shards
  first = shards_lib.offset(shards, num_rows)
  sure = targets.ids
  if include is not None:
    sure = jnp.concatenate([sure, include.astype(sure.dtype)], 1)
  weights = targets.weights
  if shards.batch:
    # Not typed as different along other axes, as positions are not.
    sure, weights = (
      lax.all_gather(a, shards.batch, tiled=True) for a in (sure, weights)
    )
  sure = sure.reshape(-1)
  is_label = (sure >= 0) & split.layout.is_label(sure)
  sure = _distinct(jnp.where(is_label, sure, _NONE))

  room = min(num_rows, sure.shape[0])
  begin = jnp.searchsorted(sure, first)
  number = jnp.searchsorted(sure, first + num_rows) - begin
  padded = jnp.concatenate([sure, jnp.full_like(sure, _NONE, shape=(room,))])
  own = lax.dynamic_slice_in_dim(padded, begin, room)
  own = jnp.where(jnp.arange(room) < number, own, -1)
  if label_share is None:
    log_counts = jnp.zeros(room)
  else:
    others = jnp.maximum((weights > 0).sum() - 1, 1)
    share = label_share.astype(jnp.float32)[jnp.maximum(own - first, 0)]
    log_counts = jnp.log(-jnp.expm1(others * jnp.log1p(-share)))
  log_counts = jnp.where(own < 0, 0, log_counts)

  if sample is not None:
    drawn, drawn_counts = _own_part(shards, sample)
    inside = (drawn >= first) & (drawn < first + num_rows)
    inside &= split.layout.is_label(drawn)
    at = jnp.searchsorted(sure, drawn)
    hit = sure[jnp.minimum(at, sure.shape[0] - 1)] == drawn
    drawn = jnp.where(inside & ~hit, drawn, -1)
    own = jnp.concatenate([own, drawn])
    log_counts = jnp.concatenate(
      [log_counts, jnp.where(drawn < 0, 0, drawn_counts)]
    )

  size = own.shape[0]
  devices = lax.axis_size(shards.rows) if shards.rows else 1
  if size * devices > _NONE:
    raise ValueError(
      f"{size} candidates on each of {devices} devices are more than int32 can "
      "count: draw fewer rows"
    )
  owner = jnp.maximum(targets.ids, 0) // num_rows
  rank = jnp.searchsorted(sure, targets.ids)
  rank -= jnp.searchsorted(sure, owner * num_rows)
  is_label = (targets.ids >= 0) & split.layout.is_label(targets.ids)
  positions = jnp.where(is_label, owner * size + rank, -1)
  return own, log_counts, positions.astype(jnp.int32)


def _distinct(ids: jax.Array) -> jax.Array:
  """Distinct ids `[M]`, ascending; what is left over is filled up."""
  ids = jnp.sort(ids)
  again = jnp.concatenate([jnp.zeros_like(ids[:1], bool), ids[1:] == ids[:-1]])
  return jnp.sort(jnp.where(again, _NONE, ids))


def _own_part(
  shards: shards_lib.Shards, sample: label_sample.Sample
) -> tuple[jax.Array, jax.Array]:
  """The part of a sample that may be of this device's rows."""
  devices = lax.axis_size(shards.rows) if shards.rows else 1
  if devices == 1 or sample.blocks % devices:
    return sample.rows, sample.log_counts
  size = sample.rows.shape[0] // devices
  start = lax.axis_index(shards.rows) * size
  return (
    lax.dynamic_slice_in_dim(sample.rows, start, size),
    lax.dynamic_slice_in_dim(sample.log_counts, start, size),
  )
