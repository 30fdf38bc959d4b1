"""Simulated meshes for tests."""

import contextlib
import re

import jax
from jax.sharding import AxisType

from xlj import sharding

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


def first_params(head):
  """Parameters of a head where its steps have them."""
  where = sharding.named(jax.sharding.get_mesh(), head.specs())
  return jax.jit(head.init, out_shardings=where)(jax.random.key(0))


def start(head):
  """Parameters and optimizer state of a head where its steps have them."""
  params = first_params(head)
  where = sharding.named(jax.sharding.get_mesh(), head.optimizer_specs())
  return params, jax.jit(head.init_optimizer, out_shardings=where)(params)


def compile_split(function, shape, *arrays):
  """Compiles for arrays, all split; nothing of them is allocated.

  Args:
    function: Of the arrays.
    shape: Of the mesh.
    *arrays: (shape, dtype) of each; all devices have a part of each.

  Returns:
    The compiled function.
  """
  with mesh(shape) as made:
    split = jax.NamedSharding(made, sharding.BATCH)
    abstract = [jax.ShapeDtypeStruct(*a, sharding=split) for a in arrays]
    return jax.jit(function).lower(*abstract).compile()


# What a step over all labels sends, for 64 examples with 4 labels of 32 numbers
# on 8 devices, however many labels there are.
SENT_BY_A_STEP = [
  ("f32[64,32]", "all-gather"),  # examples
  ("f32[64]", "all-gather"),  # their weights
  ("f32[64]", "all-reduce"),  # maxima
  ("f32[64]", "all-reduce"),  # sums
  ("f32[8,32]", "reduce-scatter"),  # gradient of the examples
  ("f32[]", "all-reduce"),  # the loss
  ("s32[64,4]", "all-gather"),  # positives
]


def sent(compiled):
  """(type and shape, collective) of all that is sent, sorted."""
  pattern = (
    r"= (\S+?)(?:\{\S*)? (all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute)\("
  )
  return sorted(re.findall(pattern, compiled.as_text()))
