"""The k-th largest of floats that are never all in memory, digit by digit.

Floats are mapped to unsigned integers of the same order. A pass over them
counts, of those whose leading bits are known to be the answer's, how many have
which next 11 bits; 3 passes give all 32 bits. It is radix sort from the leading
digit (Knuth 1998, "The Art of Computer Programming" 3, section 5.2.5) that goes
on with one pile alone.

Counts are int32 and stop at 2**31 - 1.

Legend: M lists of floats.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

DIGIT = 11  # bits of a key that a pass finds
MOST = 2**31 - 1


class Kth(NamedTuple):
  """Where the k-th largest of each list lies; each `[M]`.

  Attributes:
    value: Its value; -inf if there are fewer than k, inf for a k below 1.
    above: int32 number of greater ones: less than k, or all there are.
    equal: int32 number of those equal to it; 0 if there are fewer than k.
  """

  value: jax.Array
  above: jax.Array
  equal: jax.Array


def search(
  histogram: Callable[[jax.Array, jax.Array], jax.Array],
  k: jax.Array,
  dtype: jnp.dtype,
) -> Kth:
  """Finds the k-th largest of some lists, a digit of the keys at a time.

  Args:
    histogram: From a shift and prefixes `[M]`, or `[1]` for all, to counts
      `[M, 2**DIGIT]`: of the keys `key >> shift >> DIGIT == prefix`, how many
      have which digit `(key >> shift) % 2**DIGIT`.
    k: `[M]` int32.
    dtype: Of the values.

  Returns:
    The values, each `[M]`.
  """
  word = _word(dtype)
  passes = -(-8 * word.itemsize // DIGIT)

  def step(i, found):
    prefix, above, _, _ = found
    shift = ((passes - 1 - i) * DIGIT).astype(word)
    counts = histogram(shift, prefix)
    # How many have this digit or a greater one.
    reach = lax.associative_scan(add, counts, reverse=True, axis=1)
    enough = add(above[:, None], reach) >= k[:, None]
    digit = jnp.maximum(enough.sum(1, dtype=jnp.int32) - 1, 0)
    beyond = jnp.pad(reach, ((0, 0), (0, 1)))
    at = digit[:, None]
    above = add(above, jnp.take_along_axis(beyond, at + 1, 1)[:, 0])
    equal = jnp.take_along_axis(counts, at, 1)[:, 0]
    number = jnp.where(i == 0, reach[:, 0], found[3])
    return (prefix << DIGIT) | digit.astype(word), above, equal, number

  none = jnp.zeros_like(k)
  found = (none.astype(word), none, none, none)
  key, above, equal, number = lax.fori_loop(0, passes, step, found)
  value = jnp.where(number < k, -jnp.inf, _values(key, dtype))
  return Kth(
    jnp.where(k < 1, jnp.inf, value),
    jnp.where(k < 1, 0, jnp.where(number < k, number, above)),
    jnp.where((k < 1) | (number < k), 0, equal),
  )


def _word(dtype: jnp.dtype) -> jnp.dtype:
  """The unsigned integers of the size of a float."""
  return jnp.dtype(f"uint{8 * dtype.itemsize}")


def keys(z: jax.Array) -> jax.Array:
  """Unsigned integers of the order of floats; 0 and -0 are the same."""
  z = jnp.where(z == 0, 0.0, jnp.where(jnp.isnan(z), jnp.nan, z))
  word = _word(z.dtype)
  bits = lax.bitcast_convert_type(z, word)
  sign = word.type(1) << word.type(8 * word.itemsize - 1)
  return jnp.where((bits & sign) != 0, ~bits, bits | sign)


def _values(keys: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """The floats of keys."""
  word = _word(dtype)
  sign = word.type(1) << word.type(8 * word.itemsize - 1)
  bits = jnp.where((keys & sign) != 0, keys ^ sign, ~keys)
  return lax.bitcast_convert_type(bits, dtype)


def add(a: jax.Array, b: jax.Array) -> jax.Array:
  """The sum of int32 counts, at most 2**31 - 1."""
  total = a.astype(jnp.uint32) + b.astype(jnp.uint32)
  return jnp.minimum(total, MOST).astype(jnp.int32)
