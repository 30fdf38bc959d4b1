"""A trained run, restored for inference on whatever devices are here."""

from collections.abc import Iterator, Mapping, Sequence
import math
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import scipy.sparse

from xlj import config as config_lib
from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.checkpoint import checkpointer
from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.data import pipeline
from xlj.data import weighting as weighting_lib
from xlj.model import model as model_lib
from xlj.runs import workdir as workdir_lib

CONFIDENCES = ("probability", "cosine", "reachability")
Features = (
  csr_lib.Csr
  | np.ndarray
  | scipy.sparse.sparray
  | scipy.sparse.spmatrix
  | Sequence[Mapping[int, float]]
)


def load(workdir: str | Path, *, which: str = "best") -> "Predictor":
  """Restores a trained run for prediction.

  Args:
    workdir: Directory of the run.
    which: "best" checkpoint by the validation metric, or "last".

  Returns:
    A predictor; the devices need not be those that trained it.

  Raises:
    ConfigError: If the directory holds no finished checkpoint.
    CheckpointError: If none of its checkpoints is good.

  Example:
    >>> scores, ids = xlj.load("runs/bibtex").topk([{3: 1.0, 17: 0.5}], 5)
  """
  workdir = workdir_lib.resolve(workdir)
  config = config_lib.load(workdir / config_lib.FILE)
  mesh = mesh_lib.make_mesh()
  with jax.set_mesh(mesh):
    model = model_lib.Model(config)
    step, state = _restore(config, workdir, model, which)
    order = label_order_of(config, workdir, model, state["buffers"])
  return Predictor(workdir, config, mesh, step, state, order)


class Predictor:
  """The model of a run with its weighting; see `load`."""

  def __init__(
    self,
    workdir: Path,
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    step: int,
    state: dict[str, Any],
    order: label_order.LabelOrder,
  ):
    """Makes one of what a run consists of.

    Args:
      workdir: Where it comes from.
      config: Its config.
      mesh: That of its arrays.
      step: Steps taken.
      state: The `model` part of its state.
      order: Which label has which row.
    """
    self.workdir, self.config, self.mesh = workdir, config, mesh
    self.step, self.state, self.order = step, state, order
    with jax.set_mesh(mesh):
      self.model = model_lib.Model(config)
    self.weighting = self._weighting()
    self._topk = jax.jit(self.model.topk, static_argnums=2)

  @property
  def num_labels(self) -> int:
    """Number of labels L."""
    return self.config.data.num_labels

  @property
  def num_ids(self) -> int:
    """Number of label ids, those of deleted and merged labels included."""
    return config_lib.num_ids(self.config)

  @property
  def num_features(self) -> int:
    """Number of features F."""
    return self.config.data.num_features

  def label_counts(self) -> np.ndarray | None:
    """Training examples by label id, int64 `[num_ids]`; None if not counted."""
    if "label_counts" not in self.state["buffers"]:
      return None
    with jax.set_mesh(self.mesh):
      counts = by_label(self.model, self.state["buffers"]["label_counts"])
    return self.order.by_data_id(counts.astype(np.int64))

  def topk(self, features: Features, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best labels of each example.

    As one of several processes, all of them have to ask the same.

    Args:
      features: n examples with raw features, as in the data files: CSR (of
        scipy or `xlj.data.csr`), a dense `[n, F]` array, images `[n, H, W, C]`,
        or a dict from feature id to value for each example.
      k: How many labels, at most the number of labels.

    Returns:
      float32 scores `[n, k]`, descending (logits), and int32 label ids.

    Raises:
      ValueError: If k or the number of features does not fit the model.
    """
    if not 1 <= k <= self.num_labels:
      raise ValueError(f"k is {k}; it must be in [1, {self.num_labels}]")
    scores, ids = [], []
    for count, inputs in self.batches(features):
      with jax.set_mesh(self.mesh):
        found = self._topk(self.state, inputs, k, None)
        found = tuple(map(sharding.whole, found))
      scores.append(found[0][:count])
      ids.append(self.order.to_data(found[1][:count]))
    if not scores:
      return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
    return np.concatenate(scores), np.concatenate(ids)

  def embed(self, features: Features) -> np.ndarray:
    """What the encoder makes of examples, the vectors that meet label rows.

    Args:
      features: n examples, as for `topk`.

    Returns:
      float32 `[n, D]`.

    Raises:
      ValueError: The model has no encoder, or other features.
    """
    if not self.config.encoder.dim:
      raise ValueError("the model has no encoder: encoder.dim is 0")
    run = jax.jit(self.model.embed)
    found = [np.zeros((0, self.config.encoder.dim), np.float32)]
    for count, inputs in self.batches(features):
      with jax.set_mesh(self.mesh):
        x = sharding.whole(run(self.state, inputs))
      found.append(x[:count].astype(np.float32))
    return np.concatenate(found)

  def confidence(
    self, features: Features, by: str = "probability"
  ) -> np.ndarray:
    """How sure the model is that an example is of any label at all.

    Args:
      features: n examples, as for `topk`.
      by: "probability", the largest of a softmax over the labels (for dense
        heads and "oltr"); "cosine" or "reachability" for "oltr".

    Returns:
      float32 `[n]`; `xlj.open_world.open_set` rejects with them.

    Raises:
      ValueError: It is not known by what, or the head has no such thing.
    """
    kind = self.config.head.type
    known = {"dense": CONFIDENCES[:1], "oltr": CONFIDENCES}.get(kind, ())
    if by not in known:
      raise ValueError(
        f"confidence by {by!r}: the head {kind!r} knows {known or 'none'}"
      )
    run = jax.jit(self.model.confidence, static_argnums=2)
    found = [np.zeros(0, np.float32)]
    for count, inputs in self.batches(features):
      with jax.set_mesh(self.mesh):
        found.append(sharding.whole(run(self.state, inputs, by))[:count])
    return np.concatenate(found)

  def batches(
    self, features: Features
  ) -> Iterator[tuple[int, model_lib.Inputs]]:
    """What the model reads of the examples, in batches on the devices.

    Args:
      features: n examples, as for `topk`.

    Yields:
      How many rows of a batch are examples, the first ones, and the batch.

    Raises:
      ValueError: If the number of features does not fit the model.
    """
    rows = self._rows(features)
    size = self.config.eval.batch_size
    for start in range(0, _count(rows), size):
      part = _slice(rows, start, start + size)
      inputs = self._inputs(part)
      with jax.set_mesh(self.mesh):
        placed = sharding.put_batch(inputs)
      yield _count(part), placed

  def _inputs(self, rows: csr_lib.Csr | np.ndarray) -> model_lib.Inputs:
    """At most one batch; sizes are rounded up to powers of two."""
    count = _count(rows)
    size = _power_of_two(max(count, self.mesh.size))
    size += -size % self.mesh.size
    if isinstance(rows, csr_lib.Csr):
      if self.weighting is not None:
        rows = self.weighting(rows)
      width = _power_of_two(max(8, int(rows.row_lengths.max(initial=0))))
      ids, values, _ = rows.pad(width, fill=0)
      feature_ids, feature_values = _fill(ids, size), _fill(values, size)
    else:
      feature_ids = None
      # Bytes stay bytes: the encoder makes floats of them on the device.
      dtype = rows.dtype if rows.dtype == np.uint8 else np.float32
      feature_values = _fill(np.asarray(rows, dtype), size)
    inputs = model_lib.Inputs(
      feature_ids,
      feature_values,
      np.full((size, 1), -1, np.int32),
      np.zeros((size,), np.float32),
    )
    mine = pipeline.Slice(jax.process_index(), jax.process_count()).of(size)
    return jax.tree.map(lambda array: array[mine], inputs)

  def _rows(self, features: Features) -> csr_lib.Csr | np.ndarray:
    """Checks the examples and brings them to Csr or a dense array."""
    if isinstance(features, Sequence):
      rows = _from_dicts(features, self.num_features)
    elif isinstance(features, csr_lib.Csr | np.ndarray):
      rows = features
      if isinstance(rows, np.ndarray) and rows.ndim == 4:
        rows = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    else:
      rows = csr_lib.Csr.from_scipy(features)
    if rows.shape[1] > self.num_features:
      raise ValueError(
        f"the examples have {rows.shape[1]} features, the model"
        f" {self.num_features}"
      )
    if isinstance(rows, np.ndarray) and not self.config.data.dense:
      return csr_lib.Csr.from_scipy(scipy.sparse.csr_array(rows))
    if isinstance(rows, csr_lib.Csr) and self.config.data.dense:
      return rows.to_scipy().toarray()
    return rows

  def _weighting(self) -> weighting_lib.Weighting | None:
    if self.config.data.dense:
      return None
    idf = sharding.whole(self.state["buffers"]["idf"])
    data = self.config.data
    return weighting_lib.Weighting(data.weighting, data.l2, idf)


def by_label(model: model_lib.Model, a: jax.Array) -> np.ndarray:
  """A buffer `[R, ...]` by row as `[L, ...]` by the head's labels."""
  rows = model.layout.row_of_label(np.arange(model.layout.num_labels))
  return sharding.whole(a)[rows]


def label_order_of(
  config: ml_collections.ConfigDict,
  workdir: Path,
  model: model_lib.Model,
  buffers: dict[str, jax.Array],
) -> label_order.LabelOrder:
  """Which label of a run has which row.

  Args:
    config: The run's config.
    workdir: Its directory.
    model: Its model.
    buffers: Those of its state, on the mesh in context.

  Returns:
    The order.

  Raises:
    DataError: The file that says so is not as it was written.
  """
  if config.data.num_ids:
    return label_order.LabelOrder.from_file(
      workdir / config.head.order, config.data.num_ids, config.data.num_labels
    )
  if "label_ids" in buffers:
    ids = by_label(model, buffers["label_ids"])
    return label_order.LabelOrder.of(ids)
  return label_order.LabelOrder.identity()


def _restore(
  config: ml_collections.ConfigDict,
  workdir: Path,
  model: model_lib.Model,
  which: str,
) -> tuple[int, dict[str, Any]]:
  """Step and state of a checkpoint, on the mesh in context."""
  if which not in ("best", "last"):
    raise config_lib.ConfigError(
      f"which checkpoint: {which!r}; use 'best' or 'last'"
    )
  with checkpointer.Checkpointer(
    config.checkpoint.dir or workdir / checkpointer.DIRECTORY,
    best_metric=config.eval.metric,
    read_only=True,
  ) as keeper:
    found = keeper.restore_model(model.abstract().model, best=which == "best")
  if found is None:
    raise config_lib.ConfigError(
      f"{workdir} holds no finished checkpoint; train it first"
    )
  return found


def _from_dicts(
  rows: Sequence[Mapping[int, float]], num_features: int
) -> csr_lib.Csr:
  ids = [sorted(row) for row in rows]
  values = [[row[i] for i in order] for row, order in zip(rows, ids)]
  return csr_lib.Csr.from_rows(ids, num_features, values)


def _count(rows: csr_lib.Csr | np.ndarray) -> int:
  return rows.num_rows if isinstance(rows, csr_lib.Csr) else len(rows)


def _slice(
  rows: csr_lib.Csr | np.ndarray, start: int, stop: int
) -> csr_lib.Csr | np.ndarray:
  if isinstance(rows, csr_lib.Csr):
    return rows.slice_rows(start, stop)
  return rows[start:stop]


def _fill(block: np.ndarray, size: int) -> np.ndarray:
  return np.pad(block, ((0, size - len(block)), (0, 0)))


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()
