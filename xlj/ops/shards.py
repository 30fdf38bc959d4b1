"""Where the label pass finds label rows and examples on a mesh.

Rows are split over the mesh axes `rows`; examples over the axes `batch`, a part
of those, or not at all. Functions here run inside `shard_map`, but for `find`,
`plan`, `check` and `over`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from xlj.ops import chunks
from xlj.ops import layout as layout_lib

P = jax.P


@dataclasses.dataclass(frozen=True)
class Placement:
  """What a label pass is told of where its arrays lie, and of its memory.

  On one device there is nothing to say. On a mesh, rows are split over the mesh
  axes `row_axes`, examples over `batch_axes`, a part of those, or not at all.
  Outside `shard_map` both are read from the arrays' types if the mesh has
  explicit axes; with automatic axes `row_axes` must be given. Inside
  `shard_map` both must be given, and arrays are this device's parts.

  Example:
    inside = Placement(row_axes=("data",), batch_axes=("data",))
    small = Placement(memory=2**24)

  Attributes:
    row_axes: Mesh axes that label rows are split over; None to read them from
      the type of the rows.
    batch_axes: Mesh axes that examples are split over; None likewise.
    chunk_size: Rows of a chunk on each device; None to derive it.
    memory: Bytes of temporaries to derive it from; None for the default. What
      looks up given labels goes over so many examples at a time, at least one.
  """

  row_axes: Sequence[str] | None = None
  batch_axes: Sequence[str] | None = None
  chunk_size: int | None = None
  memory: int | None = None


AUTO = Placement()


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


class Split(NamedTuple):
  """How label rows are split over devices.

  Attributes:
    layout: Which rows, of all devices, hold labels.
    shards: Mesh axes.
  """

  layout: layout_lib.Layout
  shards: Shards


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
  rows: jax.Array, x: jax.Array | None, placement: Placement = AUTO
) -> Shards:
  """The axes: those given, otherwise those that the arrays' types name.

  Args:
    rows: Label rows.
    x: Examples; None where there are none.
    placement: The axes that are given.

  Returns:
    The axes.

  Raises:
    ValueError: Inside `shard_map` the axes are not given, or examples are
      split over axes that rows are not split over.
  """
  row_axes = placement.row_axes
  batch_axes = () if x is None else placement.batch_axes
  manual = bool(jax.sharding.get_abstract_mesh().manual_axes)
  if manual and (row_axes is None or batch_axes is None):
    raise ValueError(
      "inside shard_map, say which mesh axes label rows and examples are split "
      "over: Placement(row_axes=..., batch_axes=...) (each may be empty)"
    )
  found = Shards(
    _first_axes(rows) if row_axes is None else tuple(row_axes),
    _first_axes(x) if batch_axes is None else tuple(batch_axes),  # pyrefly: ignore
    manual,
  )
  if not set(found.batch) <= set(found.rows):
    raise ValueError(
      f"examples are split over the mesh axes {found.batch}, label rows only "
      f"over {found.rows}: split the rows over all of them"
    )
  return found


def split(
  rows: jax.Array,
  x: jax.Array | None,
  num_labels: int | None,
  placement: Placement = AUTO,
) -> Split:
  """Where rows lie, for what does not go over them in chunks.

  Args:
    rows: `[L, D]`, or this device's part inside `shard_map`.
    x: `[N, ...]`, what is split like examples; None without any.
    num_labels: Number of labels, or None for as many as rows.
    placement: What was said.

  Returns:
    The split.

  Raises:
    ValueError: Rows cannot be split evenly, a number is not positive, or what
      `find` raises.
  """
  shards = find(rows, x, placement)
  num_shards, num_rows = _size(shards.rows), rows.shape[0]
  if shards.manual:
    num_rows *= num_shards
  if num_rows % num_shards:
    raise ValueError(
      f"{num_rows} label rows cannot be split over {num_shards} devices: "
      "append rows and give num_labels"
    )
  chunk = placement.chunk_size
  if chunk is not None and chunk < 1:
    raise ValueError(f"a chunk must have at least 1 row: got {chunk}")
  if num_labels is None:
    num_labels = num_rows
  if not 1 <= num_labels <= num_rows:
    raise ValueError(f"num_labels is {num_labels}: there are {num_rows} rows")
  return Split(layout_lib.Layout(num_labels), shards)


def plan(
  rows: jax.Array,
  x: jax.Array | None,
  num_labels: int | None,
  placement: Placement = AUTO,
) -> Plan:
  """Fills in what was not said of a pass.

  Args:
    rows: `[L, D]`, or this device's part inside `shard_map`.
    x: `[N, D]`, or this device's part; None for a pass without examples, which
      has the D columns of the rows in their place.
    num_labels: Number of labels, or None for as many as rows.
    placement: What was said.

  Returns:
    The plan.

  Raises:
    ValueError: As `split`.
  """
  layout, shards = split(rows, x, num_labels, placement)
  chunk, memory = placement.chunk_size, placement.memory
  if chunk is None:
    like = rows if x is None else x
    num_examples, width = rows.shape[1:] * 2 if x is None else x.shape
    own = rows.shape[0]
    if shards.manual:
      num_examples *= _size(shards.batch)
    else:
      own //= _size(shards.rows)
    itemsize = chunks.accumulator(like, rows).itemsize
    if memory is None:
      memory = chunks.default_memory()
    chunk = chunks.chunk_size(memory, own, num_examples, width, itemsize)
  return Plan(layout, chunk, shards)


def check(
  x: jax.Array,
  rows: jax.Array,
  bias: jax.Array | None = None,
  *,
  by_example: Mapping[str, Any] | None = None,
  by_label: Mapping[str, Any] | None = None,
) -> None:
  """Refuses arrays that a pass over labels cannot be of.

  Args:
    x: To be `[N, D]`, floating.
    rows: To be `[L, D]`, floating.
    bias: To be `[L]`, or None.
    by_example: What else is to be `[N, ...]`, by name; None is left out.
    by_label: What else is to be `[L, ...]`, by name; None is left out.

  Raises:
    ValueError: Naming the array and its shape.
  """
  arrays = {"x": x, "rows": rows, "bias": bias}
  arrays |= {**(by_example or {}), **(by_label or {})}
  for name, array in arrays.items():
    if array is not None and not isinstance(array, jax.Array | np.ndarray):
      raise ValueError(
        f"{name} must be an array of jax or numpy: got a {type(array).__name__}"
      )
  shapes = f"x {x.shape}, rows {rows.shape}"
  if x.ndim != 2 or rows.ndim != 2 or x.shape[1] != rows.shape[1]:
    raise ValueError(f"x must be [N, D] and rows [L, D]: got {shapes}")
  for name, array in {"x": x, "rows": rows}.items():
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise ValueError(f"{name} must be floating: got {array.dtype}")
  if bias is not None and bias.shape != rows.shape[:1]:
    raise ValueError(f"bias must be [L]: got {bias.shape} with {shapes}")
  for sizes, size, found in (
    ("[N, ...]", x.shape[0], by_example),
    ("[L, ...]", rows.shape[0], by_label),
  ):
    for name, array in (found or {}).items():
      if array is not None and array.shape[:1] != (size,):
        raise ValueError(
          f"{name} must be {sizes}: got {array.shape} with {shapes}"
        )


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


def of_all(a: jax.Array, axes: tuple[str, ...], axis: int) -> jax.Array:
  """What all devices along mesh axes have, side by side; the same on all.

  Args:
    a: `[..., k, ...]` of this device, `k` at `axis`.
    axes: Mesh axes, G devices.
    axis: Which axis of `a` grows.

  Returns:
    `[..., G k, ...]`.
  """
  # A sum of zeros and one: unlike the result of an all-gather it is known to be
  # the same on all devices.
  index, count = lax.axis_index(axes), lax.axis_size(axes)
  shape = *a.shape[:axis], count, *a.shape[axis:]
  place = (*[slice(None)] * axis, index)
  alone = jnp.zeros(shape, a.dtype).at[place].set(a)
  whole = *a.shape[:axis], count * a.shape[axis], *a.shape[axis + 1 :]
  return lax.psum(alone, axes).reshape(whole)


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
