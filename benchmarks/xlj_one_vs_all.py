"""xlj as a system of `one_vs_all.py`."""

import json
import pathlib

import ml_collections
import numpy as np
import one_vs_all_side

import xlj
from xlj import config as config_lib
from xlj.config import checks
from xlj.config import splits
from xlj.data import csr as csr_lib
from xlj.data import store
from xlj.inference import predictor
from xlj.ops.pairs import host_loops
from xlj.runs import directory
from xlj.training import train


class Xlj:
  """See `one_vs_all_side.System`."""

  version = xlj.__version__

  def __init__(self, data: pathlib.Path, output: pathlib.Path):
    """Reads the config, and loads the compiled loops.

    They are compiled once after an install, as those of the peers are when
    they are installed.
    """
    self._config = _with_open_fields(data / config_lib.FILE)
    self._workdir = output / "run"
    of_pairs = np.zeros(2, np.int32), np.zeros(1, np.uint16), _zeros(1)
    features = np.zeros((1, 1), np.int32), _zeros(1, 1), np.ones(1, np.int32)
    host_loops.logits(*of_pairs, *features, _zeros(2, 2, 1)[:, 0])
    host_loops.step_by_example(
      *(*of_pairs, _zeros(1), _zeros(1), *features),
      *(np.zeros((1, 1), np.int32), 0, _zeros(1), _zeros(3)),
    )

  def read(self, split: str) -> store.Split:
    """A split, whose text has been parsed."""
    found = splits.open_split(self._config)
    if split == "train":
      return found
    return splits.open_split(
      self._config,
      split,
      num_features=found.num_features,
      num_labels=found.num_labels,
    )

  def train(self, split: store.Split) -> None:
    """Trains as `launch/train.py` does: statistics, compiling, checkpoints."""
    train.train(self._config, self._workdir)

  def load(self) -> pathlib.Path:
    """Loads the model; returns its directory in the checkpoint."""
    self._run = predictor.load(self._workdir)
    checkpoints = directory.checkpoints(self._workdir, self._run.config)
    return pathlib.Path(checkpoints, str(self._run.step), "model")

  def rows(self, split: store.Split, numbers: np.ndarray | None) -> csr_lib.Csr:
    """Raw features of some rows, or of all."""
    assert isinstance(split.features, csr_lib.Csr)
    return split.features if numbers is None else split.features.take(numbers)

  def predict(self, rows: csr_lib.Csr) -> np.ndarray:
    """Ids `[N, K]`, best first."""
    return self._run.topk(rows, one_vs_all_side.K)[1]

  def ids(self, predicted: np.ndarray) -> np.ndarray:
    """The same."""
    return predicted


def _with_open_fields(path: pathlib.Path) -> ml_collections.ConfigDict:
  """The config that a file has; that of a run would have no open fields."""
  saved = json.loads(path.read_text())
  del saved["version"]
  config = config_lib.base()
  with config.ignore_type():  # a list is a tuple
    config.update_from_flattened_dict(dict(checks.flatten(saved)))
  return config


def _zeros(*shape: int) -> np.ndarray:
  return np.zeros(shape, np.float32)


if __name__ == "__main__":
  one_vs_all_side.serve(Xlj)
