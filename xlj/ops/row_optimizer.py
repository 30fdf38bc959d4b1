"""The optimizer of label rows, applied to one chunk of them at a time.

Any optax transformation that treats rows alike and apart gives the same result
on a chunk as on all rows. What it works on are float32 values; what is stored
may be narrower, and is then rounded stochastically, which keeps updates smaller
than the grid alive in expectation, or with what rounding lost kept beside it.

Legend: c rows of a chunk, L rows in all, K rows with compensation, D width.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xlj.ops import chunks
from xlj.ops import rounding
from xlj.ops import row_format

Arrays = dict[str, jax.Array]
ROUNDINGS = ("stochastic", "nearest")
CORRECTIONS = ("none", "kahan", "master")


class RowState(NamedTuple):
  """What an optimizer knows of rows.

  Attributes:
    tx: State of the transformation; leaves of bfloat16 are held as uint16.
    kahan: `[K, D]` bits of bfloat16, what rounding took off the rows; None
      without.
    master: `[L, D]` float32, the rows before rounding; None without.
  """

  tx: Any
  kahan: jax.Array | None = None
  master: jax.Array | None = None


class Sgd(NamedTuple):
  """Plain stochastic gradient descent, `w <- w - rate * (g + decay * w)`.

  Attributes:
    learning_rate: Step -> learning rate.
    weight_decay: Decay of rows and bias.
  """

  learning_rate: Callable[[jax.Array], jax.typing.ArrayLike]
  weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class RowOptimizer:
  """How rows are stored and updated.

  Attributes:
    tx: The transformation, on a dict of `rows [c, D]` and, if there is one,
      `bias [c]`, float32. The update of a row may depend on that row alone.
    dtype: One of `row_format.DTYPES`.
    rounding: "stochastic", which needs nothing beside the rows, or "nearest".
    correction: For narrow rows. "kahan" keeps what rounding to nearest took off
      in bfloat16 (Kahan 1965; for weights Zamirai et al. 2020, "Revisiting
      BFloat16 training"), for all rows or the first of each block, where labels
      are most frequent; the others are rounded as `rounding` says. "master"
      keeps float32 rows, from which the narrow ones are made; those make the
      logits.
    max_norm: Rows longer than this are scaled down to it; None for no limit.
    seed: Of the random bits, which depend on it, the step, the row and the
      column alone.
    plain: What `tx` does where that is plain SGD, which kernels do themselves;
      otherwise None. See `sgd`.
  """

  tx: optax.GradientTransformation
  dtype: str = "float32"
  rounding: str = "stochastic"
  correction: str = "none"
  max_norm: float | None = None
  seed: int = 0
  plain: Sgd | None = None

  def __post_init__(self) -> None:
    """Refuses what cannot work.

    Raises:
      ValueError: On an unknown name, a correction of float32 rows, or an
        optimizer that needs more than a row to update it.
    """
    for name, value, known in (
      ("dtype", self.dtype, row_format.DTYPES),
      ("rounding", self.rounding, ROUNDINGS),
      ("correction", self.correction, CORRECTIONS),
    ):
      if value not in known:
        raise ValueError(f"{name} is {value!r}; use one of {known}")
    if self.dtype == "float32" and self.correction != "none":
      raise ValueError(
        f"correction is {self.correction!r}, but float32 rows are not rounded"
      )
    if self.plain is None:  # Plain SGD treats rows apart.
      refuse_global_view(self.tx)

  @property
  def format(self) -> row_format.RowFormat:
    """How rows are stored."""
    return row_format.RowFormat(self.dtype)

  def init(self, params: Arrays, kahan_rows: int = 0) -> RowState:
    """The state before the first step.

    Args:
      params: Stored rows, `bias [L]`, or both.
      kahan_rows: Number of rows K with compensation.

    Returns:
      The state. Under `jit` nothing is computed that it does not hold.
    """
    values = {"bias": params["bias"]} if "bias" in params else {}
    kahan = master = None
    if "rows" in params:
      rows = self.format.decode(params).astype(jnp.float32)
      values["rows"] = rows
      if self.correction == "kahan":
        kahan = jnp.zeros((kahan_rows, rows.shape[1]), jnp.uint16)
      elif self.correction == "master":
        master = rows
    tx = jax.tree.map(_to_bits, self.tx.init(values))
    return RowState(tx, kahan, master)

  def map_rows(
    self, function: Callable[[Any], Any], state: RowState, rest: Any
  ) -> RowState:
    """Maps the leaves with one entry per row; all others become `rest`."""
    mask = self._scales_with_rows(state.tx)
    tx = jax.tree.map(lambda a, m: function(a) if m else rest, state.tx, mask)
    others = (None if a is None else function(a) for a in state[1:])
    return RowState(tx, *others)

  def split(self, state: RowState) -> tuple[Any, Any]:
    """The transformation's leaves with one entry per row, and the others.

    Args:
      state: The state.

    Returns:
      Two lists of arrays.
    """
    leaves = jax.tree.leaves(state.tx)
    mask = jax.tree.leaves(self._scales_with_rows(state.tx))
    by_row = [a for a, m in zip(leaves, mask) if m]
    return by_row, [a for a, m in zip(leaves, mask) if not m]

  def join(self, state: RowState, by_row: Any, others: Any) -> RowState:
    """Undoes `split`, with new arrays.

    Args:
      state: A state of the same structure.
      by_row: The first list.
      others: The second list.

    Returns:
      The state, without compensation and master rows.
    """
    by_row, others = iter(by_row), iter(others)
    mask = self._scales_with_rows(state.tx)
    return RowState(
      jax.tree.map(lambda m: next(by_row) if m else next(others), mask)
    )

  @jax.named_scope("update")
  def update(
    self,
    step: jax.Array,
    row_ids: jax.Array,
    params: Arrays,
    state: RowState,
    grads: Arrays,
  ) -> tuple[Arrays, RowState]:
    """One step of a chunk of rows.

    Args:
      step: Scalar int32, number of steps taken.
      row_ids: `[c]` number of each row among the rows of all devices.
      params: Stored rows of the chunk, bias, or both.
      state: The chunk's part of the state; `kahan` is None where the chunk has
        no compensation.
      grads: Gradients, named as for `tx`, float32.

    Returns:
      New stored rows and bias, and the new state.
    """
    values = {}
    if "bias" in params:
      values["bias"] = params["bias"]
    if "rows" in params:
      values["rows"] = self._values(params, state)
    tx_state = self._from_bits(state.tx, values)
    updates, tx_state = self.tx.update(grads, tx_state, values)
    new: Any = optax.apply_updates(values, updates)
    kahan = master = None
    if "rows" in new:
      rows = self._limited(new.pop("rows"))
      bits = None
      if self._dithers(state):
        columns = jnp.arange(rows.shape[1])
        bits = rounding.hash_bits(self.seed, step, row_ids, columns)
      stored = self.format.encode(rows, bits)
      if state.kahan is not None:
        lost = rows - self.format.decode(stored).astype(jnp.float32)
        kahan = _to_bits(lost.astype(jnp.bfloat16))
      if state.master is not None:
        master = rows
      new = {**new, **stored}
    return new, RowState(jax.tree.map(_to_bits, tx_state), kahan, master)

  def finish(self, params: Arrays, state: RowState) -> list[jax.Array]:
    """The leaves without rows after a step, for instance its count.

    Args:
      params: Stored rows, bias, or both.
      state: The state before the step.

    Returns:
      The second list of `split` after the step.
    """
    # What does not depend on rows is the same for none of them.
    empty = jax.tree.map(
      lambda a: jnp.zeros((0, *a.shape[1:]), a.dtype),
      self._abstract_values(params),
    )
    _, new = self.tx.update(
      empty, self._from_bits(self._without_rows(state.tx), empty), empty
    )
    return self.split(RowState(new))[1]

  def _values(self, params: Arrays, state: RowState) -> jax.Array:
    """The rows that the update starts from, `[c, D]` float32."""
    if state.master is not None:
      return state.master
    rows = self.format.decode(params).astype(jnp.float32)
    if state.kahan is not None:
      lost = jax.lax.bitcast_convert_type(state.kahan, jnp.bfloat16)
      rows += lost.astype(jnp.float32)
    return rows

  def _dithers(self, state: RowState) -> bool:
    """Whether the chunk is rounded stochastically."""
    exact = state.kahan is not None or state.master is not None
    return (
      self.dtype != "float32" and self.rounding == "stochastic" and not exact
    )

  def _limited(self, rows: jax.Array) -> jax.Array:
    """Rows of at most the greatest length."""
    if self.max_norm is None:
      return rows
    length = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows * jnp.minimum(1, self.max_norm / jnp.maximum(length, 1e-12))

  def _abstract_values(self, params: Arrays) -> dict[str, Any]:
    """Shapes of what the transformation works on."""
    return {
      name: jax.ShapeDtypeStruct(params[name].shape, jnp.float32)
      for name in ("bias", "rows")
      if name in params
    }

  def _scales_with_rows(self, tx_state: Any) -> Any:
    """For each leaf of a state, whether it has one entry per row."""
    return optax.tree_utils.tree_map_params(
      self.tx.init,
      lambda _: True,
      tx_state,
      transform_non_params=lambda _: False,
    )

  def _without_rows(self, tx_state: Any) -> Any:
    """The state of no rows: the other leaves as they are."""
    return jax.tree.map(
      lambda a, m: jnp.zeros((0, *a.shape[1:]), a.dtype) if m else a,
      tx_state,
      self._scales_with_rows(tx_state),
    )

  def _from_bits(self, tx_state: Any, values: Any) -> Any:
    """The state as the transformation expects it."""
    like = jax.eval_shape(self.tx.init, values)
    return jax.tree.map(
      lambda a, b: chunks.from_bits(a, b.dtype), tx_state, like
    )


def sgd(
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: float = 0.0,
  **storage: Any,
) -> RowOptimizer:
  """Plain stochastic gradient descent, which kernels can do.

  Args:
    learning_rate: A number, or a function of the step.
    weight_decay: Decoupled, times the learning rate.
    **storage: The other fields of `RowOptimizer`.

  Returns:
    The optimizer.
  """
  decay = optax.add_decayed_weights(weight_decay)
  rate = optax.scale_by_learning_rate(learning_rate)
  tx = optax.chain(decay, rate) if weight_decay else optax.chain(rate)
  if callable(learning_rate):
    plain = Sgd(learning_rate, weight_decay)
  else:
    plain = Sgd(lambda _: learning_rate, weight_decay)
  return RowOptimizer(tx, plain=plain, **storage)


def refuse_global_view(tx: optax.GradientTransformation) -> None:
  """Refuses a transformation that does not treat rows apart.

  It is tried on a few rows at once and on each alone, with gradients of many
  magnitudes.

  Args:
    tx: The transformation.

  Raises:
    ValueError: The results differ.
  """
  rng = np.random.default_rng(0)

  def draw(scale: float = 1.0) -> Arrays:
    return {
      "bias": jnp.asarray(scale * rng.normal(size=3), jnp.float32),
      "rows": jnp.asarray(scale * rng.normal(size=(3, 4)), jnp.float32),
    }

  def steps(params: Arrays, all_grads: list[Arrays]) -> list[Arrays]:
    state, found = tx.init(params), []
    for grads in all_grads:
      updates, state = tx.update(grads, state, params)
      params = optax.apply_updates(params, updates)  # pyrefly: ignore
      found.append(updates)
    return found  # pyrefly: ignore

  @jax.jit  # far less to compile than one operation after the other
  def both(params: Arrays, grads: list[Arrays]) -> tuple[Any, Any]:
    rows = jax.tree.map(lambda a: a[:, None], (params, grads))
    alone = jax.vmap(steps)(*rows)
    return steps(params, grads), jax.tree.map(lambda a: a[:, 0], alone)

  message = (
    "the optimizer of label rows must treat each row by itself, because it is "
    "applied to a chunk of them at a time; clipping by the global norm, trust "
    "ratios, factored second moments and the like need all rows: use them for "
    "the encoder, and limit rows by max_norm"
  )
  # Not on all devices of a mesh in context.
  device = np.array(jax.local_devices()[:1])
  alone = jax.sharding.Mesh(device, ("one",))
  with jax.ensure_compile_time_eval(), jax.set_mesh(alone):
    params = draw()
    grads = [draw(scale) for scale in (1e-3, 1.0, 1e3, 1e6)]
    whole, each = jax.tree.map(np.asarray, both(params, grads))
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(each))
    for a, b in ((a[i], b[i]) for a, b in pairs for i in range(3)):
      if not np.allclose(b, a, rtol=1e-4, atol=1e-5 * np.abs(a).max()):
        raise ValueError(message)


def _to_bits(a: Any) -> Any:
  """bfloat16 as bits, which are updated in place everywhere."""
  if a.dtype == jnp.bfloat16:
    return jax.lax.bitcast_convert_type(a, jnp.uint16)
  return a
