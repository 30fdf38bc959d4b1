"""Tiles in a kernel: loaded, masked, multiplied, stored.

Legend: n examples or rows of an array, d its width, s rows of a tile, w width
of a tile (a power of two, at least d).
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp
import numpy as np

from xlj.ops import rounding
from xlj.ops import row_format
from xlj.ops.kernels import exponentials
from xlj.ops.kernels import problem as problem_lib

Ref = Any  # References to arrays have no public type.


def load(
  ref: Ref,
  start: Any,
  size: int,
  width: int | None = None,
  lead: tuple[Any, ...] = (),
) -> jax.Array:
  """Rows of an array; zeros beyond it.

  Args:
    ref: `[..., n]` or `[..., n, d]`.
    start: First row, a multiple of `size`.
    size: Number of rows s.
    width: w of a matrix; None of a vector.
    lead: Where along the axes before, one number for each.

  Returns:
    `[s]` or `[s, w]`.
  """
  view, mask = _part(ref, start, size, width, lead)
  if mask is None:
    return plgpu.load(view)
  return plgpu.load(view, mask=mask, other=np.zeros((), ref.dtype))


def store(
  ref: Ref, start: Any, value: jax.Array, lead: tuple[Any, ...] = ()
) -> None:
  """Writes rows of an array, as far as they are inside.

  Args:
    ref: `[..., n]` or `[..., n, d]`.
    start: First row, a multiple of the number of rows of `value`.
    value: `[s]` or `[s, w]`.
    lead: Where along the axes before, one number for each.
  """
  size, *width = value.shape
  view, mask = _part(ref, start, size, width[0] if width else None, lead)
  plgpu.store(view, value, mask=mask)


def typed(
  stored: Mapping[str, jax.Array], row_format_: row_format.RowFormat
) -> dict[str, jax.Array]:
  """Stored rows as kernels take them: bfloat16 as such, not as bits.

  The matrix units read what lies in shared memory as it was loaded. Bits would
  have to go through registers to become numbers there. The compilers for GPUs
  do not copy an array to call its bits something else.

  Args:
    stored: Arrays by name; others than those of label rows are left out.
    row_format_: How rows are stored.

  Returns:
    Arrays by name.
  """
  if row_format_.dtype == "bfloat16":
    return {"rows": rounding.from_bfloat16(stored["rows"])}
  names = ("rows", "exponents")[: 1 + (row_format_.dtype == "float8")]
  return {name: stored[name] for name in names}


def untyped(
  rows: Mapping[str, jax.Array], row_format_: row_format.RowFormat
) -> dict[str, jax.Array]:
  """Undoes `typed`."""
  if row_format_.dtype != "bfloat16":
    return dict(rows)
  return {"rows": lax.bitcast_convert_type(rows["rows"], jnp.uint16)}


def load_rows(
  refs: Mapping[str, Ref], start: Any, size: int, problem: problem_lib.Problem
) -> jax.Array:
  """A tile of label rows `[s, w]` as products use them."""
  rows = {
    name: load(ref, start, size, problem.width if name == "rows" else None)
    for name, ref in refs.items()
  }
  return _decode(rows, problem)


def gather_rows(
  refs: Mapping[str, Ref], rows: jax.Array, problem: problem_lib.Problem
) -> jax.Array:
  """Some label rows as products use them.

  Args:
    refs: Label rows.
    rows: `[s]` int32, all inside.
    problem: The problem.

  Returns:
    `[s, w]`, zeros from column D on.
  """
  found = {
    name: gather(ref, rows, problem.width)
    if name == "rows"
    else plgpu.load(ref.at[rows])
    for name, ref in refs.items()
  }
  return _decode(found, problem)


def load_row(ref: Ref, row: jax.Array, width: int) -> jax.Array:
  """One row `[w]` of a matrix `[n, d]`, zeros from column d on."""
  if width == ref.shape[1]:
    return plgpu.load(ref.at[row, :])
  columns = lax.iota(jnp.int32, width)
  return plgpu.load(
    ref.at[jnp.full((width,), row), columns],
    mask=columns < ref.shape[1],
    other=np.zeros((), ref.dtype),
  )


def gather(ref: Ref, rows: jax.Array, width: int) -> jax.Array:
  """Some rows `[s, w]` of a matrix `[n, d]`, zeros from column d on."""
  index, columns = _grid(rows, width)
  view = ref.at[index, columns]
  if width == ref.shape[1]:
    return plgpu.load(view)
  inside = columns < ref.shape[1]
  return plgpu.load(view, mask=inside, other=np.zeros((), ref.dtype))


def encode(
  values: jax.Array,
  bits: jax.Array | None,
  row_format_: row_format.RowFormat,
) -> dict[str, jax.Array]:
  """What `typed` gives of `RowFormat.encode`, bit for bit.

  That orders some of its steps in a way that kernels have no instruction for,
  and no need.

  Args:
    values: `[s, w]` float32.
    bits: `[s, w]` uint32, or None to round to the nearest.
    row_format_: How rows are stored.

  Returns:
    Arrays by name.
  """
  if row_format_.dtype != "float8":
    return typed(row_format_.encode(values, bits), row_format_)
  exponents = rounding.row_exponents(values)
  rows = rounding.to_float8(values, bits, exponents)
  rows, exponents = rounding.canonical_float8(rows, exponents)
  exponents = exponents.reshape(values.shape[0]).astype(jnp.int8)
  return {"rows": rows, "exponents": exponents}


def label_offsets(
  problem: problem_lib.Problem,
  tile: problem_lib.Tile,
  bias_ref: Ref | None,
  first_row: jax.Array,
  start: Any,
) -> jax.Array | None:
  """What to add to the logits of a tile of rows.

  Args:
    problem: The problem.
    tile: Of the kernel.
    bias_ref: `[l]`, or None.
    first_row: Number of this device's first row among those of all.
    start: First row of the tile.

  Returns:
    `[s]` float32: the bias or 0, -inf where there is no label; None if it would
    be nothing but zeros.
  """
  bias = None if bias_ref is None else load(bias_ref, start, tile.rows)
  if problem.all_rows_count(tile):
    return bias
  rows = start + lax.iota(jnp.int32, tile.rows)
  counts = rows < problem.num_rows
  if problem.layout.num_rows != problem.layout.num_labels:
    counts &= problem.layout.is_label(first_row + rows)
  return jnp.where(counts, np.float32(0) if bias is None else bias, -np.inf)


def products(a: jax.Array, b: jax.Array) -> jax.Array:
  """`a @ b.T` of `[m, w]` and `[s, w]`, float32."""
  return lax.dot_general(
    a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  """`a @ b` with `a` as narrow as `b`, float32."""
  return jnp.dot(a.astype(b.dtype), b, preferred_element_type=jnp.float32)


def probabilities(
  problem: problem_lib.Problem, z: jax.Array, level: jax.Array
) -> jax.Array:
  """The gradient by logits if there were no positives, times the scale.

  Args:
    problem: The problem.
    z: Logits `[...]`.
    level: Of each example, to broadcast against z. For softmax, the logarithm
      to base 2 of the scale, minus that of the sum of exponentials; for binary
      cross-entropy, the scale.

  Returns:
    `[...]` float32.
  """
  if problem.loss == "softmax":
    return exponentials.exp(z, level, problem.interpret)
  e = exponentials.exp_of_minus_abs(z, problem.interpret)
  return exponentials.sigmoid(z, e, level, problem.interpret)


def _decode(rows, problem):
  """Label rows of what was loaded."""
  if problem.format.dtype == "bfloat16":
    return rows["rows"]
  return problem.format.decode(rows)


def _part(ref, start, size, width, lead):
  """Rows of a reference, and which of their elements are inside, or None."""
  num_rows, *dim = ref.shape[len(lead) :]
  whole = num_rows % size == 0
  rows = start + lax.iota(jnp.int32, size)
  if width is None:
    mask = None if whole else rows < num_rows
    return ref.at[*lead, pl.ds(start, size)], mask
  if width == dim[0]:
    mask = lax.broadcast_in_dim(rows < num_rows, (size, width), (0,))
    return ref.at[*lead, pl.ds(start, size), :], None if whole else mask
  # A slice may not be wider than the array.
  index, columns = _grid(rows, width)
  lead = tuple(jnp.full(index.shape, i) for i in lead)
  mask = (index < num_rows) & (columns < dim[0])
  return ref.at[*lead, index, columns], mask


def _grid(rows, width):
  """Row and column of each element of `[s, w]`."""
  shape = rows.shape[0], width
  columns = lax.broadcasted_iota(jnp.int32, shape, 1)
  return lax.broadcast_in_dim(rows, shape, (0,)), columns
