"""A device's part of a step in which an example sees few groups of rows.

A group is a block of rows (`xlj.ops.layout`). Each example comes with the
groups whose labels it is scored against. Embeddings are sent to rows: the pairs
of an example and a group are sorted by group, and a group multiplies the
embeddings that ask for it, however many there are, with its rows. Groups that
nobody asks for are neither read nor written. Everything here runs inside
`shard_map`, or on one device.

Legend: N examples, D width, K groups of an example, P positives, B groups of
this device, G rows of a group, m groups of a chunk, T examples that each of
them takes at a time.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj.ops import choice as choice_lib
from xlj.ops import chunks
from xlj.ops import label_step
from xlj.ops import loss as loss_lib
from xlj.ops import platform
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib
from xlj.ops import topk as topk_lib

_MOST_GROUPS = 16  # of a chunk: each is read and written by itself


class Inputs(NamedTuple):
  """The batch as a device sees it: all examples, its own groups.

  Attributes:
    x: `[N, D]` embeddings.
    chosen: `[N, K]` int32 groups of each example, over all devices, distinct;
      -1 is padding.
    targets: Positives by row (not by label), -1 for padding and for those in
      no chosen group; None to predict.
  """

  x: jax.Array
  chosen: jax.Array
  targets: targets_lib.Targets | None = None


class _Pairs(NamedTuple):
  """Pairs of an example and a group of this device, by group.

  Attributes:
    order: `[N K]` number of the pair in `Inputs.chosen`, those of a group next
      to each other.
    starts: `[B]` where those of a group start.
    counts: `[B]` how many there are.
    groups: `[B]` groups, those with most pairs first, so that the groups of a
      chunk need about as many turns.
  """

  order: jax.Array
  starts: jax.Array
  counts: jax.Array
  groups: jax.Array


class _Turn(NamedTuple):
  """Pairs that some groups take at a time.

  Attributes:
    groups: `[m]` groups.
    pairs: `[m, T]` numbers of pairs; N K where there is none left.
    examples: `[m, T]` their examples; some other one where there is none.
  """

  groups: jax.Array
  pairs: jax.Array
  examples: jax.Array

  @property
  def flat(self) -> jax.Array:
    """Examples `[m T]`."""
    return self.examples.reshape(-1)


@dataclasses.dataclass(frozen=True)
class GroupRows:
  """What is known of a device's groups when a step is traced.

  Attributes:
    rows: About the rows; a block of its layout is a group.
  """

  rows: label_step.LabelRows

  @property
  def size(self) -> int:
    """Rows of a group G, padding included."""
    return self.rows.layout.rows_per_block

  @jax.named_scope("pass")
  def step(
    self,
    loss: loss_lib.Loss,
    optimizer: row_optimizer.RowOptimizer,
    step: jax.Array,
    params: dict[str, jax.Array],
    state: row_optimizer.RowState,
    inputs: Inputs,
  ) -> tuple[Any, Any, jax.Array, jax.Array]:
    """Updates the rows of the chosen groups.

    The loss of an example is over the labels of its groups alone.

    Args:
      loss: Loss on a chunk of logits.
      optimizer: How rows are stored and updated. Rows of groups that are not
        chosen stay as they are, and so does their state.
      step: Scalar int32, number of steps taken.
      params: Stored rows `[B G, ...]` and maybe `bias [B G]`.
      state: The optimizer's state of them.
      inputs: The batch.

    Returns:
      New params, new state, this device's part of the gradient of `x` `[N, D]`
      float32, and its part of the weighted mean loss.
    """
    loss = loss_lib.at_step(loss, step)
    scale = label_step.share_of_weights(inputs.targets)
    pairs = self._pairs(inputs)
    stats = self._statistics(loss, params, inputs, pairs)
    by_row, others = optimizer.split(state)
    finished = optimizer.finish(params, state)
    width = inputs.chosen.shape[1]
    unknown = lax.bitcast_convert_type(scale[0], jnp.int32) & 1

    def chunk(groups, part, losses, dx):
      params, by_row, master = part
      rows, rows_vjp = self.rows.decoded(params)
      rows = self._blocks(rows)

      def turn(turn, carry):
        losses, dx, drows, dbias = carry
        xs = inputs.x[turn.examples].astype(rows.dtype)
        value, grad = loss.value_and_grad(
          jax.tree.map(lambda a: a[turn.flat], stats),
          self._logits(xs, rows, params, turn.groups),
          self._positives(inputs, turn),
        )
        share = scale.at[turn.pairs // width].get(mode="fill", fill_value=0)
        losses += (value.reshape(share.shape) * share).sum()
        grad = grad.reshape(*share.shape, self.size) * share[..., None]
        dbias += grad.sum(1)
        grad = grad.astype(rows.dtype)
        dx = dx.at[turn.examples].add(_product("mtg,mgd->mtd", grad, rows))
        drows += _product("mtg,mtd->mgd", grad, xs)
        return losses, dx, drows, dbias

      zeros = jnp.zeros_like(rows, dtype=jnp.float32)
      zeros = chunks.mark_varying(zeros, tuple(chunks.varying(dx)))
      losses, dx, drows, dbias = self._turns(
        inputs, pairs, groups, turn, (losses, dx, zeros, zeros[..., 0])
      )
      grads = {"rows": rows_vjp(drows.reshape(-1, drows.shape[-1]))}
      if "bias" in params:
        grads["bias"] = dbias.reshape(-1)
      known = optimizer.join(state, by_row, others)._replace(master=master)
      new, known = optimizer.update(
        step, self._row_ids(groups), params, known, grads
      )
      return (new, optimizer.split(known)[0], known.master), losses, dx

    def body(groups, carry):
      arrays, losses, dx = carry
      part = chunks.take_blocks(arrays, groups, self.size)
      new, losses, dx = chunks.isolated(
        unknown, lambda *args: chunk(groups, *args), part, losses, dx
      )
      # A chunk may have groups that were not chosen.
      changed = jnp.repeat(pairs.counts[groups] > 0, self.size)
      new = jax.tree.map(
        lambda a, b: jnp.where(_expand(changed, a), a, b), new, part
      )
      arrays = chunks.write_blocks(arrays, new, groups, self.size)
      return arrays, losses, dx

    dx = jnp.zeros_like(inputs.x, dtype=jnp.float32)
    carry = (params, by_row, state.master), jnp.zeros_like(scale[0]), dx
    carry = chunks.mark_varying(carry, self.rows.axes)
    (params, by_row, master), losses, dx = self._for_groups(
      inputs, pairs, body, carry
    )
    state = optimizer.join(state, by_row, finished)
    return params, state._replace(master=master), dx, losses

  def loss(
    self,
    loss: loss_lib.Loss,
    params: dict[str, jax.Array],
    inputs: Inputs,
  ) -> jax.Array:
    """This device's part of the weighted mean loss, without an update."""
    scale = label_step.share_of_weights(inputs.targets)
    pairs = self._pairs(inputs)
    stats = self._statistics(loss, params, inputs, pairs)
    width = inputs.chosen.shape[1]

    def fold(turn, z, total):
      values, _ = loss.value_and_grad(
        jax.tree.map(lambda a: a[turn.flat], stats),
        z,
        self._positives(inputs, turn),
      )
      share = scale.at[turn.pairs // width].get(mode="fill", fill_value=0)
      return total + (values.reshape(share.shape) * share).sum()

    total = chunks.mark_varying(jnp.zeros_like(scale[0]), self.rows.axes)
    return self._fold(params, inputs, pairs, fold, total)

  @jax.named_scope("pass")
  def topk(
    self,
    params: dict[str, jax.Array],
    inputs: Inputs,
    k: int,
    score: Callable[[jax.Array, jax.Array], jax.Array],
    parents: jax.Array,
    choice: choice_lib.Choice,
    offset: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """The best k of this device's rows in each example's groups.

    Args:
      params: Stored rows, and maybe bias.
      inputs: The batch.
      k: How many.
      score: From logits `[..., G]` and their group's score `[..., 1]` to
        scores; what is -inf stays so.
      parents: `[N, K]` scores of the chosen groups.
      choice: The rows of each example that may be chosen.
      offset: `[B G]` to add to the scores, or None.

    Returns:
      Scores `[N, k]`, descending, and int32 rows `[N, k]`; -inf and -1 where
      there are fewer than k.
    """
    pairs = self._pairs(inputs)
    n, width = inputs.chosen.shape
    best = min(k, self.size)

    def fold(turn, z, found):
      shape = *turn.examples.shape, self.size
      parent = parents.reshape(-1).at[turn.pairs].get(mode="clip")
      z = score(z.reshape(shape), parent[..., None])
      if offset is not None:
        part = chunks.take_blocks(offset, turn.groups, self.size)
        z += self._blocks(part)[:, None]
      first = self._first_rows(turn)
      named = choice.map(lambda ids: ids[turn.flat])
      z = named.apply(z.reshape(-1, self.size), first.reshape(-1, 1))
      z = z.reshape(shape)
      scores, columns = lax.top_k(z, best)
      new = scores, first[..., None] + columns.astype(jnp.int32)
      return tuple(
        a.at[turn.pairs].set(b, mode="drop") for a, b in zip(found, new)
      )

    found = (
      jnp.full((n * width, best), -jnp.inf),
      jnp.full((n * width, best), -1, jnp.int32),
    )
    found = chunks.mark_varying(found, self.rows.axes)
    scores, rows = (
      a.reshape(n, -1) for a in self._fold(params, inputs, pairs, fold, found)
    )
    return topk_lib.merge_topk(scores, rows, k)

  # --- parts of a pass -------------------------------------------------------

  def _statistics(self, loss, params, inputs, pairs):
    """The loss's statistics of each example's groups, merged; `[N, ...]`."""
    n, width = inputs.chosen.shape
    stats = loss.init(n, inputs.targets.ids.shape[1])
    if not jax.tree.leaves(stats):
      return stats
    stats = chunks.mark_varying(stats, self.rows.axes)

    def fold(turn, z, stats):
      z = z.reshape(*turn.pairs.shape, self.size)

      def one(i, stats):
        # The examples of one group are distinct: each folds into its own.
        part = jax.tree.map(lambda a: a[i][None], turn)
        known = jax.tree.map(lambda a: a[part.flat], stats)
        known = loss.accumulate(known, z[i], self._positives(inputs, part))
        at = part.pairs[0] // width
        return jax.tree.map(
          lambda a, b: a.at[at].set(b, mode="drop"), stats, known
        )

      return lax.fori_loop(0, z.shape[0], one, stats)

    stats = self._fold(params, inputs, pairs, fold, stats)
    return loss.merge(stats, self.rows.axes) if self.rows.axes else stats

  def _fold(self, params, inputs, pairs, function, carry):
    """Folds all logits into `carry`, without changing rows."""

    def body(groups, carry):
      part = chunks.take_blocks(params, groups, self.size)
      rows = self._blocks(self.rows.decoded(part)[0])

      def turn(turn, carry):
        xs = inputs.x[turn.examples].astype(rows.dtype)
        z = self._logits(xs, rows, part, groups)
        return function(turn, z, carry)

      return self._turns(inputs, pairs, groups, turn, carry)

    return self._for_groups(inputs, pairs, body, carry)

  def _pairs(self, inputs) -> _Pairs:
    """Sorts the pairs of this device's groups."""
    groups = self._num_groups()
    local = inputs.chosen.reshape(-1) - self.rows.first_row() // self.size
    local = jnp.where((local >= 0) & (local < groups), local, groups)
    local = jnp.where(inputs.chosen.reshape(-1) < 0, groups, local)
    order = jnp.argsort(local)
    bounds = jnp.searchsorted(local[order], jnp.arange(groups + 1))
    counts = jnp.diff(bounds)
    return _Pairs(order, bounds[:-1], counts, jnp.argsort(-counts, stable=True))

  def _for_groups(self, inputs, pairs, body, carry):
    """Runs `body(groups [m], carry)` on the chosen groups, m at a time."""
    chosen = (pairs.counts > 0).sum()
    return chunks.for_blocks(
      pairs.groups,
      chosen,
      self._most_groups(inputs),
      lambda _, groups, carry: body(groups, carry),
      carry,
    )

  def _turns(self, inputs, pairs, groups, body, carry):
    """Runs `body(turn, carry)` until all pairs of the groups had theirs."""
    n, width = inputs.chosen.shape
    size = self._turn_size(inputs)
    counts, starts = pairs.counts[groups][:, None], pairs.starts[groups]

    def one(i, carry):
      place = i * size + jnp.arange(size)
      at = starts[:, None] + place
      pair = pairs.order.at[at].get(mode="clip")
      pair = jnp.where(place < counts, pair, n * width)
      example = jnp.minimum(pair // width, n - 1)
      return body(_Turn(groups, pair, example), carry)

    return lax.fori_loop(0, (counts.max() + size - 1) // size, one, carry)

  def _logits(self, xs, rows, part, groups):
    """Logits `[m T, G]` of examples `[m, T, D]`, -inf at padding."""
    z = _product("mtd,mgd->mtg", xs, rows)
    if "bias" in part:
      z += self._blocks(part["bias"])[:, None]
    layout = self.rows.layout
    if layout.num_rows > layout.num_labels:
      is_label = self._blocks(layout.is_label(self._row_ids(groups)))
      z = jnp.where(is_label[:, None], z, -jnp.inf)
    return z.reshape(-1, self.size)

  def _positives(self, inputs, turn):
    """The positives of each example in the group that it is paired with."""
    targets = inputs.targets
    return targets_lib.positives_in_chunk(
      targets.ids[turn.flat],
      self._first_rows(turn).reshape(-1, 1),
      self.size,
      None if targets.values is None else targets.values[turn.flat],
    )

  def _first_rows(self, turn):
    """The first row of each pair's group `[m, T]`, over all devices."""
    first = self.rows.first_row() + turn.groups * self.size
    first = first.astype(jnp.int32)[:, None]
    return jnp.broadcast_to(first, turn.pairs.shape)

  def _row_ids(self, groups):
    """The numbers `[m G]` of groups' rows among those of all devices."""
    rows = groups[:, None] * self.size + jnp.arange(self.size)
    return self.rows.first_row() + rows.reshape(-1)

  def _blocks(self, array):
    """`[m G, ...]` as `[m, G, ...]`."""
    return array.reshape(-1, self.size, *array.shape[1:])

  def _num_groups(self) -> int:
    """Groups of this device B."""
    shards = lax.axis_size(self.rows.axes) if self.rows.axes else 1
    return self.rows.layout.num_blocks // shards

  def _turn_size(self, inputs) -> int:
    """Examples that a group takes at a time: about what it has on average."""
    average = inputs.chosen.size / self.rows.layout.blocks
    return min(inputs.x.shape[0], 8 * max(1, math.ceil(average / 8)))

  def _most_groups(self, inputs) -> int:
    """Groups of a chunk at most."""
    numbers = self._turn_size(inputs) * (3 * self.size + 2 * inputs.x.shape[1])
    numbers += 2 * self.size * inputs.x.shape[1]
    memory = self.rows.memory or chunks.default_memory()
    return max(1, min(_MOST_GROUPS, memory // (4 * numbers)))


def _product(form: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """`einsum` summed in float32.

  XLA on CPUs has no batches of bfloat16 products with float32 results.
  """
  if platform.current() == "cpu":
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return jnp.einsum(form, a, b, preferred_element_type=jnp.float32)


def _expand(mask: jax.Array, like: jax.Array) -> jax.Array:
  """A mask `[c]` in a shape that broadcasts to `[c, ...]`."""
  return mask.reshape(-1, *[1] * (like.ndim - 1))
