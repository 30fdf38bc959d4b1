"""The models of a server, by name, each of which another can replace."""

from collections.abc import Callable, Mapping
import datetime
import functools
from pathlib import Path
import threading
from typing import Any

import numpy as np

import xlj
from xlj.export import reader
from xlj.model import label_choice


class Model:
  """What answers, and what a server asks of it."""

  def __init__(self, name: str, directory: Path, answers: Any):
    """Takes it over.

    Args:
      name: As clients say it.
      directory: Where it is, as the server was told.
      answers: A `Predictor`, or an exported model.
    """
    self.name, self.directory, self.answers = name, directory, answers
    self.loaded = _now()
    self.num_labels: int = answers.num_labels
    self.num_ids: int = answers.num_ids
    self.num_features: int = answers.num_features
    self.input: str = answers.input
    self.calibration = answers.calibration
    image = answers.config.encoder.image if self.input == "images" else None
    self.image = None if image is None else tuple(image)
    run = getattr(answers, "run", answers)
    self.numbering = run.numbering  # of large ids

  @property
  def form(self) -> str:
    """What it reads, in words."""
    if self.input == "texts":
      return "texts, or features by id"
    if self.input == "items":
      return (
        'sequences, {"items": [...]}, of whole numbers from 0 to'
        f" {self.num_features - 1}, the oldest item first"
      )
    if self.input == "sparse":
      return (
        'features, {"id": value}, [[id, value], ...] or {"items": [id]}, or'
        f" {self.num_features} numbers"
      )
    return f"{self.num_features} numbers, all of a row"

  @functools.cached_property
  def features_by_name(self) -> dict[str, int] | None:
    """Ids of features by name; None if they have no names."""
    names = self.answers.feature_names
    if names is None:
      return None
    ids = range(len(names))
    if self.numbering is not None:
      ids = self.numbering.features.tolist()
    return dict(zip(names, ids))

  def feature_name(self, feature: int) -> str | None:
    """The name of a feature that `why` tells of; None if it has none.

    Where several runs answer, it is one of the run on words.
    """
    fusion = getattr(self.answers, "fusion", None)
    told = self.answers if fusion is None else fusion.words
    names = told.feature_names
    if names is None:
      return None
    if self.numbering is not None:
      feature = int(np.searchsorted(self.numbering.features, feature))
    return names[feature]

  @functools.cached_property
  def counts(self) -> np.ndarray | None:
    """Training examples by label; None if not counted."""
    return self.answers.label_counts()

  def names(self, ids: np.ndarray) -> Any:
    """Names nested as ids are; None if labels have none."""
    names = self.answers.label_names
    if names is None:
      return None
    if self.numbering is not None:
      return self.answers.names(ids)
    # As `names` of what answers, which checks the ids first.
    found = [None if i < 0 else names[i] for i in ids.ravel().tolist()]
    if ids.ndim == 1:
      return found
    size = ids.shape[1]
    return [found[i : i + size] for i in range(0, len(found), size)]

  def number(self, label: int) -> int:
    """The place of a label's id among all of them; -1 if there is none."""
    if self.numbering is not None:
      place = int(np.searchsorted(self.numbering.labels, label))
      if place < self.num_ids and self.numbering.labels[place] == label:
        return place
      return -1
    return label if 0 <= label < self.num_ids else -1

  def choice(self, exclude: Any, among: Any) -> label_choice.LabelChoice:
    """Labels that may be answers; see `label_choice.choose`."""
    if exclude is None and among is None:
      return label_choice.ALL
    label_ids = None if self.numbering is None else self.numbering.labels
    return label_choice.choose(
      self.num_ids, exclude, among, label_ids, self.answers.order
    )


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Models:
  """Models by name; the first one is asked where a client names none."""

  def __init__(
    self,
    directories: Mapping[str, Path],
    warm_up: Callable[[Any], None],
    probes: int | None = None,
  ):
    """Loads all of them.

    Args:
      directories: Of a run or an exported model, by name.
      warm_up: What is done with one before it answers.
      probes: How much of their indexes is looked at; see `export.model.load`.

    Raises:
      ValueError: A directory holds no model that is whole.
      OSError: It cannot be read.
    """
    self._warm_up, self._probes = warm_up, probes
    self._loading = threading.Lock()
    self._models = {
      name: self._open(name, directory)
      for name, directory in directories.items()
    }

  def __iter__(self) -> Any:
    """The models."""
    return iter(list(self._models.values()))

  def get(self, name: str | None) -> Model | None:
    """The model of a name, the first one for None; None if there is none."""
    if name is None:
      return next(iter(self._models.values()))
    return self._models.get(name)

  def reload(self, name: str, directory: Path | None = None) -> Model:
    """Takes what a directory holds in place of a model.

    Requests that wait are answered by the model that they came to. This one
    answers until the other is loaded and warm, and on if that fails.

    Args:
      name: Of one that there is.
      directory: By default its own, where something else may be by now.

    Returns:
      The new one.

    Raises:
      ValueError: The directory holds no model that is whole.
      OSError: It cannot be read.
      BlockingIOError: Another one is being loaded.
    """
    if not self._loading.acquire(blocking=False):
      raise BlockingIOError("a model is being loaded; try again later")
    try:
      made = self._open(name, directory or self._models[name].directory)
      self._models[name] = made
      return made
    finally:
      self._loading.release()

  def _open(self, name: str, directory: Path) -> Model:
    model = Model(name, directory, self._load(directory.resolve()))
    self._warm_up(model.answers)
    if model.answers.feature_names is not None:
      _ = model.features_by_name
    _ = model.counts
    return model

  def _load(self, directory: Path) -> Any:
    """Opens a model, of an exported one after all its files are checked."""
    if (directory / reader.MANIFEST).exists():
      reader.read_manifest(directory, verify=True)
    return xlj.load(directory, probes=self._probes)
