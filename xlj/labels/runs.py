"""A run whose labels are edited: read, and written as another run.

Legend: L labels, K of them.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path

from absl import logging
import jax
import ml_collections
import numpy as np

from xlj import config as config_lib
from xlj.config import splits
from xlj.heads import head as head_lib
from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib
from xlj.inference import predictor
from xlj.model import model as model_lib
from xlj.runs import directory
from xlj.runs import label_corrections
from xlj.training import preparation


def load(workdir: str | Path) -> directory.Run:
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
  workdir = directory.resolve(workdir)
  config = directory.load_config(workdir)
  _check(config, model_lib.Model(config).head, workdir)
  run = directory.load(workdir, which="last", training=True)
  return dataclasses.replace(
    run,
    names=splits.label_names(run.config, workdir),
    corrections=label_corrections.LabelCorrections.load(workdir, run.step),
  )


def as_predictor(run: directory.Run) -> predictor.Predictor:
  """What predicts as a run is, by its logits alone."""
  config = ml_collections.ConfigDict(run.config.to_dict())
  config.predict.propensity_power = 0.0
  return predictor.Predictor(dataclasses.replace(run, config=config))


def _check(
  config: ml_collections.ConfigDict, head: head_lib.Head, workdir: Path
) -> None:
  """Refuses a run whose labels are not rows of one matrix."""
  for wrong, why in (
    ("rows" not in head.can, head_lib.lack(head, "rows")),
    (config.head.order == "none", "head.order is 'none', which keeps no ids"),
    (bool(config.data.context), "its labels are the words of a text"),
    (bool(config.data.sequences), "its labels are items of sequences"),
    (bool(config.data.generator.rows), "its data are generated"),
    (bool(config.data.renumber), "data.renumber is True"),
  ):
    if wrong:
      raise config_lib.ConfigError(
        f"{workdir}: {why}; labels can be edited where each is a row of a dense"
        " head (head.type='dense', head.prototypes=1) over data in files"
      )


def save(
  run: directory.Run,
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
  output = directory.resolve(output, "output")
  with directory.making(output):
    _save(run, output, train_dir, steps)


def _save(
  run: directory.Run, output: Path, train_dir: str | Path | None, steps: int
) -> None:
  """The same, in a directory that is this process's alone."""
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
    known = run.names if config.data.named_labels else None
    split = splits.open_split(config, label_names=known)
    about = dataclasses.replace(
      preparation.facts(split), num_labels=config.data.num_labels
    )
    config = config_lib.resolve(config, about)
  directory.write(dataclasses.replace(run, config=config), output)
  if jax.process_index() == 0:
    logging.info("Wrote %s with %d labels", output, run.num_labels)


def rows_of(model: model_lib.Model) -> rows_lib.Rows:
  """What a head whose labels can be edited stores of them."""
  assert isinstance(model.head, dense.DenseHead)  # `load` refuses others.
  return model.head.label_rows


def heads_of(run: directory.Run, ids: Sequence[int] | np.ndarray) -> np.ndarray:
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
