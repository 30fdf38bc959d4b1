"""Labels that come to a run after its training, without more of it.

Their rows are made from the embeddings of a few examples, or of the features of
the label itself, such as its text. Means of examples have no scale of their
own: rows get the length, and biases the value, that trained labels with about
as many examples have.

Legend: N examples, K new labels, L labels, D width.
"""

import dataclasses
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from xlj import config as config_lib
from xlj import evaluator
from xlj import label_order
from xlj import model as model_lib
from xlj import sharding
from xlj import splits
from xlj.data import errors
from xlj.data import pipeline
from xlj.data import store
from xlj.data import weighting as weighting_lib
from xlj.labels import runs
from xlj.ops import naive_bayes
from xlj.ops import teen

METHODS = ("prototype", "teen", "features", "naive_bayes")
_BACKGROUND_ROWS = 4096  # of the training split
_SOFTMAX = ("softmax", "decoupled_softmax")


class Examples(NamedTuple):
  """Embeddings of examples of new labels.

  Attributes:
    x: float32 `[N, D]`.
    owner: int `[N]`, which of the new labels; an example of several is there
      several times.
    log_total: float32 `[N]`, the log of the sum of the exponentials of the
      logits of the labels that the run has.
  """

  x: np.ndarray
  owner: np.ndarray
  log_total: np.ndarray


def append(
  run: runs.Run,
  data: store.Split,
  *,
  method: str = "prototype",
  names: list[str] | None = None,
  share: float = 0.5,
  scale: float = 16.0,
) -> runs.Run:
  """A run with more labels: those of the data that have no row.

  Args:
    run: The run.
    data: Examples with the features of the run. Ids of labels are those of the
      run; what has a row already is left as it is, what has not is new, those
      of deleted labels included.
    method: "prototype", the mean of a label's examples, less that of all;
      "teen", the same, calibrated by known labels (`xlj.ops.teen`); "features":
      each row holds the features of the label itself, and is no example;
      "naive_bayes", in closed form (`xlj.ops.naive_bayes`).
    names: Of the new labels, by ascending id.
    share: Of known labels in the rows of "teen".
    scale: Of cosines to known labels, for "teen".

  Returns:
    The run. Optimizers know nothing of the new rows yet.

  Raises:
    ConfigError: Labels cannot be appended to it, or not by that method.
    DataError: The data have no new label, or other features.
  """
  _check(run, method)
  if data.num_features != run.config.data.num_features:
    raise errors.DataError(
      data.name,
      f"{data.num_features} features",
      f"{run.config.data.num_features}, those of the run",
    )
  new = _new_ids(run, data)
  if not len(new):
    raise errors.DataError(
      data.name, "no label without a row", f"an id from {run.num_ids} on"
    )
  if names is not None and len(names) != len(new):
    raise config_lib.ConfigError(
      f"{len(names)} names for {len(new)} new labels; give one each"
    )
  logging.info("Appending %d labels of %s", len(new), data.name)
  with jax.set_mesh(run.mesh):
    examples = _embedded(run, data, new, method)
    values, counts = _weights(run, examples, len(new), method, share, scale)
  num_ids = max(run.num_ids, data.num_labels)
  heads = run.num_labels + np.arange(len(new))
  head_ids = np.full(num_ids, -1, np.int32)
  head_ids[: run.num_ids] = run.head_ids
  head_ids[new] = heads
  data_ids = np.concatenate([run.data_ids, new.astype(np.int32)])
  order = label_order.LabelOrder(data_ids, head_ids)
  none = np.full(len(new), -1)
  found = runs.restructured(run, order, none, heads)
  found = runs.with_values(found, heads, values, counts)
  return _named(found, new, names)


def _check(run: runs.Run, method: str) -> None:
  if method not in METHODS:
    raise config_lib.ConfigError(
      f"method is {method!r}; use one of {', '.join(METHODS)}"
    )
  if not run.config.encoder.dim:
    raise config_lib.ConfigError(
      f"{run.workdir} has no encoder (encoder.dim is 0), and new labels are"
      " made of embeddings; train one with family='embedding', say"
    )
  if method == "naive_bayes" and run.config.head.cosine:
    raise config_lib.ConfigError(
      "method 'naive_bayes' says how long rows are, which do not count here"
      " (head.cosine); use 'prototype' or 'teen'"
    )


def _new_ids(run: runs.Run, data: store.Split) -> np.ndarray:
  """Ids of the data without a row, ascending."""
  ids = np.unique(data.labels.indices).astype(np.int64)
  known = ids < run.num_ids
  known[known] = run.head_ids[ids[known]] >= 0
  return ids[~known]


def _embedded(
  run: runs.Run, data: store.Split, new: np.ndarray, method: str
) -> Examples:
  """The embeddings of the examples of new labels."""
  rows, owner = _pairs(data, new)
  used, place = np.unique(rows, return_inverse=True)
  x, log_total = _forward(run, data, used, totals=method == "naive_bayes")
  return Examples(x[place], owner, log_total[place])


def _pairs(data: store.Split, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rows of the data with a new label, and which: `[N]` each."""
  labels = data.labels
  rows = np.repeat(np.arange(labels.num_rows), labels.row_lengths)
  owner = np.searchsorted(new, labels.indices)
  is_new = new[np.minimum(owner, len(new) - 1)] == labels.indices
  return rows[is_new], owner[is_new]


def _forward(
  run: runs.Run, data: store.Split, rows: np.ndarray, *, totals: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Embeddings `[n, D]` of rows `[n]`, and `log_total`, or 0."""
  config = ml_collections.ConfigDict(run.config.to_dict())
  config.predict.propensity_power = 0.0  # logits, whatever is predicted by
  model, tree = model_lib.Model(config), run.trees["model"]
  data_config, weighting = config.data, None
  if not data_config.dense:
    weighting = weighting_lib.Weighting(
      data_config.weighting,
      data_config.l2,
      sharding.whole(tree["buffers"]["idf"]),
    )

  @jax.jit
  def forward(tree, inputs):
    x = model.embed(tree, inputs)
    if not totals:
      return x, jnp.zeros_like(x[:, 0])
    best, _ = model.topk(tree, inputs, 1)
    share = model.confidence(tree, inputs, "probability")
    return x, best[:, 0] - jnp.log(share)

  out = np.zeros((len(rows), run.config.encoder.dim), np.float32)
  log_total = np.zeros(len(rows), np.float32)
  done = 0
  for batch in pipeline.eval_batches(
    data,
    weighting,
    batch_size=run.config.eval.batch_size,
    rows=rows,
    process=evaluator.this_process(),
  ):
    inputs = evaluator.to_inputs(batch, label_order.LabelOrder.identity())
    found = forward(tree, sharding.put_batch(inputs))
    x, total = map(sharding.whole, found)
    count = min(len(x), len(rows) - done)
    out[done : done + count] = x[:count]
    log_total[done : done + count] = total[:count]
    done += count
  return out, log_total


def _weights(
  run: runs.Run,
  examples: Examples,
  count: int,
  method: str,
  share: float,
  scale: float,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Rows and biases of new labels, and how many examples each has."""
  found = naive_bayes.moments(examples.x, examples.owner, count)
  counts = found.counts
  background = _background(run)
  if method == "naive_bayes":
    total = run.config.data.num_rows + counts.sum()
    rows, bias = naive_bayes.weights(found, background, counts / total)
    if run.config.head.loss in _SOFTMAX:
      # Log odds against everything else are those against all other labels.
      sums = np.bincount(examples.owner, examples.log_total, count)
      bias += sums / counts
    return _as_kept(run, rows, bias), counts
  if method == "features":
    counts = np.zeros_like(counts)
  direction = found.sums / found.counts[:, None] - background
  length, bias = _typical(run, counts)
  prototypes = jnp.asarray(direction, jnp.float32)
  if method == "teen":
    prototypes = jnp.asarray(_calibrated(run, prototypes, share, scale))
  rows = length[:, None] * np.asarray(teen.unit(prototypes))
  return _as_kept(run, rows, bias), counts


def _as_kept(
  run: runs.Run, rows: np.ndarray, bias: np.ndarray
) -> dict[str, np.ndarray]:
  """What the head keeps of them."""
  values = {"rows": rows.astype(np.float32)}
  if run.config.head.use_bias:
    values["bias"] = bias.astype(np.float32)
  return values


def _background(run: runs.Run) -> np.ndarray:
  """The mean embedding of training examples, `[D]`; 0 if they are not there."""
  try:
    data = splits.open_split(run.config)
  except (errors.DataError, OSError) as error:
    logging.warning(
      "New rows are not centred, as the training data cannot be read: %s", error
    )
    return np.zeros(run.config.encoder.dim)
  count = min(data.num_rows, _BACKGROUND_ROWS)
  rows = np.linspace(0, data.num_rows - 1, count).astype(np.int64)
  return _forward(run, data, np.unique(rows), totals=False)[0].mean(0)


def _typical(
  run: runs.Run, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Length and bias `[K]` of trained labels with about as many examples."""
  head, params = run.model().head, run.trees["model"]["head"]
  norms = jax.jit(lambda p: jnp.linalg.norm(head.rows(p), axis=1))(params)
  rows = head.layout.row_of_label(np.arange(run.num_labels))
  norms = sharding.whole(norms)[rows]
  bias = np.zeros_like(norms)
  if run.config.head.use_bias:
    bias = sharding.whole(params["bias"])[rows]
  known = run.counts()
  order = np.argsort(known, kind="stable")
  ranked = known[order]
  length, offset = np.empty(len(counts)), np.empty(len(counts))
  for number in np.unique(counts):
    first = np.searchsorted(ranked, number / 2)
    last = np.searchsorted(ranked, 2 * number, side="right")
    if first == last:  # None has about as many: those nearest to it.
      first = min(first, len(ranked) - 1)
      last = first + 1
    near = order[first:last]
    length[counts == number] = norms[near].mean()
    offset[counts == number] = bias[near].mean()
  return length, offset


def _calibrated(
  run: runs.Run, prototypes: jax.Array, share: float, scale: float
) -> np.ndarray:
  """Prototypes `[K, D]` by TEEN."""
  head, params = run.model().head, run.trees["model"]["head"]
  devices = run.mesh.size
  count = len(prototypes)
  padded = jnp.pad(prototypes, ((0, -count % devices), (0, 0)))
  placed = jax.device_put(padded, jax.NamedSharding(run.mesh, sharding.BATCH))

  is_label = head.layout.is_label(np.arange(head.num_rows))
  is_label = jax.device_put(
    np.asarray(is_label), jax.NamedSharding(run.mesh, sharding.LABELS)
  )
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

  return sharding.whole(calibrate(params, placed, is_label))[:count]


def _named(run: runs.Run, new: np.ndarray, names: list[str] | None) -> runs.Run:
  """A run with names of its new labels, if its labels have any."""
  if run.names is None and names is None:
    return run
  found = list(run.names or map(str, range(run.num_ids)))
  found += map(str, range(len(found), run.num_ids))
  for label, name in zip(new.tolist(), names or map(str, new.tolist())):
    found[label] = name
  return dataclasses.replace(run, names=found)
