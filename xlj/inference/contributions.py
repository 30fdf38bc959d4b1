"""What features contribute to scores, and how alike labels are: array maths.

NumPy alone, for runs and for exported models.

A feature contributes what the score loses without it, all others being as they
are once rows are weighted: the occlusion of Zeiler and Fergus, "Visualizing and
understanding convolutional networks", ECCV 2014, section 4.2. Of linear weights
that is its value times its weight.

Linear weights are by feature: those of feature f are `starts[f]` to
`starts[f + 1]` of `labels`, the rows of labels, and of `values`.

Legend: K features of a row, F features, D width of embeddings, L label rows,
Z weights, c labels asked for.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

ROWS = 64  # embedded at a time


class NearRow(NamedTuple):
  """A training row that is near to an example.

  Attributes:
    row: Its number among those that the run keeps, from 0.
    cosine: With the example.
    labels: Ids of its labels.
  """

  row: int
  cosine: float
  labels: list[int]


def alone(row: Any) -> Any:
  """One example as `topk` takes several.

  Args:
    row: A text, a dict, or what `topk` takes, with one example.

  Returns:
    What `topk` takes.
  """
  return [row] if isinstance(row, str | Mapping) else row


def check_alone(count: int) -> None:
  """Refuses any number of examples but one."""
  if count != 1:
    raise ValueError(f"{count} examples; give one alone")


def largest(
  features: np.ndarray, contributions: np.ndarray, n: int
) -> list[tuple[int, float]]:
  """The features that speak most for a label.

  Args:
    features: int `[K]`, their ids.
    contributions: `[K]`.
    n: How many at most.

  Returns:
    Ids and contributions, the largest first; none that is not above 0.
  """
  order = np.argsort(-contributions, kind="stable")[:n]
  kept = order[contributions[order] > 0]
  return list(zip(features[kept].tolist(), contributions[kept].tolist()))


def nearest(
  cosines: np.ndarray, n: int, without: int = -1
) -> tuple[np.ndarray, np.ndarray]:
  """The rows of the largest cosines.

  Args:
    cosines: `[L]`.
    n: How many at most.
    without: A row that is not asked for; -1 for none.

  Returns:
    int64 rows and float32 cosines, descending, of as many; none that is not
    above 0.
  """
  cosines = np.array(cosines, np.float32)
  if without >= 0:
    cosines[without] = 0
  rows = np.arange(len(cosines))
  if n < len(cosines):
    rows = np.argpartition(-cosines, n)[:n]
  rows = rows[np.lexsort((rows, -cosines[rows]))]
  rows = rows[cosines[rows] > 0]
  return rows, cosines[rows]


def weights_of(
  starts: np.ndarray, labels: np.ndarray, values: np.ndarray, row: int
) -> np.ndarray:
  """The linear weights of a label.

  Args:
    starts: int `[F + 1]`.
    labels: int `[Z]`.
    values: `[Z]` of any type.
    row: Of the label.

  Returns:
    `[F]` of that type; 0 where a feature has no weight for it.
  """
  places = np.flatnonzero(labels[: starts[-1]] == row)
  found = np.zeros(len(starts) - 1, values.dtype)
  found[np.searchsorted(starts, places, side="right") - 1] = values[places]
  return found


def products(
  starts: np.ndarray,
  labels: np.ndarray,
  values: np.ndarray,
  weights: np.ndarray,
  num_rows: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Products of the labels' linear weights with those of one of them.

  Args:
    starts: int `[F + 1]`.
    labels: int `[Z]`.
    values: float `[Z]`.
    weights: float `[F]`, as of `weights_of`.
    num_rows: L.

  Returns:
    float64 `[L]` products, and `[L]` squares of their lengths.
  """
  labels, values = labels[: starts[-1]], values[: starts[-1]]
  each = np.repeat(weights, np.diff(starts)) * values
  squares = np.bincount(labels, np.square(values), num_rows)
  return np.bincount(labels, each, num_rows), squares


def cosines(
  products: np.ndarray, squares: np.ndarray, square: float
) -> np.ndarray:
  """Cosines of vectors with one of them.

  Args:
    products: `[L]`, with that one.
    squares: `[L]`, of their lengths.
    square: Of its length.

  Returns:
    `[L]`; 0 for a vector of length 0.
  """
  lengths = np.sqrt(squares * square)
  found = np.zeros_like(lengths)
  return np.divide(products, lengths, out=found, where=lengths > 0)


def of_encoder(
  embed: Callable[[np.ndarray], np.ndarray],
  values: np.ndarray,
  label_rows: np.ndarray,
) -> np.ndarray:
  """What features contribute to scores by way of an encoder.

  Args:
    embed: Embeddings `[m, D]` of rows that have `[m, K]` as the values of the
      same K features.
    values: `[K]`, those of the row.
    label_rows: `[c, D]`.

  Returns:
    float32 `[c, K]`.
  """
  (whole,) = embed(values[None])
  losses = [whole - embed(part) for part in _without_each(values)]
  losses.append(np.zeros((0, len(whole)), np.float32))
  return (np.concatenate(losses) @ label_rows.T).T.astype(np.float32)


def _without_each(values: np.ndarray) -> Iterator[np.ndarray]:
  """The row without its first value, then without its second, and so on."""
  for start in range(0, len(values), ROWS):
    places = np.arange(start, min(start + ROWS, len(values)))
    rows = np.tile(values, (len(places), 1))
    rows[np.arange(len(places)), places] = 0
    yield rows
