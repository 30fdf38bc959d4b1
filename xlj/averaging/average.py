"""The mean of the parameters of several checkpoints.

Every device averages its own shards, in float32 and one tree after another as a
running mean, so that two are in memory at a time, the mean and the next one;
nothing is sent. Narrow rows (see `xlj.ops.row_format`) are decoded for that,
and rounded to nearest when the mean is stored.

`xlj.averaging.soups` says of which checkpoints, and where from.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from xlj.heads.dense import block_sample
from xlj.ops import row_format
from xlj.ops import row_optimizer

Tree = dict[str, Any]
_FORMATS = {stored: name for name, stored in row_format.STORED.items()}


def decode(model: Tree) -> Tree:
  """The values of a model's parameters.

  Args:
    model: Of a state; buffers are not read.

  Returns:
    `encoder` and `head`, float32. What is stored so is not copied, so its
    memory is that of the model. Whole numbers, which say where weights belong,
    stay as they are.
  """
  return {name: _decoded(model[name]) for name in ("encoder", "head")}


def _decoded(params: Any) -> Any:
  """Values of a tree of parameters; stored rows may be at any depth."""
  if not isinstance(params, dict):
    return params.astype(jnp.float32) if _is_value(params) else params
  params = dict(params)
  if "rows" not in params:
    return {name: _decoded(part) for name, part in params.items()}
  stored = {k: params.pop(k) for k in ("rows", "exponents") if k in params}
  return _decoded(params) | {"rows": _decoded_rows(stored)}


def _is_value(a: jax.Array) -> bool:
  """Whether an array has values, and not places that those belong to."""
  return jnp.issubdtype(a.dtype, jnp.floating)


def _decoded_rows(stored: row_format.Stored) -> jax.Array:
  """Values of stored rows."""
  rows = _format(stored["rows"])
  if rows.dtype == "float32":
    return stored["rows"]
  return _widened(stored, rows)


@functools.partial(jax.jit, static_argnames="rows")
def _widened(
  stored: row_format.Stored, rows: row_format.RowFormat
) -> jax.Array:
  """Values of narrow rows, float32."""
  return rows.decode(stored).astype(jnp.float32)


def encode(values: Tree, like: Tree) -> Tree:
  """Parameters that are stored like others; undoes `decode`.

  Args:
    values: What `decode` returned.
    like: Shapes and types of the model's parameters.

  Returns:
    The parameters; narrow rows are rounded to nearest, float32 not copied.
  """
  encoded = {}
  for name, part in values.items():
    if name == "rows":
      rows = _format(like["rows"])
      narrow = rows.dtype != "float32"
      encoded |= jax.jit(rows.encode)(part) if narrow else {"rows": part}
    elif isinstance(part, dict):
      encoded[name] = encode(part, like[name])
    else:
      encoded[name] = part.astype(like[name].dtype)
  return encoded


def _format(rows: Any) -> row_format.RowFormat:
  """How rows of this type are stored."""
  return row_format.RowFormat(_FORMATS[rows.dtype.name])


@jax.jit(donate_argnums=1)
def blend(mean: Tree, values: Tree, count: jax.typing.ArrayLike) -> Tree:
  """The mean of one more tree of values.

  Args:
    mean: Of the first `count - 1` trees, as of `decode`.
    values: The next one, with the same whole numbers; its memory is used again.
    count: Number of trees n; `m_n = m_{n-1} + (v_n - m_{n-1}) / n`.

  Returns:
    The new mean.
  """

  def add(m: jax.Array, v: jax.Array) -> jax.Array:
    return m + (v - m) / count if _is_value(m) else m

  return jax.tree.map(add, mean, values)


def continued(saved: Any, fresh: Any) -> Any:
  """An optimizer's state, to go on with other rows than it was saved with.

  Args:
    saved: State of the head's optimizer in a checkpoint.
    fresh: That of `init_optimizer` for the new rows.

  Returns:
    What was saved; but what is derived from rows (master rows, what rounding
    took off them, centroids of blocks) is that of the new ones.
  """
  if isinstance(saved, row_optimizer.RowState):
    return fresh._replace(tx=saved.tx)
  if isinstance(saved, block_sample.State):
    return fresh._replace(rows=continued(saved.rows, fresh.rows))
  if isinstance(saved, dict) and isinstance(fresh, dict):
    return {name: continued(saved[name], fresh[name]) for name in saved}
  return saved
