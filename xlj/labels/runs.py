"""A run whose labels are edited: read, restructured, written as another run.

Legend: L labels before, M after, K labels that move or are new.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from xlj import config as config_lib
from xlj import flips as flips_lib
from xlj import label_order
from xlj import machine
from xlj import mesh as mesh_lib
from xlj import model as model_lib
from xlj import preparation
from xlj import report
from xlj import sharding
from xlj import splits
from xlj.checkpoint import checkpointer
from xlj.heads import dense
from xlj.ops import label_edit
from xlj.ops import layout as layout_lib
from xlj.ops import row_optimizer

ORDER_FILE = "label_order.txt"


@dataclasses.dataclass(frozen=True)
class Run:
  """A run at its newest checkpoint.

  Attributes:
    workdir: Where it was read from.
    config: Its config.
    mesh: That of its arrays.
    step: Steps taken.
    trees: The trees of arrays, "model" and "training".
    facts: Saved with them.
    order: Which label has which row.
    names: Of all ids; None if labels have no names.
    flips: Labels that training has made positives.
  """

  workdir: Path
  config: ml_collections.ConfigDict
  mesh: jax.sharding.Mesh
  step: int
  trees: dict[str, Any]
  facts: dict[str, Any]
  order: label_order.LabelOrder
  names: list[str] | None
  flips: flips_lib.Flips

  @property
  def num_labels(self) -> int:
    """How many labels have a row, L."""
    return self.config.data.num_labels

  @property
  def num_ids(self) -> int:
    """How many ids there are."""
    return self.config.data.num_ids or self.num_labels

  @property
  def data_ids(self) -> np.ndarray:
    """The id of each row's label, `[L]`."""
    assert self.order.data_ids is not None  # `load` refuses other runs.
    return self.order.data_ids

  @property
  def head_ids(self) -> np.ndarray:
    """The head's number of each id, `[num_ids]`; -1 without a row."""
    assert self.order.head_ids is not None
    return self.order.head_ids

  def model(self) -> model_lib.Model:
    """The model."""
    return model_lib.Model(self.config)

  def counts(self) -> np.ndarray:
    """Training examples of the head's labels, int64 `[L]`."""
    layout = self.model().layout
    rows = layout.row_of_label(np.arange(self.num_labels))
    by_row = sharding.whole(self.trees["model"]["buffers"]["label_counts"])
    return by_row[rows].astype(np.int64)


def load(workdir: str | Path) -> Run:
  """Reads a run to edit its labels, onto a mesh of all devices.

  Args:
    workdir: Directory of the run.

  Returns:
    The run, at its newest checkpoint.

  Raises:
    ConfigError: The directory holds no finished checkpoint, or its labels
      cannot be edited.
    CheckpointError: None of its checkpoints is good.
  """
  workdir = Path(workdir).absolute()
  config = config_lib.load(workdir / config_lib.FILE)
  _check(config, workdir)
  mesh = mesh_lib.make_mesh()
  with jax.set_mesh(mesh):
    model = model_lib.Model(config)
    abstract = model.abstract()
    with checkpointer.Checkpointer(
      config.checkpoint.dir or workdir / checkpointer.DIRECTORY,
      best_metric=config.eval.metric,
      read_only=True,
    ) as keeper:
      found = keeper.restore_newest(abstract.model, abstract.training)
  if found is None:
    raise config_lib.ConfigError(
      f"{workdir} holds no finished checkpoint; train it first"
    )
  step, tree, training, facts = found
  num_labels, num_ids = config.data.num_labels, config.data.num_ids
  if num_ids:
    order = label_order.LabelOrder.from_file(
      workdir / config.head.order, num_ids, num_labels
    )
  else:
    rows = model.layout.row_of_label(np.arange(num_labels))
    ids = sharding.whole(tree["buffers"]["label_ids"])[rows]
    order = label_order.LabelOrder.of(ids)
  return Run(
    workdir,
    config,
    mesh,
    step,
    {"model": tree, "training": training},
    facts,
    order,
    splits.label_names(config, workdir),
    flips_lib.Flips.load(workdir, step),
  )


def _check(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Refuses a run whose labels are not rows of one matrix."""
  head = config.head
  for wrong, why in (
    (
      head.type != "dense" or head.prototypes > 1,
      f"head.type is {head.type!r}"
      + (" with head.prototypes" if head.prototypes > 1 else ""),
    ),
    (head.order == "none", "head.order is 'none', which keeps no ids"),
    (bool(config.data.context), "its labels are the words of a text"),
    (bool(config.data.generator.rows), "its data are generated"),
  ):
    if wrong:
      raise config_lib.ConfigError(
        f"{workdir}: {why}; labels can be edited where each is a row of a dense"
        " head (head.type='dense', head.prototypes=1) over data in files"
      )


def restructured(
  run: Run,
  order: label_order.LabelOrder,
  sources: np.ndarray,
  targets: np.ndarray,
) -> Run:
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
  config.head.order = ORDER_FILE
  for field in ("wide_labels", "kahan_labels"):
    if field in config.head and config.head[field] >= config.data.num_labels:
      config.head[field] = 0  # all
  with jax.set_mesh(run.mesh):
    before, after = model_lib.Model(run.config), model_lib.Model(config)
    table = renumbering(
      run.num_labels, config.data.num_labels, sources, targets
    )
    edit = _Edit(before, after, sources, targets, table)
    trees = {
      "model": {
        "encoder": run.trees["model"]["encoder"],
        "head": edit.params(run.trees["model"]["head"]),
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
    flips=run.flips.renumbered(table),
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
    self._before, self._after = before.head, after.head
    self._sources, self._targets, self._table = sources, targets, table

  def _moved(
    self, a: jax.Array, *, first: str = "", axis: int = 0, fill: int = 0
  ) -> jax.Array:
    """An array by label row.

    Args:
      a: The array.
      first: Whether it may be of the first rows alone: "wide" or "kahan".
      axis: That of rows.
      fill: For new labels.
    """
    before, after = (
      _layout(head, first) for head in (self._before, self._after)
    )
    return label_edit.moved(
      a, before, after, self._sources, self._targets, axis=axis, fill=fill
    )

  def params(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Parameters of the head."""
    return {
      name: self._moved(a, first="wide", axis=1)
      if name == "wide"
      else self._moved(a)
      for name, a in params.items()
    }

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


def _layout(head: dense.DenseHead, first: str) -> layout_lib.Layout:
  """That of what a head keeps of all rows, or of the first ones."""
  if first == "wide" and head.wide_labels:
    return layout_lib.Layout(head.wide_columns, head.blocks)
  if first == "kahan" and head.kahan_labels:
    return layout_lib.Layout(head.kahan_rows, head.blocks)
  return head.layout


@jax.jit
def _renumbered(ids: jax.Array, table: jax.Array) -> jax.Array:
  """Remembered labels `[R, M]` by their new numbers; -1 where there is none."""

  @jax.shard_map(
    in_specs=(sharding.BATCH, sharding.REPLICATED), out_specs=sharding.BATCH
  )
  def run(ids, table):
    return jnp.where(ids < 0, -1, table[ids])

  return run(ids, table)


def save(
  run: Run,
  output: str | Path,
  *,
  train_dir: str | Path | None = None,
  steps: int = 0,
) -> None:
  """Writes a run as the directory of another one.

  It evaluates and predicts at once, and trains on: for `steps` more, on the
  data in `train_dir` if there are others now, which may have the new labels.

  Args:
    run: The run.
    output: The new directory; missing or empty.
    train_dir: Data to train on with; by default those that it has.
    steps: How many more steps.

  Raises:
    ConfigError: `output` is not empty, or the data do not go with the run.
    DataError: The data cannot be read.
  """
  output = Path(output).absolute()
  if output.exists() and not (output.is_dir() and not any(output.iterdir())):
    raise config_lib.ConfigError(f"{output} is not empty; use another output")
  config = ml_collections.ConfigDict(run.config.to_dict())
  config.checkpoint.dir = ""  # Not where the first run has its own.
  if steps:
    config.train.num_steps = run.step + steps
  if train_dir is not None:
    config.data.dir = str(train_dir)
    if "memory" in run.trees["training"]:
      raise config_lib.ConfigError(
        f"{run.workdir} remembers its training examples (noisy.method or"
        " missing.method), so it cannot train on with others"
      )
    split = splits.open_split(config)
    about = dataclasses.replace(
      preparation.facts(split), num_labels=config.data.num_labels
    )
    config = config_lib.resolve(config, about)
  with (
    jax.set_mesh(run.mesh),
    checkpointer.Checkpointer(
      output / checkpointer.DIRECTORY, best_metric=config.eval.metric
    ) as keeper,
  ):
    keeper.save(
      run.step, run.trees["model"], run.trees["training"], run.facts, None
    )
  if jax.process_index() == 0:
    _write_files(run, config, output)


def _write_files(
  run: Run, config: ml_collections.ConfigDict, output: Path
) -> None:
  """Writes the other files; without the config it is no run."""
  if len(run.flips):
    run.flips.save(output)
  facts = json.dumps(machine.facts(jax.devices()), indent=2)
  (output / report.MACHINE_FILE).write_text(facts + "\n")
  if config.data.num_ids:
    run.order.to_file(output / ORDER_FILE)
  if run.names is not None:
    text = "".join(f"{name}\n" for name in run.names)
    (output / splits.NAMES_FILE).write_text(text)
  partial = output / f"{config_lib.FILE}.partial"
  partial.write_text(config_lib.to_json(config))
  os.replace(partial, output / config_lib.FILE)
  logging.info("Wrote %s with %d labels", output, run.num_labels)


def values(run: Run, labels: np.ndarray) -> dict[str, np.ndarray]:
  """What the head has learned of labels.

  Args:
    run: The run.
    labels: int `[K]`, the head's numbers.

  Returns:
    float32 `rows [K, D]`, `bias [K]` and `wide [K, F]`, as far as there are
    any.
  """
  head, params = run.model().head, run.trees["model"]["head"]
  with jax.set_mesh(run.mesh):
    found = {name: _read(head, name, a, labels) for name, a in params.items()}
    if head.dim:
      rows = head.optimizer.format.decode(found)
      found["rows"] = rows.astype(jnp.float32)
  found.pop("exponents", None)
  return {name: np.array(a) for name, a in found.items()}


def with_values(
  run: Run,
  labels: np.ndarray,
  values: dict[str, np.ndarray],
  counts: np.ndarray,
) -> Run:
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
  head = run.model().head
  model, training = dict(run.trees["model"]), dict(run.trees["training"])
  params, buffers = dict(model["head"]), dict(model["buffers"])
  with jax.set_mesh(run.mesh):
    stored: dict[str, Any] = dict(values)
    if head.dim:
      rows = stored.pop("rows")
      stored |= head.optimizer.format.encode(jnp.asarray(rows), None)
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
  return dataclasses.replace(run, trees={"model": model, "training": training})


def _read(
  head: dense.DenseHead, name: str, a: jax.Array, labels: np.ndarray
) -> jax.Array:
  """Rows of labels `[K, ...]`; 0 of those that the array has nothing of."""
  layout = _layout(head, name)
  known = labels < layout.num_labels
  found = label_edit.read(
    a, layout, np.where(known, labels, 0), axis=int(name == "wide")
  )
  return jnp.where(known.reshape(-1, *[1] * (found.ndim - 1)), found, 0)


def _write(
  head: dense.DenseHead,
  name: str,
  a: jax.Array,
  labels: np.ndarray,
  values: np.ndarray | jax.Array,
) -> jax.Array:
  """A copy of an array with other rows of labels, where it has any."""
  layout = _layout(head, name)
  known = labels < layout.num_labels
  return label_edit.written(
    a.copy(), layout, labels[known], values[known], axis=int(name == "wide")
  )


def heads_of(run: Run, ids: Sequence[int] | np.ndarray) -> np.ndarray:
  """The head's numbers of labels.

  Args:
    run: The run.
    ids: int `[K]`, label ids.

  Returns:
    int `[K]`.

  Raises:
    ConfigError: An id has no row of its own, naming it.
  """
  ids = np.asarray(ids, np.int64)
  bad = ids[(ids < 0) | (ids >= run.num_ids)]
  if len(bad):
    raise config_lib.ConfigError(
      f"label {bad[0]}: there are ids 0 to {run.num_ids - 1}"
    )
  heads = run.head_ids[ids].astype(np.int64)
  if len(gone := ids[heads < 0]):
    raise config_lib.ConfigError(f"label {gone[0]} has been deleted")
  own = run.data_ids[heads]
  if len(other := np.flatnonzero(own != ids)):
    first = other[0]
    raise config_lib.ConfigError(
      f"label {ids[first]} has been merged into {own[first]}"
    )
  return heads
