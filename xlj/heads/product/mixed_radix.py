"""Labels as digits: mixed-radix numbers of H digits, most significant first.

`label = sum_h d_h S_h` with `S_h = prod_{j > h} C_j` for lengths `C_1 .. C_H`
(Liang et al., "Multi-Head Encoding for extreme label classification", TPAMI
2024, section 4.1). Digits are small where labels may pass 2^31: labels are
int64 on the host, digits int32 everywhere.

If the product of the lengths exceeds the number of labels, the codes from that
number on are ghosts: they stand for no label.

Legend: H digits, C_h length of digit h, L labels.
"""

from collections.abc import Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class MixedRadix:
  """Digits for the labels 0 .. num_labels - 1.

  Attributes:
    num_labels: Number of labels L.
    lengths: `C_1 .. C_H`, how many values each digit has; their product is at
      least L.

  Raises:
    ValueError: There are no digits or no labels, a length does not fit int32,
      or the digits are too few for the labels.
  """

  num_labels: int
  lengths: tuple[int, ...]

  def __post_init__(self):
    """Checks the fields."""
    if not self.lengths or not all(1 <= c <= _MAX_INT32 for c in self.lengths):
      raise ValueError(
        f"lengths of digits are {self.lengths}: give at least one, each from 1 "
        f"to {_MAX_INT32}"
      )
    if not 1 <= self.num_labels <= _MAX_INT64:
      raise ValueError(
        f"number of labels is {self.num_labels}: it has to be from 1 to 2^63-1"
      )
    if self.num_codes < self.num_labels:
      raise ValueError(
        f"digits of lengths {self.lengths} make {self.num_codes} codes, too "
        f"few for {self.num_labels} labels; balanced_lengths("
        f"{self.num_labels}, {len(self.lengths)}) are "
        f"{balanced_lengths(self.num_labels, len(self.lengths))}"
      )

  @property
  def num_codes(self) -> int:
    """Product of the lengths: labels and ghosts."""
    return math.prod(self.lengths)

  @property
  def limit(self) -> tuple[int, ...] | None:
    """Digits of the first ghost; None if there are no ghosts.

    A code stands for a label if it comes before these in lexicographic order.
    """
    if self.num_codes == self.num_labels:
      return None
    return tuple(int(d) for d in _digits(np.int64(self.num_labels), self))

  @property
  def num_first_digits(self) -> int:
    """How many values of the first digit labels have."""
    return -(-self.num_labels // math.prod(self.lengths[1:]))

  @property
  def fits_int32(self) -> bool:
    """Whether every label is an int32, as labels on devices are."""
    return self.num_labels <= _MAX_INT32 + 1

  def digits(self, labels: np.ndarray) -> np.ndarray:
    """Digits of labels on the host.

    Args:
      labels: `[...]` integers below L; negative ones are padding.

    Returns:
      `[..., H]` int32 digits; -1 at padding.

    Raises:
      ValueError: A label is not below L.
    """
    labels = np.asarray(labels, np.int64)
    if labels.size and labels.max() >= self.num_labels:
      raise ValueError(
        f"label {labels.max()} is not below the number of labels, "
        f"{self.num_labels}"
      )
    digits = _digits(labels, self)
    return np.where(labels[..., None] < 0, -1, digits).astype(np.int32)

  def labels(self, digits: np.ndarray) -> np.ndarray:
    """Labels of digits on the host.

    Args:
      digits: `[..., H]` integers; negative ones are padding.

    Returns:
      `[...]` int64 labels; -1 at padding.

    Raises:
      ValueError: A digit is not below its length, or the code is a ghost.
    """
    digits = np.asarray(digits, np.int64)
    self._check_last_axis(digits.shape)
    padding = np.asarray((digits < 0).any(-1))
    known = np.where(padding[..., None], 0, digits)
    if (known >= np.array(self.lengths)).any():
      raise ValueError(f"digits are not below their lengths {self.lengths}")
    limit = self.limit
    if limit is not None and (~_before(known, limit)).any():
      raise ValueError(
        f"digits from {limit} on are of no label: there are {self.num_labels}"
      )
    return np.where(padding, -1, _labels(known, self))

  def digits_on_device(self, labels: jax.Array) -> jax.Array:
    """`[...]` int32 labels to `[..., H]` int32 digits; -1 at negative ones.

    Args:
      labels: Labels below L, which is not checked.

    Returns:
      The digits.
    """
    digits = []
    rest = labels
    for length in reversed(self.lengths):
      digits.append(rest % length)
      rest //= length
    stacked = jnp.stack(digits[::-1], -1)
    return jnp.where(labels[..., None] < 0, -1, stacked)

  def labels_on_device(self, digits: jax.Array) -> jax.Array:
    """`[..., H]` int32 digits to `[...]` int32 labels; -1 at negative ones.

    Args:
      digits: Digits of labels, which is not checked: those of ghosts may
        overflow.

    Returns:
      The labels.

    Raises:
      ValueError: Labels pass 2^31.
    """
    self._check_last_axis(digits.shape)
    if not self.fits_int32:
      raise ValueError(
        f"{self.num_labels} labels do not fit int32: keep the digits, and call "
        "labels() on the host"
      )
    return jnp.where((digits < 0).any(-1), -1, _labels(digits, self))

  def _check_last_axis(self, shape: Sequence[int]) -> None:
    if not shape or shape[-1] != len(self.lengths):
      raise ValueError(
        f"digits have the shape {tuple(shape)}: the last axis should be "
        f"{len(self.lengths)}, one for each of the lengths {self.lengths}"
      )


def balanced_lengths(num_labels: int, num_digits: int) -> tuple[int, ...]:
  """Lengths of the smallest sum, hence the smallest head, for so many labels.

  Of equal integers or neighbours the product is the largest for their sum, so
  those give the smallest sum. Then lengths are moved apart, at the same sum, as
  long as the product is enough: fewer ghosts.

  Args:
    num_labels: Number of labels, at least 1.
    num_digits: Number of digits H, at least 1.

  Returns:
    H lengths, descending, with a product of at least `num_labels`.

  Raises:
    ValueError: A number is not positive.
  """
  if num_labels < 1 or num_digits < 1:
    raise ValueError(
      f"{num_labels} labels in {num_digits} digits: both have to be positive"
    )
  longest = _root_up(num_labels, num_digits)
  lengths = [longest] * num_digits
  for h in reversed(range(num_digits)):
    lengths[h] -= 1
    if math.prod(lengths) < num_labels:
      lengths[h] += 1
      break
  while True:
    closer = [
      moved
      for i in range(num_digits)
      for j in range(num_digits)
      if i != j
      and lengths[i] >= lengths[j] > 2
      and math.prod(moved := _moved(lengths, j, i)) >= num_labels
    ]
    if not closer:
      return tuple(sorted(lengths, reverse=True))
    lengths = min(closer, key=math.prod)


def _root_up(value: int, power: int) -> int:
  """The smallest integer of which that power is at least `value`."""
  root = max(1, round(value ** (1 / power)))
  while root**power >= value and root > 1:
    root -= 1
  while root**power < value:
    root += 1
  return root


def _moved(lengths: list[int], source: int, target: int) -> list[int]:
  """Lengths with one taken from `source` and given to `target`."""
  moved = list(lengths)
  moved[source] -= 1
  moved[target] += 1
  return moved


def _digits(labels: np.ndarray | np.int64, radix: MixedRadix) -> np.ndarray:
  """`[...]` int64 to `[..., H]` int64."""
  digits = []
  rest = labels
  for length in reversed(radix.lengths):
    rest, digit = np.divmod(rest, length)
    digits.append(digit)
  return np.stack(digits[::-1], -1)


def _labels(digits, radix: MixedRadix):
  """`[..., H]` to `[...]`: Horner's rule never passes the label itself."""
  labels = digits[..., 0]
  for h in range(1, len(radix.lengths)):
    labels = labels * radix.lengths[h] + digits[..., h]
  return labels


def _before(digits: np.ndarray, limit: tuple[int, ...]) -> np.ndarray:
  """Whether digits `[..., H]` come before `limit` lexicographically."""
  before = np.zeros(digits.shape[:-1], bool)
  equal = ~before
  for h, digit in enumerate(limit):
    before |= equal & (digits[..., h] < digit)
    equal &= digits[..., h] == digit
  return before
