"""The splits that a config asks for: files, text, or generated rows."""

import dataclasses
from pathlib import Path
from typing import Any

from absl import logging
import ml_collections
import numpy as np

from xlj import config as config_lib
from xlj.config import text
from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import names as names_lib
from xlj.data import numbering as numbering_lib
from xlj.data import pipeline
from xlj.data import store
from xlj.data import tokens
from xlj.data import user_items
from xlj.synthetic import generated
from xlj.text import features as features_lib

NAMES_FILE = "labels.txt"  # of a run
FEATURES_FILE = "feature_names.txt"  # likewise


def open_split(
  config: ml_collections.ConfigDict,
  split: str = "train",
  *,
  data_dir: str | Path | None = None,
  num_features: int | None = None,
  num_labels: int | None = None,
  numbering: numbering_lib.Numbering | None = None,
  encoding: features_lib.Encoding | None = None,
  label_names: list[str] | None = None,
  feature_names: list[str] | None = None,
) -> store.Split:
  """Opens a split of the data of a config.

  Args:
    config: A config; its section `data` counts.
    split: "train", "test" or "validation".
    data_dir: Replaces `data.dir`.
    num_features: The number of features of a model that is to score the split:
      others are left out. None takes what the files have, or what
      `data.num_features` states, if that is more.
    num_labels: Likewise of label ids; but others stay, as nothing that the
      model can find, and `data.num_ids` counts if there are any.
    numbering: Of the ids of that model; by default of the training split.
    encoding: Of the texts of that model; likewise.
    label_names: Of its labels, where they are written as names; likewise.
    feature_names: Of its features, where they are columns of a table; likewise.

  Returns:
    The split.

  Raises:
    ConfigError: If the fields contradict each other.
    DataError: If the files are missing or not right.
    OSError: If a file cannot be read.
  """
  config_lib.check_each(config)  # before anything is read
  data = config.data
  directory = data_dir or data.dir
  if data.generator.rows:
    if directory or data.context:
      raise config_lib.ConfigError(
        f"data.generator.rows is {data.generator.rows}, which needs no"
        f" directory ({directory or 'none'}) and no data.context"
        f" ({data.context})"
      )
    return _as_stated(generated.open_split(_spec(data), split), config)
  if not directory:
    raise config_lib.ConfigError(
      "data.dir is not given; say where the data set lies, by"
      " --config.data.dir=DIR"
    )
  scored = num_features is not None or num_labels is not None
  if not Path(directory).is_dir():
    flag = "--data_dir" if scored else "--config.data.dir"
    raise config_lib.ConfigError(
      f"{directory} is no directory; say where the data set lies, by {flag}=DIR"
    )
  if scored and data.renumber and numbering is None:
    numbering = _read(config, data.dir, "train").numbering
  found = _read(
    *(config, directory, split, num_features, num_labels, scored),
    numbering=numbering,
    encoding=encoding,
    label_names=label_names,
    feature_names=feature_names,
  )
  if not scored:
    return _as_stated(found, config, directory, split)
  if config.predict.exclude_seen:
    found = found.without_seen()
  if found.filter is not None and num_labels:
    # It forbids what the model could say.
    found = dataclasses.replace(found, filter=found.filter.below(num_labels))
  return found


def held_out(
  config: ml_collections.ConfigDict,
  workdir: Path,
  *,
  data_dir: str | Path | None = None,
) -> tuple[store.Split, np.ndarray]:
  """The training split of a run, and its rows that were held out.

  Args:
    config: Of the run.
    workdir: Of the run, for messages.
    data_dir: Directory of the data; by default that of training.

  Returns:
    The split, and ascending numbers of rows.

  Raises:
    ConfigError: None were, or the data are others than those of training.
    DataError: They are missing or not right.
  """
  share = float(config.data.validation)
  if not share:
    raise config_lib.ConfigError(
      f"data.validation of {workdir} is {share}: no rows were held out to score"
      " with; name a split that it was not trained on"
    )
  data = open_split(config, data_dir=data_dir)
  if data.fingerprint != config.data.fingerprint:
    raise config_lib.ConfigError(
      f"{data.name} is not what {workdir} was trained on (data.fingerprint is"
      f" {config.data.fingerprint} there, and {data.fingerprint} here), so"
      " which rows were held out is not known; give that, or name a split"
    )
  return data, pipeline.holdout(data.num_rows, share, config.seed)[1]


def check_others(
  config: ml_collections.ConfigDict,
  num_features: int,
  num_labels: int,
  numbering: numbering_lib.Numbering | None = None,
  encoding: features_lib.Encoding | None = None,
  label_names: list[str] | None = None,
) -> None:
  """Reads the splits that training does not, to find faults before it starts.

  Args:
    config: A config; its section `data` counts.
    num_features: The number of features of the training split.
    num_labels: Likewise of label ids.
    numbering: Of its ids, with `data.renumber`.
    encoding: Of its texts.
    label_names: Of its labels, where they are written as names.

  Raises:
    DataError: If there is such a split, and it is not right.
    OSError: If a file cannot be read.
  """
  data = config.data
  if data.generator.rows or data.sequences:  # all are in one file
    return
  if encoding is None and has_interactions(config):  # here too
    return
  for split in discover.SPLITS:
    if split == "train":
      continue
    if encoding is None and not discover.has_split(data.dir, split):
      continue
    if encoding is not None and not text.has_split(config, split):
      continue
    logging.info("Looking at the %s split before training starts", split)
    try:
      sizes = num_features, num_labels
      _read(
        *(config, data.dir, split, *sizes),
        beyond=True,
        verify=False,
        numbering=numbering,
        encoding=encoding,
        label_names=label_names,
      )
    except store.DataError as error:
      error.add_hint(
        f"the {split} split is looked at before training starts: mend it, or"
        f" move it out of {data.dir} to train without it"
      )
      raise


def file_of(config: ml_collections.ConfigDict, split: str) -> str:
  """The file that has the rows of a split, or the first one of them.

  Args:
    config: A resolved config whose data are files.
    split: Which.

  Returns:
    Its path; "FILE" where the split is a part of the training file.

  Raises:
    DataError: There is no such split.
  """
  data = config.data
  if data.sequences:
    return str(discover.find_sequences(data.dir, data.sequences).features)
  if not data.text:
    if has_interactions(config):
      return "FILE"
    return str(discover.find(data.dir, split).features)
  if data.test_share and split == "test":
    return "FILE"
  return str(text.files(config, split)[0])


def reading(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """How the files of a run are read, its input to predict too."""
  data = config.data
  return {"zero_based": data.zero_based, "duplicates": data.duplicates}


def label_names(
  config: ml_collections.ConfigDict,
  workdir: Path | None = None,
  num_ids: int | None = None,
  numbering: numbering_lib.Numbering | None = None,
  known: list[str] | None = None,
) -> list[str] | None:
  """The names of the labels of a run, or of a config's data.

  Args:
    config: A config.
    workdir: Of a run, which has names of its own; those of earlier versions
      have not, so that they are looked for with the data.
    num_ids: How many names there have to be; by default as many as the config,
      which is resolved then, has ids.
    numbering: Of the ids, if they are numbered: the names are by number then.
    known: Those that the training split has written.

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
  if text.kind(config):
    return text.documents(config, data.dir, "train").label_names
  if known is None and data.named_labels:
    known = _read(config, data.dir, "train").label_names
  if known is not None:
    return known
  if numbering is None:
    return store.label_names(data.dir, num_ids)
  names, largest = store.label_names(data.dir), int(numbering.labels[-1])
  if names is not None and len(names) <= largest:
    raise store.DataError(
      data.dir,
      f"{len(names)} names",
      f"one for each label id up to {largest}",
      hint="line i + 1 names label i, with data.renumber too; move the file of"
      " names away, and give one with xlj predict --labels",
    )
  return names and [names[i] for i in numbering.labels]


def feature_names(
  config: ml_collections.ConfigDict, workdir: Path | None = None
) -> list[str] | None:
  """The names of the features of a run, or of a config's data.

  Args:
    config: A resolved config.
    workdir: Of a run.

  Returns:
    The names, by feature id; None if there are none, or not one for each.
  """
  data, count = config.data, config.data.num_features
  path, own = None, False
  is_label = config.predict.exclude_seen  # features have the ids of labels
  if data.named_labels and (is_label or has_interactions(config)):
    return label_names(config, workdir)
  if text.kind(config):  # A run's featurizer has them.
    return None
  if workdir is not None and keeps_names(config, workdir):
    path = workdir / FEATURES_FILE
    own = path.exists()
  if not own:
    path = None
    if data.dir and not (data.context or data.generator.rows):
      path = names_lib.find(data.dir, names_lib.FEATURE_FILES)
  if path is None:
    if not data.dir or data.context or data.generator.rows or data.sequences:
      return None
    return store.table_features(data.dir)
  try:
    return names_lib.read_names(path, count, table=not own)
  except store.DataError:  # Nothing needs them.
    logging.warning(
      "Names of features are left out: %s is no UTF-8 text with a line for each"
      " of the %d",
      *(path, count),
    )
    return None


def keeps_names(config: ml_collections.ConfigDict, workdir: Path) -> bool:
  """Whether a run keeps names: not in the directory of data that have them."""
  data = config.data.dir
  return not data or Path(data).absolute() != workdir.absolute()


def _read(
  config: ml_collections.ConfigDict,
  directory: str | Path,
  split: str,
  num_features: int | None = None,
  num_labels: int | None = None,
  beyond: bool = False,
  verify: bool = True,
  numbering: numbering_lib.Numbering | None = None,
  encoding: features_lib.Encoding | None = None,
  label_names: list[str] | None = None,
  feature_names: list[str] | None = None,
) -> store.Split:
  """Opens a split of files, as the config says how they are read."""
  data = config.data
  if text.kind(config):
    found = text.open_split(config, directory, split, encoding)
  else:
    found = store.open_split(
      directory,
      split,
      cache_dir=data.cache_dir or None,
      num_features=num_features,
      num_labels=num_labels,
      beyond=beyond,
      column=data.split,
      context=data.context,
      sequences=data.sequences,
      interactions=_held_out(config),
      renumber=data.renumber,
      numbering=numbering,
      named=data.named_labels,
      label_names=label_names,
      feature_names=feature_names,
      **reading(config),
      verify=data.verify and verify,
    )
  for note in found.notes:
    logging.warning("%s", note)
  return found


def has_interactions(config: ml_collections.ConfigDict) -> bool:
  """Whether the data are interactions, of which some are held out."""
  data = config.data
  return bool(data.dir) and discover.has_interactions(
    data.dir, data.interactions.lists
  )


def _held_out(config: ml_collections.ConfigDict) -> user_items.How:
  """What is held out of interactions."""
  how = config.data.interactions
  return user_items.How(how.split, how.test, how.validation, how.lists)


def _as_stated(
  split: store.Split,
  config: ml_collections.ConfigDict,
  directory: str | Path = "",
  name: str = "",
) -> store.Split:
  """The training split, as wide as the config says.

  Args:
    split: As it was read.
    config: Its config.
    directory: Where it was read from; generated rows have none.
    name: Which split.

  Returns:
    The split, with columns for ids that no row has.

  Raises:
    DataError: If it is wider, with the first id that is too large.
  """
  data, features, labels = config.data, split.features, split.labels
  if (width := data.num_features) not in (None, split.num_features):
    if width < split.num_features or not isinstance(features, csr_lib.Csr):
      raise _refused(split, config, directory, name, "num_features")
    features = dataclasses.replace(features, num_columns=width)
  if (width := data.num_ids or data.num_labels) not in (None, split.num_labels):
    if width < split.num_labels:
      raise _refused(split, config, directory, name, "num_labels")
    labels = dataclasses.replace(labels, num_columns=width)
  split = dataclasses.replace(split, features=features, labels=labels)
  return split.without_seen() if config.predict.exclude_seen else split


def _refused(
  split: store.Split,
  config: ml_collections.ConfigDict,
  directory: str | Path,
  name: str,
  field: str,
) -> store.DataError:
  """Why a split is not of the width that a field says."""
  found, wanted = getattr(split, field), config.data[field]
  what = field.removeprefix("num_")
  if field == "num_labels" and config.data.num_ids:
    return store.DataError(
      split.name,
      f"{found} label ids",
      f"at most {config.data.num_ids}, those of the run; append the new ones to"
      " it first",
    )
  error = store.DataError(split.name, f"{found} {what}", f"{wanted}")
  if directory:
    try:
      _read(config, directory, name, **{field: wanted})
    except store.DataError as first:
      error = first  # with its line
  error.add_hint(
    f"data.{field} is {wanted}: leave it out, or give"
    f" --config.data.{field}={found}"
  )
  return error


def _spec(data: ml_collections.ConfigDict) -> generated.Spec:
  fields = data.generator.to_dict() | {"factors": tuple(data.generator.factors)}
  try:
    return generated.Spec(**fields)
  except ValueError as error:
    raise config_lib.ConfigError(f"data.generator: {error}") from None
