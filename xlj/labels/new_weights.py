"""Weights of new labels, made from examples in one pass over them.

A label has a row against embeddings, linear weights of features, or both; each
is made from what it is multiplied with. Directions come from the examples.
Lengths and biases do not: means have no scale of their own, and that of naive
Bayes, which counts every number of an embedding as evidence of its own, puts
new labels far above the old ones. They are such that the logits of a label over
the training examples have the mean and the standard deviation that those of
trained labels with about as many examples have; where rows count by their
direction alone, that their upper ends agree.

Legend: N examples, M others, K new labels, S trained ones, D width, F features,
Z either.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from xlj import sharding
from xlj.config import splits
from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import store
from xlj.inference import predictor as predictor_lib
from xlj.labels import arrays
from xlj.labels import naive_bayes
from xlj.labels import runs
from xlj.labels import teen
from xlj.runs import directory

_OTHERS = 4096  # training examples that logits are compared on
_KNOWN = 4096  # trained labels that new ones are compared with
_PIECE = 2**22  # logits at a time
_NUMBERS = 2**27  # of weights of trained labels
_UPPER = 2.0  # standard deviations above the mean, where labels compete
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
  run: directory.Run,
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
  p = runs.as_predictor(run)
  rows, owner = _pairs(data, new)
  used, place = np.unique(rows, return_inverse=True)
  x = {name: a[place] for name, a in _inputs(p, data, used).items()}
  examples = Examples(x, owner, np.bincount(owner, minlength=len(new)))
  counts, others = examples.counts, _others(run, p, data)
  known = _known(run, sum(a.shape[1] for a in x.values()))
  values = {}
  for name in x:
    direction = _direction(examples, name, others[name].mean(0), method)
    if method == "teen" and name == "rows":
      direction = _calibrated(run, direction, share, scale)
    if name == "wide":
      # Labels have weights for the features that they meet, and no others.
      direction = np.where(_meets(examples), direction, 0)
    norm = known.typical(np.linalg.norm(known.values[name], axis=1), counts)
    values[name] = norm[:, None] * _unit(direction)
  values |= _scaled(run, values, known, others, counts)
  return (
    {name: a.astype(np.float32) for name, a in values.items()},
    counts * (method != "features"),
  )


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


def _others(
  run: directory.Run, p: predictor_lib.Predictor, data: store.Split
) -> dict[str, Matrix]:
  """The same of some training examples; of `data` if those are not there."""
  try:
    data = splits.open_split(run.config)
  except (errors.DataError, OSError) as error:
    logging.warning(
      "New labels are fitted to their examples alone, as the training data"
      " cannot be read: %s",
      error,
    )
  count = min(data.num_rows, _OTHERS)
  rows = np.linspace(0, data.num_rows - 1, count).astype(np.int64)
  return _inputs(p, data, np.unique(rows))


class _Known(NamedTuple):
  """Some trained labels, from rare to frequent.

  Attributes:
    values: Their weights and biases; see `xlj.labels.arrays.values`.
    counts: int `[S]`, training examples.
  """

  values: dict[str, np.ndarray]
  counts: np.ndarray

  def typical(self, a: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means of `a [S]` over those with about as many examples as `[K]`."""
    found = np.empty(len(counts))
    for number in np.unique(counts):
      first = np.searchsorted(self.counts, number / 2)
      last = np.searchsorted(self.counts, 2 * number, side="right")
      if first == last:  # None has about as many: the one next to it.
        first = min(first, len(a) - 1)
        last = first + 1
      found[counts == number] = a[first:last].mean()
    return found


def _known(run: directory.Run, width: int) -> _Known:
  """Of a run whose labels have so many numbers."""
  counts = run.counts()
  order = np.argsort(counts, kind="stable")
  number = min(run.num_labels, _KNOWN, max(64, _NUMBERS // width))
  # The middles of equal parts.
  places = (np.arange(number) + 0.5) / number * run.num_labels
  chosen = order[places.astype(np.int64)]
  return _Known(arrays.values(run, chosen), counts[chosen])


def _direction(
  examples: Examples, name: str, centre: np.ndarray, method: str
) -> np.ndarray:
  """Of the weights of a name, `[K, Z]`."""
  counts = examples.counts
  found = naive_bayes.moments(examples.x[name], examples.owner, len(counts))
  if method == "naive_bayes":
    return naive_bayes.weights(found, centre, counts / counts.sum()).rows
  return found.sums / counts[:, None] - centre


def _meets(examples: Examples) -> np.ndarray:
  """Which features the examples of each label have, bool `[K, F]`."""
  x, count = examples.x["wide"], len(examples.counts)
  owner = scipy.sparse.csr_array(
    (np.ones(len(examples.owner)), (examples.owner, range(x.shape[0]))),
    (count, x.shape[0]),
  )
  return (owner @ (x != 0)).toarray() > 0


def _unit(a: np.ndarray) -> np.ndarray:
  """Rows `[K, Z]` of length 1; those of length 0 stay."""
  return a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)


def _scaled(
  run: directory.Run,
  values: Mapping[str, np.ndarray],
  known: _Known,
  others: Parts,
  counts: np.ndarray,
) -> dict[str, np.ndarray]:
  """Weights and biases with logits like those of trained labels.

  Args:
    run: The run.
    values: `[K, Z]` by name, of typical lengths.
    known: Trained labels.
    others: `[M, Z]` by name, examples.
    counts: int `[K]`, examples of each label.

  Returns:
    The weights, longer or shorter, unless the head takes their direction alone,
    and `bias [K]` if it has any.
  """
  cosine = run.config.head.cosine
  mean, deviation = (
    known.typical(a, counts)
    for a in _moments_of_logits(others, known.values, cosine)
  )
  mean += known.typical(known.values.get("bias", 0 * known.counts), counts)
  own_mean, own_deviation = _moments_of_logits(others, values, cosine)
  factor = np.ones(len(counts))
  if not cosine:
    some = own_deviation > 0
    factor[some] = deviation[some] / own_deviation[some]
  found = {name: factor[:, None] * a for name, a in values.items()}
  if run.config.head.use_bias:
    upper = mean + _UPPER * deviation
    found["bias"] = upper - factor * (own_mean + _UPPER * own_deviation)
  return found


def _moments_of_logits(
  x: Parts, values: Mapping[str, np.ndarray], cosine: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of logits without bias, over examples.

  Args:
    x: `[M, Z]` by name, the examples.
    values: `[S, Z]` by name, the weights.
    cosine: Whether rows count by their direction alone.

  Returns:
    `[S]` each.
  """
  weights = {name: values[name] for name in x}
  if cosine:
    weights["rows"] = _unit(weights["rows"])
  means, deviations = [], []
  size = max(1, _PIECE // max(a.shape[0] for a in x.values()))
  for start in range(0, len(next(iter(weights.values()))), size):
    z = np.sum(
      [x[n] @ a[start : start + size].T for n, a in weights.items()], 0
    )
    means.append(z.mean(0))
    deviations.append(z.std(0))
  return np.concatenate(means), np.concatenate(deviations)


def _calibrated(
  run: directory.Run, direction: np.ndarray, share: float, scale: float
) -> np.ndarray:
  """Prototypes `[K, D]` by TEEN."""
  rows, params = runs.rows_of(run.model()), run.trees["model"]["head"]
  count = len(direction)
  near = min(50, run.num_labels)

  @jax.jit
  def calibrate(params, p, is_label):
    return teen.calibrated(
      p,
      rows.decoded(params),
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
      np.asarray(rows.layout.is_label(jnp.arange(rows.num_rows))),
      jax.NamedSharding(run.mesh, sharding.LABELS),
    )
    return sharding.whole(calibrate(params, p, is_label))[:count]
