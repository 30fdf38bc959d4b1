"""What the machine reaches at most: plain matrix products and exponentials.

Legend: N examples, D width, L label rows.
"""

from collections.abc import Callable
import time
from typing import Any, NamedTuple

import contestant
import jax
import jax.numpy as jnp

_TRIALS = 3
_PART = 8  # arrangements are compared on this part of the rows, or
_LEAST_PART = 2**13  # on so many


class _Arrangement(NamedTuple):
  """A way to compute a product.

  Attributes:
    product: Which.
    operands: Two of "x", "W", "g" and their transposes as they are stored, "xt"
      and so on; with ".T", they are read transposed.
    dtype: Of the result; it is summed in float32 in any case.
  """

  product: str
  operands: tuple[str, str]
  dtype: Any


_AS_WRITTEN = {
  "x Wt": ("x", "W.T"),
  "g W": ("g", "W"),
  "gt x": ("g.T", "x"),
}
_OTHERS = {  # some compute the transpose of the product
  "x Wt": [("x", "Wt"), ("W", "x.T"), ("W", "xt")],
  "g W": [("gt.T", "W"), ("W.T", "g.T")],
  "gt x": [("gt", "x"), ("x.T", "g"), ("xt", "g")],
}


class Roofline:
  """Times of the three products of a step, and of its exponentials.

  Products are of matrices as one has them, row by row; and, apart from those,
  of whatever arrangement of them is fastest here, since compilers are several
  times slower on some. Results have the type, that of the operands or float32,
  that is faster. They are written into memory that is there already.
  """

  def __init__(self, x: jax.Array, rows: jax.Array):
    """Finds out what is fastest.

    Args:
      x: `[N, D]`.
      rows: `[L, D]`.
    """
    size = max(rows.shape[0] // _PART, min(rows.shape[0], _LEAST_PART))
    some = _Runner(x, rows[:size])
    dtypes = (x.dtype, jnp.dtype(jnp.float32))
    self._as_written, self._fastest = {}, {}
    for product in contestant.PRODUCTS:
      as_written, *others = [
        [
          _Arrangement(product, operands, dtype)
          for dtype in dict.fromkeys(dtypes)
        ]
        for operands in (_AS_WRITTEN[product], *_OTHERS[product])
      ]
      plain = some.fastest(as_written)
      self._as_written[product] = plain
      self._fastest[product] = some.fastest([plain, *sum(others, [])])
    del some
    self._runner = _Runner(x, rows)
    self._exponentials = _exponentials(x.shape[0], rows.shape[0])
    self.exponentials()  # compiles
    self.facts = {
      product: f"{' '.join(found.operands)} to {found.dtype}"
      for product, found in self._fastest.items()
    }

  def products(self) -> dict[str, float]:
    """Seconds of each of `contestant.PRODUCTS`, of matrices row by row."""
    return {p: self._runner.seconds(a) for p, a in self._as_written.items()}

  def fastest_products(self) -> dict[str, float]:
    """Seconds of those for which another arrangement is faster."""
    return {
      p: self._runner.seconds(a)
      for p, a in self._fastest.items()
      if a != self._as_written[p]
    }

  def exponentials(self) -> float:
    """Seconds of `N L` exponentials that are not in memory."""
    return _seconds(self._exponentials, 0.5)[0]


class _Runner:
  """Computes products of given matrices."""

  def __init__(self, x: jax.Array, rows: jax.Array):
    g = jax.jit(lambda x, rows: (x @ rows.T).astype(x.dtype))(x, rows)
    self._matrices = {"x": x, "W": rows, "g": g}
    self._compiled: dict[_Arrangement, Callable[..., jax.Array]] = {}
    self._results: dict[_Arrangement, Any] = {}

  def seconds(self, arrangement: _Arrangement) -> float:
    """Computes a product and says how long it took."""
    operands = [self._stored(name) for name in arrangement.operands]
    if arrangement not in self._compiled:
      product = self._compiled[arrangement] = _product(arrangement)
      result = jax.eval_shape(product, *operands, None)
      place = jnp.zeros(result.shape, result.dtype)
      self._results[arrangement] = product(*operands, place)  # compiles
    seconds, self._results[arrangement] = _seconds(
      self._compiled[arrangement], *operands, self._results.pop(arrangement)
    )
    return seconds

  def fastest(self, arrangements: list[_Arrangement]) -> _Arrangement:
    """The one that takes the least time."""
    times = {}
    for arrangement in arrangements:
      times[arrangement] = min(
        self.seconds(arrangement) for _ in range(_TRIALS)
      )
      del self._results[arrangement], self._compiled[arrangement]
    return min(times, key=times.__getitem__)

  def _stored(self, name: str) -> jax.Array:
    """A matrix, or the transpose of one in memory of its own."""
    name = name.removesuffix(".T")
    if name not in self._matrices:
      transpose = jax.jit(lambda a: a.T)
      self._matrices[name] = transpose(self._matrices[name.removesuffix("t")])
    return self._matrices[name]


def _product(arrangement: _Arrangement) -> Callable[..., jax.Array]:
  """The product, written over its last argument."""
  transposed = [name.endswith(".T") for name in arrangement.operands]

  def product(a, b, out):
    a, b = (m.T if t else m for m, t in zip((a, b), transposed))
    return jnp.matmul(a, b, preferred_element_type=arrangement.dtype)

  return jax.jit(product, donate_argnums=2, keep_unused=True)


def _exponentials(num_examples: int, num_rows: int) -> Callable[..., Any]:
  """Sums of as many exponentials as a step has logits.

  They are of numbers that are computed on the way, so no memory is read.
  """

  def sums(scale):
    examples = jnp.arange(num_examples, dtype=jnp.float32) / num_examples
    rows = jnp.arange(num_rows, dtype=jnp.float32) / num_rows
    return jnp.exp(-scale * examples[:, None] * rows[None]).sum(1)

  return jax.jit(sums)


def _seconds(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
  """Seconds until the result is there, and the result."""
  start = time.perf_counter()
  result = jax.block_until_ready(function(*args))
  return time.perf_counter() - start, result
