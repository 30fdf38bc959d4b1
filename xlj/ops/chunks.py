"""Chunks of this device's label rows, and the logits of one.

Legend: N examples, D width, l label rows of this device, c of a chunk.
"""

from collections.abc import Callable, Sequence
import itertools
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import platform

Carry = TypeVar("Carry")

# Bytes. On CPUs a chunk is fastest in their caches; on accelerators what counts
# is that few chunks are started.
_MEMORY = {"cpu": 3 * 2**23}
_MEMORY_OF_ACCELERATORS = 2**29
_ALIGNMENT = 128  # rows; a multiple of the vector width of all devices
_FEW_EXAMPLES = 128  # see `label_axis`


def chunk_size(
  memory: int, num_rows: int, num_examples: int, dim: int, itemsize: float = 4
) -> int:
  """The number of rows whose temporaries fit into `memory` bytes.

  A chunk needs at most three arrays `[N, c]` (logits, gradient, one between)
  and two `[c, D]` (rows, their gradient).

  Args:
    memory: Bytes.
    num_rows: Rows of this device l.
    num_examples: N.
    dim: D.
    itemsize: Bytes of a number, on average.

  Returns:
    Number of rows: all of them, or a multiple of 128, also where memory is
    too small for that.
  """
  size = int(memory / (itemsize * (3 * num_examples + 2 * dim)))
  return min(num_rows, max(size // _ALIGNMENT, 1) * _ALIGNMENT)


def default_memory() -> int:
  """Bytes of temporaries of a pass if nothing else is said."""
  return _MEMORY.get(platform.current(), _MEMORY_OF_ACCELERATORS)


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


class Place(NamedTuple):
  """Where a chunk of this device's rows lies.

  Attributes:
    start: Its first row.
    size: Number of rows.
    parts: For each array that covers only the first rows of each block, where
      the chunk starts in it; None where it does not cover the chunk.
    blocks: `[m]` numbers of the blocks that the chunk consists of, where they
      do not lie one after the other: its first row is then where they would
      lie if they did. None where they do.
  """

  start: Any
  size: int
  parts: tuple[Any, ...]
  blocks: jax.Array | None = None


def for_places(
  num_rows: int,
  blocks: int,
  prefixes: Sequence[int],
  size: int,
  body: Callable[[Place, Carry], Carry],
  carry: Carry,
) -> Carry:
  """Runs `body(place, carry)` on every chunk, beside arrays of fewer rows.

  Such an array covers the first so many rows of each block alone. No chunk lies
  partly in it.

  Args:
    num_rows: Number of rows in all.
    blocks: Number of blocks that they consist of.
    prefixes: How many rows of each block each of those arrays has.
    size: Rows of a chunk at most.
    body: Takes a place and what the last chunk returned.
    carry: What the first chunk is given.

  Returns:
    What the last chunk returned.
  """
  per_block = num_rows // blocks
  bounds = sorted({0, per_block, *prefixes})
  if len(bounds) == 2:

    def flat(start, size, carry):
      parts = tuple(start if prefix else None for prefix in prefixes)
      return body(Place(start, size, parts), carry)

    return for_chunks(num_rows, size, flat, carry)

  def block(b, carry):
    for first, last in itertools.pairwise(bounds):

      def inner(i, size, carry, first=first):
        parts = tuple(
          b * prefix + first + i if prefix > first else None
          for prefix in prefixes
        )
        return body(Place(b * per_block + first + i, size, parts), carry)

      carry = for_chunks(last - first, size, inner, carry)
    return carry

  return lax.fori_loop(0, blocks, block, carry)


def for_blocks(
  blocks: jax.Array,
  count: jax.Array,
  most: int,
  body: Callable[[Any, jax.Array, Carry], Carry],
  carry: Carry,
) -> Carry:
  """Runs `body(first, part, carry)` on the first `count` blocks of a list.

  Args:
    blocks: `[B]` numbers of blocks.
    count: How many of them; it may be traced.
    most: How many at a time at most. It is the greatest divisor of B up to
      this, so that the last part may have blocks that are not meant.
    body: Takes where in the list the part starts, the part `[m]`, and what it
      returned for the last one.
    carry: What the first part is given.

  Returns:
    What it returned for the last part.
  """
  total = blocks.shape[0]
  size = max(m for m in range(1, most + 1) if total % m == 0)

  def one(i, carry):
    part = lax.dynamic_slice_in_dim(blocks, i * size, size)
    return body(i * size, part, carry)

  return lax.fori_loop(0, (count + size - 1) // size, one, carry)


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


def isolated(unknown: Any, function: Callable[..., Any], *args: Any) -> Any:
  """`function(*args)`, which XLA on CPUs must not merge with what is around it.

  There, if reading a chunk of two arrays, computing, and writing it back are
  merged, the second array is read again after the first was written, and so is
  copied as a whole in every step. A branch keeps them apart.

  Args:
    unknown: A number of at least 0 that the compiler cannot know; nothing is
      done if it is not traced.
    function: Of arrays.
    *args: Arrays.

  Returns:
    What the function does, a tree of arrays that all vary over the same mesh
    axes as the arguments together do.
  """
  if platform.current() != "cpu" or isinstance(unknown, int):
    return function(*args)
  leaves = jax.tree.leaves(args)
  axes = frozenset().union(*(varying(a) for a in leaves))

  def never(*args):
    shapes = jax.eval_shape(function, *args)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return mark_varying(zeros, tuple(axes))

  return lax.cond(unknown >= 0, function, never, *args)


def transposed(a: jax.Array, start: Any) -> jax.Array:
  """`a.T [n, m]` of `a [m, n]`, a part of the chunk at `start`.

  XLA on CPUs multiplies bfloat16 matrices several times faster if neither is
  transposed; isolated it does not see that one is.
  """
  if a.dtype != jnp.bfloat16:
    return a.T
  return isolated(start, lambda a: a.T, a)


def label_axis(dtype: jax.typing.DTypeLike, num_examples: int) -> int:
  """The axis of labels in chunks of logits that products are fastest with.

  Args:
    dtype: The type that label rows and examples are multiplied in.
    num_examples: N.

  Returns:
    0 for chunks `[c, N]`, 1 for chunks `[N, c]`. XLA on CPUs takes half the
    time for bfloat16 products, or less, if rows come first: see `transposed`;
    and a tenth less for other types where examples are few.
  """
  first = dtype == jnp.bfloat16 or num_examples <= _FEW_EXAMPLES
  return 0 if first and platform.current() == "cpu" else 1


def both_ways(
  grad: jax.Array, label_axis: int, start: Any
) -> tuple[jax.Array, jax.Array]:
  """A chunk at `start` of gradients of logits as `[N, c]` and as `[c, N]`."""
  if label_axis:
    return grad, transposed(grad, start)
  return transposed(grad, start), grad


def to_bits(array: jax.Array) -> jax.Array:
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
  """Whether this is the compiler that `to_bits` is for."""
  return platform.current() == "cpu" and jax.__version_info__ < (0, 12)


def from_bits(array: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Undoes `to_bits` of an array, or of a chunk, of type `dtype`."""
  if array.dtype == dtype:
    return array
  return lax.bitcast_convert_type(array, dtype)


def take(arrays: Any, start: Any, size: int) -> Any:
  """`array[start : start + size]` of each array of a tree."""

  def one(a: jax.Array) -> jax.Array:
    part = lax.dynamic_slice_in_dim(to_bits(a), start, size)
    return from_bits(part, a.dtype)

  return jax.tree.map(one, arrays)


def take_blocks(arrays: Any, blocks: jax.Array, size: int) -> Any:
  """Some blocks of rows of each array of a tree, one after the other.

  Args:
    arrays: Tree of arrays `[l, ...]` that consist of blocks.
    blocks: `[m]` numbers of distinct blocks.
    size: Rows of a block.

  Returns:
    Tree of arrays `[m size, ...]`.
  """
  parts = [take(arrays, block * size, size) for block in blocks]
  return jax.tree.map(lambda *parts: jnp.concatenate(parts), *parts)


def write_blocks(arrays: Any, parts: Any, blocks: jax.Array, size: int) -> Any:
  """The arrays with what `take_blocks` took replaced."""

  def one(array: jax.Array, part: jax.Array) -> jax.Array:
    for i, block in enumerate(blocks):
      array = lax.dynamic_update_slice_in_dim(
        array, part[i * size : (i + 1) * size], block * size, 0
      )
    return array

  return jax.tree.map(one, arrays, parts)


def zeros_as_bits(arrays: Any) -> Any:
  """Zeros like each array of a tree, to be written chunk by chunk."""
  return jax.tree.map(lambda a: to_bits(jnp.zeros_like(a)), arrays)


def write(
  bits: jax.Array, part: jax.Array, like: jax.Array, start: Any
) -> jax.Array:
  """`bits`, an array like `like`, with `part` from `start` on."""
  part = to_bits(part.astype(like.dtype))
  return lax.dynamic_update_slice_in_dim(bits, part, start, 0)


def all_from_bits(bits: Any, like: Any) -> Any:
  """The arrays of a tree of `to_bits`, each of the type of its like."""
  return jax.tree.map(lambda h, a: from_bits(h, a.dtype), bits, like)


def logits(
  x: jax.Array,
  rows: jax.Array,
  bias: jax.Array | None,
  is_label: jax.Array | None,
  start: Any,
  label_axis: int = 1,
) -> jax.Array:
  """Logits of a chunk.

  Args:
    x: `[N, D]`.
    rows: `[c, D]`.
    bias: `[c]`, or None.
    is_label: `[c]` bool, False at padding; None if all rows hold labels.
    start: First row of the chunk.
    label_axis: 0 for `[c, N]`.

  Returns:
    `[N, c]` float32 (or wider), -inf at padding.
  """
  if label_axis:
    z = matmul(x, transposed(rows, start))
  else:
    z = matmul(rows, transposed(x, start))
  if bias is not None:
    z += jnp.expand_dims(bias.astype(z.dtype), 1 - label_axis)
  if is_label is None:
    return z
  return jnp.where(jnp.expand_dims(is_label, 1 - label_axis), z, -jnp.inf)


def mark_varying(tree: Any, axes: Sequence[str]) -> Any:
  """Types arrays as different between the devices along mesh axes.

  Args:
    tree: Arrays.
    axes: Mesh axes.

  Returns:
    The same arrays.
  """

  def one(a: jax.Array) -> jax.Array:
    missing = tuple(axis for axis in axes if axis not in varying(a))
    return lax.pcast(a, missing, to="varying") if missing else a

  return jax.tree.map(one, tree)


def varying(a: jax.Array) -> frozenset[str]:
  """The mesh axes along which an array may differ between devices."""
  kind: Any = jax.typeof(a)
  return kind.manual_axis_type.varying
