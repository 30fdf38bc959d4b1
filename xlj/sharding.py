"""Which logical axis lives on which mesh axes; the only place that names them.

Label rows, and the examples of a batch, are split over all devices; everything
that does not grow with the number of labels is replicated.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

P = jax.P

AXES = ("data", "label")
REPLICATED = P()
BATCH = P(AXES)  # leading axis: examples
LABELS = P(AXES)  # leading axis: label rows


def mesh() -> jax.sharding.Mesh | jax.sharding.AbstractMesh:
  """The mesh in context; without devices if it is an abstract one."""
  found = jax.sharding.get_mesh()
  return jax.sharding.get_abstract_mesh() if found.empty else found


def axes() -> tuple[str, ...]:
  """The mesh axes that rows are split over; none without a mesh in context."""
  mesh = jax.sharding.get_abstract_mesh()
  return tuple(axis for axis in AXES if axis in mesh.shape)


def num_shards() -> int:
  """Number of devices that rows are split over; 1 without a mesh in context."""
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape[axis] for axis in axes())


def fill(count: int) -> int:
  """How many to append to `count` for each device to have as many."""
  return -count % num_shards()


def one_device() -> jax.sharding.Mesh:
  """A mesh of one device of this process."""
  return jax.sharding.Mesh(
    np.array(jax.local_devices()[:1]).reshape(1, 1),
    AXES,
    axis_types=(jax.sharding.AxisType.Explicit,) * 2,
  )


def named(
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, specs: Any
) -> Any:
  """Turns a tree of `PartitionSpec` into a tree of `NamedSharding`."""
  return jax.tree.map(
    lambda spec: jax.NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda leaf: isinstance(leaf, P),
  )


def replicated_like(tree: Any) -> Any:
  """A tree of `REPLICATED` with the structure of `tree`."""
  return jax.tree.map(lambda _: REPLICATED, tree)


def by_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
  """Lets the compiler shard the batch axis inside `function`.

  Any code written for one device works then, at the price that the compiler
  may communicate as it sees fit; so what scales with L does not go through it.

  Args:
    function: From arrays to a tree of arrays with examples leading.

  Returns:
    The function, whose results are sharded by `BATCH`.
  """
  run: Any = jax.sharding.auto_axes(function, out_sharding=BATCH)
  return run


def own_index(rows: jax.Array, num_rows: int) -> jax.Array:
  """Where rows `[...]` of all devices lie among those of this one.

  To be used inside a `shard_map` over the mesh.

  Args:
    rows: Integers; negative for none.
    num_rows: How many this device has.

  Returns:
    Integers `[...]`; `num_rows`, behind the end, for those elsewhere.
  """
  place = rows - jax.lax.axis_index(AXES) * num_rows
  inside = (place >= 0) & (place < num_rows)
  return jnp.where(inside, place, num_rows)


def own_rows(num_rows: int) -> jax.Array:
  """The numbers of this device's rows, of `num_rows` on all devices.

  To be used inside a `shard_map` over the mesh.

  Args:
    num_rows: How many rows there are; a multiple of the number of devices.

  Returns:
    Integers `[r]`.
  """
  count = num_rows // num_shards()
  return jax.lax.axis_index(AXES) * count + jnp.arange(count)


def gather_batch(tree: Any) -> Any:
  """The examples of all devices, `[n, ...]` to `[N, ...]`.

  To be used inside a `shard_map` over the mesh.

  Args:
    tree: Arrays with this device's examples leading.

  Returns:
    The same tree with those of all.
  """
  with jax.named_scope("collectives"):
    return jax.tree.map(lambda a: jax.lax.all_gather(a, AXES, tiled=True), tree)


def scatter_batch(a: jax.Array) -> jax.Array:
  """The sum over all devices of this one's examples, `[N, ...]` to `[n, ...]`.

  To be used inside a `shard_map` over the mesh.

  Args:
    a: Each device's part of the sum.

  Returns:
    This device's examples of the sum.
  """
  with jax.named_scope("collectives"):
    return jax.lax.psum_scatter(a, AXES, tiled=True)


def put_batch(batch: Any) -> Any:
  """Assembles global arrays from this process's rows of a batch.

  Args:
    batch: Tree of numpy arrays, each with this process's examples leading.

  Returns:
    The same tree of global `jax.Array` on the mesh in context, sharded by
    `BATCH`.
  """
  target = jax.NamedSharding(jax.sharding.get_mesh(), BATCH)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(target, x), batch
  )


def put_rows(
  num_rows: int, part: Callable[[np.ndarray], np.ndarray]
) -> jax.Array:
  """Makes an array by label row; each device is given its own rows alone.

  Args:
    num_rows: How many rows there are, R.
    part: From int `[r]`, numbers of rows, to their values `[r, ...]`, the same
      in every process.

  Returns:
    `[R, ...]` on the mesh in context, sharded by `LABELS`.
  """
  target = jax.NamedSharding(jax.sharding.get_mesh(), LABELS)

  def of_device(index: Any) -> np.ndarray:
    first, last, _ = index[0].indices(num_rows)
    return part(np.arange(first, last))

  shape = num_rows, *part(np.arange(0)).shape[1:]
  return jax.make_array_from_callback(shape, target, of_device)


def put_blocks(blocks: np.ndarray) -> jax.Array:
  """Puts an array by block onto the mesh in context, each device its own.

  Args:
    blocks: `[B, ...]`, the same in every process.

  Returns:
    `[C, ...]`, sharded by `LABELS`; 0 in the blocks behind that `fill` counts.
  """
  count = len(blocks)

  def part(numbers: np.ndarray) -> np.ndarray:
    own = blocks[numbers[numbers < count]]
    empty = len(numbers) - len(own)
    return np.pad(own, ((0, empty), (0, 0))) if empty else own

  return put_rows(count + fill(count), part)


def replicate(tree: Any) -> Any:
  """Puts arrays that every process has onto all devices of the mesh."""
  target = jax.NamedSharding(jax.sharding.get_mesh(), REPLICATED)
  return jax.device_put(tree, target)


def whole(array: jax.Array) -> np.ndarray:
  """All of an array on every process, as numpy; all of them have to ask."""
  if array.is_fully_addressable:
    return np.asarray(array)
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def local_rows(array: jax.Array) -> np.ndarray:
  """This process's rows of an array sharded by `BATCH`, as numpy."""
  shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
  return np.concatenate([np.asarray(shards[i]) for i in sorted(shards)])
