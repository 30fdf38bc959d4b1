"""The arrays of a run as its labels change: rows moved, cut off, or written.

Legend: L labels before, M after, K labels that move or are new, D width, F
features.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import scipy.sparse

from xlj import sharding
from xlj.data import label_order
from xlj.heads.dense import rows as rows_lib
from xlj.labels import label_edit
from xlj.labels import pairs as pairs_lib
from xlj.labels import runs
from xlj.model import model as model_lib
from xlj.ops import layout as layout_lib
from xlj.ops import row_optimizer
from xlj.runs import directory


def restructured(
  run: directory.Run,
  order: label_order.LabelOrder,
  sources: np.ndarray,
  targets: np.ndarray,
) -> directory.Run:
  """A run with other labels: rows moved, cut off, or new and 0.

  Args:
    run: The run.
    order: Of the labels after.
    sources: int `[K]`, the head's numbers before; -1 for new labels.
    targets: int `[K]`, the head's numbers after.

  Returns:
    The run. The optimizer goes on with what it knows of each row.
  """
  assert order.data_ids is not None and order.head_ids is not None
  config = ml_collections.ConfigDict(run.config.to_dict())
  config.data.num_labels = len(order.data_ids)
  config.data.num_ids = len(order.head_ids)
  config.head.order = directory.ORDER_FILE
  if (config.head.kahan_labels or 0) >= config.data.num_labels:
    config.head.kahan_labels = 0  # all
  wide = {}
  with jax.set_mesh(run.mesh):
    if config.head.wide:
      wide = _moved_pairs(run, config, sources, targets)
    before, after = model_lib.Model(run.config), model_lib.Model(config)
    table = renumbering(
      run.num_labels, config.data.num_labels, sources, targets
    )
    edit = _Edit(before, after, sources, targets, table)
    trees = {
      "model": {
        "encoder": run.trees["model"]["encoder"],
        "head": edit.params(run.trees["model"]["head"]) | wide,
        "buffers": edit.buffers(run.trees["model"]["buffers"], order),
      },
      "training": edit.training(run.trees["training"]),
    }
    trees = jax.block_until_ready(trees)
  return dataclasses.replace(
    run,
    config=config,
    trees=trees,
    order=order,
    corrections=run.corrections.renumbered(table),
  )


def renumbering(
  before: int, after: int, sources: np.ndarray, targets: np.ndarray
) -> np.ndarray:
  """The head's numbers after, of labels before.

  Args:
    before: How many labels there were, L.
    after: How many there are.
    sources: int `[K]`, labels before that move; -1 for new ones.
    targets: int `[K]`, their numbers after.

  Returns:
    int32 `[L]`; -1 for labels that are gone.
  """
  table = np.arange(before, dtype=np.int32)
  table[np.isin(table, targets) | (table >= after)] = -1
  known = sources >= 0
  table[sources[known]] = targets[known]
  return table


def _moved_pairs(
  run: directory.Run,
  config: ml_collections.ConfigDict,
  sources: np.ndarray,
  targets: np.ndarray,
) -> dict[str, jax.Array]:
  """The wide path after labels have moved; says in the config how large."""
  before = pairs_lib.matrix(
    runs.rows_of(run.model()), run.trees["model"]["head"]
  )
  count = config.data.num_labels
  none = scipy.sparse.csc_array((before.shape[0], 1), dtype=np.float32)
  place = np.full(count, run.num_labels)
  kept = min(count, run.num_labels)
  place[:kept] = np.arange(kept)
  place[targets] = np.where(sources < 0, run.num_labels, sources)
  after = scipy.sparse.hstack([before, none], format="csc")[:, place]
  return _put_pairs(config, after)


def _put_pairs(
  config: ml_collections.ConfigDict, weights: pairs_lib.Matrix
) -> dict[str, jax.Array]:
  """A wide path of linear weights; says in the config how large it is."""
  found = pairs_lib.put(weights, model_lib.Model(config).layout)
  config.head.wide_pairs = found["wide"].shape[1]
  return found


class _Edit:
  """What becomes of the arrays of a model with a dense head."""

  def __init__(
    self,
    before: model_lib.Model,
    after: model_lib.Model,
    sources: np.ndarray,
    targets: np.ndarray,
    table: np.ndarray,
  ):
    self._before, self._after = runs.rows_of(before), runs.rows_of(after)
    self._sources, self._targets, self._table = sources, targets, table

  def _moved(
    self, a: jax.Array, *, first: str = "", fill: int = 0
  ) -> jax.Array:
    """An array by label row.

    Args:
      a: The array.
      first: Whether it may be of the first rows alone: "kahan".
      fill: For new labels.
    """
    before, after = (
      _layout(rows, first) for rows in (self._before, self._after)
    )
    return label_edit.moved(
      a, before, after, self._sources, self._targets, fill=fill
    )

  def params(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Parameters of the head."""
    by_row = rows_lib.without_wide(params)
    return {name: self._moved(a) for name, a in by_row.items()}

  def buffers(
    self, buffers: dict[str, jax.Array], order: label_order.LabelOrder
  ) -> dict[str, jax.Array]:
    """Buffers of the model."""
    counts = self._moved(buffers["label_counts"])
    ids = self._moved(buffers["label_ids"], fill=-1)
    new = self._targets
    assert order.data_ids is not None
    layout = self._after.layout
    ids = label_edit.written(ids, layout, new, order.data_ids[new])
    return buffers | {"label_counts": counts, "label_ids": ids}

  def training(self, training: dict[str, Any]) -> dict[str, Any]:
    """The other arrays."""
    state, specs = training["head"], self._before.optimizer_specs()
    tx = jax.tree.map(
      lambda a, spec: self._moved(a) if spec == sharding.LABELS else a,
      state.tx,
      specs.tx,
    )
    kahan, master = state.kahan, state.master
    if kahan is not None:
      kahan = self._moved(kahan, first="kahan")
    if master is not None:
      master = self._moved(master)
    state = row_optimizer.RowState(tx, kahan, master)
    training = training | {"head": state}
    if "memory" in training:
      memory = training["memory"]
      ids = _renumbered(memory.ids, jnp.asarray(self._table))
      training["memory"] = memory._replace(ids=ids)
    return training


def _layout(head: rows_lib.Rows, first: str) -> layout_lib.Layout:
  """That of what a head keeps of all rows, or of the first ones."""
  return head.kahan_layout if first == "kahan" else head.layout


@jax.jit
def _renumbered(ids: jax.Array, table: jax.Array) -> jax.Array:
  """Remembered labels `[R, M]` by their new numbers; -1 where there is none."""

  @jax.shard_map(
    in_specs=(sharding.BATCH, sharding.REPLICATED), out_specs=sharding.BATCH
  )
  def run(ids, table):
    return jnp.where(ids < 0, -1, table[ids])

  return run(ids, table)


def values(run: directory.Run, labels: np.ndarray) -> dict[str, np.ndarray]:
  """What the head has learned of labels.

  Args:
    run: The run.
    labels: int `[K]`, the head's numbers.

  Returns:
    float32 `rows [K, D]`, `bias [K]` and `wide [K, F]`, as far as there are
    any.
  """
  head, params = runs.rows_of(run.model()), run.trees["model"]["head"]
  with jax.set_mesh(run.mesh):
    by_row = rows_lib.without_wide(params)
    found = {name: _read(head, name, a, labels) for name, a in by_row.items()}
    if head.dim:
      found["rows"] = head.decoded(found)
    wide = pairs_lib.matrix(head, params) if head.wide_features else None
  found.pop("exponents", None)
  values = {name: np.array(a) for name, a in found.items()}
  if wide is not None:
    values["wide"] = wide[:, labels].T.toarray()
  return values


def with_values(
  run: directory.Run,
  labels: np.ndarray,
  values: dict[str, np.ndarray],
  counts: np.ndarray,
) -> directory.Run:
  """A run with other weights of some labels.

  Args:
    run: The run.
    labels: int `[K]`, the head's numbers.
    values: Those of them; see `values`. Rows are rounded to nearest.
    counts: int `[K]`, training examples.

  Returns:
    The run. The optimizer's state of these labels stays, but for what rounding
    took off their rows.
  """
  head = runs.rows_of(run.model())
  model, training = dict(run.trees["model"]), dict(run.trees["training"])
  params, buffers = dict(model["head"]), dict(model["buffers"])
  config = ml_collections.ConfigDict(run.config.to_dict())
  with jax.set_mesh(run.mesh):
    stored: dict[str, Any] = dict(values)
    if "wide" in stored:
      wide = pairs_lib.matrix(head, params)
      wide = pairs_lib.replaced(wide, labels, stored.pop("wide"))
      params |= _put_pairs(config, wide)
    if head.dim:
      rows = stored.pop("rows")
      stored |= head.encoded(jnp.asarray(rows))
      state = training["head"]
      if state.master is not None:
        master = _write(head, "", state.master, labels, rows)
        state = state._replace(master=master)
      if state.kahan is not None:
        kahan = _write(head, "kahan", state.kahan, labels, np.zeros_like(rows))
        state = state._replace(kahan=kahan)
      training["head"] = state
    for name, new in stored.items():
      params[name] = _write(head, name, params[name], labels, new)
    buffers["label_counts"] = _write(
      head, "", buffers["label_counts"], labels, counts
    )
  model |= {"head": params, "buffers": buffers}
  trees = {"model": model, "training": training}
  return dataclasses.replace(run, config=config, trees=trees)


def _read(
  head: rows_lib.Rows, name: str, a: jax.Array, labels: np.ndarray
) -> jax.Array:
  """Rows of labels `[K, ...]`; 0 of those that the array has nothing of."""
  layout = _layout(head, name)
  known = labels < layout.num_labels
  found = label_edit.read(a, layout, np.where(known, labels, 0))
  return jnp.where(known.reshape(-1, *[1] * (found.ndim - 1)), found, 0)


def _write(
  head: rows_lib.Rows,
  name: str,
  a: jax.Array,
  labels: np.ndarray,
  values: np.ndarray | jax.Array,
) -> jax.Array:
  """A copy of an array with other rows of labels, where it has any."""
  layout = _layout(head, name)
  known = labels < layout.num_labels
  return label_edit.written(a.copy(), layout, labels[known], values[known])
