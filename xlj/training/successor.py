"""A run that begins where another one has ended, on other data or with rates.

It has the arrays of the other one's last checkpoint, and its labels and
features, whose numbers mean what they meant there.
"""

import dataclasses
from pathlib import Path

from absl import logging
import ml_collections

from xlj import config as config_lib
from xlj.config import splits
from xlj.distributed import exchange
from xlj.runs import directory
from xlj.training import preparation

# What arrays do not depend on.
_FREE = ("data.", "train.", "optim.", "tail.", "seed")
_BOUND = (
  "data.num_features",
  "data.num_labels",
  "data.num_ids",
  "data.dense",
  "data.weighting",
  "data.l2",
  "optim.encoder.name",
  "optim.head.name",
)


def begin(
  config: ml_collections.ConfigDict, source: str | Path, workdir: str | Path
) -> ml_collections.ConfigDict:
  """Makes a directory that of a run that goes on from another one.

  Its schedule of learning rates begins anew, for `train.epochs` of its data. A
  directory that holds a run already is left as it is.

  Args:
    config: Of the new run; open fields are as in the other one.
    source: Directory of the other run.
    workdir: The directory.

  Returns:
    The config to train the new run with.

  Raises:
    ConfigError: There is no such run, or its arrays do not go with the config
      or the data.
    DataError: The data cannot be read, or have labels of other names.
    CheckpointError: None of its checkpoints is good.
  """
  workdir = directory.resolve(workdir)
  if (begun := directory.begun(workdir)) is not None:
    config.data.num_ids = begun.data.num_ids
    config.head.order = begun.head.order
    config.train.steps_before = begun.train.steps_before
    config.checkpoint.dir = begun.checkpoint.dir
    return config
  source = directory.resolve(source, "from")
  with directory.making(workdir):
    _write(config, source, workdir)
  exchange.gather("successor", "")  # All find it written.
  return directory.load_config(workdir)


def _write(
  config: ml_collections.ConfigDict, source: Path, workdir: Path
) -> None:
  """Writes the new run."""
  run = directory.load(source, which="last", training=True)
  before = run.config
  config = ml_collections.ConfigDict(config.to_dict())
  of_data = before.data.context or before.data.renumber
  if of_data or "memory" in run.trees["training"]:
    raise config_lib.ConfigError(
      f"--from={source}: its ids are of its own data (data.context or"
      " data.renumber), or it remembers its examples (noisy.method or"
      " missing.method), so that it cannot go on elsewhere"
    )
  if before.head.order != "none":  # Otherwise no ids are kept.
    config.data.num_ids = run.num_ids
    config.head.order = directory.ORDER_FILE
  encoding = directory.encoding(source, before)
  names = splits.label_names(before, source)
  known = names if before.data.named_labels else None
  split = splits.open_split(config, encoding=encoding, label_names=known)
  about = preparation.facts(split)
  if config.data.num_ids:
    about = dataclasses.replace(about, num_labels=run.num_labels)
  if config.checkpoint.dir == before.checkpoint.dir:
    config.checkpoint.dir = ""  # The other run has its own there.
  config.train.num_steps = None
  config.train.steps_before = config.optim.from_step = run.step
  config = config_lib.resolve(config, about, begun=_without_length(before))
  _check(before, config, source)
  now = split.label_names or splits.label_names(config)
  _check_names(names, now, split.name, source)
  new = dataclasses.replace(run, config=config, names=names)
  directory.write(new, workdir)
  logging.info("%s goes on from step %d of %s", workdir, run.step, source)


def _without_length(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict(config.to_dict())
  config.train.num_steps = None
  return config


def _check(
  before: ml_collections.ConfigDict,
  config: ml_collections.ConfigDict,
  source: Path,
) -> None:
  """Refuses what the arrays do not go with."""
  found = config_lib.differences(before, config)
  kept = {"data.num_ids", "head.order"} if config.data.num_ids else set()
  for name, (there, here) in found.items():
    if (name in _BOUND or not name.startswith(_FREE)) and name not in kept:
      raise config_lib.ConfigError(
        f"--from={source}: {name} is {there!r} there and {here!r} here, and"
        " must be the same"
      )


def _check_names(
  before: list[str] | None, now: list[str] | None, data: str, source: Path
) -> None:
  """Refuses data whose labels have other names."""
  for i, (there, here) in enumerate(zip(before or (), now or ())):
    if there != here:
      raise config_lib.ConfigError(
        f"--from={source}: label {i} is {there!r} there and {here!r} in {data};"
        " labels must be numbered as they are there"
      )
