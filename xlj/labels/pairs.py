"""The linear weights of a run's labels, as a matrix on the host.

Legend: F features, L labels, K of them.
"""

from typing import Any

import jax
import numpy as np
import scipy.sparse

from xlj import sharding
from xlj.data import label_pairs
from xlj.heads.dense import rows as rows_lib
from xlj.ops import layout as layout_lib

Matrix = Any  # a scipy.sparse.csc_array


def matrix(rows: rows_lib.Rows, params: rows_lib.Params) -> Matrix:
  """Linear weights `[F, L]` by the head's labels; weights of 0 are stored.

  Args:
    rows: What the head stores of labels.
    params: Its parameters.

  Returns:
    float32 csc_array.
  """
  starts, columns, weights = (
    np.asarray(sharding.whole(a)) for a in rows_lib.pairs(params)
  )
  layout, parts = rows.layout, []
  for b, (start, column, weight) in enumerate(zip(starts, columns, weights)):
    size = layout.rows_per_block
    part = scipy.sparse.csr_array(
      (weight[: start[-1]], column[: start[-1]].astype(np.int32), start),
      (rows.wide_features, size),
    ).tocsc()
    labels = layout.label_of_row(b * size + np.arange(size))
    parts.append((part, labels[labels < layout.num_labels]))
  found = scipy.sparse.hstack(
    [part[:, : len(labels)] for part, labels in parts], format="csc"
  )
  order = np.argsort(np.concatenate([labels for _, labels in parts]))
  return found[:, order]


def put(weights: Matrix, layout: layout_lib.Layout) -> dict[str, jax.Array]:
  """Parameters of a wide path, on the mesh in context.

  Args:
    weights: float32 `[F, L]` by the head's labels.
    layout: Of the head.

  Returns:
    By the names of `rows_lib.PAIRS`.
  """
  labels = layout.label_of_row(np.arange(layout.num_rows))
  none = scipy.sparse.csc_array((weights.shape[0], 1), dtype=np.float32)
  by_row = scipy.sparse.hstack([weights, none], format="csc")[
    :, np.minimum(labels, layout.num_labels)
  ]
  shape = layout.num_blocks, layout.rows_per_block
  arrays = label_pairs.by_block(by_row, shape)
  return {
    name: sharding.put_rows(layout.num_blocks, lambda rows, a=a: a[rows])
    for name, a in zip(rows_lib.PAIRS, arrays)
  }


def replaced(weights: Matrix, labels: np.ndarray, values: np.ndarray) -> Matrix:
  """Linear weights with others of some labels.

  Args:
    weights: `[F, L]`.
    labels: int `[K]`.
    values: `[K, F]`; a weight of 0 is none.

  Returns:
    New weights.
  """
  place = np.arange(weights.shape[1])
  place[labels] = weights.shape[1] + np.arange(len(labels))
  new = scipy.sparse.csc_array(values.T.astype(np.float32))
  return scipy.sparse.hstack([weights, new], format="csc")[:, place]
