"""PECOS XR-Linear, with its defaults, as a system of `one_vs_all.py`."""

import importlib.metadata
import pathlib

import numpy as np
import one_vs_all_side
from pecos.xmc import Indexer
from pecos.xmc import LabelEmbeddingFactory
from pecos.xmc.xlinear import XLinearModel
import scipy.sparse

BEAM_SIZE = 20


class Pecos(one_vs_all_side.OfMatrices):
  """See `one_vs_all_side.System`."""

  version = importlib.metadata.version("libpecos")

  def train(self, split: one_vs_all_side.Matrices) -> None:
    """Builds the tree of labels, trains and saves."""
    x, y = split
    embedding = LabelEmbeddingFactory.create(y, x, method="pifa")
    model = XLinearModel.train(x, y, C=Indexer.gen(embedding))
    model.save(str(self.model_dir))

  def load(self) -> pathlib.Path:
    """Loads the model; returns its directory."""
    self._model = XLinearModel.load(str(self.model_dir), is_predict_only=True)
    return self.model_dir

  def predict(self, rows: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """Scores of the best labels `[N, L]`."""
    return self._model.predict(
      rows,
      only_topk=one_vs_all_side.K,
      beam_size=BEAM_SIZE,
      # There is nothing to share in one row, and threads that wait take long
      # where others compute.
      threads=1 if rows.shape[0] == 1 else -1,
    )

  def ids(self, predicted: scipy.sparse.csr_matrix) -> np.ndarray:
    """Ids `[N, K]`, best first."""
    out = np.full((predicted.shape[0], one_vs_all_side.K), -1)
    lengths = np.diff(predicted.indptr)
    row = np.repeat(np.arange(len(lengths)), lengths)
    best_first = np.lexsort((-predicted.data, row))
    rank = np.arange(len(row)) - np.repeat(predicted.indptr[:-1], lengths)
    out[row, rank] = predicted.indices[best_first]
    return out


if __name__ == "__main__":
  one_vs_all_side.serve(Pecos)
