"""Products with weights of pairs as sorted segment sums, for accelerators.

The triples (example, feature, pair) of a batch are listed tile by tile, as many
tiles as the batch needs; a tile's products are sorted by where they belong and
summed there.

Legend: see `xlj.ops.pairs.label_pairs`; E entries N * K of the examples, S
triples of a tile.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import chunks

_TILE = 2**16  # triples at a time


class _Triples(NamedTuple):
  """A tile of the triples of a batch with one block, `[S]` each."""

  example: jax.Array
  value: jax.Array
  pair: jax.Array
  used: jax.Array


def logits(
  starts,
  columns,
  weights,
  ids,
  values,
  lengths,
  rows_per_block,
  is_sorted=True,
):
  """See `label_pairs.logits`; CPUs add up faster what is not sorted first."""
  num_examples = ids.shape[0]

  def block(_, pairs):
    starts, columns, weights = pairs

    def add(triples: _Triples, z: jax.Array) -> jax.Array:
      column = columns[triples.pair].astype(jnp.int32)
      place = triples.example * rows_per_block + column
      product = triples.value * weights[triples.pair]
      if is_sorted:
        return _sorted_add(z, place, product, triples.used)
      place = jnp.where(triples.used, place, z.shape[0])
      return z.at[place].add(product, mode="drop")

    zero = jnp.zeros(num_examples * rows_per_block, weights.dtype)
    z = _for_tiles(starts, ids, values, lengths, add, zero)
    return None, z.reshape(num_examples, rows_per_block)

  _, z = lax.scan(block, None, (starts, columns, weights))
  return z.swapaxes(0, 1).reshape(num_examples, -1)


def add_outer(starts, columns, weights, ids, values, lengths, grad, scale):
  """See `label_pairs.add_outer`."""
  num_examples = len(ids)
  by_block = grad.reshape(num_examples, len(starts), -1).swapaxes(0, 1)

  def block(_, pairs):
    starts, columns, weights, grad = pairs

    def add(triples: _Triples, weights: jax.Array) -> jax.Array:
      column = columns[triples.pair].astype(jnp.int32)
      product = scale * triples.value * grad[triples.example, column]
      return _sorted_add(weights, triples.pair, product, triples.used)

    return None, _for_tiles(starts, ids, values, lengths, add, weights)

  return lax.scan(block, None, (starts, columns, weights, by_block))[1]


def step_by_example(
  starts,
  columns,
  weights,
  bias,
  row_rates,
  ids,
  values,
  lengths,
  positives,
  example_weights,
  rates,
):
  """See `label_pairs.step_by_example`."""
  rate, bias_rate, threshold = rates
  rows_per_block = len(bias) // len(starts)
  num_rows = len(bias)

  def example(carry, one):
    weights, bias, loss = carry
    ids, values, lengths, positives, example_weight = jax.tree.map(
      lambda a: a[None], one
    )
    z = logits(starts, columns, weights, ids, values, lengths, rows_per_block)
    z = z[0] + bias
    own = (positives[0] >= 0) & (positives[0] < num_rows)
    place = jnp.where(own, positives[0], num_rows)
    is_positive = jnp.zeros(num_rows, bool).at[place].set(True, mode="drop")
    is_positive = chunks.mark_varying(is_positive, sorted(chunks.varying(z)))
    used = (is_positive | (z > threshold)) & (example_weight[0] > 0)
    target = is_positive.astype(z.dtype)
    grad = jnp.where(used, jax.nn.sigmoid(z) - target, 0) * example_weight[0]
    grad *= row_rates
    value = jnp.where(used, jax.nn.softplus(z) - target * z, 0)
    loss += example_weight[0] * value.reshape(len(starts), -1).sum(1)
    weights = add_outer(
      starts, columns, weights, ids, values, lengths, grad[None], -rate
    )
    return (weights, bias - bias_rate * grad, loss), None

  axes = chunks.varying(weights) | chunks.varying(bias) | chunks.varying(ids)
  start = weights, bias, jnp.zeros(len(starts), weights.dtype)
  (weights, bias, loss), _ = lax.scan(
    example,
    chunks.mark_varying(start, sorted(axes)),
    (ids, values, lengths, positives, example_weights),
  )
  return weights, bias, loss


def _for_tiles(
  starts: jax.Array,
  ids: jax.Array,
  values: jax.Array,
  lengths: jax.Array,
  add: Callable[[_Triples, jax.Array], jax.Array],
  total: jax.Array,
) -> jax.Array:
  """Adds up the tiles of the triples of a batch with one block.

  Args:
    starts: `[F + 1]` of the block.
    ids: `[N, K]` features.
    values: `[N, K]`.
    lengths: `[N]`.
    add: From a tile and the sum so far to the sum with it.
    total: To start with.

  Returns:
    The sum.
  """
  num_examples, width = ids.shape
  used = jnp.arange(width) < lengths[:, None]
  begin = starts[ids]
  size = jnp.where(used, starts[ids + 1] - begin, 0).reshape(-1)  # [E]
  ends = jnp.cumsum(size)
  first = begin.reshape(-1) - (ends - size)
  flat = values.reshape(-1)

  count = ends.shape[0]

  def tile(t: jax.Array, total: jax.Array) -> jax.Array:
    number = t * _TILE + jnp.arange(_TILE)
    if isinstance(count, int):
      entry = jnp.searchsorted(ends, number, side="right")
    else:  # It is left open in an export, and with it how often to halve.
      entry = _counted(ends - t * _TILE)
    inside = entry < count
    entry = jnp.where(inside, entry, 0)
    triples = _Triples(
      entry // width,
      flat[entry],
      jnp.where(inside, first[entry] + number, 0),
      inside,
    )
    return add(triples, total)

  # Blocks are those of a device, and so is all that is summed for them.
  axes = chunks.varying(starts) | chunks.varying(ids)
  total = chunks.mark_varying(total, sorted(axes))
  tiles = -(-ends[-1] // _TILE) if count != 0 else 0
  return lax.fori_loop(0, tiles, tile, total)


def _counted(ends: jax.Array) -> jax.Array:
  """How many ends `[E]` are not beyond each place of a tile, `[S]`."""
  at = jnp.zeros(_TILE, ends.dtype)
  at = chunks.mark_varying(at, sorted(chunks.varying(ends)))
  return jnp.cumsum(at.at[jnp.maximum(ends, 0)].add(1, mode="drop"))


def _sorted_add(
  total: jax.Array, place: jax.Array, product: jax.Array, used: jax.Array
) -> jax.Array:
  """Adds products where they belong, those of a place in their order."""
  place = jnp.where(used, place, total.shape[0])
  place, product = lax.sort((place, product), num_keys=1, is_stable=True)
  return total.at[place].add(product, mode="drop", indices_are_sorted=True)
