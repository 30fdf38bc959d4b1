"""Ridge regression of labels on sparse features as the start of a model.

Let X be the weighted features of N rows, each divided by the root of how many
rows have it, and Y the labels, divided by the root of how many the row has and
by a power of how many rows have the label. The weights that are sought,

  (X'X + penalty)^-1 X'Y,

need the inverse of a matrix of all features. Its D largest directions V, of
squared singular values s, are found, and below them it is taken to be a
multiple of one, as it nearly is where `penalty` rules:

  (1 / t) X'Y + V (1 / (s + penalty) - 1 / t) V'X'Y,   t = s_D + penalty.

The first term has a weight where a feature and a label meet, which is what the
wide path holds; the second is a bag of features D wide and label rows. Scores
are those of features as weighted, not divided again.

Added to this, a weight times the least squares of labels Y', which are not
divided by a power, in those directions alone, of features that are divided:

  V (1 / s) V'X'Y'.

It forgets what is rare: its scores of frequent labels are higher. Bag and
label rows are twice as wide then.

Where rows are users, and their items both features and labels, these are linear
filters of the item-item graph (Shen et al. 2021, "How powerful is graph
convolution for recommendation?"; Choi et al. 2023, "Blurring-sharpening process
models for collaborative filtering"), which rank the items that a user does
not have: the least squares are the "ideal low-pass filter" of both.

Legend: N rows, F features, L labels, D directions, W width: D, or 2 D with the
least squares, B blocks of label rows.
"""

import hashlib
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import scipy.sparse

from xlj import sharding
from xlj.data import csr as csr_lib
from xlj.data import label_pairs
from xlj.distributed import exchange
from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib
from xlj.model import model as model_lib
from xlj.training import preparation

_MORE = 32  # directions that are sought beyond those that are kept
_PASSES = 4  # over the rows, in search of them
_NOTHING = 1e-6  # of the largest squared singular value
_Matrix = Any  # a scipy.sparse.csr_array


class Ridge(NamedTuple):
  """The regression, for features as weighted.

  Attributes:
    table: `[F, W]` float32, of the bag of features.
    rows: `[L, W]` float32, of the labels.
    left: `[F]` float32; the weight of a pair is the product of this, of `right`
      and of the sum over rows of the feature's value times `shares` where the
      row has the label.
    right: `[L]` float32.
    shares: `[N]` float32, by row.
  """

  table: np.ndarray
  rows: np.ndarray
  left: np.ndarray
  right: np.ndarray
  shares: np.ndarray


def ridge(
  x: _Matrix,
  y: _Matrix,
  width: int,
  *,
  penalty: float,
  power: float,
  least_squares: float = 0.0,
  seed: int = 0,
) -> Ridge:
  """Computes it, in memory of a few matrices `[F, W]` and `[N, D]`.

  Args:
    x: `[N, F]` float32, weighted features.
    y: `[N, L]` float32, ones for the labels of a row.
    width: W. Of its directions no more are used than there are rows and
      features; the others are 0.
    penalty: Of squared weights, above 0, in the units of the squared singular
      values, of which none is above 1 if the rows of `x` have length 1.
    power: Labels are divided by this power of how many rows they have.
    least_squares: Weight of these; above 0, W is even.
    seed: Of the directions that the search begins with.

  Returns:
    The regression.
  """
  x_counts = np.bincount(x.indices, minlength=x.shape[1])
  y_counts = np.bincount(y.indices, minlength=y.shape[1])
  left = np.maximum(x_counts, 1).astype(np.float32) ** -0.5
  right = np.maximum(y_counts, 1).astype(np.float32) ** -power
  shares = np.maximum(np.diff(y.indptr), 1).astype(np.float32) ** -0.5
  scaled = (x * left).tocsr()  # of columns
  half = width // 2 if least_squares else width
  basis, squares = _directions(scaled, min(half, *x.shape), seed)
  least = squares[-1] + penalty
  meet = y.T @ (shares[:, None] * (scaled @ basis))
  tables = [basis * (1 / (squares + penalty) - 1 / least)]
  rows = [meet * right[:, None]]
  if least_squares:
    some = squares > _NOTHING * squares[0]
    inverse = np.where(some, least_squares / np.where(some, squares, 1), 0)
    tables.append(left[:, None] * basis * inverse)
    rows.append(meet)
  unused = [(0, 0), (0, half - len(squares))]
  table, rows = (
    np.hstack([np.pad(part, unused) for part in parts])
    for parts in (tables, rows)
  )
  return Ridge(table, rows, left / least, right, shares)


def _directions(
  x: _Matrix, width: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """The first right singular vectors `[F, D]`, and their squared values.

  By subspace iteration from random directions (Halko et al. 2011).
  """
  rng = np.random.default_rng(seed)
  count = min(width + _MORE, *x.shape)
  basis = rng.standard_normal((x.shape[1], count), np.float32)
  transposed = x.T.tocsr()
  for _ in range(_PASSES):
    basis, _ = np.linalg.qr(transposed @ (x @ basis))
  image = x @ basis
  squares, turn = np.linalg.eigh(image.T @ image)
  best = np.argsort(-squares)[:width]
  return basis @ turn[:, best], np.maximum(squares[best], 0)


def start(
  model: model_lib.Model,
  config: ml_collections.ConfigDict,
  data: preparation.Data,
  state: model_lib.State,
) -> model_lib.State:
  """The first state at the regression of the training rows.

  Args:
    model: The model, of a linear bag and a dense head.
    config: Its config; `head.init` is "ridge".
    data: Of training.
    state: The state of `init`, with the pairs of a wide path if it has one.

  Returns:
    The state.

  Raises:
    ProcessesDifferError: Processes have computed different numbers.
  """
  features = data.split.features
  assert isinstance(features, csr_lib.Csr) and data.weighting is not None
  assert isinstance(model.head, dense.DenseHead)  # The config says so.
  x = data.weighting(features.take(data.rows)).to_scipy()
  y = _of_head(data)
  found = ridge(
    *(x, y, config.encoder.dim),
    penalty=config.head.ridge,
    power=config.head.ridge_power,
    least_squares=config.head.ridge_least_squares,
    seed=config.seed,
  )
  exchange.check_same(
    "the ridge regression",
    hashlib.sha256(found.table.tobytes()).hexdigest(),
    "give all the same software and kind of processor",
  )
  rows, layout = model.head.label_rows, model.layout

  def part(numbers: np.ndarray) -> np.ndarray:
    labels = layout.label_of_row(numbers)
    is_label = (labels < layout.num_labels)[:, None]
    return is_label * found.rows[np.minimum(labels, layout.num_labels - 1)]

  label_rows = sharding.put_rows(layout.num_rows, part)
  head = state.model["head"] | jax.jit(rows.encoded)(label_rows)
  if config.head.wide:
    pairs = preparation.find_pairs(config, data)
    head[rows_lib.PAIRS[-1]] = sharding.put_blocks(
      _weights(pairs, found, x, y, (layout.blocks, layout.rows_per_block))
    )
  table = sharding.replicate(found.table / config.encoder.input_scale)
  parts = state.model | {
    "encoder": state.model["encoder"] | {"table": table},
    "head": head,
  }
  training = state.training | {"head": model.head.init_optimizer(head)}
  return state._replace(model=parts, training=training)


def _of_head(data: preparation.Data) -> _Matrix:
  """The labels of the training rows, by the head's numbers."""
  y = data.split.labels.take(data.rows)
  ids = data.order.to_head(np.asarray(y.indices))
  return scipy.sparse.csr_array(
    (np.ones(len(ids), np.float32), ids, y.indptr), shape=y.shape
  )


def _weights(
  pairs: label_pairs.Pairs,
  found: Ridge,
  x: _Matrix,
  y: _Matrix,
  shape: tuple[int, int],
) -> np.ndarray:
  """The weights `[B, P]` of pairs, 0 at padding."""
  num_blocks, size = shape
  weights = np.zeros(pairs.columns.shape, np.float32)
  by_label = (y * found.shares[:, None]).tocsc()  # of the head's labels
  for b in range(num_blocks):
    labels = np.arange(b, y.shape[1], num_blocks)
    sums = (by_label[:, labels].T @ x).T.tocsr()  # [F, R]
    sums.sort_indices()
    starts = pairs.starts[b]
    feature = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    column = pairs.columns[b, : len(feature)].astype(np.int64)
    stored = np.repeat(np.arange(sums.shape[0]), np.diff(sums.indptr))
    place = np.searchsorted(
      stored * size + sums.indices, feature * size + column
    )
    scale = found.left[feature] * found.right[labels[column]]
    weights[b, : len(feature)] = sums.data[place] * scale
  return weights
