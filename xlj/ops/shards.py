"""Where the label pass finds label rows and examples on a mesh.

Rows are split over the mesh axes `rows`; examples over the axes `batch`, a part
of those, or not at all. Functions here run inside `shard_map`, but for `find`,
`plan` and `over`.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import chunks
from xlj.ops import layout as layout_lib

P = jax.P


class Shards(NamedTuple):
  """Mesh axes.

  Attributes:
    rows: Axes that label rows are split over.
    batch: Axes that examples are split over; some of `rows`, or none.
    manual: Whether this is inside `shard_map` over these axes already.
  """

  rows: tuple[str, ...]
  batch: tuple[str, ...]
  manual: bool


class Plan(NamedTuple):
  """How one device goes over its label rows.

  Attributes:
    layout: Which rows, of all devices, hold labels.
    chunk: Rows of a chunk.
    shards: Mesh axes.
  """

  layout: layout_lib.Layout
  chunk: int
  shards: Shards


def find(
  rows: jax.Array,
  x: jax.Array,
  row_axes: Sequence[str] | None,
  batch_axes: Sequence[str] | None,
) -> Shards:
  """The axes: those given, otherwise those that the arrays' types name.

  Args:
    rows: Label rows.
    x: Examples.
    row_axes: Mesh axes of the rows, or None.
    batch_axes: Mesh axes of the examples, or None.

  Returns:
    The axes.

  Raises:
    ValueError: Inside `shard_map` the axes are not given, or examples are
      split over axes that rows are not split over.
  """
  manual = bool(jax.sharding.get_abstract_mesh().manual_axes)
  if manual and (row_axes is None or batch_axes is None):
    raise ValueError(
      "inside shard_map, say which mesh axes label rows and examples are split "
      "over: row_axes=, batch_axes= (each may be empty)"
    )
  found = Shards(
    _first_axes(rows) if row_axes is None else tuple(row_axes),
    _first_axes(x) if batch_axes is None else tuple(batch_axes),
    manual,
  )
  if not set(found.batch) <= set(found.rows):
    raise ValueError(
      f"examples are split over the mesh axes {found.batch}, label rows only "
      f"over {found.rows}: split the rows over all of them"
    )
  return found


def plan(
  shards: Shards,
  x: jax.Array,
  rows: jax.Array,
  num_labels: int | None,
  chunk: int | None,
  memory: int | None,
) -> Plan:
  """Fills in what was not said of a pass.

  Args:
    shards: Mesh axes.
    x: `[N, D]`, or this device's part where `shards.manual`.
    rows: `[L, D]`, or this device's part.
    num_labels: Number of labels, or None for as many as rows.
    chunk: Rows of a chunk, or None.
    memory: Bytes of temporaries, if `chunk` is None; None for the default.

  Returns:
    The plan.

  Raises:
    ValueError: Rows cannot be split evenly, or a number is not positive.
  """
  num_shards = _size(shards.rows)
  num_rows, num_examples = rows.shape[0], x.shape[0]
  if shards.manual:
    num_rows *= num_shards
    num_examples *= _size(shards.batch)
  if num_rows % num_shards:
    raise ValueError(
      f"{num_rows} label rows cannot be split over {num_shards} devices: "
      "append rows and give num_labels"
    )
  if chunk is None:
    itemsize = chunks.accumulator(x, rows).itemsize
    if memory is None:
      memory = chunks.default_memory()
    chunk = chunks.chunk_size(
      memory, num_rows // num_shards, num_examples, x.shape[1], itemsize
    )
  if chunk < 1:
    raise ValueError(f"a chunk must have at least 1 row: got {chunk}")
  if num_labels is None:
    num_labels = num_rows
  return Plan(layout_lib.Layout(num_labels), chunk, shards)


def over(
  function: Callable[..., Any],
  shards: Shards,
  in_rows: Sequence[bool],
  out: Any,
) -> Callable[..., Any]:
  """`function` of local arrays as a function of whole ones.

  Args:
    function: Takes the local parts of its arguments.
    shards: Mesh axes.
    in_rows: For each argument, whether it is split like the rows; like the
      examples otherwise.
    out: `PartitionSpec` of the result.

  Returns:
    The function under `shard_map`, or itself where there is none to do.
  """
  if shards.manual or not shards.rows:
    return function
  specs = tuple(P(shards.rows) if r else P(shards.batch) for r in in_rows)
  return jax.shard_map(function, in_specs=specs, out_specs=out)


def gather(tree: Any, shards: Shards) -> Any:
  """The examples of all shards; its transpose sums and scatters.

  Args:
    tree: Arrays `[n, ...]`.
    shards: Mesh axes.

  Returns:
    Arrays `[N, ...]`, typed as different between the shards of rows.
  """
  if shards.batch:
    tree = jax.tree.map(
      lambda a: lax.all_gather(a, shards.batch, tiled=True), tree
    )
  return chunks.mark_varying(tree, shards.rows)


def offset(shards: Shards, num_rows: int) -> jax.Array | int:
  """The first row of this device, of `num_rows` each."""
  if not shards.rows:
    return 0
  return (lax.axis_index(shards.rows) * num_rows).astype(jnp.int32)


def total(a: jax.Array, shards: Shards) -> jax.Array:
  """The sum over shards of rows, `[N, ...]` numbers; the same on all."""
  return lax.psum(a, shards.rows) if shards.rows else a


def total_of_own(a: jax.Array, shards: Shards) -> jax.Array:
  """The sum over shards of rows of this device's examples.

  Args:
    a: `[N, ...]`, this device's part of the sum.
    shards: Mesh axes.

  Returns:
    `[n, ...]`.
  """
  others = tuple(axis for axis in shards.rows if axis not in shards.batch)
  if others:
    a = lax.psum(a, others)
  return lax.psum_scatter(a, shards.batch, tiled=True) if shards.batch else a


def own(a: jax.Array, shards: Shards) -> jax.Array:
  """This device's examples `[n, ...]` of `[N, ...]`."""
  if not shards.batch:
    return a
  size = a.shape[0] // lax.axis_size(shards.batch)
  return lax.dynamic_slice_in_dim(a, lax.axis_index(shards.batch) * size, size)


def _size(axes: Sequence[str]) -> int:
  """Number of devices along mesh axes."""
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape[axis] for axis in axes)


def _first_axes(a: jax.Array) -> tuple[str, ...]:
  """Mesh axes that the first dimension is split over, as its type says."""
  kind: Any = jax.typeof(a)
  first = kind.sharding.spec[0]
  return (first,) if isinstance(first, str) else tuple(first or ())
