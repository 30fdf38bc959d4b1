"""Rounding equals the types' own casts, and has the value as expectation."""

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from xlj.ops import rounding

E4M3 = ml_dtypes.float8_e4m3fn
MAX_BFLOAT16 = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
LOWER_HALVES = (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x5A5A)
N = 2**18
pytestmark = pytest.mark.usefixtures("optimized")


def bfloat16(values, bits):
  return rounding.from_bfloat16(rounding.to_bfloat16(values, bits))


def float8(values, bits):
  return rounding.from_float8(rounding.to_float8(values, bits))


ROUND = {
  name: jax.jit(function)
  for name, function in (("bfloat16", bfloat16), ("float8", float8))
}


def rounded(name, values, bits):
  bits = np.broadcast_to(np.asarray(bits, np.uint32), values.shape)
  # NumPy widens them, where nothing is flushed to zero.
  return np.asarray(ROUND[name](values, bits)).astype(np.float64)


def expectation(name, values):
  """The mean over all 2**32 bits: where among them rounding goes up."""
  low = rounded(name, values, 0)
  high = rounded(name, values, 2**32 - 1)
  # Bits below `below` round down, those from `up` on round up.
  below = np.zeros(values.shape, np.int64)
  up = np.full(values.shape, 2**32, np.int64)
  for _ in range(32):
    middle = (below + up) // 2
    is_up = rounded(name, values, middle) == high
    up = np.where(is_up, middle, up)
    below = np.where(is_up, below, middle)
  return np.where(low == high, low, high - (high - low) * (up / 2**32))


def all_patterns():
  """Each upper half of a float32, with lower halves around ties."""
  upper = np.arange(2**16, dtype=np.uint32)[:, None] << 16
  return (upper | np.array(LOWER_HALVES, np.uint32)).ravel().view(np.float32)


def magnitudes(low, high, n=4000):
  """Numbers of both signs, spread over the exponents of 2 between."""
  rng = np.random.default_rng(0)
  values = 2.0 ** rng.uniform(low, high, n) * rng.choice([-1, 1], n)
  return values.astype(np.float32)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.filterwarnings("ignore:overflow")
def test_the_nearest_bfloat16_is_that_of_a_cast():
  values = all_patterns()
  expected = values.astype(ml_dtypes.bfloat16).view(np.uint16)
  greatest = np.copysign(MAX_BFLOAT16, values).astype(ml_dtypes.bfloat16)
  overflows = np.isfinite(values) & ((expected & 0x7FFF) == 0x7F80)
  assert overflows.any()
  expected = np.where(overflows, greatest.view(np.uint16), expected)
  actual = np.asarray(jax.jit(rounding.to_bfloat16)(values))
  isnan = np.isnan(values)
  np.testing.assert_array_equal(actual[~isnan], expected[~isnan])
  assert np.isnan(actual[isnan].view(ml_dtypes.bfloat16)).all()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("exponent", [rounding.MIN_EXPONENT, -7, 0, 100])
def test_the_nearest_float8_is_that_of_a_cast(exponent):
  values = all_patterns()
  scaled = np.ldexp(values.astype(np.float64), -exponent)
  expected = scaled.astype(E4M3).view(np.uint8)
  saturated = np.isfinite(values) & (np.abs(scaled) > 448)
  greatest = np.copysign(448, scaled).astype(E4M3).view(np.uint8)
  expected = np.where(saturated, greatest, expected)
  actual = np.asarray(jax.jit(rounding.to_float8)(values, None, exponent))
  np.testing.assert_array_equal(actual & 0x7F, expected & 0x7F)
  signed = ~np.isnan(values)
  np.testing.assert_array_equal(actual[signed], expected[signed])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_bits_of_bfloat16_are_decoded():
  bits = np.arange(2**16).astype(np.uint16)
  decoded = jax.jit(rounding.from_bfloat16)(bits)
  np.testing.assert_array_equal(
    np.asarray(decoded).astype(np.float64),
    bits.view(ml_dtypes.bfloat16).astype(np.float64),
  )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  "exponent", [rounding.MIN_EXPONENT, -3, 0, rounding.MAX_EXPONENT]
)
def test_bits_of_float8_are_decoded_exactly(exponent, dtype):
  codes = np.arange(256).astype(np.uint8)
  expected = np.ldexp(codes.view(E4M3).astype(np.float64), exponent)
  decode = jax.jit(rounding.from_float8, static_argnums=2)
  decoded = np.asarray(decode(codes, exponent, dtype)).astype(np.float64)
  np.testing.assert_array_equal(decoded, expected)
  number = ~np.isnan(expected)
  np.testing.assert_array_equal(
    np.signbit(decoded)[number], codes[number] >= 128
  )


@pytest.mark.parametrize("name", ROUND)
def test_rounding_goes_to_the_neighbours(name):
  dtype = {"bfloat16": ml_dtypes.bfloat16, "float8": E4M3}[name]
  values = magnitudes(-20, 8.8)
  low, high = (np.abs(rounded(name, values, b)) for b in (0, 2**32 - 1))
  assert (low <= np.abs(values)).all() and (high > np.abs(values)).all()
  # They are different numbers of the type with none between.
  codes = [
    a.astype(dtype).view(f"u{dtype(0).itemsize}").astype(int)
    for a in (low, high)
  ]
  np.testing.assert_array_equal(codes[1] - codes[0], 1)


@pytest.mark.parametrize("name", ROUND)
def test_numbers_of_the_type_stay(name):
  codes = np.arange(256).astype(np.uint8)
  values = codes[~np.isin(codes, (0x7F, 0xFF))].view(E4M3).astype(np.float32)
  for bits in (0, 12345, 2**31, 2**32 - 1):
    np.testing.assert_array_equal(rounded(name, values, bits), values)


def test_the_mean_over_random_bits_is_the_value():
  # 2**16 evenly spaced numbers are all that bfloat16 tells apart.
  bits = (np.arange(2**16)[:, None] << 16) + 2**15
  values = magnitudes(-120, 127, 100)
  mean = rounded("bfloat16", np.tile(values, (2**16, 1)), bits).mean(0)
  np.testing.assert_allclose(mean, values, rtol=1e-12)
  values = magnitudes(-14, 8.8, 100)
  mean = rounded("float8", np.tile(values, (2**16, 1)), bits).mean(0)
  np.testing.assert_allclose(mean, values, rtol=1e-3)


def test_bfloat16_has_the_value_as_expectation():
  values = magnitudes(-149, 127.99)  # subnormal ones included
  values = values[np.abs(values) < MAX_BFLOAT16]
  np.testing.assert_array_equal(expectation("bfloat16", values), values)


def test_float8_has_the_value_as_expectation():
  # The least number of the type is 2**-9.
  values = magnitudes(-26, 8.8, 20_000)
  mean = expectation("float8", values)
  np.testing.assert_allclose(mean, values, rtol=1e-3)
  np.testing.assert_allclose(mean, values, rtol=0, atol=2.0**-36)
  values = magnitudes(-60, -26)
  mean = expectation("float8", values)
  np.testing.assert_allclose(mean, values, rtol=0, atol=2.0**-36)


@pytest.mark.parametrize(
  "weight,update",
  [(2**-7, 1e-5), (2**-8, 1e-4), (2**-9, -1e-4), (0.0, 1e-6), (0.05, 1e-4)],
)
def test_updates_below_the_grid_survive(weight, update):
  new = np.array([weight + update], np.float32)
  moved = expectation("float8", new)[0] - weight
  np.testing.assert_allclose(moved, float(new[0]) - weight, rtol=1e-3)


@pytest.mark.parametrize("bits", [None, 0, 2**32 - 1])
def test_what_is_not_on_the_grid(bits):
  values = np.array(
    [0.0, -0.0, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan], np.float32
  )
  # Between the greatest float8 and what would be the next.
  near = np.array([447.9, 449, 470, 479.9], np.float32)

  def words(a):
    return None if bits is None else np.full(a.shape, bits, np.uint32)

  wide = np.asarray(ROUND["bfloat16"](values, words(values)))
  wide, top = wide.astype(np.float32), MAX_BFLOAT16
  np.testing.assert_array_equal(
    wide, [0.0, -0.0, top, -top, np.inf, -np.inf, np.nan]
  )
  narrow = np.asarray(ROUND["float8"](values, words(values)))
  np.testing.assert_array_equal(
    narrow, [0.0, -0.0, 448, -448, np.nan, np.nan, np.nan]
  )
  assert np.signbit(wide[1]) and np.signbit(narrow[1])
  assert (ROUND["float8"](near, words(near)) <= 448).all()


def test_exponents_bring_the_greatest_below_448():
  rng = np.random.default_rng(0)
  scale = 2.0 ** rng.uniform(-82, 127, (2000, 1))
  values = (rng.uniform(-1, 1, (2000, 8)) * scale).astype(np.float32)
  values[:8, 0], values[:8, 1:] = 448 * 2.0 ** np.arange(-40, 40, 10), 0
  values[8:16, 0] = np.nextafter(values[:8, 0], np.float32(np.inf))
  values[8:16, 1:] = 0
  exponents = np.asarray(jax.jit(rounding.row_exponents)(values))[:, 0]
  inside = (exponents > -90) & (exponents < 119)
  assert inside.mean() > 0.9
  top = np.ldexp(np.abs(values.astype(np.float64)).max(1), -exponents)[inside]
  assert (top > 224).all() and (top <= 448).all()
  others = np.array([[0, 0], [0, 2**-100], [3e38, 1], [np.inf, 1], [np.nan, 1]])
  exponents = rounding.row_exponents(jnp.asarray(others, jnp.float32))[:, 0]
  np.testing.assert_array_equal(exponents, [-90, -90, 119, 119, 119])


def neighbours():
  """Pairs of sets of bits that differ by one in one place, by name."""
  first = jnp.arange(N // 256)
  rows, columns = first + (2**31 - N // 256), jnp.arange(256)
  make = jax.jit(rounding.hash_bits)
  start = make(0, 0, first, columns)
  last = make(7, 100, rows, columns)
  return {
    "column": (last[:, 1:], last[:, :-1]),
    "row": (last[1:], last[:-1]),
    "step": (start, make(0, 1, first, columns)),
    "seed": (start, make(1, 0, first, columns)),
    "place": (start[:256], start[:256].T),
    "seed for step": (make(1, 2, rows, columns), make(2, 1, rows, columns)),
  }


def signs(bits):
  """Each bit as -1 or 1, `[32, n]`."""
  bits = np.asarray(bits).ravel()
  planes = (bits >> np.arange(32, dtype=np.uint32)[:, None]) & 1
  return 2 * planes.astype(np.float32) - 1


@pytest.mark.slow
def test_random_bits_are_uniform_and_unrelated():
  for name, (one, other) in neighbours().items():
    a, b = signs(one), signs(other)
    n = a.shape[1]
    # Far from 0 by more than 5.5 deviations is one in 3e7.
    bound = 5.5 / np.sqrt(n)
    assert np.abs(a.mean(1)).max() < bound, name
    among = a @ a.T / n - np.eye(32)
    assert np.abs(among).max() < bound, name
    if name == "place":  # the diagonal is compared with itself
      off = ~np.eye(256, dtype=bool).ravel()
      a, b = a[:, off], b[:, off]
    assert np.abs(a @ b.T / a.shape[1]).max() < bound, name


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_random_bytes_are_uniform(shift):
  for name, (bits, _) in neighbours().items():
    bits = np.asarray(bits).ravel()
    counts = np.bincount((bits >> shift) & 255, minlength=256)
    expected = bits.size / 256
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - 255) < 5.5 * np.sqrt(2 * 255), name


def test_random_bits_are_those_of_the_row_wherever_it_is():
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 2**31 - 1, 64).astype(np.int32)
  rows[:2] = 2**31 - 1, 0
  columns = np.arange(16)
  make = jax.jit(rounding.hash_bits)
  whole = rounding.hash_bits(2**40 + 3, jnp.int32(5), rows, columns)
  order = rng.permutation(64)[:19]
  part = make(3, 5, rows[order], columns[4:])
  np.testing.assert_array_equal(np.asarray(whole)[order, 4:], part)
  assert len(np.unique(whole)) > 0.99 * whole.size


def test_a_kernel_can_do_all_of_it():
  def update(step, rows, values):
    bits = rounding.hash_bits(1, step, rows, jnp.arange(32))
    exponents = rounding.row_exponents(values)
    codes = rounding.to_float8(values, bits, exponents)
    codes, exponents = rounding.canonical_float8(codes, exponents)
    decoded = rounding.from_float8(codes, exponents)
    return decoded, rounding.to_bfloat16(values, bits)

  def kernel(step, rows, values, decoded, narrow):
    decoded[...], narrow[...] = update(step[0], rows[...], values[...])

  values = magnitudes(-20, 5, 16 * 32).reshape(16, 32)
  rows = jnp.arange(16) * 1000
  step = jnp.full((1,), 3)
  run = pl.pallas_call(
    kernel,
    grid=(4,),
    in_specs=[
      pl.BlockSpec((1,), lambda i: (0,)),
      pl.BlockSpec((4,), lambda i: (i,)),
      pl.BlockSpec((4, 32), lambda i: (i, 0)),
    ],
    out_specs=[pl.BlockSpec((4, 32), lambda i: (i, 0))] * 2,
    out_shape=[
      jax.ShapeDtypeStruct(values.shape, dtype)
      for dtype in (jnp.float32, jnp.uint16)
    ],
    interpret=True,
  )
  expected = jax.jit(update)(3, rows, values)
  for one, other in zip(jax.jit(run)(step, rows, values), expected):
    np.testing.assert_array_equal(one, other)
