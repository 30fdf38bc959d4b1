"""Positives of a batch, and the part of them that falls into a label chunk."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
from jax.experimental import checkify
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
LabelValues = dict[str, jax.Array]
_FEW = 2  # positives of an example


class Memory(NamedTuple):
  """What is remembered of the labels of N examples, M of each.

  Attributes:
    ids: `[N, M]` int32 label ids, distinct; -1 is padding.
    values: `[N, M]` float, what it is about them; 0 at padding.
  """

  ids: Array
  values: Array


class Targets(NamedTuple):
  """Sparse positives of a batch of N examples, at most P each.

  Attributes:
    ids: `[N, P]` int32 label ids, those of an example distinct; -1 is padding.
      See `check_ids`.
    weights: `[N]` float32 weight of each example; 0 for padding examples.
    values: `[N, P]` float weight of each positive, for the losses that say
      so; None otherwise.
    memory: What is remembered of the examples, for the losses that say so.
  """

  ids: Array
  weights: Array
  values: Array | None = None
  memory: Memory | None = None


def check_ids(ids: Array, num_labels: int, name: str = "targets.ids") -> None:
  """Refuses ids that are not of labels, and the same one twice in an example.

  The passes over labels do so by themselves where ids have values, which is
  outside of `jit`. Inside, ids beyond the labels count as padding, and what the
  same one twice counts for depends on the loss. To find out about them there,
  call this in the function that `jax.experimental.checkify.checkify` is given:

    def checked(x, rows, targets):
      ops.check_ids(targets.ids, rows.shape[0])
      return ops.label_loss(x, rows, None, targets, losses.Softmax())

    error, loss = jax.jit(checkify.checkify(checked))(x, rows, targets)
    error.throw()

  Args:
    ids: `[N, P]` integers.
    num_labels: L.
    name: What to call them in the message.

  Raises:
    ValueError: Naming the first id that is neither a label nor -1, or that is
      repeated; from `error.throw()`, a JaxRuntimeError that says so.
  """
  if len(np.shape(ids)) != 2 or np.dtype(ids.dtype).kind not in "iu":
    raise ValueError(f"{name} must be integers [N, P]: got {_kind(ids)}")
  advice = f"give ids from 0 to {num_labels - 1}, or -1 for padding"
  if isinstance(ids, jax.core.Tracer):
    lowest, highest = jnp.min(ids, initial=-1), jnp.max(ids, initial=-1)
    checkify.check(
      (lowest >= -1) & (highest < num_labels),
      f"{name} are from {{lowest}} to {{highest}}: {advice}",
      lowest=lowest,
      highest=highest,
    )
    ordered = jnp.sort(ids, 1)
    again = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    checkify.check(~again.any(), f"{name} has a label twice in an example")
    return
  if isinstance(ids, jax.Array) and not ids.is_fully_addressable:
    return  # Other processes have the rest.
  values = np.asarray(ids).astype(np.int64)
  bad = np.argwhere((values < -1) | (values >= num_labels))
  if len(bad):
    n, p = bad[0]
    raise ValueError(f"{name}[{n}, {p}] is {values[n, p]}: {advice}")
  values = np.sort(values, 1)
  again = np.argwhere((values[:, 1:] == values[:, :-1]) & (values[:, 1:] >= 0))
  if len(again):
    n, p = again[0]
    raise ValueError(
      f"{name}[{n}] has label {values[n, p]} twice: give each label of an"
      " example once"
    )


def look_at_ids(ids: Array, num_labels: int, name: str = "targets.ids") -> None:
  """`check_ids` where ids have values."""
  if not isinstance(ids, jax.core.Tracer):
    check_ids(ids, num_labels, name)


def _kind(value: Any) -> str:
  """What an argument is, in words."""
  if hasattr(value, "dtype"):
    return f"{value.dtype} {tuple(value.shape)}"
  return type(value).__name__


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Positives:
  """The positives of N examples that lie in one chunk of c labels.

  They also know how the chunk lies: as `[N, c]`, or, where products are faster
  so, as `[c, N]`. What is said to be `[N, c]` here and in losses is the latter
  if `label_axis` is 0.

  Attributes:
    columns: `[N, P]` int32 column in the chunk; c (out of range) where the
      positive is padding or belongs to another chunk.
    inside: `[N, P]` bool, whether the column is in the chunk.
    count: `[N]` float32 number of positives of the example over ALL labels.
    used: `[N, P]` bool, whether it is a positive, of any chunk, not padding.
    values: `[N, P]` weights of ALL positives of the example, 0 at padding;
      None if the targets have none.
    labels: Vectors `[c]` with one value per label of the chunk, by name; what
      a loss weighs or shifts labels by. None if there are none.
    label_axis: The axis of the chunk that labels lie on.
    first: The first label of the chunk.
    weights: `[N]` weights of the examples; None for all alike.
    memory: What is remembered of the examples, of labels of all chunks.
  """

  columns: jax.Array
  inside: jax.Array
  count: jax.Array
  used: jax.Array
  values: jax.Array | None = None
  labels: LabelValues | None = None
  label_axis: int = dataclasses.field(default=1, metadata={"static": True})
  first: jax.Array | int = 0
  weights: jax.Array | None = None
  memory: Memory | None = None

  def by_example(self, values: jax.Array) -> jax.Array:
    """`[N]` values in a shape that broadcasts to the chunk."""
    return jnp.expand_dims(values, self.label_axis)

  def by_label(self, values: jax.Array) -> jax.Array:
    """`[c]` values in a shape that broadcasts to the chunk."""
    return jnp.expand_dims(values, 1 - self.label_axis)


def positives_in_chunk(
  ids: Array,
  offset: jax.Array | int,
  size: int,
  values: Array | None = None,
  labels: LabelValues | None = None,
  label_axis: int = 1,
  weights: Array | None = None,
  memory: Memory | None = None,
) -> Positives:
  """Localises label ids to the chunk `[offset, offset + size)`.

  Args:
    ids: `[N, P]` int32 label ids, -1 for padding.
    offset: First label of the chunk.
    size: Number of labels in the chunk.
    values: `[N, P]` weights of the positives, or None.
    labels: Vectors `[c]`, the chunk's part of values given per label, or None.
    label_axis: The axis of the chunk that labels lie on.
    weights: `[N]` weights of the examples, or None.
    memory: What is remembered of the examples, or None.

  Returns:
    The positives of the chunk.
  """
  ids = jnp.asarray(ids)
  inside = (ids >= offset) & (ids < offset + size)
  return Positives(
    columns=jnp.where(inside, ids - offset, size),
    inside=inside,
    count=(ids >= 0).sum(1).astype(jnp.float32),
    used=ids >= 0,
    values=None if values is None else jnp.where(ids >= 0, values, 0),
    labels=labels,
    label_axis=label_axis,
    first=offset,
    weights=None if weights is None else jnp.asarray(weights),
    memory=memory,
  )


def in_chunk_of(positives: Positives, ids: Array, z: jax.Array) -> Positives:
  """Localises other labels `[N, M]` to the chunk `z` that positives lie in."""
  axis = positives.label_axis
  return positives_in_chunk(
    ids, positives.first, z.shape[axis], label_axis=axis
  )


def among(ids: Array, others: Array) -> jax.Array:
  """Whether `[N, A]` ids are among `[N, B]` others of the same example."""
  # Not all pairs: with all labels remembered they would be the most of a step.
  ordered = jnp.sort(jnp.asarray(others), 1)
  places = jax.vmap(jnp.searchsorted)(ordered, jnp.asarray(ids))
  places = jnp.minimum(places, ordered.shape[1] - 1)
  return jnp.take_along_axis(ordered, places, 1) == ids


def label_values(positives: Positives, name: str) -> jax.Array:
  """The chunk's values per label `[c]` of that name.

  Args:
    positives: The positives of a chunk.
    name: Which of the values.

  Returns:
    `[c]` values.

  Raises:
    ValueError: There are no values of that name.
  """
  labels = positives.labels or {}
  if name not in labels:
    raise ValueError(
      f"the loss needs one value per label named '{name}'; "
      f"given are {sorted(labels)}"
    )
  return labels[name]


def shares(positives: Positives, dtype: jax.typing.DTypeLike) -> jax.Array:
  """1 / (number of positives) at each positive of the chunk, `[N, P]`.

  They add up to 1 over all chunks for an example that has positives.
  """
  count = jnp.maximum(positives.count, 1).astype(dtype)
  return positives.inside.astype(dtype) / count[:, None]


def gather_columns(z: jax.Array, positives: Positives) -> jax.Array:
  """Values of `z` `[N, c]` at the positives, `[N, P]`; 0 outside the chunk."""
  last = z.shape[positives.label_axis] - 1
  columns = jnp.minimum(positives.columns, last)
  if positives.label_axis:
    values = jnp.take_along_axis(z, columns, axis=1)
  else:
    values = jnp.take_along_axis(z, columns.T, axis=0).T
  return jnp.where(positives.inside, values, 0)


def add_at_columns(
  z: jax.Array, positives: Positives, values: jax.Array
) -> jax.Array:
  """Adds `values` `[N, P]` to `z` `[N, c]` at the positives of the chunk."""
  if _few(positives):
    return _select(z, positives, values, jnp.add)
  return _at(z, positives).add(values, mode="drop")


def set_at_columns(
  z: jax.Array, positives: Positives, values: jax.Array | float
) -> jax.Array:
  """Puts `values` `[N, P]` into `z` `[N, c]` at the positives of the chunk."""
  if _few(positives):
    return _select(z, positives, values, lambda _, value: value)
  return _at(z, positives).set(values, mode="drop")


def multiply_at_columns(
  z: jax.Array, positives: Positives, values: jax.Array
) -> jax.Array:
  """Multiplies `z` `[N, c]` by `values` `[N, P]` at the chunk's positives."""
  if _few(positives):
    return _select(z, positives, values, jnp.multiply)
  return _at(z, positives).multiply(values, mode="drop")


def _few(positives: Positives) -> bool:
  """Whether comparing all columns is cheaper than a scatter.

  A scatter is a pass of its own over the chunk; comparisons become part of one
  that there is anyway.
  """
  return positives.columns.shape[1] <= _FEW


def _select(
  z: jax.Array,
  positives: Positives,
  values: jax.Array | float,
  change: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
  """`z` with `change(z, value)` at the positives of the chunk."""
  values = jnp.broadcast_to(values, positives.columns.shape).astype(z.dtype)
  columns = jnp.arange(z.shape[positives.label_axis], dtype=jnp.int32)
  columns = positives.by_label(columns)
  for p in range(positives.columns.shape[1]):
    here = columns == positives.by_example(positives.columns[:, p])
    z = jnp.where(here, change(z, positives.by_example(values[:, p])), z)
  return z


def _at(z: jax.Array, positives: Positives) -> Any:
  """`z` at the positives; those outside the chunk are to be dropped."""
  rows = jnp.arange(positives.columns.shape[0])[:, None]
  if positives.label_axis:
    return z.at[rows, positives.columns]
  return z.at[positives.columns, rows]
