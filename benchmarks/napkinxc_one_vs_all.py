"""The PLT of napkinXC, with its defaults, as a system of `one_vs_all.py`."""

import importlib.metadata
import pathlib

from napkinxc import models
import numpy as np
import one_vs_all_side
import scipy.sparse


class NapkinXc(one_vs_all_side.OfMatrices):
  """See `one_vs_all_side.System`."""

  version = importlib.metadata.version("napkinxc")

  def train(self, split: one_vs_all_side.Matrices) -> None:
    """Builds the tree of labels and trains, which saves."""
    models.PLT(str(self.model_dir), seed=0).fit(*split)

  def load(self) -> pathlib.Path:
    """Loads the model; returns its directory."""
    self._model = models.PLT(str(self.model_dir))
    self._model.load()
    return self.model_dir

  def predict(self, rows: scipy.sparse.csr_matrix) -> list[list[int]]:
    """The best labels of each row."""
    return self._model.predict(rows, top_k=one_vs_all_side.K)

  def ids(self, predicted: list[list[int]]) -> np.ndarray:
    """Ids `[N, K]`, best first."""
    out = np.full((len(predicted), one_vs_all_side.K), -1)
    for row, labels in zip(out, predicted):
      row[: len(labels)] = labels
    return out


if __name__ == "__main__":
  one_vs_all_side.serve(NapkinXc)
