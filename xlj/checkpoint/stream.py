"""Reads sharded arrays of a checkpoint in pieces, straight onto the devices.

Orbax writes each array as zarr chunks inside an OCDBT store (a B-tree of keys
and values in files). Its own restore holds whole shards in host memory; here at
most `_IN_FLIGHT` pieces are there at a time, and each process reads nothing but
its shards, without waiting for others.
"""

import collections
from collections.abc import Iterator, Mapping
import math
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from xlj.checkpoint import errors
from xlj.checkpoint import trees

PIECE_BYTES = 64 << 20
_IN_FLIGHT = 4

# A half-open interval along each dimension.
Box = tuple[tuple[int, int], ...]


def read(
  directory: epath.Path,
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  rows: trees.Rows = trees.ALL,
) -> dict[str, jax.Array]:
  """Reads this process's shards of some arrays.

  Args:
    directory: Of the item that Orbax wrote.
    wanted: By name; shapes, types and shardings. Those need not be the ones
      that the arrays were saved with.
    rows: How many rows of an array are read; others are 0.

  Returns:
    The arrays, by name.

  Raises:
    CheckpointError: Naming an array that is missing, damaged, or of another
      shape or type.
  """
  context, base = ts.Context(), _key_value_store(directory)
  arrays = {}
  for name, want in wanted.items():
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    spec = {
      "driver": "zarr",
      "kvstore": kvstore,
      # It does not change any more: a bucket is not asked again and again.
      "recheck_cached_data": False,
      "recheck_cached_metadata": False,
    }
    store = _result(ts.open(spec, read=True, context=context), name)
    there, here = list(store.shape), trees.shape(name, want, rows)
    # Other devices may have written empty rows behind.
    fits = there[1:] == here[1:] and there[:1] >= here[:1]
    there, here = f"{store.dtype.name}{there}", f"{want.dtype.name}{here}"
    if store.dtype.name != want.dtype.name or not fits:
      raise errors.CheckpointError(
        f"array {name} is {there} there, and {here} in this run"
      )
    arrays[name] = _read_one(store, name, want, rows.get(name))
  return arrays


def _result(future: Any, name: str) -> Any:
  """What tensorstore has read; its errors name the array."""
  try:
    return future.result()
  except (ValueError, OSError, KeyError) as error:  # missing, damaged
    raise errors.CheckpointError(
      f"array {name} cannot be read: {errors.reason(error)}"
    ) from None


def boxes(box: Box, chunks: tuple[int, ...], elements: int) -> Iterator[Box]:
  """Cuts a box into smaller ones, along the chunks of the file if possible.

  Args:
    box: What to cut.
    chunks: Lengths of the chunks of the file.
    elements: Greatest size of a piece.

  Yields:
    Disjoint boxes that make up the box, none of which is empty.
  """
  lengths = [stop - start for start, stop in box]
  size = np.prod(lengths, dtype=np.int64)
  if size <= elements:
    if size:
      yield box
    return
  within = [
    (stop - 1) // n - start // n for (start, stop), n in zip(box, chunks)
  ]
  axis = int(np.argmax(within if any(within) else lengths))
  start, stop = box[axis]
  middle = (start + stop) // 2
  if any(within):
    chunk = chunks[axis]
    middle = max(start // chunk + 1, middle // chunk) * chunk
  for part in ((start, middle), (middle, stop)):
    yield from boxes((*box[:axis], part, *box[axis + 1 :]), chunks, elements)


def _key_value_store(directory: epath.Path) -> Any:
  """Where tensorstore finds a directory."""
  if "://" in str(directory):
    return f"{directory}/"
  return {"driver": "file", "path": f"{directory}/"}


def _read_one(
  store: ts.TensorStore,
  name: str,
  want: jax.ShapeDtypeStruct,
  rows: int | None,
) -> jax.Array:
  """Reads this process's shards of one array."""
  sharding: Any = want.sharding
  devices: dict[Box, list[jax.Device]] = collections.defaultdict(list)
  for device, index in sharding.addressable_devices_indices_map(
    want.shape
  ).items():
    devices[_box(index, want.shape)].append(device)
  chunks: Any = store.chunk_layout.read_chunk.shape
  elements = PIECE_BYTES // want.dtype.itemsize
  shards, pieces = {}, []
  for box, holders in devices.items():
    part, lengths = _first(box, rows), [stop - start for start, stop in box]
    if math.prod(lengths) <= elements:
      pieces.append((box, part))
      continue
    pieces += [(box, piece) for piece in boxes(part, chunks, elements)]
    for device in holders:
      with _alone(device):
        shards[device] = jnp.zeros(lengths, want.dtype, device=device)
  under_way: collections.deque = collections.deque()

  def finish_one() -> None:
    box, piece, future = under_way.popleft()
    data = _result(future, name)
    starts = [np.int32(a - b) for (a, _), (b, _) in zip(piece, box)]
    for device in devices[box]:
      with _alone(device):
        if device in shards:
          new = jax.device_put(data, device)
          shards[device] = _put(shards[device], new, starts)
        else:  # A shard of one piece: nothing has to be compiled.
          shards[device] = jax.device_put(_padded(data, box), device)
    # Until it is there, the piece is in use.
    jax.block_until_ready([shards[device] for device in devices[box]])

  for box, piece in pieces:
    part = store[tuple(slice(a, b) for a, b in piece)]
    under_way.append((box, piece, part.read()))
    if len(under_way) == _IN_FLIGHT:
      finish_one()
  while under_way:
    finish_one()
  return jax.make_array_from_single_device_arrays(
    want.shape, sharding, list(shards.values())
  )


def _first(box: Box, rows: int | None) -> Box:
  """The part of a box in the first rows of an array; maybe nothing of it."""
  if rows is None:
    return box
  (start, stop), *others = box
  return ((min(start, rows), min(stop, rows)), *others)


def _padded(data: np.ndarray, box: Box) -> np.ndarray:
  """A box of which the first rows have been read; the others are 0."""
  missing = [(0, b - a - size) for (a, b), size in zip(box, data.shape)]
  return np.pad(data, missing) if np.any(missing) else data


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
  return tuple(part.indices(n)[:2] for part, n in zip(index, shape))


def _alone(device: jax.Device) -> Any:
  """Makes a device the only one, where a mesh of all may be in context."""
  return jax.set_mesh(jax.sharding.Mesh(np.array([device]), ("alone",)))


@jax.jit(donate_argnums=0)
def _put(whole: jax.Array, piece: jax.Array, starts: list[Any]) -> jax.Array:
  return jax.lax.dynamic_update_slice(whole, piece, starts)
