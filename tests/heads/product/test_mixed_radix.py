"""Labels and digits are one to one, on the host and on devices."""

import itertools
import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlj.heads.product import mixed_radix


@st.composite
def radices(draw, largest=2**40):
  """Any lengths, and any number of labels that they are enough for."""
  lengths = []
  while not lengths or (len(lengths) < 6 and draw(st.booleans())):
    room = min(2**31 - 1, largest // math.prod(lengths))
    lengths.append(draw(st.integers(1, max(1, room))))
  num_labels = draw(st.integers(1, math.prod(lengths)))
  return mixed_radix.MixedRadix(num_labels, tuple(lengths))


def some_labels(radix, rng):
  ends = [0, radix.num_labels - 1, radix.num_labels // 2]
  return np.append(rng.integers(0, radix.num_labels, 20), ends)


@hypothesis.given(radices(largest=2**62), st.randoms(use_true_random=False))
def test_host_round_trip_beyond_int32(radix, random):
  rng = np.random.default_rng(random.randrange(2**32))
  labels = some_labels(radix, rng)
  digits = radix.digits(labels)
  assert digits.dtype == np.int32
  assert (digits >= 0).all() and (digits < np.array(radix.lengths)).all()
  np.testing.assert_array_equal(radix.labels(digits), labels)
  # The definition, in integers of any size.
  for label, own in zip(labels.tolist(), digits.tolist()):
    strides = [math.prod(radix.lengths[h + 1 :]) for h in range(len(own))]
    assert label == sum(d * s for d, s in zip(own, strides))


@pytest.mark.slow
@hypothesis.settings(deadline=None)  # the first call compiles
@hypothesis.given(radices(), st.randoms(use_true_random=False))
def test_device_agrees_with_host(radix, random):
  hypothesis.assume(radix.fits_int32)
  rng = np.random.default_rng(random.randrange(2**32))
  labels = np.append(some_labels(radix, rng), -1)
  digits = radix.digits(labels)
  with jax.disable_jit():
    found = radix.digits_on_device(jnp.asarray(labels, jnp.int32))
    back = radix.labels_on_device(jnp.asarray(digits))
  assert found.dtype == back.dtype == jnp.int32
  np.testing.assert_array_equal(found, digits)
  np.testing.assert_array_equal(back, labels)


@hypothesis.given(radices(largest=3000))
def test_codes_before_the_limit_are_the_labels(radix):
  codes = itertools.product(*map(range, radix.lengths))
  limit = radix.limit or (math.inf,)
  real = [code for code in codes if code < limit]
  expected = radix.digits(np.arange(radix.num_labels)).tolist()
  assert [list(code) for code in real] == expected


def test_padding_stays():
  radix = mixed_radix.MixedRadix(90, (10, 10))
  np.testing.assert_array_equal(
    radix.digits(np.array([[-1, 37]])), [[[-1, -1], [3, 7]]]
  )
  np.testing.assert_array_equal(
    radix.labels(np.array([[-1, -1], [3, 7]])), [-1, 37]
  )


@hypothesis.given(st.integers(1, 400), st.integers(1, 3))
def test_balanced_lengths_have_the_smallest_sum(num_labels, num_digits):
  lengths = mixed_radix.balanced_lengths(num_labels, num_digits)
  assert len(lengths) == num_digits and math.prod(lengths) >= num_labels
  values = range(1, num_labels + 1)
  if num_digits == 3:
    values = range(1, min(num_labels, max(lengths) + 4) + 1)
  first = itertools.product(values, repeat=num_digits - 1)
  smallest = min(sum(f) + -(-num_labels // math.prod(f)) for f in first)
  assert sum(lengths) == smallest


@pytest.mark.parametrize(
  ("num_labels", "num_digits", "expected"),
  [
    (10**9, 3, (1000, 1000, 1000)),
    (10**9, 2, (31741, 31505)),  # 205 ghosts; 31623 squared has 14,129
    (10_000, 2, (100, 100)),
    (1000, 3, (10, 10, 10)),
    (6, 2, (3, 2)),
    (7, 1, (7,)),
    (1, 2, (1, 1)),
    (2**60, 2, (2**30, 2**30)),
  ],
)
def test_balanced_lengths(num_labels, num_digits, expected):
  found = mixed_radix.balanced_lengths(num_labels, num_digits)
  assert found == expected


@pytest.mark.parametrize(
  ("num_labels", "lengths", "message"),
  [
    (101, (10, 10), r"too few for 101 labels.*\(13, 8\)"),
    (5, (), "at least one"),
    (5, (10, 0), "from 1 to"),
    (5, (2**31, 2), "from 1 to"),
    (0, (2,), "number of labels is 0"),
    (2**63, (2**30, 2**30, 2**30), "number of labels"),
  ],
)
def test_unfit_fields_are_refused(num_labels, lengths, message):
  with pytest.raises(ValueError, match=message):
    mixed_radix.MixedRadix(num_labels, lengths)


def test_unfit_arguments_are_refused():
  radix = mixed_radix.MixedRadix(95, (10, 10))
  with pytest.raises(ValueError, match="label 95 is not below"):
    radix.digits(np.array([95]))
  with pytest.raises(ValueError, match=r"digits from \(9, 5\) on"):
    radix.labels(np.array([9, 5]))
  with pytest.raises(ValueError, match="not below their lengths"):
    radix.labels(np.array([0, 10]))
  with pytest.raises(ValueError, match="last axis"):
    radix.labels(np.array([1, 2, 3]))
  large = mixed_radix.MixedRadix(10**10, (10**5, 10**5))
  with pytest.raises(ValueError, match="do not fit int32"):
    large.labels_on_device(jnp.array([1, 2]))
  with pytest.raises(ValueError, match="positive"):
    mixed_radix.balanced_lengths(0, 2)
