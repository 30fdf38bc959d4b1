"""Checksums: as defined, on every mesh, and different after any change."""

import jax
import ml_dtypes
import numpy as np
import pytest

from tests import meshes
from xlj import sharding
from xlj.checkpoint import checksum

DTYPES = [
  "float32", "bfloat16", "float8_e4m3fn", "uint16", "uint8", "int8", "int32",
  "bool",
]  # fmt: skip
# Of the data type by which each is seen as bits.
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def mix(x):
  x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
  x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
  return x ^ (x >> 16)


def by_definition(array, firsts=None):
  """Element by element, with Python's integers."""
  array = np.atleast_1d(array)
  words = array.view(WORDS[array.itemsize])
  firsts = firsts or [0] * array.ndim
  total = 0
  for index, word in np.ndenumerate(words):
    key = sum(
      mix((i + first + (d + 1) * 0x9E3779B9) % 2**32)
      for d, (i, first) in enumerate(zip(index, firsts))
    )
    total += mix(int(word) ^ key % 2**32)
  return total % 2**32


def make(shape, dtype, seed=0):
  rng = np.random.default_rng(seed)
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  if dtype == "bool":
    return rng.integers(0, 2, shape).astype(bool)
  return np.frombuffer(rng.bytes(size), dtype).reshape(shape)


def put(mesh, array, spec):
  return jax.device_put(array, jax.NamedSharding(mesh, spec))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", meshes.SHAPES)
@pytest.mark.parametrize("few", [0, 10_000])
def test_it_is_the_same_on_every_mesh(shape, dtype, few, monkeypatch):
  monkeypatch.setattr(checksum, "_FEW_ELEMENTS", few)
  monkeypatch.setattr(checksum, "_CHUNK_ELEMENTS", 12)  # many, with an overlap
  checksum._program.cache_clear()
  cases = {
    "rows": (make((40, 3), dtype), sharding.LABELS),
    "wide": (make((5, 16), dtype), sharding.P(None, sharding.AXES)),
    "all": (make((17,), dtype), sharding.REPLICATED),
    "one": (make((), dtype), sharding.REPLICATED),
    "cube": (make((2, 8, 3), dtype), sharding.P(None, "data", None)),
    "none": (make((0, 3), dtype), sharding.REPLICATED),
  }
  with meshes.mesh(shape) as mesh:
    placed = {name: put(mesh, *case) for name, case in cases.items()}
    got = checksum.checksums(placed)
  checksum._program.cache_clear()
  assert got == {name: by_definition(a) for name, (a, _) in cases.items()}


@pytest.mark.parametrize("few", [0, 10_000])
def test_rows_behind_those_that_count_do_not(few, monkeypatch):
  monkeypatch.setattr(checksum, "_FEW_ELEMENTS", few)
  monkeypatch.setattr(checksum, "_CHUNK_ELEMENTS", 12)
  cases = {"long": make((40, 3), "float32"), "wide": make((8, 16), "uint16")}
  rows = {"long": 33, "wide": 6}
  with meshes.mesh((2, 4)) as mesh:
    placed = {k: put(mesh, a, sharding.LABELS) for k, a in cases.items()}
    got = checksum.checksums(placed, rows)
  checksum._program.cache_clear()
  assert got == {k: by_definition(a[: rows[k]]) for k, a in cases.items()}


def test_every_flipped_bit_and_every_swap_is_seen():
  with meshes.mesh((2, 4)) as mesh:

    def of(array):
      return checksum.checksums({"": put(mesh, array, sharding.LABELS)})[""]

    array = make((8, 3), ml_dtypes.bfloat16)
    seen = {of(array)}
    words = array.view(np.uint16)
    for i in range(words.size):
      for bit in (0, 7, 15):
        changed = words.copy()
        changed.flat[i] ^= 1 << bit
        seen.add(of(changed.view(array.dtype)))
    for i in range(words.size - 1):
      changed = words.copy()
      changed.flat[[i, i + 1]] = changed.flat[[i + 1, i]]
      seen.add(of(changed.view(array.dtype)))
    assert len(seen) == 1 + 3 * words.size + words.size - 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_needs_no_copy(dtype):
  """A row is found by its place beyond 2^32 elements, without them."""
  with meshes.mesh((2, 4)) as mesh:
    target = jax.NamedSharding(mesh, sharding.LABELS)
    wanted = jax.ShapeDtypeStruct((1 << 27, 80), dtype, sharding=target)
    program = checksum._program(((target, None),)).lower([wanted]).compile()
  assert program.memory_analysis().temp_size_in_bytes < 16 << 20


def test_indices_go_beyond_what_fits_32_bits_together():
  part = make((3, 4), "float32")
  firsts = [2**32 - 2, 2**31]
  got = checksum._add_up_shard(
    jax.numpy.asarray(part), [jax.numpy.uint32(first) for first in firsts]
  )
  assert int(got) == by_definition(part, firsts)
