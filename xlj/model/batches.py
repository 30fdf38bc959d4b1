"""Batches for a model: of a split, or of examples that a caller has.

What is made here are this process's rows, as numpy; `sharding.put_batch` brings
them onto the devices.
"""

from collections.abc import Iterator

import jax
import ml_collections
import numpy as np

from xlj import sharding
from xlj.config import encoders
from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.data import order as order_lib
from xlj.data import padding
from xlj.data import pipeline
from xlj.data import store
from xlj.data import weighting as weighting_lib
from xlj.model import examples
from xlj.model import model as model_lib

Features = examples.Features


def for_training(
  config: ml_collections.ConfigDict,
  split: store.Split,
  weighting: weighting_lib.Weighting | None,
  *,
  rows: np.ndarray,
  sampler: order_lib.Orders | None = None,
  start: int = 0,
) -> Iterator[pipeline.Batch]:
  """The batches after step `start`, without end.

  Args:
    config: A resolved config.
    split: The data.
    weighting: Of its features.
    rows: Rows to train on.
    sampler: Of the rows, if not that of the pipeline.
    start: Steps taken.

  Returns:
    Batches; see `to_inputs`.
  """
  widths = padding.plan(
    split,
    batch_size=config.train.batch_size,
    rows=rows,
    max_features=encoders.longest(config),
    max_labels=config.data.max_labels,
    apart=4.0 if config.head.by_example else 1.0,
    alike=bool(config.train.by_length),
  )
  return pipeline.train_batches(
    split,
    weighting,
    batch_size=config.train.batch_size,
    seed=config.seed + config.train.shuffle,
    start_step=start,
    rows=rows,
    order=sampler,
    widths=widths,
    process=this_process(),
    num_threads=config.data.threads,
  )


def of_split(
  split: store.Split,
  weighting: weighting_lib.Weighting | None,
  order: label_order.LabelOrder,
  *,
  batch_size: int,
  rows: np.ndarray | None = None,
  widths: padding.Widths | None = None,
) -> Iterator[model_lib.Inputs]:
  """One pass over the rows of a split.

  Args:
    split: The data.
    weighting: Of its features.
    order: The head's numbers of its labels.
    batch_size: Examples at a time, over all devices.
    rows: Rows to read; by default all.
    widths: Of batches; by default what `padding.plan` finds.

  Yields:
    A batch; the last one may be filled up with rows of weight 0.
  """
  for batch in pipeline.eval_batches(
    split,
    weighting,
    batch_size=batch_size,
    rows=rows,
    widths=widths,
    process=this_process(),
  ):
    yield to_inputs(batch, order)


def by_length(
  config: ml_collections.ConfigDict, split: store.Split, rows: np.ndarray | None
) -> tuple[np.ndarray | None, padding.Widths | None]:
  """Rows for a pass in any order, and the widths of its batches.

  Args:
    config: A resolved config.
    split: The data.
    rows: Rows to read; None for all.

  Returns:
    For `of_split`: the short rows first, with widths to match, where what a
    batch costs depends on the longest of its rows.
  """
  if not config.train.by_length:
    return rows, None
  rows = np.arange(split.num_rows) if rows is None else rows
  rows = rows[np.argsort(lengths(split, rows), kind="stable")]
  widths = padding.plan(
    split,
    batch_size=config.eval.batch_size,
    rows=rows,
    max_features=encoders.longest(config),
    max_labels=config.data.max_labels,
    alike=True,
  )
  return rows, widths


def lengths(split: store.Split, rows: np.ndarray) -> np.ndarray:
  """How many features each of some rows has; int64 `[n]`."""
  assert isinstance(split.features, csr_lib.Csr)
  return split.features.indptr[rows + 1] - split.features.indptr[rows]


def to_inputs(
  batch: pipeline.Batch, order: label_order.LabelOrder, *, every: bool = False
) -> model_lib.Inputs:
  """The arrays of a batch that the model reads.

  Args:
    batch: Of this process.
    order: The head's numbers of the labels.
    every: Whether features are items in order, of which each is the label of
      those before it: `label_ids` then are `[N, K]`, what comes next.

  Returns:
    The arrays.
  """
  labels = batch.label_ids
  if every:
    assert batch.feature_ids is not None
    there = batch.feature_values != 0
    after = np.pad(there[:, 1:], ((0, 0), (0, 1)))
    following = np.roll(batch.feature_ids, -1, axis=1)
    labels = np.where(after, following, np.where(there, labels[:, :1], -1))
  return model_lib.Inputs(
    batch.feature_ids,
    batch.feature_values,
    order.to_head(labels),
    batch.weights,
    batch.rows.astype(np.int32),
  )


def this_process() -> pipeline.Slice:
  """The part of each global batch that this process reads."""
  devices = sharding.num_shards()
  return pipeline.Slice(jax.process_index(), jax.process_count(), devices)


def of_features(
  config: ml_collections.ConfigDict,
  features: Features,
  weighting: weighting_lib.Weighting | None,
  num_devices: int,
) -> Iterator[tuple[int, model_lib.Inputs]]:
  """Examples in batches, whose sizes are rounded up to powers of two.

  Args:
    config: A resolved config.
    features: n examples with raw features, in any form of `Features`; images
      are `[n, H, W, C]`.
    weighting: Of the features.
    num_devices: Those that share a batch.

  Yields:
    How many rows of a batch are examples, the first ones, and the batch.

  Raises:
    ValueError: They are no examples for the model; see `examples.of`.
  """
  rows = examples.of(config, features)
  size = config.eval.batch_size
  for start in range(0, _count(rows), size):
    part = _slice(rows, start, start + size)
    yield _count(part), _inputs(part, weighting, num_devices)


def part_of(first: int, count: int, inputs: model_lib.Inputs) -> np.ndarray:
  """Numbers of the rows of a batch of `of_features` that this process has.

  Args:
    first: Of the batch.
    count: How many of the batch are examples, over all processes.
    inputs: Of this process.

  Returns:
    int64 `[m]`; -1 for what is no example.
  """
  size = len(inputs.weights) * jax.process_count()
  rows = np.where(np.arange(size) < count, first + np.arange(size), -1)
  return rows[this_process().of(size)]


def _inputs(
  rows: csr_lib.Csr | np.ndarray,
  weighting: weighting_lib.Weighting | None,
  num_devices: int,
) -> model_lib.Inputs:
  """At most one batch."""
  size = _power_of_two(max(_count(rows), num_devices))
  size += -size % num_devices
  if isinstance(rows, csr_lib.Csr):
    if weighting is not None:
      with np.errstate(over="ignore", invalid="ignore"):  # `Predictor` looks
        rows = weighting(rows)
    width = _power_of_two(max(8, int(rows.row_lengths.max(initial=0))))
    ids, values, _ = rows.pad(width, fill=0)
    feature_ids, feature_values = _fill(ids, size), _fill(values, size)
  else:
    feature_ids = None
    # Bytes stay bytes: the encoder makes floats of them on the device.
    dtype = rows.dtype if rows.dtype == np.uint8 else np.float32
    feature_values = _fill(np.asarray(rows, dtype), size)
  inputs = model_lib.Inputs(
    feature_ids,
    feature_values,
    np.full((size, 1), -1, np.int32),
    np.zeros((size,), np.float32),
  )
  mine = this_process().of(size)
  return jax.tree.map(lambda array: array[mine], inputs)


def _count(rows: csr_lib.Csr | np.ndarray) -> int:
  return rows.num_rows if isinstance(rows, csr_lib.Csr) else len(rows)


def _slice(
  rows: csr_lib.Csr | np.ndarray, start: int, stop: int
) -> csr_lib.Csr | np.ndarray:
  if isinstance(rows, csr_lib.Csr):
    return rows.slice_rows(start, stop)
  return rows[start:stop]


def _fill(block: np.ndarray, size: int) -> np.ndarray:
  return np.pad(block, ((0, size - len(block)), (0, 0)))


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()
