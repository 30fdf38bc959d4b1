"""The dense head: one weight row per label, sharded by rows over all devices.

`logits = x W^T + b (+ S V)`, with embeddings `x [N, D]`, label rows `W [L, D]`,
bias `b [L]` and, optionally, a wide path: linear weights `V [F, L]` on the
sparse features `S` of the examples, which exist where a feature and a label
meet in training rows (see `xlj.ops.pairs`). Without an embedding (`dim = 0`) it
is the linear one-vs-all model, and may take a step by each example of a batch.
For what is stored of a label, and where, see `xlj.heads.dense.rows`.

Each device computes the logits of its own labels; the embeddings are gathered
to all devices, their gradient is reduce-scattered back.

A training step may visit some of the blocks of labels alone, those of the
batch's positives and others (see `xlj.heads.dense.block_sample`), or run
kernels (see `xlj.heads.dense.kernels`).

Legend: N examples of the batch, n of this device, L labels (padded), l of this
device, D embedding width, F features, P positives, K features per example.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from xlj import sharding
from xlj.heads import head as head_lib
from xlj.heads.dense import block_sample
from xlj.heads.dense import kernels as kernels_lib
from xlj.heads.dense import rows as rows_lib
from xlj.heads.dense import tied
from xlj.heads.dense import wide as wide_lib
from xlj.losses import decoupled_softmax
from xlj.losses import logit_adjustment
from xlj.losses import margin
from xlj.losses import softmax
from xlj.ops import choice as choice_lib
from xlj.ops import chunks
from xlj.ops import feature_rows
from xlj.ops import label_step
from xlj.ops import layout as layout_lib
from xlj.ops import loss as loss_lib
from xlj.ops import targets as targets_lib
from xlj.ops import topk as topk_lib
from xlj.ops.pairs import label_pairs

P = jax.P
Params = rows_lib.Params
ArrayLike = jax.typing.ArrayLike


@dataclasses.dataclass(frozen=True)
class DenseHead:
  """Label rows, bias and wide path with their loss and optimizers.

  Attributes:
    label_rows: What is stored of labels, and how it is updated.
    loss: Loss on a chunk of logits.
    wide_learning_rate: Step -> learning rate of the wide path's SGD.
    by_example: To take a step by each example in place of one by the batch;
      None not to. `loss` is that of validations then.
    kernels: "auto" for the kernels of `xlj.ops.kernels` where they apply and
      there is a CUDA device, "interpret" to interpret them anywhere, "never"
      for XLA alone.
    sample_blocks: How many blocks a training step visits, over all devices:
      the softmax is then over their labels alone, corrected to be on average
      that over all. It visits more if more have positives. Other rows, and the
      optimizer's state of them, stay as they are: decay and momentum act when
      a row is visited. 0 visits all.
    hard_blocks: How many of them are those, beside the ones with positives,
      whose mean row has the greatest product with an example of the batch.
  """

  label_rows: rows_lib.Rows
  loss: loss_lib.Loss
  wide_learning_rate: Callable[[jax.Array], ArrayLike] = lambda _: 0.0
  by_example: wide_lib.ByExample | None = None
  kernels: str = "never"
  sample_blocks: int = 0
  hard_blocks: int = 0

  def __post_init__(self) -> None:
    """Refuses what does not go with visiting some blocks alone.

    Raises:
      ValueError: Naming the field.
    """
    if not 0 <= self.hard_blocks <= max(self.sample_blocks, 0):
      raise ValueError(
        f"hard_blocks is {self.hard_blocks}; it must be at least 0 and at most"
        f" sample_blocks, {self.sample_blocks}"
      )
    if not self.sample_blocks:
      return
    rows = self.label_rows
    for field, found in (
      ("sample_blocks is negative", self.sample_blocks < 0),
      ("dim is 0", not rows.dim),
      ("wide_features: a wide path", bool(rows.wide_features)),
      ("kahan_labels: a part of the labels", bool(rows.kahan_labels)),
      ("kernels is 'interpret'", self.kernels == "interpret"),
      ("loss: not one of a softmax", not _has_softmax(self.loss)),
    ):
      if found:
        raise ValueError(f"{field} does not go with sample_blocks")

  @property
  def name(self) -> str:
    """What users call it."""
    return "mhs" if self.sample_blocks else "dense"

  @property
  def can(self) -> frozenset[str]:
    """What it can do (see `xlj.heads.head`)."""
    rows, part = self.label_rows, bool(self.sample_blocks)
    return frozenset(
      ability
      for ability, can in (
        ("linear", not rows.dim),
        ("features", bool(rows.wide_features)),
        ("label_values", True),
        ("offset", True),
        ("extra", True),
        ("prior", rows.use_bias),
        ("centroids", bool(rows.dim)),
        ("rows", not part),
        ("mean", True),
        ("plan", not part),
        ("tied", bool(rows.dim) and not part),
      )
      if can
    )

  @property
  def confidences(self) -> tuple[str, ...]:
    """What `confidence` can go by."""
    return () if self.sample_blocks else ("probability",)

  @property
  def is_likelihood(self) -> bool:
    """Whether the loss is a negative log-likelihood of the positives."""
    return isinstance(self.loss, softmax.Softmax) and not self.loss.z_loss

  @property
  def dim(self) -> int:
    """Width D of the embeddings; 0 for a purely linear model."""
    return self.label_rows.dim

  @property
  def layout(self) -> layout_lib.Layout:
    """Where each label's row is."""
    return self.label_rows.layout

  @property
  def num_rows(self) -> int:
    """Number of label rows including padding."""
    return self.label_rows.num_rows

  # --- parameters ------------------------------------------------------------

  def init(self, key: jax.Array) -> Params:
    """Initial parameters, on the mesh in context if there is one.

    Args:
      key: Random key.

    Returns:
      Those of `Rows.init`.
    """
    return self.label_rows.init(key)

  def init_optimizer(self, params: Params) -> Any:
    """Optimizer state for `params` (the wide path has none).

    Args:
      params: Parameters.

    Returns:
      `row_optimizer.RowState`, or `block_sample.State` with hard blocks.
    """
    state = self.label_rows.init_optimizer(params)
    if not self.hard_blocks:
      return state

    def local(params):
      rows = self.label_rows
      blocks = self.layout.num_blocks // sharding.num_shards()
      every = jnp.arange(blocks, dtype=jnp.int32)
      visit = label_step.Visit(every, jnp.int32(blocks), jnp.zeros(blocks))
      empty = jnp.zeros((blocks, rows.dim))
      return block_sample.refreshed(rows.of_device(), params, empty, visit)

    if sharding.axes():
      local = jax.shard_map(
        local, in_specs=(self.specs(),), out_specs=sharding.LABELS
      )
    return block_sample.State(state, local(params))

  def specs(self) -> dict[str, P]:
    """`PartitionSpec` of each parameter."""
    return self.label_rows.specs()

  def optimizer_specs(self) -> Any:
    """`PartitionSpec` of each leaf of the optimizer state."""
    specs = self.label_rows.optimizer_specs()
    if self.hard_blocks:
      return block_sample.State(specs, sharding.LABELS)
    return specs

  def rows(self, params: Params) -> jax.Array:
    """The label rows `[L, D]` as float32, row by row (see `Layout.by_row`)."""
    head_lib.need(self, "rows")
    return self.label_rows.decoded(params)

  def at_prior(
    self, params: Params, counts: jax.Array, num_examples: int
  ) -> Params:
    """Parameters with the log odds of the labels as bias; see `Head`."""
    head_lib.need(self, "prior")
    return self.label_rows.at_prior(params, counts, num_examples)

  def zero_sums(self) -> jax.Array:
    """Zeros `[L, D]`, what `add_to_rows` starts with."""
    head_lib.need(self, "centroids")
    return jnp.zeros((self.num_rows, self.dim))

  def add_to_rows(
    self, rows: jax.Array, ids: targets_lib.Array, x: jax.Array
  ) -> jax.Array:
    """Adds each example's vector to the rows of its labels; see `Head`."""
    return self.label_rows.add_to_rows(rows, ids, x)

  def at_centroids(
    self, params: Params, sums: jax.Array, length: float
  ) -> Params:
    """Parameters with rows in the direction of their examples; see `Head`."""
    head_lib.need(self, "centroids")
    return self.label_rows.at_centroids(params, sums, length)

  def with_pairs(self, params: Params, *arrays: jax.Array) -> Params:
    """Parameters with a wide path for pairs that meet; see `Head`."""
    head_lib.need(self, "features")
    return params | dict(zip(rows_lib.PAIRS, arrays))

  with_keys = head_lib.refused(head_lib.Head.with_keys, "keys")

  # --- training --------------------------------------------------------------

  def step(
    self,
    params: Params,
    opt_state: Any,
    step: jax.Array,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> tuple[Params, Any, jax.Array | None, label_step.Metrics]:
    """One training step of the head.

    Args:
      params: Parameters, sharded as `specs()`.
      opt_state: Optimizer state, sharded as `optimizer_specs()`.
      step: Scalar int32, number of steps taken.
      x: `[N, D]` embeddings sharded over examples; None if `dim` is 0.
      features: Sparse features for the wide path; None without one.
      targets: Positives and example weights, sharded over examples.
      label_values: Vectors `[L]` by row (`Layout.by_row`), sharded like rows,
        that the loss needs, by name, or "rate", what a step by each example
        multiplies learning rates by; None if there are none.

    Returns:
      New parameters, new optimizer state, `dx [N, D]` sharded over examples,
      and "loss", the weighted mean over the batch, with what the loss reports
      (see `xlj.ops.loss.Reporting`), the same on all devices.
    """
    head_lib.check(self, x, features=features)

    @jax.shard_map(
      in_specs=(
        self.specs(),
        self.optimizer_specs(),
        sharding.REPLICATED,
        *self._input_specs(x, features),
        sharding.BATCH,
        sharding.LABELS,
      ),
      out_specs=(
        self.specs(),
        self.optimizer_specs(),
        None if x is None else sharding.BATCH,
        sharding.REPLICATED,
      ),
      # An interpreted kernel does not say what varies between devices.
      check_vma=not (self.uses_kernels and self.kernels == "interpret"),
    )
    def run(params, opt_state, step, x, features, targets, label_values):
      x, features, targets = sharding.gather_batch((x, features, targets))
      if self.by_example is not None:
        rate = self.wide_learning_rate(step)
        new, loss = wide_lib.step_by_example(
          *(self.label_rows, self.by_example, rate, params, step),
          *(features, targets, label_values["rate"]),
        )
        return new, opt_state, None, {"loss": lax.psum(loss, sharding.AXES)}
      inputs = self._inputs(params, x, features, targets, label_values)
      if self.uses_kernels:
        dwide = None
        new, opt_state, dx, metrics = kernels_lib.step(
          *(self.label_rows, self.loss, step, params, opt_state, inputs),
          self.kernels == "interpret",
        )
      else:
        new, opt_state, dx, dwide, metrics = self._row_step(
          params, opt_state, step, inputs
        )
      if dx is not None:
        dx = sharding.scatter_batch(dx).astype(x.dtype)
      if features is not None:
        assert dwide is not None  # There are logits from the features.
        # No number of their gradient is larger than this product.
        bound = jnp.abs(features.values).sum() * jnp.abs(dwide).sum()
        metrics["loss"] += 0 * bound
        rate = jnp.asarray(self.wide_learning_rate(step))
        new |= wide_lib.updated(params, features, dwide, rate)
      metrics["loss"] = lax.psum(metrics["loss"], sharding.AXES)
      return new, opt_state, dx, self._by_label(metrics)

    return run(params, opt_state, step, x, features, targets, label_values)

  def tied_step(
    self,
    params: Params,
    opt_state: Any,
    step: jax.Array,
    embed: Callable[[Any, jax.Array], jax.Array],
    encoder: Any,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> tuple[Params, Any, Any, label_step.Metrics]:
    """A step whose embeddings are made of label rows too; see `Head`."""
    head_lib.need(self, "tied")
    state = self.label_rows, self.loss, params, opt_state, step
    return tied.step(*state, embed, encoder, targets, label_values)

  def _by_label(self, metrics: label_step.Metrics) -> label_step.Metrics:
    """What a step reports, with labels in place of rows."""
    found = {}
    for name, a in metrics.items():
      # It is the same on all devices, but that cannot be seen from its type.
      axes = tuple(chunks.varying(a))
      a = lax.pmax(a, axes) if axes else a
      if name.endswith("_ids"):
        a = jnp.where(a < 0, -1, self.layout.label_of_row(a))
      found[name] = a
    return found

  def evaluate_loss(
    self,
    params: Params,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> jax.Array:
    """The loss of a batch over all labels; for arguments see `step`."""
    head_lib.check(self, x, features=features)

    @jax.shard_map(
      in_specs=(
        self.specs(),
        *self._input_specs(x, features),
        sharding.BATCH,
        sharding.LABELS,
      ),
      out_specs=sharding.REPLICATED,
    )
    def run(params, x, features, targets, label_values):
      x, features, targets = sharding.gather_batch((x, features, targets))
      inputs = self._inputs(params, x, features, targets, label_values)
      rows, params = self.label_rows.of_device(), rows_lib.without_wide(params)
      loss = rows.loss(self.loss, params, inputs)
      return lax.psum(loss, sharding.AXES)

    return run(params, x, features, targets, label_values)

  def topk(
    self,
    params: Params,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    k: int,
    choice: choice_lib.Choice | None = None,
    offset: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """The k labels of highest score for each example, exactly.

    Args:
      params: Parameters, sharded as `specs()`.
      x: `[N, D]` embeddings sharded over examples; None if `dim` is 0.
      features: Sparse features for the wide path; None without one.
      k: How many labels.
      choice: The label ids that may be returned; by default all.
      offset: `[L]` added to the logits before ranking, sharded like the rows.

    Returns:
      Scores `[N, k]`, descending, and int32 ids `[N, k]`, sharded over
      examples; id -1 and score -inf where fewer than k labels exist.
    """
    head_lib.check(self, x, features=features)
    choice = choice_lib.of(choice)

    @jax.shard_map(
      in_specs=(
        self.specs(),
        *self._input_specs(x, features),
        choice.specs(),
        None if offset is None else sharding.LABELS,
      ),
      out_specs=(sharding.BATCH, sharding.BATCH),
    )
    def run(params, x, features, choice, offset):
      x, features = sharding.gather_batch((x, features))
      inputs = self._inputs(params, x, features)
      choice = choice.gathered().map(self.label_rows.of_labels)
      scores, rows = self.label_rows.of_device().topk(
        rows_lib.without_wide(params), inputs, k, choice, choice.offset(offset)
      )
      ids = jnp.where(rows < 0, -1, self.layout.label_of_row(rows))
      best = topk_lib.Best(scores, ids)
      return tuple(topk_lib.merge(best, sharding.AXES, sharding.AXES))

    return run(params, x, features, choice, offset)

  def confidence(
    self,
    params: Params,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    by: str = "probability",
  ) -> jax.Array:
    """The largest probability of a softmax over the labels of each example.

    Args:
      params: Parameters, sharded as `specs()`.
      x: `[N, D]` embeddings sharded over examples; None if `dim` is 0.
      features: Sparse features for the wide path; None without one.
      by: "probability".

    Returns:
      `[N]`, sharded over examples.
    """
    head_lib.check_confidence(self, by)
    head_lib.check(self, x, features=features)

    @jax.shard_map(
      in_specs=(self.specs(), *self._input_specs(x, features)),
      out_specs=sharding.REPLICATED,
    )
    def run(params, x, features):
      x, features = sharding.gather_batch((x, features))
      inputs = self._inputs(params, x, features)
      like = inputs.logits if inputs.x is None else inputs.x
      assert like is not None  # A head has one of them.
      ids = jnp.full_like(like, -1, shape=(like.shape[0], 1), dtype=jnp.int32)
      targets = targets_lib.Targets(ids, jnp.ones_like(like[:, 0]))
      stats = self.label_rows.of_device().statistics(
        softmax.Softmax(),
        rows_lib.without_wide(params),
        inputs._replace(targets=targets),
      )
      return 1 / stats.total  # the exponential of the largest logit is 1 there

    return jax.reshard(run(params, x, features), sharding.BATCH)

  @property
  def uses_kernels(self) -> bool:
    """Whether a step runs the kernels."""
    if self.kernels == "never" or self.why_no_kernels():
      return False
    return self.kernels == "interpret" or kernels_lib.have_a_device()

  def why_no_kernels(self) -> str:
    """What keeps kernels from doing this head's step; empty if nothing does."""
    if self.sample_blocks:
      return "it visits some blocks alone"
    return kernels_lib.why_not(self.label_rows, self.loss)

  def _row_step(self, params, opt_state, step, inputs):
    """What `LabelRows.step` does, on the blocks to visit."""
    rows, optimizer = self.label_rows.of_device(), self.label_rows.optimizer
    params, state, centroids = rows_lib.without_wide(params), opt_state, None
    if self.hard_blocks:
      state, centroids = opt_state
    if self.sample_blocks:
      visit = self._visit(step, inputs, centroids)
      inputs = inputs._replace(visit=visit)
    new, state, dx, dwide, metrics = rows.step(
      self.loss, optimizer, step, params, state, inputs
    )
    if centroids is not None:
      centroids = block_sample.refreshed(rows, new, centroids, inputs.visit)
      state = block_sample.State(state, centroids)
    return new, state, dx, dwide, metrics

  def _visit(self, step, inputs, centroids) -> label_step.Visit:
    """The blocks that this device visits in a step."""
    rows, scores, targets = self.label_rows, None, inputs.targets
    if centroids is not None:
      scores = block_sample.scores(
        inputs.x, targets.weights, centroids, rows.memory
      )
      scores = lax.all_gather(scores, sharding.AXES, tiled=True)[: rows.blocks]
    size = self.layout.rows_per_block
    choice = block_sample.choose(
      block_sample.of_positives(targets.ids, size, rows.blocks),
      self.sample_blocks,
      block_sample.random_keys(rows.optimizer.seed, step, rows.blocks),
      scores,
      self.hard_blocks,
    )
    blocks = self.layout.num_blocks // sharding.num_shards()
    first = rows.of_device().first_row() // size
    return block_sample.of_device(choice, first, blocks)

  def _inputs(
    self, params, x, features, targets=None, label_values=None
  ) -> label_step.Inputs:
    """What this shard's rows are given of a batch, gathered."""
    wide = None
    if features is not None:
      size = self.layout.rows_per_block
      wide = label_pairs.logits(rows_lib.pairs(params), features, size)
    if targets is not None:
      memory = targets.memory
      if memory is not None:
        memory = memory._replace(ids=self.label_rows.of_labels(memory.ids))
      ids = self.label_rows.of_labels(targets.ids)
      targets = targets._replace(ids=ids, memory=memory)
    return label_step.Inputs(x, wide, targets, label_values)

  def _input_specs(self, x, features) -> tuple[P | None, P | None]:
    """Specs of the two optional inputs."""
    return (
      None if x is None else sharding.BATCH,
      None if features is None else sharding.BATCH,
    )


def _has_softmax(loss: loss_lib.Loss) -> bool:
  """Whether a shift of logits weighs labels in the loss, as in a softmax."""
  if isinstance(loss, margin.Margin | logit_adjustment.LogitAdjustment):
    return _has_softmax(loss.base)
  return isinstance(loss, softmax.Softmax | decoupled_softmax.DecoupledSoftmax)
