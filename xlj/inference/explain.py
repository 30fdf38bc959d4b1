"""Why a run gives a row a label, and which labels and rows are near.

Legend: K features of a row, F features, L label rows, D width of embeddings,
M training rows, c labels asked for.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlj import sharding
from xlj.data import numbering as numbering_lib
from xlj.heads.dense import rows as rows_lib
from xlj.inference import contributions
from xlj.model import examples
from xlj.model import model as model_lib
from xlj.ops import normalize


def neighbours_of(
  run: Any, label: int, n: int
) -> tuple[np.ndarray, np.ndarray]:
  """The labels whose rows have the largest cosines with that of a label.

  Without an encoder, linear weights are the rows.

  Args:
    run: An `inference.predictor.Predictor`.
    label: Its id.
    n: How many at most.

  Returns:
    Ids and float32 cosines, descending; none that is not above 0, and none at
    all where the head has no row for each label.

  Raises:
    ValueError: There is no such label.
  """
  row = row_of(run, label)
  if _has_rows(run):
    with jax.set_mesh(run.mesh):
      found = sharding.whole(_row_cosines(run.model, run.state["head"], row))
  elif run.config.head.wide:
    found = _wide_cosines(run, row)
  else:
    return np.zeros(0, np.int64), np.zeros(0, np.float32)
  layout = run.model.layout
  labels = layout.label_of_row(np.arange(len(found)))
  found = np.where(labels < layout.num_labels, found, 0)
  rows, cosines = contributions.nearest(found, n, row)
  return run.run.to_data(labels[rows]), cosines


def why(
  run: Any, row: Any, labels: Sequence[int], n: int
) -> list[list[tuple[int, float]]]:
  """What features contribute most to the scores of labels.

  Args:
    run: An `inference.predictor.Predictor`.
    row: One example: a text, or anything that `Predictor.topk` takes.
    labels: c ids.
    n: How many features at most, for each label.

  Returns:
    For each label ids of features and contributions (see
    `inference.contributions`), the largest first, none that is not above 0;
    nothing where encoder or head cannot say. Where several runs answer, those
    of the run on words.

  Raises:
    ValueError: The example is none for the model, or there is no such label.
  """
  if run.fusion is not None:
    return why(run.fusion.words, row, labels, n)
  rows = np.array([row_of(run, label) for label in labels], np.int64)
  has_rows, wide = _has_rows(run), run.config.head.wide
  by_bag = run.config.encoder.type == "bag" and run.config.data.text in (
    "",
    "words",
  )
  if not by_bag or not len(rows) or not (has_rows or wide):
    return [[] for _ in labels]
  inputs = _inputs(run, row)
  values = inputs.feature_values[0].astype(np.float32)
  ids = np.arange(len(values))
  if inputs.feature_ids is not None:
    ids = inputs.feature_ids[0]
  ids, values = ids[values != 0], values[values != 0]
  found = np.zeros((len(rows), len(ids)), np.float32)
  if wide:
    found += [values * _weights(run, r)[ids] for r in rows]
  if has_rows:
    with jax.set_mesh(run.mesh):
      vectors = _vectors(run.model, run.state["head"], rows)
      if run.config.head.cosine:
        vectors = normalize.unit_rows(vectors)
    embed = functools.partial(_embed, run, inputs, ids)
    found += contributions.of_encoder(embed, values, sharding.whole(vectors))
  if run.run.numbering is not None:
    ids = run.run.numbering.features[ids]
  return [contributions.largest(ids, each, n) for each in found]


def near_rows(run: Any, row: Any, n: int) -> list[contributions.NearRow]:
  """The training rows nearest to an example, where the run keeps them.

  Args:
    run: An `inference.predictor.Predictor`.
    row: One example: a text, or anything that `Predictor.topk` takes.
    n: How many at most.

  Returns:
    The rows, the nearest first; none where it keeps none (see the config's
    sections `neighbours` and `fusion`).

  Raises:
    ValueError: The example is none for the model.
  """
  if run.fusion is not None:
    memory = run.fusion.memory
    x = run.run.encoding.featurizer(
      examples.texts_of(contributions.alone(row))
    )[0]
    labels = memory.labels
    products = memory.vectors.astype(np.float32) @ x
    cosines = products / max(float(np.linalg.norm(x)), 1e-12)
  elif run.neighbours is not None:
    labels = run.neighbours.labels
    cosines = run.neighbours.cosines(_inputs(run, row))[0]
  else:
    return []
  rows, cosines = contributions.nearest(cosines, n)
  named = labels.take(rows)
  ids = named.indices
  if run.run.numbering is not None:
    ids = run.run.numbering.label_ids(ids)
  each = np.split(ids, named.indptr[1:-1])
  return [
    contributions.NearRow(int(r), float(c), i.tolist())
    for r, c, i in zip(rows, cosines, each)
  ]


def row_of(run: Any, label: int) -> int:
  """The row of a label; refuses what is no id of one."""
  ids = np.asarray(label)
  if ids.shape or ids.dtype.kind not in "iu":
    raise ValueError(f"label {label!r}: label ids are whole numbers")
  number = ids.astype(np.int64)
  if run.run.numbering is not None:
    number = numbering_lib.find(run.run.numbering.labels, number)
    if number < 0:
      raise ValueError(f"label {label}: training has no such id")
  if not 0 <= number < run.num_ids:
    raise ValueError(f"label {label}: there are ids 0 to {run.num_ids - 1}")
  number = run.order.to_head(number)
  if number < 0:
    raise ValueError(f"label {label} has been deleted")
  return int(run.model.layout.row_of_label(number))


def _inputs(run: Any, row: Any) -> Any:
  """What the model reads of an example, on the host; refuses several."""
  found = list(run.batches(contributions.alone(row)))
  contributions.check_alone(sum(count for count, _ in found))
  return jax.tree.map(sharding.whole, found[0][1])


def _has_rows(run: Any) -> bool:
  """Whether embeddings meet a row for each label."""
  return bool(run.config.encoder.dim) and "rows" in run.model.head.can


def _pairs(run: Any) -> Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Starts, rows and weights of the wide path, for each block of labels."""
  return list(zip(*map(sharding.whole, rows_lib.pairs(run.state["head"]))))


def _weights(run: Any, row: int) -> np.ndarray:
  """Linear weights `[F]` of a label."""
  block, place = divmod(row, run.model.layout.rows_per_block)
  starts, columns, weights = _pairs(run)[block]
  return contributions.weights_of(starts, columns, weights, place)


def _wide_cosines(run: Any, row: int) -> np.ndarray:
  """Cosines `[L]` of linear weights with those of a label."""
  weights, size = _weights(run, row), run.model.layout.rows_per_block
  found = [
    contributions.products(*pairs, weights, size) for pairs in _pairs(run)
  ]
  products, squares = map(np.concatenate, zip(*found))
  return contributions.cosines(products, squares, squares[row])


@functools.partial(jax.jit, static_argnums=0)
def _vectors(
  model: model_lib.Model, params: Any, rows: jax.typing.ArrayLike
) -> jax.Array:
  """Label rows `[c, D]` on all devices."""
  vectors = model.head.rows(params)
  return _taken(vectors, jnp.asarray(rows))


@functools.partial(jax.jit, static_argnums=0)
def _row_cosines(
  model: model_lib.Model, params: Any, row: jax.typing.ArrayLike
) -> jax.Array:
  """Cosines `[L]` of label rows with one of them."""
  vectors = model.head.rows(params)
  (one,) = _taken(vectors, jnp.asarray([row]))
  lengths = jnp.linalg.norm(vectors, axis=1) * jnp.linalg.norm(one)
  return vectors @ one / jnp.maximum(lengths, 1e-30)


def _taken(vectors: jax.Array, rows: jax.Array) -> jax.Array:
  """Some rows `[c, D]` of those of all devices."""
  return vectors.at[rows].get(out_sharding=sharding.REPLICATED)


def _embed(
  run: Any, inputs: model_lib.Inputs, ids: np.ndarray, values: np.ndarray
) -> np.ndarray:
  """Embeddings `[m, D]` of rows that have values `[m, K]` of features.

  Args:
    run: The run.
    inputs: Of an example, for its width and form.
    ids: int `[K]`.
    values: `[m, K]`.
  """
  count, width = len(values), inputs.feature_values.shape[1]
  size = contributions.ROWS if count > 1 else 1
  size += -size % run.mesh.size  # one program whatever the number of features
  rows = np.zeros((size, width), np.float32)
  given = None
  if inputs.feature_ids is None:
    rows[:count, ids] = values
  else:
    rows[:count, : len(ids)] = values
    given = np.zeros((size, width), np.int32)
    given[:, : len(ids)] = ids
  none = np.full((size, 1), -1, np.int32), np.zeros(size, np.float32)
  with jax.set_mesh(run.mesh):
    batch = sharding.put_batch(model_lib.Inputs(given, rows, *none))
    return sharding.whole(run._embed(run.state, batch))[:count]
