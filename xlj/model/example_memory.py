"""What is remembered of every training example, split over all devices.

A device holds whole examples, whoever reads them: so it is saved and restored
like the rest of the state, on any mesh.

Legend: R rows of the training split (padded), M labels of each, N examples of a
batch, n of this device.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import ml_collections

from xlj import sharding
from xlj.config import dual
from xlj.config import remedies
from xlj.ops import targets as targets_lib

# Halves of what float32 takes; the values are probabilities.
_DTYPE = jnp.float16


def init(num_rows: int, remembered: int, multiple: int) -> targets_lib.Memory:
  """Nothing is remembered yet.

  Args:
    num_rows: Rows of the training split.
    remembered: M.
    multiple: Of which R is one, but for what the devices' shares need.

  Returns:
    ids `[R, M]` int32, all -1, and values `[R, M]` float16, all 0.
  """
  padded = -(-num_rows // multiple) * multiple
  shape = padded + sharding.fill(padded), remembered
  return targets_lib.Memory(
    jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, _DTYPE)
  )


def take(memory: targets_lib.Memory, rows: jax.Array) -> targets_lib.Memory:
  """What is remembered of the examples of a batch.

  Args:
    memory: Of all examples, sharded by `BATCH`.
    rows: `[N]` int32, sharded by `BATCH`.

  Returns:
    ids `[N, M]` and float32 values `[N, M]`, sharded by `BATCH`.
  """

  @jax.shard_map(
    in_specs=(sharding.BATCH, sharding.BATCH), out_specs=sharding.BATCH
  )
  def run(memory, rows):
    place, here = _places(memory, rows)
    # Of each example one device alone adds something: 0 is "nothing".
    ids = jnp.where(here, memory.ids[place] + 1, 0)
    values = jnp.where(here, memory.values[place].astype(jnp.float32), 0)
    ids, values = lax.psum_scatter(
      (ids, values), sharding.AXES, scatter_dimension=0, tiled=True
    )
    return targets_lib.Memory(ids - 1, values)

  return run(memory, rows)


def put(
  memory: targets_lib.Memory,
  rows: jax.Array,
  ids: jax.Array,
  values: jax.Array,
) -> targets_lib.Memory:
  """Remembers something of the examples of a batch.

  Args:
    memory: Of all examples, sharded by `BATCH`.
    rows: `[N]` int32, sharded by `BATCH`. If one is there twice, what is said
      of it first counts.
    ids: `[N, M]` int32, the same on all devices.
    values: `[N, M]`, the same on all devices.

  Returns:
    The memory, in place if it is donated.
  """

  @jax.shard_map(
    in_specs=(
      sharding.BATCH,
      sharding.BATCH,
      sharding.REPLICATED,
      sharding.REPLICATED,
    ),
    out_specs=sharding.BATCH,
  )
  def run(memory, rows, ids, values):
    place, here = _places(memory, rows)
    size = memory.ids.shape[0]
    earlier = jnp.tril(jnp.ones((place.shape[0],) * 2, bool), -1)
    again = (earlier & (place[:, None] == place) & here[:, 0]).any(1)
    place = jnp.where(here[:, 0] & ~again, place, size)  # out of range
    return targets_lib.Memory(
      memory.ids.at[place].set(ids, mode="drop"),
      memory.values.at[place].set(values.astype(_DTYPE), mode="drop"),
    )

  return run(memory, rows, ids, values)


def _places(
  memory: targets_lib.Memory, rows: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Where `[N]` the examples are on this device, and whether `[N, 1]`."""
  rows = lax.all_gather(rows, sharding.AXES, tiled=True)
  size = memory.ids.shape[0]
  place = sharding.own_index(rows, size)
  return jnp.minimum(place, size - 1), (place < size)[:, None]


def of(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What a training state remembers of the training examples, if anything.

  Args:
    config: A resolved config.

  Returns:
    `memory` if the loss needs one, and `negatives` `[rows, ...]` int32 if a
    dual encoder does.
  """
  remembered = remedies.num_remembered(config)
  size = config.data.num_rows, remembered, config.head.blocks
  found: dict[str, Any] = {}
  if remembered:
    found["memory"] = init(*size)
  if negatives := dual.num_negatives(config):
    found["negatives"] = init(size[0], negatives, size[2]).ids
  return found
