"""Checksums of sharded arrays, the same on every mesh.

The checksum of an array is the sum over its elements, modulo 2^32, of

    mix(bits ^ (key_0(i_0) + key_1(i_1) + ...))

where `bits` are those of the element, zero-extended, `i_d` is its index along
dimension d, `key_d(i) = mix(i + salt_d)`, and `mix` is the finalizer of
MurmurHash3 (A. Appleby, 2011), a bijection of 32 bits. So a single element
that is changed is always noticed, and other changes, of place too, but for one
in 2^32. A sum does not care about the order of its terms: each device adds up
its shard where it is. Indices of dimensions stay apart, so that an array may
have more than 2^32 elements.

Legend: N is the length of the longest axis of a shard, C the part of it that
is looked at at once.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Arrays of so many elements, together, are added up by NumPy: to compile a
# program would take longer. One process has all of them.
_FEW_ELEMENTS = 1 << 23
# Copies that a device makes while it adds up are of about this size.
_CHUNK_ELEMENTS = 1 << 20
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def checksums(
  arrays: Mapping[str, jax.Array], rows: Mapping[str, int] | None = None
) -> dict[str, int]:
  """The checksum of each array; see above.

  All processes have to ask the same.

  Args:
    arrays: By name; of 1, 2 or 4 bytes per element, sharded by
      `NamedSharding`s of one mesh.
    rows: How many rows of an array count, by its name; all where it is not
      named.

  Returns:
    Checksums in [0, 2^32), by name.
  """
  rows = rows or {}
  size = sum(array.size for array in arrays.values())
  if size <= _FEW_ELEMENTS and jax.process_count() == 1:
    return {
      name: _on_host(array, rows.get(name)) for name, array in arrays.items()
    }
  names = sorted(arrays)
  parts = tuple((arrays[name].sharding, rows.get(name)) for name in names)
  sums = jax.device_get(_program(parts)([arrays[name] for name in names]))
  return {name: int(value) for name, value in zip(names, sums)}


def _on_host(array: jax.Array, rows: int | None) -> int:
  """The checksum of an array that this process has all of."""
  values = np.atleast_1d(np.asarray(array))[:rows]
  keys = sum(
    _keys(np.uint32(0), size, axis, values.ndim, np)
    for axis, size in enumerate(values.shape)
  )
  if values.dtype != bool:
    values = values.view(_UNSIGNED[values.dtype.itemsize])
  return int(_mix(values.astype(np.uint32) ^ keys).sum(dtype=np.uint32))


@functools.lru_cache(maxsize=8)
def _program(parts: tuple[tuple[jax.NamedSharding, int | None], ...]) -> Any:
  """One compiled function for all arrays with these shardings and rows."""
  sums = [
    jax.shard_map(
      functools.partial(_add_up, spec=sharding.spec, rows=rows),
      mesh=sharding.mesh,
      in_specs=sharding.spec,
      out_specs=jax.P(),
      check_vma=False,
    )
    for sharding, rows in parts
  ]
  return jax.jit(lambda arrays: [add(x) for add, x in zip(sums, arrays)])


def _add_up(shard: jax.Array, *, spec: jax.P, rows: int | None) -> jax.Array:
  """The checksum of an array, from its shards; a uint32 scalar."""
  split = [_names(entry) for entry in spec] + [()] * (shard.ndim - len(spec))
  firsts = [
    jax.lax.axis_index(names).astype(jnp.uint32) * np.uint32(size)
    if names
    else jnp.uint32(0)
    for names, size in zip(split, shard.shape)
  ]
  total = _add_up_shard(shard, firsts, rows)
  used = tuple(name for names in split for name in names)
  return jax.lax.psum(total, used) if used else total


def _names(entry: Any) -> tuple[str, ...]:
  """Mesh axes of one entry of a `PartitionSpec`."""
  if entry is None:
    return ()
  return entry if isinstance(entry, tuple) else (entry,)


def _add_up_shard(
  shard: jax.Array, firsts: list[jax.Array], rows: int | None = None
) -> jax.Array:
  """Adds up the elements of a shard.

  Args:
    shard: Any shape.
    firsts: Global index of its first element along each dimension, uint32.
    rows: How many rows of the array count; None for all.

  Returns:
    A uint32 scalar.
  """
  if shard.ndim == 0:
    shard, firsts = shard.reshape(1), [jnp.uint32(0)]
  if shard.size == 0:
    return jnp.uint32(0)
  axis = int(np.argmax(shard.shape))
  n = shard.shape[axis]
  c = max(1, min(n, _CHUNK_ELEMENTS * n // shard.size))
  others = sum(
    _keys(firsts[d], shard.shape[d], d, shard.ndim)
    for d in range(shard.ndim)
    if d != axis
  )

  def add(i: jax.Array, total: jax.Array) -> jax.Array:
    start = jnp.minimum(i * c, n - c)  # the last chunk overlaps another
    piece = _bits(shard, start, c, axis)
    first = firsts[axis] + start.astype(jnp.uint32)
    keys = others + _keys(first, c, axis, shard.ndim)
    terms = _mix(piece ^ keys)
    new = start + jax.lax.broadcasted_iota(jnp.int32, piece.shape, axis)
    used = new >= i * c
    if rows is not None:
      row = firsts[0] + jax.lax.broadcasted_iota(jnp.uint32, piece.shape, 0)
      row += start.astype(jnp.uint32) if axis == 0 else jnp.uint32(0)
      used &= row < rows
    terms = jnp.where(used, terms, jnp.uint32(0))
    return total + terms.sum(dtype=jnp.uint32)

  return jax.lax.fori_loop(0, -(-n // c), add, jnp.uint32(0))


def _keys(first: Any, size: int, axis: int, ndim: int, of: Any = jnp) -> Any:
  """Keys of indices along one dimension, to broadcast against the others."""
  salt = np.uint32((axis + 1) * 0x9E3779B9 % 2**32)
  indices = of.arange(size, dtype=np.uint32) + first
  return of.expand_dims(
    _mix(indices + salt), [d for d in range(ndim) if d != axis]
  )


def _bits(shard: jax.Array, start: jax.Array, size: int, axis: int) -> Any:
  """Bits of the elements of a slice, as uint32."""
  if shard.dtype != jnp.bool:
    # XLA for CPU would slice a copy of all of it: of bfloat16 in float32, of
    # the bits made outside of the loop. With the barrier it does neither.
    shard, start = jax.lax.optimization_barrier((shard, start))
    unsigned = _UNSIGNED[shard.dtype.itemsize]
    shard = jax.lax.bitcast_convert_type(shard, unsigned)
  piece = jax.lax.dynamic_slice_in_dim(shard, start, size, axis)
  return piece.astype(jnp.uint32)


def _mix(x: Any) -> Any:
  """The finalizer of MurmurHash3."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
