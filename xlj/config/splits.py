"""The splits that a config asks for: files, text, or generated rows."""

import dataclasses
from pathlib import Path
from typing import Any

import ml_collections

from xlj import config as config_lib
from xlj.data import names as names_lib
from xlj.data import store
from xlj.data import tokens
from xlj.synthetic import generated

NAMES_FILE = "labels.txt"  # of a run


def open_split(
  config: ml_collections.ConfigDict,
  split: str = "train",
  *,
  data_dir: str | Path | None = None,
  num_features: int | None = None,
  num_labels: int | None = None,
) -> store.Split:
  """Opens a split of the data of a config.

  Args:
    config: A config; its section `data` counts.
    split: "train", "test" or "validation".
    data_dir: Replaces `data.dir`.
    num_features: The number of features of the model; None for any.
    num_labels: Likewise of label ids. Data with fewer of them are widened
      where a run has been given more since (see `xlj.labels`).

  Returns:
    The split.

  Raises:
    ConfigError: If the fields contradict each other.
    DataError: If the files are missing or not right.
    OSError: If a file cannot be read.
  """
  data = config.data
  directory = data_dir or data.dir
  if data.generator.rows:
    if directory or data.context:
      raise config_lib.ConfigError(
        f"data.generator.rows is {data.generator.rows}, which needs no"
        f" directory ({directory or 'none'}) and no data.context"
        f" ({data.context})"
      )
    return generated.open_split(_spec(data), split)
  if not directory:
    raise config_lib.ConfigError(
      "data.dir is not given; say where the data set lies, by"
      " --config.data.dir=DIR"
    )
  found = store.open_split(
    directory,
    split,
    cache_dir=data.cache_dir or None,
    num_features=num_features,
    num_labels=None if data.num_ids else num_labels,
    column=data.split,
    context=data.context,
    **reading(config),
    verify=data.verify,
  )
  return _widened(found, data.num_ids) if data.num_ids else found


def reading(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """How the files of a run are read, its input to predict too."""
  data = config.data
  return {"zero_based": data.zero_based, "duplicates": data.duplicates}


def label_names(
  config: ml_collections.ConfigDict,
  workdir: Path | None = None,
  num_ids: int | None = None,
) -> list[str] | None:
  """The names of the labels of a run, or of a config's data.

  Args:
    config: A config.
    workdir: Of a run, which has names of its own; those of earlier versions
      have not, so that they are looked for with the data.
    num_ids: How many names there have to be; by default as many as the config,
      which is resolved then, has ids.

  Returns:
    The names, by label id; None if there are none.

  Raises:
    DataError: If there are names, but not one for each label.
  """
  data = config.data
  num_ids = num_ids or config_lib.num_ids(config)
  if workdir is not None and keeps_names(config, workdir):
    if (path := workdir / NAMES_FILE).exists():
      return names_lib.read_names(path, num_ids, table=False)
  if data.generator.rows:
    return None
  if data.context:
    return tokens.words(data.dir)
  return store.label_names(data.dir, num_ids)


def keeps_names(config: ml_collections.ConfigDict, workdir: Path) -> bool:
  """Whether a run keeps names: not in the directory of data that have them."""
  data = config.data.dir
  return not data or Path(data).absolute() != workdir.absolute()


def _widened(split: store.Split, num_ids: int) -> store.Split:
  """The split with label ids up to `num_ids`."""
  if split.num_labels > num_ids:
    raise store.DataError(
      split.name,
      f"{split.num_labels} label ids",
      f"at most {num_ids}, those of the run; append the new ones to it first",
    )
  labels = dataclasses.replace(split.labels, num_columns=num_ids)
  return dataclasses.replace(split, labels=labels)


def _spec(data: ml_collections.ConfigDict) -> generated.Spec:
  fields = data.generator.to_dict() | {"factors": tuple(data.generator.factors)}
  try:
    return generated.Spec(**fields)
  except ValueError as error:
    raise config_lib.ConfigError(f"data.generator: {error}") from None
