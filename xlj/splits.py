"""The splits that a config asks for: files, text, or generated rows."""

from pathlib import Path

import ml_collections

from xlj import config as config_lib
from xlj.data import generated
from xlj.data import store
from xlj.data import tokens


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
    num_labels: Likewise of labels.

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
    return store.open_generated(_spec(data), split)
  return store.open_split(
    directory,
    split,
    cache_dir=data.cache_dir or None,
    num_features=num_features,
    num_labels=num_labels,
    context=data.context,
    verify=data.verify,
  )


def label_names(config: ml_collections.ConfigDict) -> list[str] | None:
  """The names of the labels of a config's data.

  Args:
    config: A resolved config.

  Returns:
    The names, by label id; None if there are none.

  Raises:
    DataError: If there are names, but not one for each label.
  """
  data = config.data
  if data.generator.rows:
    return None
  if data.context:
    return tokens.words(data.dir)
  return store.label_names(data.dir, data.num_labels)


def _spec(data: ml_collections.ConfigDict) -> generated.Spec:
  fields = data.generator.to_dict() | {"factors": tuple(data.generator.factors)}
  try:
    return generated.Spec(**fields)
  except ValueError as error:
    raise config_lib.ConfigError(f"data.generator: {error}") from None
