"""Stored rows keep what their type can hold, however they are split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from xlj import sharding
from xlj.ops import rounding
from xlj.ops import row_format

L, D = 48, 40
NARROW = ("bfloat16", "float8")
pytestmark = pytest.mark.usefixtures("optimized")
BITS_A_WEIGHT = {"float32": 32, "bfloat16": 16, "float8": 8}


def make_rows(num_rows=L, dim=D):
  """Rows of many lengths, with numbers of many magnitudes, and zeros."""
  rng = np.random.default_rng(0)
  values = rng.normal(size=(num_rows, dim)) * 2.0 ** rng.uniform(
    -16, 0, (num_rows, dim)
  )
  values *= 2.0 ** rng.integers(-40, 40, (num_rows, 1))
  values[3] = 0
  values[:, 5] = 0
  return values.astype(np.float32)


@functools.partial(jax.jit, static_argnums=(1, 2))
def random_bits(step, num_rows=L, dim=D):
  return rounding.hash_bits(1, step, jnp.arange(num_rows), jnp.arange(dim))


def assert_same(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], name)


@pytest.mark.parametrize("dtype", row_format.DTYPES)
def test_what_is_stored(dtype):
  form = row_format.RowFormat(dtype)
  stored = jax.jit(form.encode)(make_rows(), random_bits(0))
  abstract = form.abstract(L, D)
  assert {k: (a.shape, a.dtype) for k, a in stored.items()} == {
    k: (a.shape, a.dtype) for k, a in abstract.items()
  }
  size = L * D * BITS_A_WEIGHT[dtype] // 8 + (L if dtype == "float8" else 0)
  assert form.num_bytes(L, D) == size == sum(a.nbytes for a in stored.values())
  decoded = form.decode({**stored, "bias": jnp.zeros(L)})
  assert decoded.dtype == (jnp.float32 if dtype == "float32" else jnp.bfloat16)
  # A billion rows take no memory to plan.
  assert form.num_bytes(10**9, D) == size * 10**9 // L


def test_float32_is_kept():
  form, values = row_format.RowFormat(), make_rows()
  np.testing.assert_array_equal(
    form.decode(form.encode(values, random_bits(0))), values
  )


@pytest.mark.parametrize("dtype,mantissa", [("bfloat16", 7), ("float8", 3)])
def test_the_nearest_is_near(dtype, mantissa):
  form, values = row_format.RowFormat(dtype), make_rows()
  decoded = np.asarray(form.decode(jax.jit(form.encode)(values)))
  error = np.abs(decoded.astype(np.float64) - values)
  # The greatest is above 224, the least number with a leading bit 2**-6.
  least = np.abs(values).max(1, keepdims=True) * 2.0**-6 / 224
  relative = error / np.maximum(np.maximum(np.abs(values), least), 2.0**-120)
  assert relative.max() <= 2.0 ** -(mantissa + 1)


def expectation(form, values):
  """The mean of the decoded values over all 2**32 bits."""

  @jax.jit
  def rounded(bits):
    return form.decode(form.encode(values, bits)).astype(jnp.float32)

  shape = values.shape
  low = np.float64(rounded(np.zeros(shape, np.uint32)))
  high = np.float64(rounded(np.full(shape, 2**32 - 1, np.uint32)))
  below, up = np.zeros(shape, np.int64), np.full(shape, 2**32, np.int64)
  for _ in range(32):
    middle = (below + up) // 2
    is_up = np.asarray(rounded(middle.astype(np.uint32))) == high
    up, below = np.where(is_up, middle, up), np.where(is_up, below, middle)
  return np.where(low == high, low, high - (high - low) * (up / 2**32))


@pytest.mark.parametrize("dtype", NARROW)
def test_the_expectation_is_the_value(dtype):
  values = make_rows(256)
  mean = expectation(row_format.RowFormat(dtype), values)
  np.testing.assert_allclose(mean, values, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", NARROW)
def test_small_updates_survive(dtype):
  # Each update is far below the distance to the next number.
  form, steps, rows = row_format.RowFormat(dtype), 200, 512
  rng = np.random.default_rng(0)
  start = jnp.asarray(rng.uniform(0.01, 1, (rows, 16)), jnp.float32)
  start = start.at[:, 0].set(1.0)
  start = form.decode(form.encode(start)).astype(jnp.float32)
  update = 1e-5

  def walk(stochastic):
    @jax.jit
    def one(step, stored):
      bits = random_bits(step, rows, 16) if stochastic else None
      values = form.decode(stored).astype(jnp.float32)
      return form.encode(values + update, bits)

    stored = jax.lax.fori_loop(0, steps, one, form.encode(start))
    return np.asarray(form.decode(stored).astype(jnp.float32) - start)[:, 1:]

  assert (walk(False)[np.asarray(start[:, 1:]) > 0.5] == 0).all()
  moved = walk(True)
  # The deviation of a mean, from the variance of steps up by at most 2**-4.
  step = {"bfloat16": 2.0**-8, "float8": 2.0**-4}[dtype]
  deviation = np.sqrt(steps * update * step / moved.size)
  assert abs(moved.mean() - steps * update) < 5 * deviation
  assert 5 * deviation < 0.4 * steps * update


@pytest.mark.parametrize("dtype", row_format.DTYPES)
def test_stored_rows_are_encoded_to_the_same_bits(dtype):
  form = row_format.RowFormat(dtype)
  values = make_rows(2000)
  encode = jax.jit(form.encode)
  for step, bits in enumerate((None, random_bits(0, 2000))):
    stored = encode(values, bits)
    decoded = form.decode(stored).astype(jnp.float32)
    for again in (None, random_bits(step + 1, 2000)):
      assert_same(encode(decoded, again), stored)


@pytest.mark.parametrize("top", [225.0, 231.9, 232.1, 239.0])
@pytest.mark.parametrize("bits", [0, 2**32 - 1])
def test_a_row_whose_greatest_is_rounded_to_the_edge(top, bits):
  form = row_format.RowFormat("float8")
  others = [2.0**-9 * i for i in range(17)] + [-3 * 2.0**-9, -1.5, -223.0]
  values = jnp.array([[top, *others]], jnp.float32)
  noise = jnp.full(values.shape, bits, jnp.uint32)
  encode = jax.jit(form.encode)
  stored = encode(values, noise)
  decoded = form.decode(stored).astype(jnp.float32)
  expected = [224.0 if bits == 0 else 240.0, *others[:-1]]
  np.testing.assert_array_equal(decoded[0, :-1], expected)
  assert decoded[0, -1] == (-208 if bits == 0 else -224)
  np.testing.assert_array_equal(stored["exponents"], [-1 if bits == 0 else 0])
  assert_same(encode(decoded), stored)


@pytest.mark.slow
def test_rows_without_a_greatest():
  form = row_format.RowFormat("float8")
  values = np.ones((4, 3), np.float32)
  values[0], values[1, 0], values[2, 0], values[3] = 0, np.inf, np.nan, 3.4e38
  stored = jax.jit(form.encode)(values)
  decoded = np.asarray(form.decode(stored)).astype(np.float32)
  np.testing.assert_array_equal(decoded[0], 0)
  assert np.isnan(decoded[1:3, 0]).all()
  assert np.isfinite(decoded[3]).all() and (decoded[3] > 2.9e38).all()
  # They harm no other row.
  np.testing.assert_array_equal(
    form.encode(values[:1])["exponents"], stored["exponents"][:1]
  )


@pytest.mark.parametrize("dtype", row_format.DTYPES)
def test_chunks_are_encoded_like_the_whole(dtype):
  form, values = row_format.RowFormat(dtype), make_rows()

  @functools.partial(jax.jit, static_argnums=1)
  def part(start, size):
    rows = start + jnp.arange(size)
    bits = rounding.hash_bits(1, 2, rows, jnp.arange(D))
    return form.encode(jax.lax.dynamic_slice_in_dim(values, start, size), bits)

  whole = part(0, L)
  parts = [part(start, size) for start, size in ((0, 7), (7, 30), (37, 11))]
  joined = jax.tree.map(lambda *a: jnp.concatenate(a), *parts)
  assert_same(joined, whole)


@pytest.mark.parametrize("shape", meshes.SHAPES)
@pytest.mark.parametrize("dtype", NARROW)
def test_rows_split_over_devices_are_encoded_alike(dtype, shape):
  form, values = row_format.RowFormat(dtype), make_rows()

  def encode(rows, values):
    bits = rounding.hash_bits(3, 4, rows, jnp.arange(D))
    return form.encode(values, bits)

  expected = jax.jit(encode)(jnp.arange(L), values)
  with meshes.mesh(shape):
    stored = jax.jit(encode)(
      *(jax.device_put(a, sharding.LABELS) for a in (jnp.arange(L), values))
    )
    assert len(stored["rows"].sharding.device_set) == shape[0] * shape[1]
  assert_same(jax.tree.map(np.asarray, stored), expected)


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="'float16'; use one of"):
    row_format.RowFormat("float16")
  form = row_format.RowFormat("float8")
  with pytest.raises(ValueError, match="values must be float32, not bfloat16"):
    form.encode(jnp.zeros((2, 3), jnp.bfloat16))
  with pytest.raises(ValueError, match=r"bits must be uint32 \(2, 3\)"):
    form.encode(jnp.zeros((2, 3)), jnp.zeros((3, 2), jnp.uint32))
