"""The training rows nearest to an example, whose labels gain by it.

A row near an example speaks for its labels: to the logit of each of them is
added `weight * log(1 + share / SMALL)`. The shares come from the `count` rows
of the largest cosines `s` with the example, each as much as
`exp(s / temperature)` says, divided by the sum over those rows. So what a
network has smoothed away of single rows comes back, in the manner of the
nearest-neighbour language models of Khandelwal et al., "Generalization through
memorization", ICLR 2020.

Legend: M training rows, F features, L label ids, n examples, E labels named
for an example.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from xlj import files
from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import label_order
from xlj.model import model as model_lib
from xlj.ops import choice as choice_lib

FILE = "neighbours.npz"  # in the directory of a run
SMALL = 0.01  # a share that matters


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
  """Training rows and how much they count.

  Attributes:
    features: `[M, F]` weighted features.
    labels: `[M, L]`.
    count: How many rows are near.
    weight: What their labels gain is multiplied by.
    temperature: Of the cosines.
  """

  features: csr_lib.Csr
  labels: csr_lib.Csr
  count: int
  weight: float
  temperature: float

  @functools.cached_property
  def by_feature(self) -> Any:
    """Features `[F, M]` of rows of length 1."""
    return _unit(self.features.to_scipy()).T.tocsr()

  @functools.cached_property
  def _labels(self) -> Any:
    return self.labels.to_scipy()

  @property
  def width(self) -> int:
    """How many labels rows can name for an example at most, E."""
    longest = int(self.labels.row_lengths.max(initial=1))
    return max(1, min(self.count * longest, self.labels.num_columns))

  def save(self, directory: Path) -> None:
    """Writes the rows into the directory of a run."""
    arrays = {
      f"{name}_{part}": array
      for name, rows in (("x", self.features), ("y", self.labels))
      for part, array in vars(rows).items()
      if array is not None
    }
    with files.replacing(directory / FILE) as partial:
      with partial.open("wb") as out:
        np.savez(out, **arrays)

  @classmethod
  def load(cls, directory: Path, **settings: Any) -> "Neighbours":
    """Reads what `save` wrote.

    Args:
      directory: Of the run.
      **settings: The other attributes.

    Returns:
      The rows.

    Raises:
      DataError: The file is missing, or not as it was written.
    """
    path = directory / FILE

    def rows(found: Any, name: str) -> csr_lib.Csr:
      parts = ("indptr", "indices", "values", "num_columns")
      a, b, values, width = (found.get(f"{name}_{part}") for part in parts)
      made = csr_lib.Csr(a, b, values, int(width))
      made.validate()
      return made

    try:
      with np.load(path, allow_pickle=False) as found:
        return cls(rows(found, "x"), rows(found, "y"), **settings)
    except Exception as error:  # of many kinds, by zipfile and NumPy
      raise errors.DataError(
        path,
        f"no training rows ({error})",
        "those that training wrote; copy the whole directory of the run",
      ) from error

  def cosines(self, inputs: model_lib.Inputs) -> np.ndarray:
    """Cosines `[n, M]` of n examples, on the host, with the rows."""
    ids = np.asarray(inputs.feature_ids)
    values = np.asarray(inputs.feature_values)
    rows = _unit(_sparse(ids, values, self.features.num_columns))
    return (rows @ self.by_feature).toarray()

  def extra(
    self, inputs: model_lib.Inputs, order: label_order.LabelOrder
  ) -> tuple[np.ndarray, np.ndarray]:
    """What the labels of near rows gain.

    Args:
      inputs: n examples with sparse features, on the host.
      order: The head's numbers of the labels.

    Returns:
      int32 `[n, E]` labels, by the head's numbers, -1 for padding, and float32
      `[n, E]`; see `xlj.ops.Choice`.
    """
    cosines = self.cosines(inputs)
    count = min(self.count, cosines.shape[1])
    near = _nearest(cosines, count)
    best = np.take_along_axis(cosines, near, 1)
    weights = shares(best, self.temperature)
    named = _sparse(near, weights, cosines.shape[1]) @ self._labels
    named.data = self.weight * np.log1p(named.data / SMALL)
    padded = csr_lib.Csr.from_scipy(named).pad(self.width)
    return order.to_head(padded.ids), padded.values


def _nearest(cosines: np.ndarray, count: int) -> np.ndarray:
  """The places `[n, K]` of the largest cosines `[n, M]`.

  Of equal ones they are the first, as in all that answers with these rows.
  """
  cosines = np.nan_to_num(cosines)  # of features that are not finite
  last = cosines.shape[1] - count
  least = np.partition(cosines, last, 1)[:, last, None]
  chosen, equal = cosines > least, cosines == least
  room = count - chosen.sum(1, keepdims=True)
  chosen |= equal & (equal.cumsum(1) <= room)
  return np.nonzero(chosen)[1].reshape(len(cosines), count)


def shares(cosines: np.ndarray, temperature: float) -> np.ndarray:
  """How much each of the rows near to an example counts.

  Args:
    cosines: `[n, K]` with the example.
    temperature: Of them.

  Returns:
    `[n, K]`, of sum 1; 0 where no cosine is above 0.
  """
  top = cosines.max(1, keepdims=True)
  found = np.exp((cosines - top) / temperature)
  return found * (top > 0) / found.sum(1, keepdims=True)


def with_neighbours(
  choice: choice_lib.Choice,
  neighbours: Neighbours | None,
  inputs: model_lib.Inputs,
  order: label_order.LabelOrder,
) -> choice_lib.Choice:
  """The choice with what the labels of near rows gain, if there are any."""
  if neighbours is None:
    return choice
  extra: Any = neighbours.extra(inputs, order)
  return dataclasses.replace(choice, extra=extra)


def _sparse(ids: np.ndarray, values: np.ndarray, width: int) -> Any:
  """`[n, K]` columns and values as a sparse matrix `[n, width]`."""
  starts = np.arange(len(ids) + 1) * ids.shape[1]
  entries = values.ravel(), ids.ravel(), starts
  return scipy.sparse.csr_array(entries, shape=(len(ids), width))


def _unit(rows: Any) -> Any:
  """Rows of length 1; those of length 0 stay."""
  length = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
  scale = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
  return scipy.sparse.diags_array(scale) @ rows
