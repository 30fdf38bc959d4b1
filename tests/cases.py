"""Which combinations of parameters a test has, and what it compares."""

import itertools

import jax
import numpy as np
import pytest


def covering(*axes):
  """All combinations; fast ones are few, in which each value occurs.

  Args:
    *axes: The values of each parameter.

  Returns:
    What `pytest.mark.parametrize` takes; all but the fast ones are slow.
  """
  axes = [list(axis) for axis in axes]
  longest = max(map(len, axes))
  fast = {tuple(i % len(axis) for axis in axes) for i in range(longest)}
  return [
    pytest.param(
      *(axis[i] for axis, i in zip(axes, places)),
      marks=[] if places in fast else [pytest.mark.slow],
    )
    for places in itertools.product(*(range(len(axis)) for axis in axes))
  ]


def some(values, fast):
  """Each value as a case; those that are not in `fast` are slow."""
  return [
    pytest.param(v, marks=[] if v in fast else [pytest.mark.slow])
    for v in values
  ]


def first(count, values):
  """Each tuple of values as a case; those after the first ones are slow."""
  return [
    pytest.param(*v, marks=[] if i < count else [pytest.mark.slow])
    for i, v in enumerate(values)
  ]


def some_labels(rng, count, most, num_labels):
  """Up to `most` labels of each example, one with none, and weights.

  Returns:
    Ids `[count, most]` int32, padded by -1; weights `[count]` float32, of
    which one is 0.
  """
  ids = np.stack([rng.permutation(num_labels)[:most] for _ in range(count)])
  keep = np.arange(most) < rng.integers(0, most + 1, count)[:, None]
  ids = np.where(keep, ids, -1).astype(np.int32)
  ids[2] = -1
  ids[3, 0] = num_labels - 1
  weights = rng.uniform(0.5, 1.5, count).astype(np.float32)
  weights[5] = 0
  return ids, weights


def assert_close(got, expected, atol, rtol):
  """Compares trees."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    got,
    expected,
  )
