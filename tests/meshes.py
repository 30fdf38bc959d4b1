"""Simulated meshes for tests."""

import contextlib

import jax
from jax.sharding import AxisType

SHAPES = [(1, 1), (2, 4), (8, 1)]


def make(shape):
  """A mesh of `shape` over the first devices."""
  return jax.make_mesh(
    shape,
    ("data", "label"),
    axis_types=(AxisType.Explicit,) * 2,
    devices=jax.devices()[: shape[0] * shape[1]],
  )


@contextlib.contextmanager
def mesh(shape):
  """A mesh of `shape` over the first devices, active inside the block."""
  made = make(shape)
  with jax.set_mesh(made):
    yield made
