"""A split that no file holds: rows are computed when they are asked for.

A label of H digits is drawn for each row, and its features are the sum of one
fixed random vector per digit, plus noise. So 1,000,000,000 labels can be
learned from a few thousand examples of each digit, and a row costs a
microsecond.

Everything is a function of (seed, row): the numbers are those of the
counter-based SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom
Number Generators", OOPSLA 2014), each row at its own place of one sequence.

Legend: N rows, F features, L labels, H digits, n rows of a selection.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import math

import numpy as np
import scipy

from xlj.data import csr as csr_lib
from xlj.data import store

_SPLITS = ("train", "test", "validation")
_SPACING = 2**48  # counters between two splits, far more than rows
_CHUNK = 2**20  # rows whose labels are computed at a time
_LANES = 4  # normals from one hash of 64 bits
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class Spec:
  """What to generate.

  Attributes:
    rows: of the training split.
    test_rows: of the test split, and of the validation split.
    factors: values of each digit, the most significant one first; L is their
      product.
    features: F.
    noise: standard deviation of what is added to features of variance H.
    skew: digit d has probability proportional to (d + 1)^-skew; 0 for
      uniform.
    seed: of everything.
  """

  rows: int
  test_rows: int
  factors: tuple[int, ...]
  features: int = 128
  noise: float = 1.0
  skew: float = 0.0
  seed: int = 0

  def __post_init__(self) -> None:
    """Checks the fields.

    Raises:
      ValueError: naming the field.
    """
    sizes = (self.rows, self.test_rows, self.features, *self.factors)
    if not self.factors or min(sizes) < 1:
      raise ValueError(
        f"rows {self.rows}, test_rows {self.test_rows}, features "
        f"{self.features} and factors {self.factors} must be positive"
      )
    if self.num_labels > np.iinfo(np.int32).max:
      raise ValueError(
        f"factors {self.factors} are {self.num_labels} labels; at most"
        f" {np.iinfo(np.int32).max} have ids of 32 bits"
      )
    if self.noise < 0 or self.skew < 0:
      raise ValueError(
        f"noise {self.noise} and skew {self.skew} must not be negative"
      )

  @property
  def num_labels(self) -> int:
    """Number of labels, L."""
    return math.prod(self.factors)


class Features:
  """Dense float32 features [N, F]; indexing computes rows.

  Example:
    x = Features(spec, "train")
    x[np.array([5, 2])]     # float32 [2, F]
  """

  def __init__(self, spec: Spec, split: str):
    """Describes the rows of a split.

    Args:
      spec: what to generate.
      split: "train", "test" or "validation".
    """
    self._draws = _Draws(spec, split)
    self._codes = [
      np.random.default_rng((spec.seed, h)).standard_normal(
        (size, spec.features), np.float32
      )
      for h, size in enumerate(spec.factors)
    ]
    self._noise = spec.noise
    count = spec.rows if split == "train" else spec.test_rows
    self.shape = (count, spec.features)

  def __len__(self) -> int:
    """Number of rows, N."""
    return self.shape[0]

  def __getitem__(self, rows: np.ndarray | Sequence[int] | slice) -> np.ndarray:
    """Computes rows.

    Args:
      rows: int [n], each in [0, N), or a slice of them.

    Returns:
      float32 [n, F].

    Raises:
      IndexError: when a row is out of range.
    """
    if isinstance(rows, slice):
      rows = np.arange(*rows.indices(len(self)))
    rows = np.asarray(rows, np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
      raise IndexError(
        f"Rows {rows.min()} to {rows.max()} asked for of {len(self)}."
      )
    out = np.zeros((len(rows), self.shape[1]), np.float32)
    for codes, digits in zip(self._codes, self._draws.digits(rows)):
      out += codes[digits]
    if self._noise:
      out += np.float32(self._noise) * self._draws.normals(rows)
    return out


def labels(spec: Spec, split: str) -> csr_lib.Csr:
  """Computes the labels of a split.

  Args:
    spec: what to generate.
    split: "train", "test" or "validation".

  Returns:
    [N, L] without values, one label per row: `sum_h d_h prod_{j>h} C_j`.
  """
  count = spec.rows if split == "train" else spec.test_rows
  draws = _Draws(spec, split)
  ids = np.zeros(count, np.int32)
  for start in range(0, count, _CHUNK):
    rows = np.arange(start, min(start + _CHUNK, count))
    part = ids[start : start + len(rows)]
    for size, digits in zip(spec.factors, draws.digits(rows)):
      part *= size
      part += digits
  return csr_lib.Csr(np.arange(count + 1), ids, None, spec.num_labels)


def fingerprint(spec: Spec, split: str) -> str:
  """Hash of what the rows are computed from."""
  what = repr((1, dataclasses.astuple(spec), split))
  return hashlib.sha256(what.encode()).hexdigest()[:32]


class _Draws:
  """The random numbers of the rows of a split."""

  def __init__(self, spec: Spec, split: str):
    self._digits = len(spec.factors)
    self._width = spec.features
    self._per_row = self._digits + -(-spec.features // _LANES)
    self._first = np.uint64(_SPACING * _SPLITS.index(split))
    self._start = _mix(np.array([spec.seed], np.uint64) + _GOLDEN)
    self._thresholds = [_thresholds(size, spec.skew) for size in spec.factors]

  def digits(self, rows: np.ndarray) -> list[np.ndarray]:
    """Digits of rows, one int32 [n] per position."""
    hashes = self._hashes(rows, 0, self._digits)  # [n, H]
    uniform = (hashes >> np.uint64(11)) * 2.0**-53
    return [
      np.searchsorted(bounds, uniform[:, h], side="right").astype(np.int32)
      for h, bounds in enumerate(self._thresholds)
    ]

  def normals(self, rows: np.ndarray) -> np.ndarray:
    """Standard normal numbers, float32 [n, F]: one of 65,536 quantiles each."""
    hashes = self._hashes(rows, self._digits, self._per_row)
    return _quantiles()[hashes.view(np.uint16)[:, : self._width]]

  def _hashes(self, rows: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Numbers `start` to `stop` of each row, uint64 [n, stop - start]."""
    first = (rows.astype(np.uint64) + self._first) * np.uint64(self._per_row)
    counters = first[:, None] + np.arange(start, stop, dtype=np.uint64)
    return _mix(self._start + counters * _GOLDEN)


def _thresholds(size: int, skew: float) -> np.ndarray:
  """float64 [size - 1], the share of draws below each digit but the first."""
  share = np.cumsum(np.arange(1, size + 1) ** -float(skew))
  return share[:-1] / share[-1]


def _mix(state: np.ndarray) -> np.ndarray:
  """The output function of SplitMix64 (their figure 17)."""
  state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return state ^ (state >> np.uint64(31))


@functools.cache
def _quantiles() -> np.ndarray:
  """float32 [65536], the standard normal quantiles in the middle of steps."""
  return scipy.special.ndtri((np.arange(2**16) + 0.5) / 2**16).astype(
    np.float32
  )


def open_split(spec: Spec, split: str = "train") -> store.Split:
  """Opens a split that no file holds.

  Args:
    spec: what to generate.
    split: "train", "test" or "validation".

  Returns:
    The split; its labels are in memory, its features are computed.
  """
  return store.Split(
    Features(spec, split),
    labels(spec, split),
    None,
    f"generated/{split}",
    fingerprint(spec, split),
  )
