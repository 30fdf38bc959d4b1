"""A run whose labels are edited: read, and written as another run.

Legend: L labels, K of them.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from xlj import config as config_lib
from xlj import mesh as mesh_lib
from xlj.checkpoint import checkpointer
from xlj.config import splits
from xlj.data import label_order
from xlj.inference import predictor
from xlj.model import model as model_lib
from xlj.report import machine
from xlj.report import report
from xlj.runs import label_corrections
from xlj.runs import workdir as workdir_lib
from xlj.training import preparation

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
    corrections: Labels that training has made positives.
  """

  workdir: Path
  config: ml_collections.ConfigDict
  mesh: jax.sharding.Mesh
  step: int
  trees: dict[str, Any]
  facts: dict[str, Any]
  order: label_order.LabelOrder
  names: list[str] | None
  corrections: label_corrections.LabelCorrections

  @property
  def num_labels(self) -> int:
    """How many labels have a row, L."""
    return self.config.data.num_labels

  @property
  def num_ids(self) -> int:
    """How many ids there are."""
    return config_lib.num_ids(self.config)

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
    with jax.set_mesh(self.mesh):
      by_row = self.trees["model"]["buffers"]["label_counts"]
      return predictor.by_label(self.model(), by_row).astype(np.int64)

  def as_predictor(self) -> predictor.Predictor:
    """What predicts as the run is, by its logits alone."""
    config = ml_collections.ConfigDict(self.config.to_dict())
    config.predict.propensity_power = 0.0
    return predictor.Predictor(
      self.workdir,
      config,
      self.mesh,
      self.step,
      self.trees["model"],
      self.order,
    )


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
  workdir = workdir_lib.resolve(workdir)
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
  with jax.set_mesh(mesh):
    order = predictor.label_order_of(config, workdir, model, tree["buffers"])
  return Run(
    workdir,
    config,
    mesh,
    step,
    {"model": tree, "training": training},
    facts,
    order,
    splits.label_names(config, workdir),
    label_corrections.LabelCorrections.load(workdir, step),
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
  output = workdir_lib.resolve(output, "output")
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
  if len(run.corrections):
    run.corrections.save(output)
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
