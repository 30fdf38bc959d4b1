"""A run's directory: opened, claimed and written here alone.

It holds the config, without which it is no run, the checkpoints unless
`checkpoint.dir` has them elsewhere, and beside those what the config and the
arrays do not say: the machine, labels that training has corrected, the names of
labels, and their order where a file gave it or they have come or gone (see
`xlj.labels`). So nothing is lost where the data are not.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from xlj import config as config_lib
from xlj import files
from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.checkpoint import checkpointer
from xlj.checkpoint import steps
from xlj.checkpoint import trees as trees_lib
from xlj.config import splits
from xlj.config import text
from xlj.data import label_order
from xlj.data import names as names_lib
from xlj.data import numbering as numbering_lib
from xlj.model import model as model_lib
from xlj.model import neighbours as neighbours_lib
from xlj.report import machine
from xlj.report import recorded
from xlj.runs import label_corrections
from xlj.runs import ownership
from xlj.text import features as features_lib

ORDER_FILE = "label_order.txt"  # if labels were edited, or a file gave it
WHICH = ("best", "last")


@dataclasses.dataclass(frozen=True)
class Run:
  """A run at one of its checkpoints.

  Attributes:
    workdir: Where it was read from.
    config: Its config.
    mesh: That of its arrays.
    step: Steps taken.
    trees: The trees of arrays: "model", and "training" if asked for.
    order: Which label has which row.
    facts: Saved with the arrays for training.
    names: Of all ids; None if there are none. `load` leaves them, and the
      corrections, to who needs them.
    corrections: Labels that training has made positives.
    numbering: Of the ids of features and labels, with `data.renumber`.
    encoding: Of texts, if it was trained on texts.
  """

  workdir: Path
  config: ml_collections.ConfigDict
  mesh: jax.sharding.Mesh
  step: int
  trees: dict[str, Any]
  order: label_order.LabelOrder
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  names: list[str] | None = None
  corrections: label_corrections.LabelCorrections = dataclasses.field(
    default_factory=label_corrections.LabelCorrections
  )
  numbering: numbering_lib.Numbering | None = None
  encoding: features_lib.Encoding | None = None

  @property
  def num_labels(self) -> int:
    """How many labels have a row, L."""
    return self.config.data.num_labels

  @property
  def num_ids(self) -> int:
    """How many ids there are, those of deleted and merged labels included."""
    return config_lib.num_ids(self.config)

  @property
  def data_ids(self) -> np.ndarray:
    """The id of each row's label, `[L]`; for runs that keep ids."""
    assert self.order.data_ids is not None
    return self.order.data_ids

  @property
  def head_ids(self) -> np.ndarray:
    """The head's number of each id, `[num_ids]`; -1 without a row; likewise."""
    assert self.order.head_ids is not None
    return self.order.head_ids

  def to_data(self, labels: np.ndarray) -> np.ndarray:
    """The ids, as the data have them, of the head's labels; -1 stays."""
    ids = self.order.to_data(labels)
    return ids if self.numbering is None else self.numbering.label_ids(ids)

  def model(self) -> model_lib.Model:
    """The model."""
    return model_lib.Model(self.config)

  def counts(self) -> np.ndarray:
    """Training examples of the head's labels, int64 `[L]`; likewise."""
    with jax.set_mesh(self.mesh):
      by_row = self.trees["model"]["buffers"]["label_counts"]
      return _by_label(self.model(), by_row).astype(np.int64)


def resolve(directory: str | Path, name: str = "workdir") -> Path:
  """The absolute path of a run's directory.

  Args:
    directory: Where it is, or is to be.
    name: The flag or field that says so, for the message.

  Returns:
    The path.

  Raises:
    ConfigError: If it is empty, the URL of a bucket, which has no files to
      append to, or has a name that is not text.
  """
  if not isinstance(directory, str | os.PathLike):
    raise config_lib.ConfigError(
      f"{name} is {directory!r}; give a path, a str or pathlib.Path"
    )
  try:
    str(directory).encode()
  except UnicodeEncodeError:
    raise config_lib.ConfigError(
      f"{name} is {os.fsencode(directory)!r}, which is no UTF-8 to Python here;"
      " give a directory of another name, or set PYTHONUTF8=1 if it is UTF-8"
    ) from None
  if not str(directory):
    raise config_lib.ConfigError(
      f"{name} is empty; name the directory of a run (perhaps a variable of the"
      " shell has no value)"
    )
  if "://" in str(directory):
    raise config_lib.ConfigError(
      f"{name} is {directory}, a bucket; give a directory of a file system that"
      " all hosts share, and let checkpoints alone go into a bucket, by"
      " --config.checkpoint.dir=gs://..."
    )
  return Path(directory).absolute()


def load_config(workdir: Path) -> ml_collections.ConfigDict:
  """The config of a run.

  Args:
    workdir: Directory of the run.

  Returns:
    The config.

  Raises:
    ConfigError: There is none, or it cannot be read.
  """
  return config_lib.load(workdir / config_lib.FILE)


def begun(workdir: Path) -> ml_collections.ConfigDict | None:
  """The config of the run in a directory, if there is one."""
  is_run = (workdir / config_lib.FILE).exists()
  return load_config(workdir) if is_run else None


def checkpoints(workdir: Path, config: ml_collections.ConfigDict) -> str | Path:
  """Where a run has its checkpoints."""
  return config.checkpoint.dir or workdir / checkpointer.DIRECTORY


def saved_rows(model: model_lib.Model) -> dict[str, dict[str, int]]:
  """How many rows of arrays are saved, where devices need some more of them.

  Args:
    model: Of a run, on the mesh in context.

  Returns:
    By item of a checkpoint and the array's name.
  """
  found: dict[str, dict[str, int]] = {}
  if not model.is_filled_up:
    return found
  here, saved = model.abstract(), model.saved()
  for item in ("model", "training"):
    wanted = trees_lib.flat(getattr(here, item))
    found[item] = {
      name: a.shape[0]
      for name, a in trees_lib.flat(getattr(saved, item)).items()
      if a.shape != wanted[name].shape
    }
  return found


def keeper(
  workdir: Path,
  config: ml_collections.ConfigDict,
  model: model_lib.Model | None = None,
  *,
  read_only: bool = False,
) -> checkpointer.Checkpointer:
  """What saves and restores the checkpoints of a run; to be closed.

  Args:
    workdir: Of the run.
    config: Of the run.
    model: Of the run, on the mesh in context; None where no arrays are read.
    read_only: Open for restoring alone.

  Returns:
    The keeper.
  """
  return checkpointer.Checkpointer(
    checkpoints(workdir, config),
    keep=config.checkpoint.keep,
    keep_every=config.checkpoint.keep_every,
    best_metric=config.eval.metric,
    read_only=read_only,
    rows=None if model is None else saved_rows(model),
  )


def neighbours(
  workdir: Path, config: ml_collections.ConfigDict
) -> neighbours_lib.Neighbours:
  """The training rows that a run listens to when it predicts.

  Args:
    workdir: Directory of the run.
    config: Its config; `neighbours.count` is not 0.

  Returns:
    The rows.

  Raises:
    DataError: They cannot be read.
  """
  return neighbours_lib.Neighbours.load(workdir, **config.neighbours)


def load(
  workdir: str | Path, *, which: str = "best", training: bool = False
) -> Run:
  """Opens a run on a mesh of all devices.

  Args:
    workdir: Directory of the run.
    which: "best" checkpoint by the validation metric, or "last".
    training: Whether to read what only training needs as well, at the last
      checkpoint alone.

  Returns:
    The run; the devices need not be those that trained it.

  Raises:
    ConfigError: The directory holds no finished checkpoint.
    CheckpointError: None of its checkpoints is good.
    DataError: A file about its labels is not as it was written.
  """
  if which not in WHICH:
    raise config_lib.ConfigError(
      f"which checkpoint: {which!r}; use 'best' or 'last'"
    )
  workdir = resolve(workdir)
  config = load_config(workdir)
  mesh = mesh_lib.make_mesh()
  with jax.set_mesh(mesh):
    model = model_lib.Model(config)
    abstract = model.abstract()
    with keeper(workdir, config, model, read_only=True) as found_in:
      if training:
        found = found_in.restore_newest(abstract.model, abstract.training)
      else:
        found = found_in.restore_model(abstract.model, best=which == "best")
    if found is None:
      raise config_lib.ConfigError(
        f"{workdir} holds no finished checkpoint; train it first"
      )
    step, *trees = found
    facts = trees.pop() if training else {}
    trees = dict(zip(("model", "training"), trees))
    order = order_of(workdir, config, model, trees["model"]["buffers"])
  run = Run(workdir, config, mesh, step, trees, order, facts)
  if config.data.renumber:
    numbering = numbering_lib.Numbering.load(workdir)
    run = dataclasses.replace(run, numbering=numbering)
  return dataclasses.replace(run, encoding=encoding(workdir, config))


def fingerprint(run: Run) -> str:
  """What tells the scores of a run from those of others: arrays, and fields.

  Args:
    run: The run, as it is on disk but for its section `predict`.

  Returns:
    A hash of the arrays' checksums and of what else scores depend on.

  Raises:
    CheckpointError: Its checkpoint is no longer there.
  """
  where = steps.resolve(checkpoints(run.workdir, run.config))
  arrays = steps.read_meta(where, run.step)["arrays"]["model"]
  fields = [run.config[name].to_dict() for name in ("predict", "neighbours")]
  said = json.dumps([arrays, *fields], sort_keys=True)
  return hashlib.sha256(said.encode()).hexdigest()[:16]


def encoding(
  workdir: Path, config: ml_collections.ConfigDict
) -> features_lib.Encoding | None:
  """What a run has learned of texts.

  Args:
    workdir: The run's directory.
    config: Its config.

  Returns:
    The encoding; None if it was not trained on texts.

  Raises:
    DataError: A file of it is missing, or not as it was written.
  """
  if not config.data.text:
    return None
  names = splits.label_names(config, workdir)
  featurizer = text.load(config, workdir)
  return features_lib.Encoding(
    config.data.text, featurizer, names, config_lib.num_ids(config)
  )


def order_of(
  workdir: Path,
  config: ml_collections.ConfigDict,
  model: model_lib.Model,
  buffers: dict[str, jax.Array],
) -> label_order.LabelOrder:
  """Which label of a run has which row.

  Args:
    workdir: The run's directory.
    config: Its config.
    model: Its model.
    buffers: Those of its state, on the mesh in context.

  Returns:
    The order.

  Raises:
    DataError: The file that says so is not as it was written.
  """
  if config.data.num_ids:
    return edited_order(workdir, config)
  if "label_ids" in buffers:
    return label_order.LabelOrder.of(_by_label(model, buffers["label_ids"]))
  return label_order.LabelOrder.identity()


def edited_order(
  workdir: Path, config: ml_collections.ConfigDict
) -> label_order.LabelOrder:
  """The order of a run whose labels were edited, which a file of it says."""
  return label_order.LabelOrder.from_file(
    workdir / config.head.order, config.data.num_ids, config.data.num_labels
  )


def _by_label(model: model_lib.Model, a: jax.Array) -> np.ndarray:
  """A buffer `[R, ...]` by row as `[L, ...]` by the head's labels."""
  rows = model.layout.row_of_label(np.arange(model.layout.num_labels))
  return sharding.whole(a)[rows]


# --- writing -----------------------------------------------------------------


def claim(
  workdir: Path,
  config: ml_collections.ConfigDict,
  order: label_order.LabelOrder,
  names: list[str] | None,
  numbering: numbering_lib.Numbering | None = None,
  featurizer: features_lib.Featurizer | None = None,
) -> None:
  """Makes a directory that of a run, or checks that it is of the same.

  A run that is to be longer than it was begun for says so from now on.

  Args:
    workdir: The directory.
    config: The resolved config.
    order: Which label has which row.
    names: Of all ids, if there are any.
    numbering: Of the ids, with `data.renumber`.
    featurizer: Of texts, if those are the data.

  Raises:
    ConfigError: It is that of a run with another config.
  """
  if jax.process_index():
    return
  if (before := begun(workdir)) is not None:
    config_lib.check_same_run(before, config, workdir)
    if config_lib.is_longer(before, config):
      text = config_lib.to_json(config)
      files.write_text(workdir / config_lib.FILE, text)
    return
  workdir.mkdir(parents=True, exist_ok=True)
  features = splits.feature_names(config)
  _begin(workdir, config, order, names, numbering, features, featurizer)


@contextlib.contextmanager
def making(output: Path) -> Iterator[None]:
  """Refuses a directory that `write` would find something in, or others use.

  Args:
    output: The directory; made, and removed again if it is left empty.

  Yields:
    When this process owns it.

  Raises:
    ConfigError: It is neither missing nor empty, or another process owns it.
    OSError: It cannot be written.
  """
  if output.exists() and not output.is_dir():
    raise config_lib.ConfigError(f"{output} is a file; use another output")
  with ownership.owning(output):
    # Other processes may come when the first one is writing already.
    if not jax.process_index():
      if not all(map(ownership.is_mark, output.iterdir())):
        raise config_lib.ConfigError(
          f"{output} is not empty; use another output"
        )
    yield


def write(
  run: Run, output: Path, metrics: dict[str, float] | None = None
) -> None:
  """Writes a run as the directory of another one.

  Args:
    run: The run, with all that training needs, and a `checkpoint.dir` that is
      not the first run's.
    output: The new directory.
    metrics: Of validation, of these very arrays.

  Raises:
    CheckpointError: The arrays cannot be saved.
    OSError: A file cannot be written.
  """
  config = run.config
  with (
    jax.set_mesh(run.mesh),
    keeper(output, config, model_lib.Model(config)) as saver,
  ):
    trees = run.trees
    saver.save(run.step, trees["model"], trees["training"], run.facts, metrics)
  if jax.process_index():
    return
  if len(run.corrections):
    run.corrections.save(output)
  if config.neighbours.count:
    neighbours(run.workdir, config).save(output)
  features = splits.feature_names(config, run.workdir)
  featurizer = None if run.encoding is None else run.encoding.featurizer
  about = run.numbering, features, featurizer
  _begin(output, config, run.order, run.names, *about)


def _begin(
  workdir: Path,
  config: ml_collections.ConfigDict,
  order: label_order.LabelOrder,
  names: list[str] | None,
  numbering: numbering_lib.Numbering | None,
  features: list[str] | None,
  featurizer: features_lib.Featurizer | None,
) -> None:
  """Writes what every run has; the config, which makes it one, is last."""
  if config.head.order not in config_lib.ORDERS:
    order.to_file(workdir / ORDER_FILE)
  if names is not None and splits.keeps_names(config, workdir):
    names_lib.write_names(workdir / splits.NAMES_FILE, names)
  if numbering is not None:
    numbering.save(workdir)
  if featurizer is not None:
    featurizer.save(workdir)
  if features is not None and splits.keeps_names(config, workdir):
    names_lib.write_names(workdir / splits.FEATURES_FILE, features)
  facts = json.dumps(machine.facts(jax.devices()), indent=2)
  files.write_text(workdir / recorded.MACHINE_FILE, facts + "\n")
  files.write_text(workdir / config_lib.FILE, config_lib.to_json(config))
