"""Samplers that draw labels first: rare ones are seen as often as others.

Example number `e` of a run is a function of (seed, e) alone, as in
`xlj.data.order`: the same for every number of processes, and resuming costs
nothing.
"""

from __future__ import annotations

import numpy as np

from xlj.data import csr as csr_lib

KINDS = ("class_aware", "square_root")


class ByLabel:
  """Visiting order that draws a label, and then one of its rows.

  With "class_aware" all labels that have rows are equally likely (Shen et al.
  2016, "Relay backpropagation for effective learning of deep convolutional
  neural networks", section 4), with "square_root" they are in proportion to
  the root of their number of rows (Kang et al. 2020, "Decoupling representation
  and classifier", equation 1 with q = 1/2). A row of several labels is drawn by
  any of them; rows without labels never are.
  """

  def __init__(self, labels: csr_lib.Csr, kind: str, seed: int):
    """Groups the rows by label.

    Args:
      labels: [N, L], of the rows to draw.
      kind: "class_aware" or "square_root".
      seed: any non-negative integer.

    Raises:
      ValueError: when no row has a label, or the kind is not one of them.
    """
    if kind not in KINDS:
      raise ValueError(f"the sampler is {kind!r}; use one of {KINDS}")
    if not labels.nnz:
      raise ValueError("no row has a label; none can be drawn by its label")
    by_label = labels.to_scipy().tocsc()
    by_label.sort_indices()
    counts = np.diff(by_label.indptr).astype(np.int64)
    used = np.flatnonzero(counts)
    self._starts = by_label.indptr[used].astype(np.int64)
    self._counts = counts[used]
    self._rows = by_label.indices.astype(np.int64)
    shares = np.ones(len(used)) if kind == "class_aware" else self._counts**0.5
    self._upto = np.cumsum(shares) / shares.sum()
    self._seed = seed

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Returns the rows of the examples `start` up to `stop`.

    Args:
      start: global number of the first example.
      stop: one past the last example.

    Returns:
      int64 [stop - start], each in [0, N).
    """
    examples = np.arange(start, stop, dtype=np.uint64)
    label = np.searchsorted(self._upto, self._uniform(examples, 0), "right")
    label = np.minimum(label, len(self._upto) - 1)  # rounding
    count = self._counts[label]
    place = (self._uniform(examples, 1) * count).astype(np.int64)
    return self._rows[self._starts[label] + np.minimum(place, count - 1)]

  def _uniform(self, examples: np.ndarray, stream: int) -> np.ndarray:
    """float64 in [0, 1), by a hash of seed, stream and example number."""
    return uniform((self._seed, stream), examples)


def uniform(seeds: tuple[int, ...], numbers: np.ndarray) -> np.ndarray:
  """Random numbers that depend on nothing but these.

  Args:
    seeds: non-negative integers.
    numbers: uint64, of any shape.

  Returns:
    float64 in [0, 1), of that shape.
  """
  mixed = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
  return (_hash(numbers ^ _hash(mixed)) >> np.uint64(11)) * 2.0**-53


def _hash(x: np.ndarray) -> np.ndarray:
  """SplitMix64 of Steele et al. 2014, "Fast splittable random generators"."""
  with np.errstate(over="ignore"):
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
