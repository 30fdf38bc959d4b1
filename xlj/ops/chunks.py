"""Chunks of this device's label rows, and the logits of one.

Legend: N examples, D width, l label rows of this device, c of a chunk.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import lax
import jax.numpy as jnp

Carry = TypeVar("Carry")

DEFAULT_MEMORY = 2**28  # bytes
_ALIGNMENT = 128  # rows; a multiple of the vector width of all devices


def chunk_size(
  memory: int, num_rows: int, num_examples: int, dim: int, itemsize: int = 4
) -> int:
  """The number of rows whose temporaries fit into `memory` bytes.

  A chunk needs at most three arrays `[N, c]` (logits, gradient, one between)
  and two `[c, D]` (rows, their gradient).

  Args:
    memory: Bytes.
    num_rows: Rows of this device l.
    num_examples: N.
    dim: D.
    itemsize: Bytes of a number.

  Returns:
    Number of rows: all of them, or a multiple of 128, also where memory is
    too small for that.
  """
  size = memory // (itemsize * (3 * num_examples + 2 * dim))
  return min(num_rows, max(size // _ALIGNMENT, 1) * _ALIGNMENT)


def for_chunks(
  num_rows: int,
  size: int,
  body: Callable[[Any, int, Carry], Carry],
  carry: Carry,
) -> Carry:
  """Runs `body(start, size, carry)` on every chunk; the last may be smaller.

  Args:
    num_rows: Number of rows in all.
    size: Rows of a chunk.
    body: Takes the first row (traced), the number of rows (static) and what
      the last chunk returned.
    carry: What the first chunk is given.

  Returns:
    What the last chunk returned.
  """
  full, rest = divmod(num_rows, size)
  if full == 1:
    carry = body(0, size, carry)
  elif full:
    carry = lax.fori_loop(
      0, full, lambda i, carry: body(i * size, size, carry), carry
    )
  return body(full * size, rest, carry) if rest else carry


def accumulator(*arrays: jax.Array) -> jnp.dtype:
  """The type that products of the arrays are summed in: float32 or wider."""
  return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  """`a @ b` summed in float32 or wider."""
  dtype = jnp.result_type(a, b)
  return jnp.matmul(
    a.astype(dtype),
    b.astype(dtype),
    preferred_element_type=accumulator(a, b),
  )


def hold(array: jax.Array) -> jax.Array:
  """The array as a loop over its chunks should hold it.

  Before jax 0.12, XLA on CPUs converts a whole bfloat16 array to float32 before
  a loop that reads or writes parts of it. If it sees bits it does not, at the
  price of one copy of them where the loop reads an argument of the program.

  Args:
    array: Any array.

  Returns:
    The array, or its bits as unsigned integers.
  """
  if array.dtype == jnp.bfloat16 and _converts_bfloat16():
    return lax.bitcast_convert_type(array, jnp.uint16)
  return array


def _converts_bfloat16() -> bool:
  """Whether this is the compiler that `hold` is for."""
  return jax.default_backend() == "cpu" and jax.__version_info__ < (0, 12)


def release(array: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Undoes `hold` of an array, or of a chunk, of type `dtype`."""
  if array.dtype == dtype:
    return array
  return lax.bitcast_convert_type(array, dtype)


def take(arrays: Any, start: Any, size: int) -> Any:
  """`array[start : start + size]` of each array of a tree."""

  def one(a: jax.Array) -> jax.Array:
    part = lax.dynamic_slice_in_dim(hold(a), start, size)
    return release(part, a.dtype)

  return jax.tree.map(one, arrays)


def held_zeros(arrays: Any) -> Any:
  """Zeros like each array of a tree, to be written chunk by chunk."""
  return jax.tree.map(lambda a: hold(jnp.zeros_like(a)), arrays)


def write(
  held: jax.Array, part: jax.Array, like: jax.Array, start: Any
) -> jax.Array:
  """`held`, an array like `like`, with `part` from `start` on."""
  part = hold(part.astype(like.dtype))
  return lax.dynamic_update_slice_in_dim(held, part, start, 0)


def release_all(held: Any, like: Any) -> Any:
  """The arrays of a tree that were held, each of the type of its like."""
  return jax.tree.map(lambda h, a: release(h, a.dtype), held, like)


def logits(
  x: jax.Array, rows: jax.Array, bias: jax.Array | None, limit: Any
) -> jax.Array:
  """Logits of a chunk.

  Args:
    x: `[N, D]`.
    rows: `[c, D]`.
    bias: `[c]`, or None.
    limit: The first so many rows are labels, the others are padding.

  Returns:
    `[N, c]` float32 (or wider), -inf at padding.
  """
  z = matmul(x, rows.T)
  if bias is not None:
    z += bias.astype(z.dtype)[None]
  return jnp.where(jnp.arange(rows.shape[0])[None] < limit, z, -jnp.inf)
