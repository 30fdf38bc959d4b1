"""Weights of new labels, made from examples in one pass over them.

A label has a row against embeddings, linear weights of features, or both; each
is made from what it is multiplied with. Directions come from the examples, and
lengths from trained labels with about as many of them: means have no scale of
their own, and that of naive Bayes, which counts every number of an embedding as
evidence of its own, puts new labels far above the old ones.

Legend: N examples, M of the training split, K new labels, L labels, D width, F
features, Z either.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from xlj import predictor as predictor_lib
from xlj import sharding
from xlj import splits
from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import store
from xlj.labels import runs
from xlj.ops import naive_bayes
from xlj.ops import teen

_BACKGROUND_ROWS = 4096  # of the training split
_INDEPENDENT = ("bce", "focal", "asymmetric")  # losses label by label
_PIECE = 2**22  # logits at a time
Matrix = Any  # np.ndarray or a sparse array of scipy
Parts = Mapping[str, Matrix]


class Examples(NamedTuple):
  """Examples of new labels.

  Attributes:
    x: `[N, Z]` by the name of the weights that they are multiplied with: "rows"
      embeddings, "wide" weighted features.
    owner: int `[N]`, which label; an example of several is there several times.
    counts: int `[K]`, of each label.
  """

  x: Parts
  owner: np.ndarray
  counts: np.ndarray


def make(
  run: runs.Run,
  data: store.Split,
  new: np.ndarray,
  *,
  method: str,
  share: float,
  scale: float,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """The weights of new labels; see `xlj.labels.append.append`.

  Args:
    run: The run.
    data: Examples of them.
    new: int `[K]`, their ids in the data, ascending.
    method: How to make them.
    share: Of known labels in the rows of "teen".
    scale: Of cosines to known labels, for "teen".

  Returns:
    What `xlj.labels.arrays.with_values` wants: `rows [K, D]`, `wide [K, F]` and
    `bias [K]`, float32, as far as the head has them; and training examples
    `[K]`.
  """
  p = run.as_predictor()
  rows, owner = _pairs(data, new)
  used, place = np.unique(rows, return_inverse=True)
  x = {name: a[place] for name, a in _inputs(p, data, used).items()}
  examples = Examples(x, owner, np.bincount(owner, minlength=len(new)))
  background = _background(run, p)
  values = {}
  for name, a in x.items():
    centre = np.zeros(a.shape[1])
    if background is not None:
      centre = background[name].mean(0)
    direction = _direction(examples, name, centre, method)
    if method == "teen":
      direction = _calibrated(run, direction, share, scale)
    length = _typical(run, _norms(run, name), examples.counts)
    values[name] = length[:, None] * _unit(direction)
  if run.config.head.use_bias:
    bias = sharding.whole(run.trees["model"]["head"]["bias"])
    values["bias"] = _typical(run, bias, examples.counts)
    if background is not None and run.config.head.loss in _INDEPENDENT:
      values["bias"] = _expected(run, values, examples, background)
  counts = examples.counts * (method != "features")
  return {k: a.astype(np.float32) for k, a in values.items()}, counts


def _pairs(data: store.Split, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rows of the data with a new label, and which: `[N]` each."""
  labels = data.labels
  rows = np.repeat(np.arange(labels.num_rows), labels.row_lengths)
  owner = np.searchsorted(new, labels.indices)
  is_new = new[np.minimum(owner, len(new) - 1)] == labels.indices
  return rows[is_new], owner[is_new]


def _inputs(
  p: predictor_lib.Predictor, data: store.Split, rows: np.ndarray
) -> dict[str, Matrix]:
  """What the weights of labels are multiplied with, of some rows of data."""
  features = data.features
  sparse = isinstance(features, csr_lib.Csr)
  used = features.take(rows) if sparse else np.asarray(features[rows])
  found: dict[str, Matrix] = {}
  if p.config.encoder.dim:
    found["rows"] = p.embed(used)
  if p.config.head.wide:
    # Linear weights are of sparse features, which have a weighting.
    assert p.weighting is not None and isinstance(used, csr_lib.Csr)
    found["wide"] = p.weighting(used).to_scipy()
  return found


def _background(
  run: runs.Run, p: predictor_lib.Predictor
) -> dict[str, Matrix] | None:
  """The same of some training examples; None if they are not there."""
  try:
    data = splits.open_split(run.config)
  except (errors.DataError, OSError) as error:
    logging.warning(
      "New rows are not centred, as the training data cannot be read: %s", error
    )
    return None
  count = min(data.num_rows, _BACKGROUND_ROWS)
  rows = np.linspace(0, data.num_rows - 1, count).astype(np.int64)
  return _inputs(p, data, np.unique(rows))


def _direction(
  examples: Examples, name: str, centre: np.ndarray, method: str
) -> np.ndarray:
  """Of the weights of a name, `[K, Z]`."""
  counts = examples.counts
  found = naive_bayes.moments(examples.x[name], examples.owner, len(counts))
  if method == "naive_bayes":
    return naive_bayes.weights(found, centre, counts / counts.sum()).rows
  return found.sums / counts[:, None] - centre


def _norms(run: runs.Run, name: str) -> np.ndarray:
  """Lengths of the weights of all labels, `[R]` by row."""
  head, params = run.model().head, run.trees["model"]["head"]
  with jax.set_mesh(run.mesh):
    if name == "wide":
      find = jax.jit(lambda p: jnp.linalg.norm(p["wide"], axis=0))
    else:
      find = jax.jit(lambda p: jnp.linalg.norm(head.rows(p), axis=1))
    return sharding.whole(find(params))


def _unit(a: np.ndarray) -> np.ndarray:
  """Rows `[K, Z]` of length 1; those of length 0 stay."""
  return a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)


def _typical(
  run: runs.Run, by_row: np.ndarray, counts: np.ndarray
) -> np.ndarray:
  """Means over trained labels with about as many examples, `[K]`.

  Args:
    run: The run.
    by_row: `[R]`, of all labels.
    counts: int `[K]`, examples of new ones.
  """
  layout, known = run.model().layout, run.counts()
  order = np.argsort(known, kind="stable")
  ranked = known[order]
  values = by_row[layout.row_of_label(order)]
  found = np.empty(len(counts))
  for number in np.unique(counts):
    first = np.searchsorted(ranked, number / 2)
    last = np.searchsorted(ranked, 2 * number, side="right")
    if first == last:  # None has about as many: the one next to it.
      first = min(first, len(ranked) - 1)
      last = first + 1
    found[counts == number] = values[first:last].mean()
  return found


def _expected(
  run: runs.Run,
  values: Mapping[str, np.ndarray],
  examples: Examples,
  background: Parts,
) -> np.ndarray:
  """Biases with which each label is expected as often as it has examples.

  Args:
    run: The run, whose loss is one of probabilities of single labels.
    values: Weights of new labels.
    examples: Theirs.
    background: Others, a sample of the run's.

  Returns:
    `[K]`: the sum of the label's probabilities over its own examples and all of
    the run's is the number of its own.
  """
  count = len(examples.counts)
  weights = {name: values[name] for name in examples.x}
  if run.config.head.cosine:
    weights["rows"] = _unit(weights["rows"])
  bias = np.zeros(count)
  size = max(1, _PIECE // max(a.shape[0] for a in background.values()))
  for start in range(0, count, size):
    part = slice(start, start + size)
    mine = np.flatnonzero(examples.owner // size == start // size)
    owner = examples.owner[mine] - start
    own_x = {name: a[mine] for name, a in examples.x.items()}
    z = _logits(background, weights, part)
    own = _logits(own_x, weights, part)[np.arange(len(mine)), owner]
    each = run.config.data.num_rows / len(z)
    bias[part] = _balanced(z, own, owner, examples.counts[part], each)
  return bias


def _logits(
  x: Parts, weights: Mapping[str, np.ndarray], part: slice
) -> np.ndarray:
  """`[N, k]` for a part of the labels, without bias."""
  return np.sum([x[name] @ a[part].T for name, a in weights.items()], axis=0)


def _balanced(
  z: np.ndarray,
  own: np.ndarray,
  owner: np.ndarray,
  counts: np.ndarray,
  each: float,
) -> np.ndarray:
  """`b` with `each sum(sigmoid(z + b)) + sum(sigmoid(own + b)) = counts`.

  Args:
    z: `[M, K]` logits.
    own: `[N]` logits of examples for the label that they have.
    owner: int `[N]`, that label.
    counts: `[K]`, how many those are.
    each: How many examples one of the M stands for.

  Returns:
    `[K]`, by bisection.
  """
  low = np.full(len(counts), -np.abs(z).max() - 50.0)
  high = -low
  for _ in range(50):
    middle = (low + high) / 2
    total = each * scipy.special.expit(z + middle).sum(0)
    total += np.bincount(
      owner, scipy.special.expit(own + middle[owner]), len(counts)
    )
    low = np.where(total < counts, middle, low)
    high = np.where(total < counts, high, middle)
  return (low + high) / 2


def _calibrated(
  run: runs.Run, direction: np.ndarray, share: float, scale: float
) -> np.ndarray:
  """Prototypes `[K, D]` by TEEN."""
  head, params = run.model().head, run.trees["model"]["head"]
  count = len(direction)
  near = min(50, run.num_labels)

  @jax.jit
  def calibrate(params, p, is_label):
    return teen.calibrated(
      p,
      head.rows(params),
      is_label,
      share=share,
      scale=scale,
      neighbours=near,
    )

  with jax.set_mesh(run.mesh):
    padded = np.pad(direction, ((0, -count % run.mesh.size), (0, 0)))
    p = jax.device_put(
      padded.astype(np.float32), jax.NamedSharding(run.mesh, sharding.BATCH)
    )
    is_label = jax.device_put(
      np.asarray(head.layout.is_label(jnp.arange(head.num_rows))),
      jax.NamedSharding(run.mesh, sharding.LABELS),
    )
    return sharding.whole(calibrate(params, p, is_label))[:count]
