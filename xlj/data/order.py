"""The order in which a training run visits its rows, in O(1) memory.

Example number `e` of a run is row `permutation(seed, epoch)[e % num_rows]`
with `epoch = e // num_rows`. The permutation is never materialised: it is
computed where it is needed, for a whole batch at once, by a keyed bijection
on the bits of the position. So the order is a function of (seed, example
number) alone, whatever the number of processes, and resuming costs nothing.
(Grain's own `shuffle` has the same properties, but works row by row in
Python: 20 microseconds a row against 2 here.)
"""

import sys

import numpy as np

PADDING_ROW = -1
_ROUNDS = 6
_WORD = 2**64


class Order:
  """Pseudo-random visiting order: every row once per epoch.

  Example:
    order = Order(num_rows=1000, seed=0)
    order.rows(0, 256)       # the first batch of 256
    order.rows(256, 512)     # the second
  """

  def __init__(self, num_rows: int, seed: int):
    """Describes the order; costs nothing.

    Args:
      num_rows: rows of the data set, at least 1.
      seed: any non-negative integer.

    Raises:
      ValueError: when `num_rows` is not positive or `seed` is negative.
    """
    if num_rows < 1:
      raise ValueError(f"An order needs at least 1 row, got {num_rows}.")
    if seed < 0:
      raise ValueError(f"seed must not be negative, got {seed}.")
    self._num_rows = num_rows
    self._seed = np.uint64(seed % _WORD)
    # The bijection works on the smallest power of two that holds all rows.
    self._bits = np.uint64(max(2, (num_rows - 1).bit_length()))

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Returns the rows of the examples `start` up to `stop`.

    Args:
      start: global number of the first example.
      stop: one past the last example.

    Returns:
      int64 [stop - start], each in [0, num_rows).
    """
    examples = np.arange(start, stop, dtype=np.int64)
    epoch, position = np.divmod(examples, self._num_rows)
    key = _mix(_mix(epoch.astype(np.uint64)) ^ self._seed)  # [stop - start]
    out = self._scramble(position.astype(np.uint64), key)
    # Cycle walking: at most about half of the domain is not a row;
    # mapping those on until they are makes this a permutation of the rows.
    while (outside := np.flatnonzero(out >= self._num_rows)).size:
      out[outside] = self._scramble(out[outside], key[outside])
    return out.astype(np.int64)

  def _scramble(self, x: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A bijection of [0, 2 ** bits): keyed add, odd multiply, xor-shift."""
    mask = (np.uint64(1) << self._bits) - np.uint64(1)
    shift = (self._bits + np.uint64(1)) // np.uint64(2)
    for _ in range(_ROUNDS):
      key = _mix(key)
      x = x + (key >> np.uint64(32)) & mask
      x = x * (key | np.uint64(1)) & mask
      x = x ^ x >> shift
    return x


class ShuffledBatches:
  """Random-access source of the rows of training batch `index`, endless."""

  def __init__(self, order: Order, batch_size: int, rows: np.ndarray | None):
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


def _mix(x: np.ndarray) -> np.ndarray:
  """The finaliser of SplitMix64 (Steele et al. 2014), on uint64 arrays."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
  return x ^ x >> np.uint64(31)
