"""Multi-Head Cascade: groups first, then the labels of the likely ones.

Labels are leaves of a tree of H >= 2 levels. The first level is dense. At every
further one, an example is scored against the children of K nodes alone: in
training the nodes of its positives, and the highest-scoring others; in
prediction the K best. So a step costs `C_1 + K G` rows an example, for C_1
groups of G labels, instead of `C_1 G`. Source: Liang et al. 2024, "Multi-head
encoding for extreme label classification" (TPAMI), section on MHC; there with
binary cross-entropy.

Label i of a level is a child of node `i % C`, C the number of nodes of the
level above (see `xlj.ops.layout`): the order of labels makes the tree.

Legend: N examples, D width, P positives, K nodes of an example, C nodes of a
level, L labels.
"""

import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from xlj import sharding
from xlj.heads import head as head_lib
from xlj.heads.cascade import group_step
from xlj.heads.dense import head as dense
from xlj.losses import separable
from xlj.ops import choice as choice_lib
from xlj.ops import feature_rows
from xlj.ops import label_step
from xlj.ops import layout as layout_lib
from xlj.ops import precision
from xlj.ops import targets as targets_lib
from xlj.ops import topk as topk_lib

P = jax.P
# Of a node's logit in the scores of its labels, if they are not probabilities;
# between 0 and 1 held-out accuracy changes little around the middle.
_NODE_WEIGHT = 0.5
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CascadeHead:
  """A dense head for each level, the nodes of one being blocks of the next.

  Attributes:
    levels: Heads of the levels from the root on, with embeddings alone; the
      last one is of the labels. The blocks of each are the labels of the one
      above.
    candidates: Nodes K of each level whose children an example is trained
      with.
    beam: Nodes of each level that prediction goes on with; 0 for `candidates`.
  """

  levels: tuple[dense.DenseHead, ...]
  candidates: int
  beam: int = 0

  def __post_init__(self) -> None:
    """Checks that the levels fit.

    Raises:
      ValueError: Naming the level and what is wrong with it.
    """
    if len(self.levels) < 2:
      raise ValueError("a cascade needs at least two levels; use a dense head")
    if self.candidates < 1 or self.beam < 0:
      raise ValueError(
        f"candidates is {self.candidates} and beam {self.beam}; they must be"
        " positive"
      )
    for i, head in enumerate(self.levels):
      rows = head.label_rows
      if not head.dim or rows.wide_features:
        raise ValueError(f"level {i} must have label rows and no wide path")
      above = self.levels[i - 1].layout.num_labels
      if i and rows.blocks != above:
        raise ValueError(
          f"level {i} has {rows.blocks} blocks; the level above it has"
          f" {above} labels"
        )
      if i and rows.optimizer.correction == "kahan":
        raise ValueError("a cascade has no Kahan compensation; use 'none'")

  @property
  def name(self) -> str:
    """What users call it."""
    return "mhc"

  @property
  def can(self) -> frozenset[str]:
    """What it can do (see `xlj.heads.head`)."""
    can = frozenset({"offset", "centroids", "mean"})
    return can | (self.levels[-1].can & {"prior"})

  @property
  def confidences(self) -> tuple[str, ...]:
    """What `confidence` can go by."""
    return ()

  @property
  def dim(self) -> int:
    """Width D of the embeddings."""
    return self.levels[-1].dim

  @property
  def is_likelihood(self) -> bool:
    """Whether the loss is a likelihood; it leaves labels out, so it is not."""
    return False

  @property
  def layout(self) -> layout_lib.Layout:
    """Where each label's row is."""
    return self.levels[-1].layout

  @property
  def num_rows(self) -> int:
    """Number of label rows including padding."""
    return self.levels[-1].num_rows

  def init(self, key: jax.Array) -> Params:
    """Initial parameters: those of each level by its number."""
    keys = jax.random.split(key, len(self.levels))
    return self._map(lambda head, key: head.init(key), keys)

  def init_optimizer(self, params: Params) -> Any:
    """Optimizer state of each level."""
    return self._map(lambda head, part: head.init_optimizer(part), params)

  def specs(self) -> Any:
    """`PartitionSpec` of each parameter."""
    return self._map(lambda head: head.specs())

  def optimizer_specs(self) -> Any:
    """`PartitionSpec` of each leaf of the optimizer state."""
    return self._map(lambda head: head.optimizer_specs())

  def step(
    self,
    params: Params,
    opt_state: Any,
    step: jax.Array,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> tuple[Params, Any, Any, label_step.Metrics]:
    """One training step; the loss is the sum of those of the levels.

    The loss of a level below the first is over the children of the K chosen
    nodes. Of an example with more than K nodes of positives some positives do
    not count in it. Rows that no example was scored against stay as they are,
    and so does the optimizer's state of them.

    Args:
      params: Parameters, sharded as `specs()`.
      opt_state: Optimizer state, sharded as `optimizer_specs()`.
      step: Scalar int32, number of steps taken.
      x: `[N, D]` embeddings sharded over examples.
      features: None.
      targets: Positives and example weights, sharded over examples.
      label_values: None.

    Returns:
      New parameters, new optimizer state, `dx [N, D]` sharded over examples,
      and "loss", a scalar.
    """
    x = head_lib.embeddings(
      self, x, features=features, label_values=label_values
    )
    nodes = self._nodes(targets)
    new, states = {}, {}
    first, chosen = self._first(params, x, nodes[0], self.candidates)
    found = first.step(params["0"], opt_state["0"], step, x, None, nodes[0])
    new["0"], states["0"], dx, metrics = found
    loss = metrics["loss"]
    assert dx is not None  # There are embeddings.
    for i, head in enumerate(self.levels[1:], 1):
      name = str(i)
      following = chosen
      if i + 1 < len(self.levels):
        following = self._choose(i, params[name], x, chosen, nodes[i])
      found = _step(
        head, params[name], opt_state[name], step, x, chosen, nodes[i]
      )
      new[name], states[name], more, value = found
      dx, loss, chosen = dx + more, loss + value, following
    return new, states, dx, {"loss": loss}

  def evaluate_loss(
    self,
    params: Params,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> jax.Array:
    """The loss of a batch as in `step`, without an update."""
    x = head_lib.embeddings(
      self, x, features=features, label_values=label_values
    )
    nodes = self._nodes(targets)
    first, chosen = self._first(params, x, nodes[0], self.candidates)
    loss = first.evaluate_loss(params["0"], x, None, nodes[0])
    for i, head in enumerate(self.levels[1:], 1):
      part = params[str(i)]
      loss += _loss(head, part, x, chosen, nodes[i])
      if i + 1 < len(self.levels):
        chosen = self._choose(i, part, x, chosen, nodes[i])
    return loss

  @precision.exact
  def topk(
    self,
    params: Params,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    k: int,
    choice: choice_lib.Choice | None = None,
    offset: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """The k labels of highest score among the children of the best nodes.

    With binary losses the score of a label is the logarithm of the product of
    the probabilities of its nodes and its own. With others it is its logit plus
    half that of its node: labels were never trained against the examples that
    their node is far from.

    Args:
      params: Parameters, sharded as `specs()`.
      x: `[N, D]` embeddings sharded over examples.
      features: None.
      k: How many labels.
      choice: The label ids that may be returned; by default all.
      offset: `[L]` added to the scores, sharded like the label rows.

    Returns:
      Scores `[N, k]`, descending, and int32 ids `[N, k]`, sharded over
      examples; id -1 and score -inf where fewer than k labels were scored.
    """
    choice = choice_lib.of(choice)
    x = head_lib.embeddings(self, x, features=features, extra=choice.extra)
    beam = self.beam or self.candidates
    head, part = self.levels[0], params["0"]
    count = min(beam, head.layout.num_labels)
    choices = self._choices(choice)
    scores, ids = head.topk(part, x, None, count, choices[0])
    scores = self._score(0, scores, jnp.zeros_like(scores))
    for i, head in enumerate(self.levels[1:], 1):
      last = i + 1 == len(self.levels)
      scores, ids = self._level_topk(
        i,
        params[str(i)],
        x,
        ids,
        scores,
        k if last else min(beam, head.layout.num_labels),
        choices[i],
        offset if last else None,
      )
    return scores, ids

  def at_prior(
    self, params: Params, counts: jax.Array, num_examples: int
  ) -> Params:
    """As `DenseHead.at_prior`; nodes take the counts of their labels."""
    head_lib.need(self, "prior")
    new = {}
    for i, head in reversed(list(enumerate(self.levels))):
      new[str(i)] = head.at_prior(params[str(i)], counts, num_examples)
      if i:
        counts = self._of_nodes(i, counts)
    return new

  def zero_sums(self) -> jax.Array:
    """As `DenseHead.zero_sums`, for the labels."""
    return self.levels[-1].zero_sums()

  def add_to_rows(
    self, rows: jax.Array, ids: targets_lib.Array, x: jax.Array
  ) -> jax.Array:
    """As `DenseHead.add_to_rows`, for the labels."""
    return self.levels[-1].add_to_rows(rows, ids, x)

  def at_centroids(
    self, params: Params, sums: jax.Array, length: float
  ) -> Params:
    """As `DenseHead.at_centroids`; nodes take the sums of their labels."""
    new = {}
    for i, head in reversed(list(enumerate(self.levels))):
      new[str(i)] = head.at_centroids(params[str(i)], sums, length)
      if i:
        sums = self._of_nodes(i, sums)
    return new

  def _of_nodes(self, i: int, values: jax.Array) -> jax.Array:
    """Sums by row of the level above i, of values `[L, ...]` by row of i."""
    layout, rest = self.levels[i].layout, values.shape[1:]
    total = sharding.by_compiler(
      lambda a: a.reshape(layout.num_blocks, -1, *rest).sum(1)
    )
    by_node = jax.reshard(total(values), sharding.REPLICATED)[: layout.blocks]
    by_row = self.levels[i - 1].layout.by_row(by_node, 0)
    return jax.reshard(by_row, sharding.LABELS)

  rows = head_lib.refused(head_lib.Head.rows, "rows")
  tied_step = head_lib.refused(head_lib.Head.tied_step, "tied")
  with_keys = head_lib.refused(head_lib.Head.with_keys, "keys")
  with_pairs = head_lib.refused(head_lib.Head.with_pairs, "features")
  confidence = head_lib.without_confidence

  # --- parts -----------------------------------------------------------------

  def _map(self, function: Any, *trees: Any) -> dict[str, Any]:
    """`function(head, part of each tree)` of each level by its number."""
    return {
      str(i): function(
        head, *(t[str(i)] if isinstance(t, dict) else t[i] for t in trees)
      )
      for i, head in enumerate(self.levels)
    }

  def _score(self, i: int, z: jax.Array, parent: jax.Array) -> jax.Array:
    """Scores of nodes of level i from logits and the scores of parents."""
    if isinstance(self.levels[i].loss, separable.Separable):
      return jax.nn.log_sigmoid(z) + parent
    return z + _NODE_WEIGHT * parent

  def _nodes(self, targets: targets_lib.Targets) -> list[targets_lib.Targets]:
    """Targets of each level: the nodes above the positives, each once."""
    found = [targets]
    for head in reversed(self.levels[1:]):
      ids = jnp.asarray(found[0].ids)
      ids = _distinct(jnp.where(ids < 0, -1, ids % head.layout.blocks))
      found.insert(0, targets._replace(ids=ids, values=None))
    return found

  def _choices(self, choice: choice_lib.Choice) -> list[choice_lib.Choice]:
    """For each level what it may choose: nodes that have labels to choose."""
    found = [choice]
    for i, head in reversed(list(enumerate(self.levels))[1:]):
      allowed, blocks = found[0].allowed, head.layout.blocks
      if allowed is not None:
        allowed = self._of_nodes(i, allowed.astype(jnp.float32)) > 0
      ids = found[0].ids if choice.only else None
      if ids is not None:
        ids = jnp.where(ids < 0, -1, ids % blocks)
      found.insert(0, choice_lib.Choice(ids, choice.only, allowed))
    return found

  def _first(
    self,
    params: Params,
    x: jax.Array,
    nodes: targets_lib.Targets,
    count: int,
  ) -> tuple[dense.DenseHead, jax.Array]:
    """The first level, and the nodes `[N, K]` of it to go on with."""
    head = self.levels[0]
    count = min(count, head.layout.num_labels)
    sure = jnp.asarray(nodes.ids)
    others = choice_lib.Choice(sure)
    _, best = head.topk(params["0"], x, None, count, others)
    return head, _first_of(sure, best, count)

  def _choose(
    self,
    i: int,
    params: Params,
    x: jax.Array,
    chosen: jax.Array,
    nodes: targets_lib.Targets,
  ) -> jax.Array:
    """The nodes `[N, K]` of level i to go on with."""
    count = min(self.candidates, self.levels[i].layout.num_labels)
    scores = jnp.zeros_like(chosen, jnp.float32)
    sure = jnp.asarray(nodes.ids)
    others = choice_lib.Choice(sure)
    _, best = self._level_topk(i, params, x, chosen, scores, count, others)
    return _first_of(sure, best, count)

  def _level_topk(
    self,
    i: int,
    params: Params,
    x: jax.Array,
    chosen: jax.Array,
    parents: jax.Array,
    k: int,
    choice: choice_lib.Choice,
    offset: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """The best k children of the chosen nodes, `[N, k]`."""
    head = self.levels[i]

    @jax.shard_map(
      in_specs=(
        head.specs(),
        *(sharding.BATCH,) * 3,
        choice.specs(),
        None if offset is None else sharding.LABELS,
      ),
      out_specs=(sharding.BATCH, sharding.BATCH),
    )
    def run(params, x, chosen, parents, choice, offset):
      x, chosen, parents = sharding.gather_batch((x, chosen, parents))
      of_rows = choice.gathered().map(head.label_rows.of_labels)
      scores, rows = group_step.GroupRows(head.label_rows.of_device()).topk(
        params,
        group_step.Inputs(x, chosen),
        k,
        lambda z, parent: self._score(i, z, parent),
        parents,
        of_rows,
        choice.offset(offset),
      )
      ids = jnp.where(rows < 0, -1, head.layout.label_of_row(rows))
      best = topk_lib.Best(scores, ids)
      return tuple(topk_lib.merge(best, sharding.AXES, sharding.AXES))

    return run(params, x, chosen, parents, choice, offset)


def _step(head, params, opt_state, step, x, chosen, targets):
  """A training step of a level below the first."""

  @jax.shard_map(
    in_specs=(
      head.specs(),
      head.optimizer_specs(),
      sharding.REPLICATED,
      *(sharding.BATCH,) * 3,
    ),
    out_specs=(
      head.specs(),
      head.optimizer_specs(),
      sharding.BATCH,
      sharding.REPLICATED,
    ),
  )
  def run(params, opt_state, step, x, chosen, targets):
    inputs = _inputs(head, x, chosen, targets)
    rows = group_step.GroupRows(head.label_rows.of_device())
    optimizer = head.label_rows.optimizer
    new, opt_state, dx, loss = rows.step(
      head.loss, optimizer, step, params, opt_state, inputs
    )
    dx = sharding.scatter_batch(dx).astype(x.dtype)
    return new, opt_state, dx, lax.psum(loss, sharding.AXES)

  return run(params, opt_state, step, x, chosen, targets)


def _loss(head, params, x, chosen, targets):
  """The loss of a level below the first."""

  @jax.shard_map(
    in_specs=(head.specs(), *(sharding.BATCH,) * 3),
    out_specs=sharding.REPLICATED,
  )
  def run(params, x, chosen, targets):
    inputs = _inputs(head, x, chosen, targets)
    rows = group_step.GroupRows(head.label_rows.of_device())
    return lax.psum(rows.loss(head.loss, params, inputs), sharding.AXES)

  return run(params, x, chosen, targets)


def _inputs(head, x, chosen, targets):
  """What a device is given of a batch: positives in chosen nodes alone."""
  x, chosen, targets = sharding.gather_batch((x, chosen, targets))
  ids = jnp.asarray(targets.ids)
  there = (ids[:, :, None] % head.layout.blocks == chosen[:, None]).any(2)
  ids = head.label_rows.of_labels(jnp.where((ids >= 0) & there, ids, -1))
  return group_step.Inputs(x, chosen, targets._replace(ids=ids))


def _distinct(ids: jax.Array) -> jax.Array:
  """Each id of an example once; the others become -1."""
  ids = jnp.sort(ids, axis=1)
  again = ids[:, 1:] == ids[:, :-1]
  return ids.at[:, 1:].set(jnp.where(again, -1, ids[:, 1:]))


def _first_of(sure: jax.Array, others: jax.Array, count: int) -> jax.Array:
  """The first `count` of the ids that are sure, then of the others."""
  ids = jnp.concatenate([sure, others], 1)
  order = jnp.argsort(ids < 0, axis=1, stable=True)
  return jnp.take_along_axis(ids, order[:, :count], 1)
