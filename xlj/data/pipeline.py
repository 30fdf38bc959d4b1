"""Batches for training and evaluation, on Grain.

Training batch `s` is a function of (seed, s) alone: the same for every number
of processes, each of which reads only its slice of it. What a checkpoint has
to store is therefore one number, the examples seen (`step * batch_size`).

Rows are ragged and compiled programs are not, so a batch is padded to one of
a few widths, chosen from the longest row of the *global* batch: all processes
agree on the shape without talking to each other. Nothing is cut unless a cap
is set, and `cuts` says what a cap removes.

Legend: B examples of one process's batch, K features of a row, F features in
all, P labels of a row.
"""

from collections.abc import Callable, Iterator
import dataclasses
from typing import NamedTuple

from absl import logging
import grain
import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import order as order_lib
from xlj.data import padding
from xlj.data import store

Weighting = Callable[[csr_lib.Csr], csr_lib.Csr]


class Batch(NamedTuple):
  """One process's part of a global batch; a pytree of NumPy arrays.

  Attributes:
    feature_ids: int32 [B, K]; padding is id 0 with value 0. None when the
      features are dense.
    feature_values: float32 [B, K], or the dense features, float32 or uint8
      [B, F].
    label_ids: int32 [B, P], ascending in a row; padding is -1.
    weights: float32 [B], 1 for examples and 0 for padding.
    rows: int64 [B], the row of the data set; padding is -1.
  """

  feature_ids: np.ndarray | None
  feature_values: np.ndarray
  label_ids: np.ndarray
  weights: np.ndarray
  rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class Slice:
  """Which part of each global batch a process reads.

  Attributes:
    index: index of this process.
    count: number of processes.
    devices: number of devices that share the batch.
  """

  index: int = 0
  count: int = 1
  devices: int = 1

  def of(self, batch_size: int) -> slice:
    """Returns this process's contiguous part of a global batch.

    Args:
      batch_size: examples of a global batch.

    Returns:
      A slice, as long for each process, of the batch with so much padding
      behind it that all devices have as many examples.

    Raises:
      ValueError: when the batch is empty.
    """
    if batch_size < 1:
      raise ValueError(f"batch_size {batch_size} must be positive.")
    shares = max(self.devices, self.count)
    local = -(-batch_size // shares) * (shares // self.count)
    return slice(self.index * local, (self.index + 1) * local)

  def take(
    self, values: np.ndarray, batch_size: int, fill: float
  ) -> np.ndarray:
    """This process's part of a value by example.

    Args:
      values: [n, ...] of a global batch, at most `batch_size` examples.
      batch_size: as of `of`.
      fill: of examples behind the last one.

    Returns:
      [B, ...].
    """
    part = self.of(batch_size)
    mine = values[part]
    missing = part.stop - part.start - len(mine)
    pad = ((0, missing), *((0, 0) for _ in values.shape[1:]))
    return np.pad(mine, pad, constant_values=fill) if missing else mine


def train_batches(
  split: store.Split,
  weighting: Weighting | None,
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  rows: np.ndarray | None = None,
  order: order_lib.Orders | None = None,
  widths: padding.Widths | None = None,
  process: Slice = Slice(),
  num_threads: int = 1,
) -> Iterator[Batch]:
  """Returns an endless iterator of shuffled batches.

  Batch `s` holds the examples `s * batch_size` up to `(s + 1) * batch_size` of
  the run's order (`order.Order`); a batch may span two epochs.

  Args:
    split: the data set.
    weighting: applied to the sparse features of each batch; None for none, and
      ignored by dense features.
    batch_size: examples of the *global* batch.
    seed: of the order.
    start_step: the first batch to return; resuming is O(1).
    rows: int [n], restricts the run to these rows (see `holdout`).
    order: of the examples, numbered as in `rows`; by default each of them once
      an epoch.
    widths: the padded widths and caps; by default `padding.plan(split, ...)`,
      which caps nothing.
    process: which slice of each global batch this process reads.
    num_threads: threads that read ahead; 0 reads in the caller's thread.

  Returns:
    An iterator of `Batch` of as many examples as `process` says; those that a
    batch is filled up with have weight 0.

  Raises:
    ValueError: when the split or `rows` is empty, or the batch size does not
      divide.
  """
  source = shuffled(split, batch_size, seed, rows, order)
  fetch = fetcher(split, weighting, batch_size, rows, widths, process)
  return _iterate(source, fetch, start_step, num_threads)


def shuffled(
  split: store.Split,
  batch_size: int,
  seed: int,
  rows: np.ndarray | None = None,
  order: order_lib.Orders | None = None,
) -> order_lib.ShuffledBatches:
  """The rows of each batch of `train_batches`; see there for arguments."""
  num_rows = split.num_rows if rows is None else len(rows)
  return order_lib.ShuffledBatches(
    order or order_lib.Order(num_rows, seed), batch_size, rows
  )


def eval_batches(
  split: store.Split,
  weighting: Weighting | None,
  *,
  batch_size: int,
  rows: np.ndarray | None = None,
  widths: padding.Widths | None = None,
  process: Slice = Slice(),
  num_threads: int = 1,
) -> Iterator[Batch]:
  """Returns one pass over the rows in their order.

  Every process gets the same number of batches, `ceil(n / batch_size)`; the
  last one is filled up with padding examples (weight 0, row -1).

  Args:
    split: the data set.
    weighting: as in `train_batches`.
    batch_size: examples of the *global* batch.
    rows: int [n], the rows to visit, in this order; by default all.
    widths: as in `train_batches`.
    process: which slice of each global batch this process reads.
    num_threads: threads that read ahead; 0 reads in the caller's thread.

  Returns:
    A finite iterator of `Batch`.

  Raises:
    ValueError: when the batch size does not divide.
  """
  source = order_lib.BatchesInOrder(split.num_rows, batch_size, rows)
  fetch = fetcher(split, weighting, batch_size, rows, widths, process)
  return _iterate(source, fetch, 0, num_threads)


def holdout(
  num_rows: int, size: float | int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Splits the rows into those to train on and those to validate on.

  Args:
    num_rows: rows of the training split.
    size: rows to hold out: a count (int) or a fraction below 1 (float).
    seed: any non-negative integer.

  Returns:
    (train, valid): two ascending int64 arrays that partition the rows.

  Raises:
    ValueError: when `size` leaves no row to train on or is negative.
  """
  count = round(size * num_rows) if isinstance(size, float) else size
  if not 0 <= count < num_rows:
    raise ValueError(
      f"Holding out {size} of {num_rows} rows leaves {num_rows - count} to "
      "train on; hold out fewer."
    )
  chosen = order_lib.Order(num_rows, seed).rows(0, count)
  is_valid = np.zeros(num_rows, bool)
  is_valid[chosen] = True
  return np.flatnonzero(~is_valid), np.flatnonzero(is_valid)


@dataclasses.dataclass(frozen=True)
class _Fetch:
  """Reads, weights and pads this process's part of a global batch."""

  split: store.Split
  weighting: Weighting | None
  widths: padding.Widths
  batch_size: int
  process: Slice

  def __call__(self, rows: np.ndarray) -> Batch:
    real = rows[rows >= 0]
    mine = self.process.take(rows, self.batch_size, order_lib.PADDING_ROW)
    features = self._features(real, mine)
    return Batch(
      *features,
      label_ids=self._labels(real, mine),
      weights=(mine >= 0).astype(np.float32),
      rows=mine.astype(np.int64),
    )

  def _features(
    self, rows: np.ndarray, mine: np.ndarray
  ) -> tuple[np.ndarray | None, np.ndarray]:
    features, size = self.split.features, len(mine)
    mine = mine[mine >= 0]
    if not isinstance(features, csr_lib.Csr):
      return None, _fill(np.asarray(features[mine]), size, 0)
    width = self.widths.features.of(features, rows)
    block = features.take(mine)
    if self.weighting is not None:
      block = self.weighting(block)
    ids, values = _pad(block, width, self.widths.features.cap)
    return _fill(np.maximum(ids, 0), size, 0), _fill(values, size, 0)

  def _labels(self, rows: np.ndarray, mine: np.ndarray) -> np.ndarray:
    width = self.widths.labels.of(self.split.labels, rows)
    block = self.split.labels.take(mine[mine >= 0])
    ids, _ = _pad(block, width, self.widths.labels.cap)
    return _fill(ids, len(mine), -1)


def _pad(
  block: csr_lib.Csr, width: int, cap: int
) -> tuple[np.ndarray, np.ndarray]:
  if cap:
    block = padding.shorten(block, cap)
  ids, values, cut = block.pad(width)
  if cut:  # Only a bug in the choice of the width gets here.
    raise AssertionError(f"{cut} entries do not fit in width {width}.")
  return ids, values


def _fill(block: np.ndarray, size: int, fill: int) -> np.ndarray:
  """Appends rows of `fill` until there are `size`."""
  missing = size - len(block)
  if not missing:
    return block
  return np.pad(block, ((0, missing), (0, 0)), constant_values=fill)


def fetcher(
  split: store.Split,
  weighting: Weighting | None,
  batch_size: int,
  rows: np.ndarray | None,
  widths: padding.Widths | None,
  process: Slice,
) -> Callable[[np.ndarray], Batch]:
  """What reads a batch of some rows; see `train_batches` for arguments.

  Args:
    split: the data set.
    weighting: of sparse features.
    batch_size: examples of a global batch at most.
    rows: that the widths are chosen for.
    widths: the padded widths.
    process: which slice of each batch is read.

  Returns:
    From int [n], the rows of a global batch, to this process's part of it.
  """
  if widths is None:
    widths = padding.plan(split, batch_size=batch_size, rows=rows)
  logging.debug("Padded widths: %s", widths)
  return _Fetch(split, weighting, widths, batch_size, process)


def _iterate(
  source: order_lib.ShuffledBatches | order_lib.BatchesInOrder,
  fetch: Callable[[np.ndarray], Batch],
  start: int,
  num_threads: int,
) -> Iterator[Batch]:
  # Threads, not worker processes: NumPy releases the GIL where the time goes,
  # and Grain's processes need absl flags to have been parsed.
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=2 * num_threads
  )
  batches = grain.MapDataset.source(source)[start:].map(fetch)
  return iter(batches.to_iter_dataset(options))
