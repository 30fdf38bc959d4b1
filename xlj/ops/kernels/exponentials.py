"""Exponentials of logits in a kernel: in PTX, or in JAX where interpreted.

The compiler of kernels neither fuses multiplications with additions nor flushes
subnormal numbers to zero, so it needs twice the instructions for a logit, on a
device where it is these that a pass waits for.

Legend: [...] any shape.
"""

import jax
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import Chebyshev
from numpy.polynomial import Polynomial

LOG2_E = np.float32(np.log2(np.e))
# log(1 + e) / e for e in [0, 1], interpolated: within 4e-8. A sum over all
# labels would notice if small e were lost in 1 + e, and logarithms come from
# the same slow unit as exponentials.
_LOG1P = (
  Chebyshev.interpolate(lambda e: np.log1p(e) / e, 8, domain=[0, 1])
  .convert(kind=Polynomial)
  .coef.astype(np.float32)
)


def _literal(value: np.float32) -> str:
  """A number in PTX."""
  return f"0f{value.view(np.uint32):08X}"


# $0 is the result, the others are the arguments in order.
EXP = f"""{{
  .reg .f32 t;
  fma.rn.f32 t, $1, {_literal(LOG2_E)}, $2;
  ex2.approx.ftz.f32 $0, t;
}}"""
EXP_OF_MINUS_ABS = f"""{{
  .reg .f32 t;
  abs.f32 t, $1;
  mul.f32 t, t, {_literal(-LOG2_E)};
  ex2.approx.ftz.f32 $0, t;
}}"""
SIGMOID = """{
  .reg .f32 t, u;
  .reg .pred p;
  add.f32 t, $2, 0f3F800000;
  rcp.approx.ftz.f32 t, t;
  mul.f32 t, t, $3;
  mul.f32 u, t, $2;
  setp.lt.f32 p, $1, 0f00000000;
  selp.f32 $0, u, t, p;
}"""
_SERIES = "\n".join(
  f"  fma.rn.f32 t, t, $2, {_literal(c)};" for c in _LOG1P[-2::-1]
)
SOFTPLUS = f"""{{
  .reg .f32 t, u;
  mov.f32 t, {_literal(_LOG1P[-1])};
{_SERIES}
  max.f32 u, $1, 0f00000000;
  fma.rn.f32 $0, $2, t, u;
}}"""


def exp(z: jax.Array, offset: jax.Array, interpret: bool) -> jax.Array:
  """`2 ** (z * log2(e) + offset)`.

  Args:
    z: `[...]` float32.
    offset: float32, to broadcast against z.
    interpret: Whether the kernel is interpreted.

  Returns:
    `[...]` float32; compiled, 0 where it would be subnormal.
  """
  if interpret:
    return jnp.exp2(z * LOG2_E + offset)
  return _apply(EXP, z, offset)


def exp_of_minus_abs(z: jax.Array, interpret: bool) -> jax.Array:
  """`exp(-|z|)`, of which the sigmoid and the softplus of z are made.

  Args:
    z: `[...]` float32.
    interpret: Whether the kernel is interpreted.

  Returns:
    `[...]` float32; compiled, 0 where it would be subnormal.
  """
  if interpret:
    return jnp.exp2(jnp.abs(z) * -LOG2_E)
  return _apply(EXP_OF_MINUS_ABS, z)


def sigmoid(
  z: jax.Array, e: jax.Array, scale: jax.Array, interpret: bool
) -> jax.Array:
  """`scale / (1 + exp(-z))`.

  Args:
    z: `[...]` float32.
    e: `[...]` float32, `exp(-|z|)`.
    scale: float32, to broadcast against z.
    interpret: Whether the kernel is interpreted.

  Returns:
    `[...]` float32.
  """
  if interpret:
    return scale / (1 + e) * jnp.where(z < 0, e, 1)
  return _apply(SIGMOID, z, e, scale)


def softplus(z: jax.Array, e: jax.Array, interpret: bool) -> jax.Array:
  """`log(1 + exp(z))`.

  Args:
    z: `[...]` float32.
    e: `[...]` float32, `exp(-|z|)`.
    interpret: Whether the kernel is interpreted.

  Returns:
    `[...]` float32.
  """
  if not interpret:
    return _apply(SOFTPLUS, z, e)
  series = jnp.full_like(e, _LOG1P[-1])
  for coefficient in _LOG1P[-2::-1]:
    series = series * e + coefficient
  return jnp.maximum(z, 0) + e * series


def _apply(assembly, z, *others):
  """Instructions of PTX on each element."""
  args = [z, *(jnp.broadcast_to(a, z.shape) for a in others)]
  [result] = plgpu.elementwise_inline_asm(
    assembly,
    args=args,
    constraints=",".join(["=f"] + ["f"] * len(args)),
    pack=1,
    result_shape_dtypes=[jax.ShapeDtypeStruct(z.shape, jnp.float32)],
  )
  return result
