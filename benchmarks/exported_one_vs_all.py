"""An exported model of xlj as a system of `one_vs_all.py` that predicts."""

import pathlib

import numpy as np
import one_vs_all_side

import xlj


class Exported:
  """See `one_vs_all_side.System`; `answers.py` has exported the model."""

  version = xlj.__version__

  def __init__(self, data: pathlib.Path, output: pathlib.Path):
    """Knows where its files are."""
    self._data, self._directory = data, output / "model"

  def read(self, split: str) -> object:
    """A split, whose text has been parsed."""
    import xlj_one_vs_all  # with JAX, which is not needed before

    return xlj_one_vs_all.Xlj(self._data, self._directory.parent).read(split)

  def load(self) -> pathlib.Path:
    """Loads the model with the compiled loops; returns its directory."""
    self._model = xlj.load(self._directory)
    self._model.warm_up()
    return self._directory

  def rows(self, split, numbers: np.ndarray | None) -> object:
    """Raw features of some rows, or of all."""
    return split.features if numbers is None else split.features.take(numbers)

  def predict(self, rows) -> np.ndarray:
    """Ids `[N, K]`, best first."""
    return self._model.topk(rows, one_vs_all_side.K)[1]

  def ids(self, predicted: np.ndarray) -> np.ndarray:
    """The same."""
    return predicted


if __name__ == "__main__":
  one_vs_all_side.serve(Exported)
