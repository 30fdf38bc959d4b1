"""Why an exported model gives labels, and which labels and rows are near.

As `xlj.inference.explain` for a run.

Legend: K features of a row, F features, L label rows, D width, M training rows
kept, c labels asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xlj.data import csr as csr_lib
from xlj.export import scores as scores_lib
from xlj.inference import contributions

Tensors = Mapping[str, np.ndarray]
_BLOCK = 2**24  # numbers at a time


def why(
  scores: scores_lib.Scores, tensors: Tensors, row: Any, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """What features contribute to the scores of labels.

  Args:
    scores: Of the model.
    tensors: Its arrays.
    row: One example, weighted: sparse, or dense `[1, F]`.
    rows: `[c]` rows of labels.

  Returns:
    Ids of features `[K]`, and float32 `[c, K]`.
  """
  if isinstance(row, csr_lib.Csr):
    ids, values = np.asarray(row.indices), np.asarray(row.values)
  else:
    ids, values = np.arange(row.shape[1]), row[0]
  ids, values = ids[values != 0], values[values != 0]
  found = np.zeros((len(rows), len(ids)), np.float32)
  if "starts" in tensors:
    for place, feature in enumerate(ids):
      found[:, place] = values[place] * _weights(scores, tensors, feature, rows)
  if "label_rows" in tensors:

    def embed(values: np.ndarray) -> np.ndarray:
      starts = np.arange(len(values) + 1) * len(ids)
      flat = np.tile(ids, len(values)).astype(np.int32), values.ravel()
      made = csr_lib.Csr(starts, *flat, len(tensors["encoder.table"]))
      if isinstance(row, csr_lib.Csr):
        return scores.embed(made)
      return scores.embed(made.to_scipy().toarray())

    vectors = np.concatenate(
      [scores.decoded("label_rows", slice(r, r + 1)) for r in rows]
    )
    found += contributions.of_encoder(embed, values, vectors)
  return ids, found


def cosines_of_labels(
  scores: scores_lib.Scores, tensors: Tensors, row: int
) -> np.ndarray:
  """Cosines `[L]` of label rows, or of linear weights, with those of a label.

  Args:
    scores: Of the model.
    tensors: Its arrays.
    row: Of the label.
  """
  count = len(tensors["bias"])
  if "label_rows" in tensors:
    (one,) = scores.decoded("label_rows", slice(row, row + 1))
    products, squares = np.empty(count), np.empty(count)
    size = max(1, _BLOCK // len(one))
    for start in range(0, count, size):
      part = slice(start, start + size)
      vectors = scores.decoded("label_rows", part)
      products[part] = vectors @ one
      squares[part] = np.einsum("ld,ld->l", vectors, vectors)
    return contributions.cosines(products, squares, squares[row])
  starts, labels = tensors["starts"], tensors["labels"]
  values = scores.decoded_values()
  weights = contributions.weights_of(starts, labels, values, row)
  found = contributions.products(starts, labels, values, weights, count)
  return contributions.cosines(*found, found[1][row])


def cosines_of_rows(tensors: Tensors, row: csr_lib.Csr) -> np.ndarray:
  """Cosines `[M]` of an example with the training rows that are kept."""
  starts = tensors["neighbours.starts"]
  rows, values = tensors["neighbours.rows"], tensors["neighbours.values"]
  found = np.zeros(len(tensors["neighbours.label_starts"]) - 1, np.float32)
  assert row.values is not None
  for feature, value in zip(row.indices, row.values):
    part = slice(starts[feature], starts[feature + 1])
    found[rows[part]] += value * values[part]  # each row is once in a part
  return found / max(float(np.linalg.norm(row.values)), 1e-30)


def _weights(
  scores: scores_lib.Scores, tensors: Tensors, feature: int, rows: np.ndarray
) -> np.ndarray:
  """A feature's linear weights `[c]` of labels."""
  starts = tensors["starts"]
  part = slice(starts[feature], starts[feature + 1])
  labels = tensors["labels"][part]
  places = np.minimum(np.searchsorted(labels, rows), max(0, len(labels) - 1))
  if not len(labels):
    return np.zeros(len(rows), np.float32)
  values = scores.decoded_values(int(feature), int(feature) + 1)[places]
  return np.where(labels[places] == rows, values, 0)
