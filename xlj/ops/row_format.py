"""How label rows are stored: arrays that all have one entry per row.

Legend: c rows of a chunk, L rows in all, D width.
"""

from collections.abc import Mapping
import dataclasses
import math

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import rounding

# How label rows may be stored, and the type of what is stored then.
STORED = {"float32": "float32", "bfloat16": "uint16", "float8": "uint8"}
DTYPES = tuple(STORED)
Stored = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class RowFormat:
  """A way to store rows.

  What is stored is a dict, of

  - float32: `rows [L, D]` float32
  - bfloat16: `rows [L, D]` uint16, its bits
  - float8: `rows [L, D]` uint8, bits of e4m3; `exponents [L]` int8, powers of
    two that the values of each row are multiplied by

  With the exponent of its greatest magnitude, a row keeps 3 bits after the
  leading one over 14 binades below that, and the absolute precision of the last
  of those further below.

  Attributes:
    dtype: One of DTYPES.
  """

  dtype: str = "float32"

  def __post_init__(self) -> None:
    """Checks the name.

    Raises:
      ValueError: It is unknown.
    """
    if self.dtype not in DTYPES:
      raise ValueError(f"dtype is {self.dtype!r}; use one of {DTYPES}")

  @property
  def decoded(self) -> jnp.dtype:
    """The type of values that `decode` returns."""
    narrow = self.dtype != "float32"
    return jnp.dtype(jnp.bfloat16 if narrow else jnp.float32)

  def encode(self, values: jax.Array, bits: jax.Array | None = None) -> Stored:
    """What is stored of rows.

    What is stored already is encoded to the same bits again, whatever the
    random bits.

    Args:
      values: `[c, D]` float32.
      bits: `[c, D]` uint32 random bits, for stochastic rounding; None for the
        nearest. float32 is not rounded.

    Returns:
      A dict as described above.

    Raises:
      ValueError: Shapes or types do not fit.
    """
    if values.dtype != jnp.float32:
      raise ValueError(f"values must be float32, not {values.dtype}")
    if bits is not None and (bits.shape, bits.dtype) != (
      values.shape,
      jnp.uint32,
    ):
      raise ValueError(
        f"bits must be uint32 {values.shape}: got {bits.dtype} {bits.shape}"
      )
    if self.dtype == "float32":
      return {"rows": values}
    if self.dtype == "bfloat16":
      return {"rows": rounding.to_bfloat16(values, bits)}
    exponents = rounding.row_exponents(values)
    rows = rounding.to_float8(values, bits, exponents)
    # Or they would be computed twice: to find the greatest, and to be changed.
    rows = lax.optimization_barrier(rows)
    rows, exponents = rounding.canonical_float8(rows, exponents)
    return {"rows": rows, "exponents": exponents[..., 0].astype(jnp.int8)}

  def decode(self, stored: Mapping[str, jax.Array]) -> jax.Array:
    """The values of rows, exactly.

    Args:
      stored: What `encode` returned, whole or a part; other keys are not read.

    Returns:
      `[c, D]`, float32 for float32, otherwise bfloat16.
    """
    rows = stored["rows"]
    if self.dtype == "float32":
      return rows
    if self.dtype == "bfloat16":
      return rounding.from_bfloat16(rows)
    exponents = stored["exponents"][..., None]
    return rounding.from_float8(rows, exponents, jnp.bfloat16)

  def abstract(
    self, num_rows: int, dim: int
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of what is stored of `[num_rows, dim]` values."""
    values = jax.ShapeDtypeStruct((num_rows, dim), jnp.float32)
    return jax.eval_shape(self.encode, values)

  def num_bytes(self, num_rows: int, dim: int) -> int:
    """Bytes of what is stored of `[num_rows, dim]` values."""
    leaves = self.abstract(num_rows, dim).values()
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in leaves)
