"""Which combinations of parameters a test has."""

import itertools

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
