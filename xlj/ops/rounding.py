"""Rounding of float32 to bfloat16 and e4m3, as integer operations on bits.

Stochastic rounding goes up with a probability equal to the distance from the
lower neighbour in units of the distance between both, so what is stored has
the value as its expectation and updates far below the grid survive (Croci et
al. 2022, "Stochastic rounding: implementation, error analysis and
applications"). For that the neighbours must be those of the narrow type. Where
e4m3 is subnormal its grid stops getting finer; noise in a fixed number of low
bits of the float32, followed by a cast, as in ELMO (Zhang et al. 2025), then
mostly loses to the cast's rounding to nearest. Here values are aligned to the
grid first.

The random bits are a function of (seed, step, row, column), so they do not
depend on how rows are split among devices or chunks.

Everything is elementwise arithmetic of 32-bit integers without tables, and so
works within kernels too. Bits of narrow types are unsigned integers: compilers
treat those alike on all devices, and keep values that floats flush to zero.

Legend: c rows of a chunk, D width.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# Exponents of 2 that float8 values may be multiplied by. Up to the greatest the
# products are finite in float32. From the least on, float32 values without a
# leading bit are nothing but zero on the grid.
MIN_EXPONENT = -90
MAX_EXPONENT = 119

# NumPy's scalars, which kernels take for literals.
_U32 = np.uint32
_MAGNITUDE = _U32(0x7FFFFFFF)
_INFINITY = _U32(0x7F800000)
_GOLDEN = _U32(0x9E3779B9)  # 2**32 / golden ratio: a Weyl sequence


def hash_bits(
  seed: jax.typing.ArrayLike,
  step: jax.typing.ArrayLike,
  rows: jax.Array,
  columns: jax.Array,
) -> jax.Array:
  """Random bits that depend on nothing but these numbers.

  Two keys of each row, and one round of the hash "lowbias32" (Wellons 2018,
  "Prospecting for hash functions") between them for each column. For one key
  alone rows would share parts of one cycle of 2**32.

  Args:
    seed: Scalar integer; like the others it counts modulo 2**32.
    step: Scalar integer.
    rows: `[c]` integers, numbers among the rows of all devices.
    columns: `[D]` integers.

  Returns:
    `[c, D]` uint32.
  """
  start = _mix(_mix(_word(seed)) + _word(step))
  key = _mix(_word(rows)[:, None] ^ start)
  other = _mix(key + _GOLDEN)
  h = key + _word(columns)[None] * _GOLDEN
  h = (h ^ (h >> 16)) * _U32(0x7FEB352D) + other
  h = (h ^ (h >> 15)) * _U32(0x846CA68B)
  return h ^ (h >> 16)


def to_bfloat16(values: jax.Array, bits: jax.Array | None = None) -> jax.Array:
  """Rounds to bfloat16; what is finite stays so.

  Args:
    values: `[...]` float32.
    bits: `[...]` uint32 for stochastic rounding, of which the upper half is
      used; None for the nearest, and of two the even one.

  Returns:
    `[...]` uint16, bits of bfloat16. NaN and infinities are kept.
  """
  word = lax.bitcast_convert_type(values, jnp.uint32)
  magnitude = word & _MAGNITUDE
  if bits is None:
    noise = _U32(0x7FFF) + ((word >> 16) & _U32(1))
  else:
    noise = bits >> 16
  finite = jnp.minimum((magnitude + noise) >> 16, _U32(0x7F7F))
  other = jnp.where(magnitude > _INFINITY, _U32(0x7FC0), _U32(0x7F80))
  rounded = jnp.where(magnitude < _INFINITY, finite, other)
  return (rounded | ((word >> 16) & _U32(0x8000))).astype(jnp.uint16)


def from_bfloat16(stored: jax.Array) -> jax.Array:
  """Bits `[...]` uint16 as bfloat16."""
  return lax.bitcast_convert_type(stored, jnp.bfloat16)


def to_float8(
  values: jax.Array,
  bits: jax.Array | None = None,
  exponents: jax.typing.ArrayLike = 0,
) -> jax.Array:
  """Rounds to e4m3 times powers of two; what is finite stays so.

  e4m3 ("float8_e4m3fn", Micikevicius et al. 2022, "FP8 formats for deep
  learning") has no infinities: they become NaN, as in a cast.

  The expectation of what is rounded stochastically is exact to 2**-36 times the
  power of two, which is 2**-27 of the distance between the smallest two.

  Args:
    values: `[...]` float32.
    bits: `[...]` uint32 for stochastic rounding, of which the upper 27 are
      used; None for the nearest, and of two the even one.
    exponents: Integers of a shape that broadcasts to that of values, from
      MIN_EXPONENT to MAX_EXPONENT.

  Returns:
    `[...]` uint8, bits of e4m3; these times `2**exponents` are the values.
    Greater ones than 448 become 448.
  """
  word = lax.bitcast_convert_type(values, jnp.uint32)
  magnitude = word & _MAGNITUDE
  # How many binades the value lies below the least that has a leading bit.
  least = jnp.asarray(exponents, jnp.int32) + np.int32(127 - 6)
  below = least - (magnitude >> 23).astype(jnp.int32)
  shift = jnp.maximum(below, np.int32(0))
  # Multiples of the distance to the next value: 4 bits, and 27 after the point.
  leading = ((word & _U32(0x7FFFFF)) | _U32(0x800000)) << 7
  aligned = leading >> jnp.minimum(shift, np.int32(31)).astype(jnp.uint32)
  if bits is None:
    noise = _U32(2**26 - 1) + ((aligned >> 27) & _U32(1))
  else:
    noise = bits >> 5
  # A carry out of the mantissa rightly goes to the exponent.
  code = (aligned + noise) >> 27
  code += ((shift - below) << 3).astype(jnp.uint32)
  code = jnp.minimum(code, _U32(0x7E))
  code = jnp.where(magnitude < _INFINITY, code, _U32(0x7F))
  return (code | ((word >> 24) & _U32(0x80))).astype(jnp.uint8)


def from_float8(
  stored: jax.Array,
  exponents: jax.typing.ArrayLike = 0,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
  """Values of bits of e4m3 times powers of two, exactly.

  Args:
    stored: `[...]` uint8.
    exponents: As in `to_float8`.
    dtype: float32 or bfloat16.

  Returns:
    `[...]` of that type.
  """
  word = stored.astype(jnp.uint16)
  magnitude = word & np.uint16(0x7F)
  # As float16 these are the values times 2**-8, also the subnormal ones, which
  # converting does not flush to zero as arithmetic may.
  half = (magnitude << 7) | ((word & np.uint16(0x80)) << 8)
  half = jnp.where(magnitude == np.uint16(0x7F), np.uint16(0x7E00), half)
  values = lax.bitcast_convert_type(half, jnp.float16).astype(jnp.float32)
  scale = (jnp.asarray(exponents, jnp.int32) + np.int32(127 + 8)) << 23
  values *= lax.bitcast_convert_type(scale, jnp.float32)
  return values.astype(dtype)


def row_exponents(values: jax.Array) -> jax.Array:
  """Powers of two by which to divide rows before they are rounded to e4m3.

  The greatest magnitude of a row comes to lie in (224, 448]. Where that takes
  an exponent out of range, the nearest in range is returned: the least for a
  row of zeros, the greatest for one with infinities or NaN.

  Args:
    values: `[..., D]` float32.

  Returns:
    `[..., 1]` int32.
  """
  greatest = jnp.max(jnp.abs(values), axis=-1, keepdims=True)
  word = lax.bitcast_convert_type(greatest, jnp.uint32)
  # 448 is 1.75 * 2**8: a greater mantissa carries.
  carried = jnp.minimum(word, _INFINITY) + _U32(0x1FFFFF)
  exponents = (carried >> 23).astype(jnp.int32) - np.int32(127 + 8)
  return jnp.clip(exponents, MIN_EXPONENT, MAX_EXPONENT)


def canonical_float8(
  stored: jax.Array, exponents: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The one pair of bits and exponents of several with the same values.

  A row whose greatest magnitude is just above 224 may be rounded down to 224,
  from which `row_exponents` would derive an exponent less by one. Then that is
  chosen, and all bits are changed to twice their values.

  Args:
    stored: `[..., D]` uint8, rounded with the exponents.
    exponents: `[..., 1]` int32 of `row_exponents`.

  Returns:
    Both, with the same values. Rounding those again, in whatever way, gives the
    same pair.
  """
  magnitude = stored & np.uint8(0x7F)
  greatest = jnp.max(magnitude, axis=-1, keepdims=True)
  double = (greatest == np.uint8(0x76)) & (exponents > MIN_EXPONENT)
  # One more in the exponent's bits; below a leading bit, twice the mantissa.
  limit = jnp.where(double, np.uint8(8), np.uint8(0))
  doubled = stored + jnp.minimum(magnitude, limit)
  return doubled, exponents - double.astype(jnp.int32)


def _mix(h: jax.Array) -> jax.Array:
  """The hash "lowbias32" of uint32, one to one."""
  h = (h ^ (h >> 16)) * _U32(0x7FEB352D)
  h = (h ^ (h >> 15)) * _U32(0x846CA68B)
  return h ^ (h >> 16)


def _word(number: jax.typing.ArrayLike) -> jax.Array:
  """Integers modulo 2**32."""
  if isinstance(number, (int, np.integer)):
    number = _U32(int(number) % 2**32)
  return jnp.asarray(number).astype(jnp.uint32)
