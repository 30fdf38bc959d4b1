"""The order in which a training run visits its rows.

Example number `e` of a run is row `permutation(seed, epoch)[e % num_rows]`
with `epoch = e // num_rows`. Grain's index shuffle computes single entries of
a permutation, so nothing need be materialised; where that takes too long, whole
permutations are made. The order is a function of (seed, example number) alone,
whatever the number of processes, and resuming costs nothing, or a permutation.
"""

import functools
import sys

from grain import experimental
import numpy as np

from xlj.data import sampler

PADDING_ROW = -1
_WINDOW = 32  # batches whose rows are sorted by length
_ROUNDS = 4  # of the block cipher behind the shuffle


class Order:
  """Pseudo-random visiting order: every row once per epoch.

  Example:
    order = Order(num_rows=1000, seed=0)
    order.rows(0, 256)       # the first batch of 256
    order.rows(256, 512)     # the second
  """

  def __init__(self, num_rows: int, seed: int, *, whole: bool = False):
    """Describes the order; costs nothing.

    Args:
      num_rows: rows of the data set, at least 1.
      seed: any non-negative integer.
      whole: another order, whose permutations are made whole: 8 bytes a row in
        memory, and a hundredth of the time for each.

    Raises:
      ValueError: when `num_rows` is not positive or `seed` is negative.
    """
    if num_rows < 1:
      raise ValueError(f"An order needs at least 1 row, got {num_rows}.")
    if seed < 0:
      raise ValueError(f"seed must not be negative, got {seed}.")
    self._num_rows = num_rows
    self._seed = seed
    self._whole = whole

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Returns the rows of the examples `start` up to `stop`.

    Args:
      start: global number of the first example.
      stop: one past the last example.

    Returns:
      int64 [stop - start], each in [0, num_rows).
    """
    out = np.empty(stop - start, np.int64)
    filled = 0
    while filled < len(out):
      epoch, first = divmod(start + filled, self._num_rows)
      count = min(self._num_rows - first, len(out) - filled)
      out[filled : filled + count] = self._part(epoch, first, first + count)
      filled += count
    return out

  def _part(self, epoch: int, start: int, stop: int) -> list[int] | np.ndarray:
    """Positions `start` up to `stop` of one epoch's permutation."""
    if self._whole:
      return _permutation(self._num_rows, self._seed, epoch)[start:stop]
    last = self._num_rows - 1
    if not last:
      return [0] * (stop - start)
    mixed = np.random.SeedSequence([self._seed, epoch]).generate_state(1)
    seed = int(mixed[0])
    shuffle = experimental.index_shuffle
    return [shuffle(i, last, seed, _ROUNDS) for i in range(start, stop)]


@functools.lru_cache(maxsize=2)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
  """One epoch's permutation."""
  return np.random.default_rng([seed, epoch]).permutation(num_rows)


class ByLength:
  """An order whose batches hold rows of about the same length.

  Of each window of batches of another order the rows are sorted by length and
  cut into batches again, which come in random order. Every row is still seen
  once in an epoch, up to a window, and little of a batch is padding.

  Example:
    order = ByLength(Order(1000, seed=0), lengths, batch_size=64, seed=0)
  """

  def __init__(
    self,
    order: Order | sampler.ByLabel,
    lengths: np.ndarray,
    batch_size: int,
    seed: int,
  ):
    """Describes the order.

    Args:
      order: of the examples.
      lengths: int [num_rows], of the rows of `order`.
      batch_size: examples of a global batch.
      seed: of the order of the batches, a non-negative integer.
    """
    self._order = order
    self._lengths = lengths
    self._batch_size = batch_size
    self._seed = seed
    self._window = functools.lru_cache(maxsize=2)(self._sorted)

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Returns the rows of the examples `start` up to `stop`; see `Order`."""
    size = self._batch_size * _WINDOW
    first, last = start // size, -(-stop // size)
    windows = [self._window(number) for number in range(first, last)]
    whole = np.concatenate([np.zeros(0, np.int64), *windows])
    return whole[start - first * size : stop - first * size]

  def _sorted(self, number: int) -> np.ndarray:
    """The rows of a window."""
    size = self._batch_size * _WINDOW
    rows = self._order.rows(number * size, (number + 1) * size)
    rows = rows[np.argsort(self._lengths[rows], kind="stable")]
    shuffled = np.random.default_rng([self._seed, number]).permutation(_WINDOW)
    return rows.reshape(_WINDOW, self._batch_size)[shuffled].ravel()


Orders = Order | sampler.ByLabel | ByLength


class ShuffledBatches:
  """Random-access source of the rows of training batch `index`, endless."""

  def __init__(
    self,
    order: Orders,
    batch_size: int,
    rows: np.ndarray | None,
  ):
    """Describes the batches.

    Args:
      order: of the examples.
      batch_size: examples of a global batch.
      rows: int [order.num_rows], the row behind each row of `order`; None for
        the same.
    """
    self._order = order
    self._batch_size = batch_size
    self._rows = rows

  def __len__(self) -> int:
    """Returns how many batches an int64 can count."""
    return sys.maxsize // self._batch_size

  def __getitem__(self, index: int) -> np.ndarray:
    """Returns int64 [batch_size], the rows of a batch."""
    start = index * self._batch_size
    chosen = self._order.rows(start, start + self._batch_size)
    return chosen if self._rows is None else self._rows[chosen]


class BatchesInOrder:
  """Random-access source of the rows of evaluation batch `index`, one pass."""

  def __init__(self, num_rows: int, batch_size: int, rows: np.ndarray | None):
    """Describes the batches.

    Args:
      num_rows: rows of the data set.
      batch_size: examples of a global batch.
      rows: int [n], the rows to visit; None for all.
    """
    self._num_rows = num_rows if rows is None else len(rows)
    self._batch_size = batch_size
    self._rows = rows

  def __len__(self) -> int:
    """Returns the number of batches, the last one possibly not full."""
    return -(-self._num_rows // self._batch_size)

  def __getitem__(self, index: int) -> np.ndarray:
    """Returns int64 [batch_size], the rows of a batch, filled up with -1."""
    start = index * self._batch_size
    stop = min(start + self._batch_size, self._num_rows)
    out = np.full(self._batch_size, PADDING_ROW, np.int64)
    chosen = np.arange(start, stop)
    out[: stop - start] = chosen if self._rows is None else self._rows[chosen]
    return out
