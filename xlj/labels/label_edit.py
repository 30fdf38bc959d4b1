"""Rows of labels that come, go and move, where rows are split over devices.

Every block of labels (see `xlj.ops.layout`) grows or shrinks where it is, and
only rows that move are sent. What comes of an array does not depend on the
mesh.

Legend: L labels before, M after, R rows before and S after (padded), K rows
that move or are new.
"""

from collections.abc import Sequence
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from xlj import sharding
from xlj.ops import layout as layout_lib

_PIECE = 2**22  # numbers that are sent at a time


def moved(
  a: jax.Array,
  before: layout_lib.Layout,
  after: layout_lib.Layout,
  sources: np.ndarray,
  targets: np.ndarray,
  *,
  fill: int = 0,
) -> jax.Array:
  """An array by label row with some labels moved, for another number of them.

  Args:
    a: `[R, ...]` on the mesh in context, split by rows.
    before: The layout of its rows.
    after: That of the result, in as many blocks.
    sources: int `[K]`, labels before; -1 for one that there was not.
    targets: int `[K]`, their numbers after; all others keep theirs, or are cut
      off.
    fill: For labels that are new, and for padding.

  Returns:
    `[S, ...]`, split like `a`.

  Raises:
    ValueError: The number of blocks is another one.
  """
  if before.blocks != after.blocks:
    raise ValueError(f"{before.blocks} blocks before, and {after.blocks} after")
  out = _resized(a, before, after, fill)
  # A label that `a` keeps nothing of is as new.
  known = (sources >= 0) & (sources < before.num_labels)
  wanted = targets < after.num_labels
  rows = np.where(known, before.row_of_label(np.maximum(sources, 0)), -1)
  places = after.row_of_label(targets)
  rows, places = rows[wanted], places[wanted]
  width = max(1, math.prod(a.shape[1:]))
  size = max(1, min(len(rows), _PIECE // width))
  for start in range(0, len(rows), size):
    # One shape, whatever their number.
    pad = (0, size - len(rows[start : start + size]))
    piece = np.pad(rows[start : start + size], pad, constant_values=-1)
    place = np.pad(places[start : start + size], pad, constant_values=-1)
    values = _read(a, jnp.asarray(piece), fill)
    out = _write(out, jnp.asarray(place), values)
  return out


def written(
  a: jax.Array,
  layout: layout_lib.Layout,
  labels: np.ndarray,
  values: np.ndarray | jax.Array,
) -> jax.Array:
  """An array by label row with other values of some labels.

  Args:
    a: `[R, ...]` on the mesh in context, split by rows; its memory is used
      again.
    layout: The layout of its rows.
    labels: int `[K]`.
    values: `[K, ...]`.

  Returns:
    `[R, ...]`.
  """
  rows = jnp.asarray(layout.row_of_label(labels))
  return _write(a, rows, jnp.asarray(values, a.dtype))


def read(
  a: jax.Array, layout: layout_lib.Layout, labels: np.ndarray
) -> jax.Array:
  """The rows `[K, ...]` of some labels `[K]`, on all devices."""
  return _read(a, jnp.asarray(layout.row_of_label(labels)), 0)


def _over(local, others, out):
  """A function of this device's rows and of what all devices have."""
  specs = sharding.LABELS, *[sharding.REPLICATED] * others
  return jax.shard_map(local, in_specs=specs, out_specs=out)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _resized(a, before, after, fill):
  """Blocks cut off or filled up; padding is filled."""

  def local(a):
    blocks = a.reshape(-1, before.rows_per_block, *a.shape[1:])
    more = after.rows_per_block - before.rows_per_block
    blocks = blocks[:, : after.rows_per_block]
    pads = [(0, 0), (0, max(0, more))] + [(0, 0)] * (a.ndim - 1)
    blocks = jnp.pad(blocks, pads, constant_values=fill)
    a = blocks.reshape(-1, *a.shape[1:])
    first = lax.axis_index(sharding.AXES) * a.shape[0]
    rows = first + jnp.arange(a.shape[0])
    # What was padding has no value, and what is padding now is to have none.
    least = min(before.num_labels, after.num_labels)
    real = (after.label_of_row(rows) < least).reshape(-1, *[1] * (a.ndim - 1))
    return jnp.where(real, a, jnp.asarray(fill, a.dtype))

  return _over(local, 0, sharding.LABELS)(a)


@functools.partial(jax.jit, static_argnums=2)
def _read(a, rows, fill):
  """Rows `[K, ...]` on all devices; -1 is one that there is not."""

  def local(a, rows):
    index = sharding.own_index(rows, a.shape[0])
    own = a.at[index].get(mode="fill", fill_value=0)
    found = lax.psum(own, sharding.AXES)
    missing = (rows < 0).reshape(-1, *[1] * (a.ndim - 1))
    return jnp.where(missing, jnp.asarray(fill, a.dtype), found)

  return _over(local, 1, sharding.REPLICATED)(a, rows)


@functools.partial(jax.jit, donate_argnums=0)
def _write(a, rows, values):
  """Rows replaced; -1 is none."""

  def local(a, rows, values):
    index = sharding.own_index(rows, a.shape[0])
    return a.at[index].set(values, mode="drop")

  return _over(local, 2, sharding.LABELS)(a, rows, values)


def swaps(
  num_labels: int, gone: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Which labels take the places of those that go, so that no gap is left.

  Args:
    num_labels: L.
    gone: Distinct labels that go.

  Returns:
    Labels `[K]` from behind the last place that is left, and the places `[K]`
    of gone labels that they take; both ascend.
  """
  gone = np.unique(np.asarray(gone, np.int64))
  left = num_labels - len(gone)
  holes = gone[gone < left]
  behind = np.setdiff1d(np.arange(left, num_labels), gone)
  return behind, holes
