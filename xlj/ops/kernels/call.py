"""Calling a kernel on arrays that lie in the memory of one device."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp
import numpy as np

from xlj.ops import chunks
from xlj.ops.kernels import problem as problem_lib


def call(
  kernel: Callable[..., None],
  grid: tuple[int, ...],
  inputs: tuple[Any, ...],
  outputs: tuple[Any, ...],
  tile: problem_lib.Tile,
  interpret: bool,
  aliases: dict[int, int] | None = None,
) -> Any:
  """Runs a kernel on whole arrays, of which it takes its parts itself.

  Whole arrays, because their offsets are then computed by the compiler of
  kernels from row numbers, with 64 bits where need be (see `problem.refusal`).

  Args:
    kernel: Takes references to the inputs, then to the outputs.
    grid: Number of programs along each axis. Programs next to each other along
      the first run at the same time.
    inputs: Trees of arrays.
    outputs: Trees of `ShapeDtypeStruct`.
    tile: Compiler options.
    interpret: Whether to interpret the kernel instead of compiling it.
    aliases: Which inputs outputs are written over, by their places among the
      leaves.

  Returns:
    The outputs, which vary over all the mesh axes that inputs do.
  """
  axes = frozenset().union(
    *(chunks.varying(a) for a in jax.tree.leaves(inputs))
  )
  inputs = chunks.mark_varying(inputs, tuple(axes))
  kind: Any = jax.typeof(jax.tree.leaves(inputs)[0])
  return pl.pallas_call(
    kernel,
    out_shape=jax.tree.map(
      lambda a: a.update(manual_axis_type=kind.manual_axis_type), outputs
    ),
    grid=grid,
    input_output_aliases=aliases or {},
    compiler_params=plgpu.CompilerParams(
      num_warps=tile.warps, num_stages=tile.stages
    ),
    interpret=interpret,
  )(*inputs)


def numbers(*values: jax.typing.ArrayLike) -> jax.Array:
  """Scalar integers modulo 2**32, for kernels to read: uint32 `[n]`."""

  def word(value: Any) -> jax.Array:
    if isinstance(value, int):
      value = np.uint32(value % 2**32)
    return jnp.asarray(value).astype(jnp.uint32)

  return jnp.stack([word(value) for value in values])


def floats(*shape: int) -> jax.ShapeDtypeStruct:
  """An output of float32."""
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def like(a: jax.Array) -> jax.ShapeDtypeStruct:
  """An output like an array."""
  return jax.ShapeDtypeStruct(a.shape, a.dtype)
