"""The arrays of a run's model, as an exported model has them.

They are by label row: the head's number of a label, so that those of frequent
labels are first (see `xlj.data.label_order`).

Legend: F features, L label rows, D width, B blocks, M training rows kept.
"""

from typing import Any

import jax
import numpy as np
import scipy.sparse

from xlj import sharding
from xlj.export import tensors as tensors_lib
from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib
from xlj.inference import predictor
from xlj.model import label_values
from xlj.ops import layout as layout_lib
from xlj.ops import normalize

KINDS = ("linear", "network")


def kind(run: predictor.Predictor) -> str:
  """Which kind of exported model a run's is.

  Args:
    run: The run.

  Returns:
    "linear", "network", or "artifact" for what arrays alone do not say.
  """
  encoder = run.config.encoder
  if not isinstance(run.model.head, dense.DenseHead):
    return "artifact"
  if not encoder.dim:
    return "linear"
  return "network" if encoder.type == "bag" else "artifact"


def of(run: predictor.Predictor) -> dict[str, tensors_lib.Tensor]:
  """All arrays of a run of one of `KINDS`, as they are: float32.

  Args:
    run: The run.

  Returns:
    The arrays by name, those of `xlj.export`.
  """
  found: dict[str, Any] = {}
  if run.weighting is not None:
    assert run.weighting.idf is not None
    found["idf"] = np.asarray(run.weighting.idf, np.float32)
  found |= of_labels(run)
  found |= _of_head(run)
  names = jax.tree_util.tree_flatten_with_path(run.state["encoder"])[0]
  for path, array in names:
    name = ".".join(str(getattr(key, "key", key)) for key in path)
    found[f"encoder.{name}"] = sharding.whole(array)
  if run.neighbours is not None:
    found |= _of_neighbours(run)
  return found


def of_labels(run: predictor.Predictor) -> dict[str, np.ndarray]:
  """Which label each row is of, and how many training rows have it.

  Args:
    run: The run.

  Returns:
    `label_ids` and `label_counts`, as far as there are any.
  """
  found = {}
  rows = np.arange(run.num_labels, dtype=np.int32)
  ids = run.run.to_data(rows)
  if not np.array_equal(ids, rows):
    found["label_ids"] = ids
  if "label_counts" in run.state["buffers"]:
    found["label_counts"] = run.run.counts().astype(np.int32)
  return found


def _of_head(run: predictor.Predictor) -> dict[str, Any]:
  """Bias, label rows and weights by feature."""
  head, layout = run.state["head"], run.model.layout
  of_label = layout.row_of_label(np.arange(layout.num_labels))
  bias = np.zeros(layout.num_labels, np.float32)
  if "bias" in head:
    bias += sharding.whole(head["bias"])[of_label]
  counts = run.state["buffers"].get("label_counts")
  if (offset := label_values.offset(run.config, counts)) is not None:
    bias += sharding.whole(offset)[of_label]
  found: dict[str, Any] = {"bias": bias}
  if run.config.encoder.dim:
    found["label_rows"] = _label_rows(run, of_label)
  if run.config.head.wide:
    starts, columns, weights = map(sharding.whole, rows_lib.pairs(head))
    found |= by_feature(starts, columns, weights, layout)
  return found


def _label_rows(
  run: predictor.Predictor, of_label: np.ndarray
) -> tensors_lib.Made:
  """The rows of labels; they are decoded piece by piece."""
  stored = run.state["head"]
  stored = {
    name: sharding.whole(stored[name])
    for name in ("rows", "exponents")
    if name in stored
  }
  head = run.model.head
  assert isinstance(head, dense.DenseHead)  # so `kind` says
  head_rows = head.label_rows

  def rows(start: int, stop: int) -> np.ndarray:
    part: Any = {name: a[of_label[start:stop]] for name, a in stored.items()}
    decoded = head_rows.decoded(part)
    if head_rows.cosine:
      decoded = normalize.unit_rows(decoded)
    return np.asarray(decoded)

  shape = len(of_label), head_rows.dim
  return tensors_lib.Made(shape, np.dtype(np.float32), rows)


def by_feature(
  starts: np.ndarray,
  columns: np.ndarray,
  weights: np.ndarray,
  layout: layout_lib.Layout,
) -> dict[str, np.ndarray]:
  """The weights of pairs in blocks of labels, by feature alone.

  Args:
    starts: `[B, F + 1]`; see `xlj.ops.pairs.label_pairs`.
    columns: `[B, P]` likewise.
    weights: `[B, P]` likewise.
    layout: Of the label rows.

  Returns:
    `starts`, `labels` and `values`.
  """
  size, labels, features, values = layout.rows_per_block, [], [], []
  for b, (own, column, weight) in enumerate(zip(starts, columns, weights)):
    count = own[-1]
    labels.append(layout.label_of_row(b * size + column[:count].astype(int)))
    features.append(np.repeat(np.arange(len(own) - 1), np.diff(own)))
    values.append(weight[:count])
  entries = map(np.concatenate, (values, features, labels))
  value, feature, label = entries
  shape = starts.shape[1] - 1, layout.num_labels
  matrix: Any = scipy.sparse.coo_array((value, (feature, label)), shape)
  return of_matrix(matrix.tocsr())


def of_matrix(matrix: Any) -> dict[str, np.ndarray]:
  """The stored entries of a matrix `[F, L]` of SciPy, by feature."""
  matrix.sort_indices()
  narrow = np.uint16 if matrix.shape[1] <= 2**16 else np.uint32
  return {
    "starts": matrix.indptr.astype(np.int64),
    "labels": matrix.indices.astype(narrow),
    "values": matrix.data.astype(np.float32, copy=False),
  }


def _of_neighbours(run: predictor.Predictor) -> dict[str, np.ndarray]:
  """The training rows that are kept, by feature, and their labels."""
  kept = run.neighbours
  assert kept is not None
  by_feature, labels = kept.by_feature, kept.labels
  narrow = np.uint16 if by_feature.shape[1] <= 2**16 else np.uint32
  rows = run.order.to_head(np.asarray(labels.indices))
  wide = np.uint16 if run.num_labels <= 2**16 else np.uint32
  assert rows.min(initial=0) >= 0  # Those without a row are not among them.
  return {
    "neighbours.starts": by_feature.indptr.astype(np.int64),
    "neighbours.rows": by_feature.indices.astype(narrow),
    "neighbours.values": by_feature.data.astype(np.float32, copy=False),
    "neighbours.label_starts": np.asarray(labels.indptr, np.int64),
    "neighbours.labels": rows.astype(wide),
  }
