"""The dense head: one weight row per label, sharded by rows over all devices.

`logits = x W^T + b (+ S V)`, with embeddings `x [N, D]`, label rows `W [L, D]`,
bias `b [L]` and, optionally, a wide path: feature-major linear weights
`V [F, L]` on the sparse features `S` of the examples. Without an embedding
(`dim = 0`) it is the linear one-vs-all model.

Each device computes the logits of its own labels; the embeddings are gathered
to all devices, their gradient is reduce-scattered back.

Labels are dealt out to `blocks` blocks of rows like cards, label i to block
`i % blocks`, and every device holds whole blocks (see `xlj.ops.layout`). So
if the labels are numbered by frequency, every device has its share of the
frequent ones, and the wide path can be limited to the most frequent labels.

A training step may visit some of the blocks alone, those of the batch's
positives and others (see `xlj.heads.dense.block_sample`).

Legend: N examples of the batch, n of this device, L labels (padded), l of this
device, D embedding width, F features, P positives, K features per example,
w labels of this device with a wide path.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from xlj import sharding
from xlj.heads.dense import block_sample
from xlj.losses import bce
from xlj.losses import decoupled_softmax
from xlj.losses import logit_adjustment
from xlj.losses import margin
from xlj.losses import softmax
from xlj.ops import chunks
from xlj.ops import feature_rows
from xlj.ops import label_step
from xlj.ops import layout as layout_lib
from xlj.ops import loss as loss_lib
from xlj.ops import rounding
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib
from xlj.ops import topk as topk_lib
from xlj.ops.kernels import problem
from xlj.ops.kernels import step as kernel_step

P = jax.P
Params = dict[str, jax.Array]
ArrayLike = jax.typing.ArrayLike
_INIT_ELEMENTS = 2**20  # initial weights made at a time


@dataclasses.dataclass(frozen=True)
class DenseHead:
  """Label rows, bias and wide path with their loss and optimizers.

  Attributes:
    num_labels: Number of labels L.
    dim: Width D of the embeddings; 0 for a purely linear model.
    loss: Loss on a chunk of logits.
    optimizer: How rows are stored, and rows and bias updated.
    use_bias: Whether labels have a bias.
    wide_features: Number of features F of the wide path; 0 for none.
    wide_labels: The first so many labels have a wide path, rounded up to a
      multiple of `blocks`; 0 for all.
    wide_learning_rate: Step -> learning rate of the wide path's SGD.
    blocks: Number of blocks that labels are dealt out to; a multiple of the
      number of devices.
    kahan_labels: With compensation of rounding, the first so many labels have
      it, rounded up to a multiple of `blocks`; 0 for all.
    init_scale: Standard deviation of the initial rows.
    init_bias: Initial bias of every label.
    cosine: Label rows count by their direction alone (they are normalised in
      the logits; the embeddings are expected to be).
    chunk_size: Rows of a chunk on each device; None to derive it.
    memory: Bytes of temporaries to derive it from; None for the default.
    keep_logits: The type that all logits of a step are kept in where the loss
      needs them twice, such as "float16": fewer products for more memory. None
      to form them again.
    skip_below: Chunks of labels in which no example's gradient of a logit is
      this large are left out of the gradients of embeddings and rows (Wijmans
      et al. 2025, "Cut your losses in large-vocabulary language models",
      section 4.3, where it is 2^-12). The gradient of an example's loss by its
      embedding is then wrong by at most this times the sum of the lengths of
      the rows left out, that of a row by this times the mean length of the
      embeddings. 0 leaves nothing out.
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

  num_labels: int
  dim: int
  loss: loss_lib.Loss
  optimizer: row_optimizer.RowOptimizer
  use_bias: bool = True
  wide_features: int = 0
  wide_labels: int = 0
  wide_learning_rate: Callable[[jax.Array], ArrayLike] = lambda _: 0.0
  blocks: int = 64
  kahan_labels: int = 0
  init_scale: float = 0.0
  init_bias: float = 0.0
  cosine: bool = False
  chunk_size: int | None = None
  memory: int | None = None
  keep_logits: str | None = None
  skip_below: float = 0.0
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
    for field, found in (
      ("sample_blocks is negative", self.sample_blocks < 0),
      ("dim is 0", not self.dim),
      ("wide_features: a wide path", bool(self.wide_features)),
      ("kahan_labels: a part of the labels", bool(self.kahan_labels)),
      ("kernels is 'interpret'", self.kernels == "interpret"),
      ("loss: not one of a softmax", not _has_softmax(self.loss)),
    ):
      if found:
        raise ValueError(f"{field} does not go with sample_blocks")

  @property
  def layout(self) -> layout_lib.Layout:
    """Where each label's row is."""
    return layout_lib.Layout(self.num_labels, self.blocks)

  @property
  def is_likelihood(self) -> bool:
    """Whether the loss is a negative log-likelihood of the positives."""
    return isinstance(self.loss, softmax.Softmax) and not self.loss.z_loss

  @property
  def num_rows(self) -> int:
    """Number of label rows including padding."""
    return self.layout.num_rows

  @property
  def wide_columns(self) -> int:
    """Number of columns of the wide path including padding."""
    return self._first_rows(self.wide_labels)

  @property
  def kahan_rows(self) -> int:
    """Number of rows with compensation, where there is any."""
    return self._first_rows(self.kahan_labels)

  def _first_rows(self, num_labels: int) -> int:
    """Rows of the first labels, padding included; 0 for all of them."""
    return layout_lib.Layout(
      num_labels or self.num_labels, self.blocks
    ).num_rows

  def init(self, key: jax.Array) -> Params:
    """Initial parameters, on the mesh in context if there is one.

    They do not depend on the mesh, and are made chunk by chunk.

    Args:
      key: Random key.

    Returns:
      Stored rows (see `xlj.ops.row_format`), `bias [L]` and `wide`
      `[F, wide_columns]`, float32, as far as the head has them.
    """
    seed = jax.random.bits(key)

    def local(seed):
      params = {}
      num_rows = self.num_rows // _num_shards()
      if self.use_bias:
        params["bias"] = jnp.full((num_rows,), self.init_bias, jnp.float32)
      if self.dim:
        params |= self._init_rows(seed, num_rows)
      if self.wide_features:
        shape = self.wide_features, self.wide_columns // _num_shards()
        params["wide"] = jnp.zeros(shape)
      return chunks.mark_varying(params, _axes())

    if not _axes():
      return local(seed)
    return jax.shard_map(
      local, in_specs=sharding.REPLICATED, out_specs=self.specs()
    )(seed)

  def _init_rows(self, seed: jax.Array, num_rows: int) -> Params:
    """Stored normal rows of this shard."""
    first = _shard_index() * num_rows

    def make(start, size):
      rows = jnp.asarray(first + start + jnp.arange(size), jnp.int32)
      bits = rounding.hash_bits(seed, 0, rows, jnp.arange(self.dim))
      # The middles of 2^23 intervals: exact in float32, never 0 or 1.
      uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
      normal = math.sqrt(2) * lax.erf_inv(2 * uniform - 1)
      return self.optimizer.format.encode(self.init_scale * normal, None)

    def write(start, size, stored):
      return jax.tree.map(
        lambda a, part: lax.dynamic_update_slice_in_dim(a, part, start, 0),
        stored,
        make(start, size),
      )

    abstract = self.optimizer.format.abstract(num_rows, self.dim)
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), abstract)
    size = min(num_rows, max(1, _INIT_ELEMENTS // self.dim))
    return chunks.for_chunks(
      num_rows, size, write, chunks.mark_varying(empty, _axes())
    )

  def init_optimizer(self, params: Params) -> Any:
    """Optimizer state for `params` (the wide path has none).

    Args:
      params: Parameters.

    Returns:
      `row_optimizer.RowState`, or `block_sample.State` with hard blocks.
    """
    state = self._init_row_state(params)
    if not self.hard_blocks:
      return state

    def local(params):
      blocks = self.blocks // _num_shards()
      every = jnp.arange(blocks, dtype=jnp.int32)
      visit = label_step.Visit(every, jnp.int32(blocks), jnp.zeros(blocks))
      empty = jnp.zeros((blocks, self.dim))
      return block_sample.refreshed(self.label_rows(), params, empty, visit)

    if _axes():
      local = jax.shard_map(
        local, in_specs=(self.specs(),), out_specs=sharding.LABELS
      )
    return block_sample.State(state, local(params))

  def _init_row_state(self, params: Params) -> row_optimizer.RowState:
    """Optimizer state of the rows."""
    return self.optimizer.init(_without_wide(params), self.kahan_rows)

  def specs(self) -> dict[str, P]:
    """`PartitionSpec` of each parameter."""
    specs = dict.fromkeys(self._abstract(), sharding.LABELS)
    if self.wide_features:
      specs["wide"] = sharding.LABELS_LAST
    return specs

  def optimizer_specs(self) -> Any:
    """`PartitionSpec` of each leaf of the optimizer state."""
    state = jax.eval_shape(self._init_row_state, self._abstract())
    specs = self.optimizer.map_rows(
      lambda _: sharding.LABELS, state, sharding.REPLICATED
    )
    if self.hard_blocks:
      return block_sample.State(specs, sharding.LABELS)
    return specs

  def _abstract(self) -> Any:
    """Shapes and types of the parameters without the wide path."""
    params = {}
    if self.use_bias:
      params["bias"] = jax.ShapeDtypeStruct((self.num_rows,), jnp.float32)
    if self.dim:
      params |= self.optimizer.format.abstract(self.num_rows, self.dim)
    return params

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
        that the loss needs, by name; None if it needs none.

    Returns:
      New parameters, new optimizer state, `dx [N, D]` sharded over examples,
      and "loss", the weighted mean over the batch, with what the loss reports
      (see `xlj.ops.loss.Reporting`), the same on all devices.
    """

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
      x, features, targets = all_gather((x, features, targets))
      inputs = self._inputs(params, x, features, targets, label_values)
      if self.uses_kernels:
        new, opt_state, dx, dwide, metrics = self._kernel_step(
          params, opt_state, step, inputs
        )
      else:
        new, opt_state, dx, dwide, metrics = self._row_step(
          params, opt_state, step, inputs
        )
      if dx is not None:
        dx = lax.psum_scatter(dx, sharding.AXES, tiled=True).astype(x.dtype)
      if features is not None:
        assert dwide is not None  # There are logits from the features.
        # No number of their gradient is larger than this product.
        bound = jnp.abs(features.values).sum() * jnp.abs(dwide).sum()
        metrics["loss"] += 0 * bound
        rate = jnp.asarray(self.wide_learning_rate(step))
        # The logits have been read from it: without the barrier the compiler
        # may start the update earlier, on a copy of the whole array.
        wide, dwide = lax.optimization_barrier((params["wide"], dwide))
        new["wide"] = feature_rows.add_outer(wide, features, dwide, -rate)
      metrics["loss"] = lax.psum(metrics["loss"], sharding.AXES)
      return new, opt_state, dx, self._by_label(metrics)

    return run(params, opt_state, step, x, features, targets, label_values)

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
    """The loss of a batch over all labels, without an update.

    Args:
      params: Parameters, sharded as `specs()`.
      x: `[N, D]` embeddings sharded over examples; None if `dim` is 0.
      features: Sparse features for the wide path; None without one.
      targets: Positives and example weights, sharded over examples.
      label_values: Vectors `[L]` by row (`Layout.by_row`), sharded like rows,
        that the loss needs, by name; None if it needs none.

    Returns:
      Scalar weighted mean over the batch.
    """

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
      x, features, targets = all_gather((x, features, targets))
      inputs = self._inputs(params, x, features, targets, label_values)
      loss = self.label_rows().loss(self.loss, _without_wide(params), inputs)
      return lax.psum(loss, sharding.AXES)

    return run(params, x, features, targets, label_values)

  def topk(
    self,
    params: Params,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    k: int,
    exclude: jax.Array | None = None,
    offset: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """The k labels of highest score for each example, exactly.

    Args:
      params: Parameters, sharded as `specs()`.
      x: `[N, D]` embeddings sharded over examples; None if `dim` is 0.
      features: Sparse features for the wide path; None without one.
      k: How many labels.
      exclude: `[N, E]` int32 label ids never to be returned for that example;
        -1 is padding.
      offset: `[L]` added to the logits before ranking, sharded like the rows.

    Returns:
      Scores `[N, k]`, descending, and int32 ids `[N, k]`, sharded over
      examples; id -1 and score -inf where fewer than k labels exist.
    """

    @jax.shard_map(
      in_specs=(
        self.specs(),
        *self._input_specs(x, features),
        None if exclude is None else sharding.BATCH,
        None if offset is None else sharding.LABELS,
      ),
      out_specs=(P(None, sharding.AXES), P(None, sharding.AXES)),
    )
    def candidates(params, x, features, exclude, offset):
      x, features, exclude = all_gather((x, features, exclude))
      inputs = self._inputs(params, x, features)
      hidden = None if exclude is None else self.rows_of(exclude)
      scores, rows = self.label_rows().topk(
        _without_wide(params), inputs, k, hidden, offset
      )
      return scores, jnp.where(rows < 0, -1, self.layout.label_of_row(rows))

    return merge_shards(*candidates(params, x, features, exclude, offset), k)

  def confidence(
    self,
    params: Params,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
  ) -> jax.Array:
    """The largest probability of a softmax over the labels of each example.

    Args:
      params: Parameters, sharded as `specs()`.
      x: `[N, D]` embeddings sharded over examples; None if `dim` is 0.
      features: Sparse features for the wide path; None without one.

    Returns:
      `[N]`, sharded over examples.
    """

    @jax.shard_map(
      in_specs=(self.specs(), *self._input_specs(x, features)),
      out_specs=sharding.REPLICATED,
    )
    def run(params, x, features):
      x, features = all_gather((x, features))
      inputs = self._inputs(params, x, features)
      like = inputs.logits if inputs.x is None else inputs.x
      assert like is not None  # A head has one of them.
      ids = jnp.full_like(like, -1, shape=(like.shape[0], 1), dtype=jnp.int32)
      targets = targets_lib.Targets(ids, jnp.ones_like(like[:, 0]))
      stats = self.label_rows().statistics(
        softmax.Softmax(),
        _without_wide(params),
        inputs._replace(targets=targets),
      )
      return 1 / stats.total  # the exponential of the largest logit is 1 there

    return jax.reshard(run(params, x, features), sharding.BATCH)

  def add_to_rows(
    self, rows: jax.Array, ids: targets_lib.Array, x: jax.Array
  ) -> jax.Array:
    """Adds each example's vector to the rows of its labels.

    Args:
      rows: `[L, D]` sharded like the label rows.
      ids: `[N, P]` int32 label ids, -1 for padding, sharded over examples.
      x: `[N, D]` sharded over examples.

    Returns:
      New `[L, D]` rows.
    """

    @jax.shard_map(
      in_specs=(sharding.LABELS, sharding.BATCH, sharding.BATCH),
      out_specs=sharding.LABELS,
    )
    def run(rows, ids, x):
      ids, x = all_gather((ids, x))
      columns = targets_lib.positives_in_chunk(
        self.rows_of(ids), _shard_index() * rows.shape[0], rows.shape[0]
      ).columns
      repeated = jnp.repeat(x, ids.shape[1], axis=0)
      return rows.at[columns.reshape(-1)].add(repeated, mode="drop")

    return run(rows, ids, x)

  def rows(self, params: Params) -> jax.Array:
    """The label rows `[L, D]` as float32, row by row (see `Layout.by_row`)."""
    return self.optimizer.format.decode(params).astype(jnp.float32)

  def at_prior(
    self, params: Params, counts: jax.Array, num_examples: int
  ) -> Params:
    """Parameters with the log odds of the labels as bias.

    Args:
      params: Parameters.
      counts: `[num_labels]` examples of each label.
      num_examples: Of how many.

    Returns:
      New parameters.
    """
    odds = (jnp.minimum(counts, num_examples) + 0.5) / (num_examples + 1)
    bias = self.layout.by_row(jax.scipy.special.logit(odds), 0)
    if _axes():  # counts may be on all devices
      bias = jax.reshard(bias, sharding.LABELS)
    return params | {"bias": bias}

  def at_centroids(
    self, params: Params, sums: jax.Array, length: float
  ) -> Params:
    """Parameters with label rows in the direction of their examples.

    Args:
      params: Parameters.
      sums: `[L, D]` sums of the embeddings of each label's examples, see
        `add_to_rows`; the rows of labels without examples stay.
      length: Of the new rows.

    Returns:
      New parameters; rows are rounded to nearest.
    """
    norm = jnp.linalg.norm(sums, axis=1, keepdims=True)
    unit = length * sums / jnp.maximum(norm, 1e-12)
    rows = jnp.where(norm > 0, unit, self.rows(params))
    return params | self.optimizer.format.encode(rows, None)

  @property
  def uses_kernels(self) -> bool:
    """Whether a step runs the kernels."""
    if self.kernels == "never" or self.why_no_kernels():
      return False
    return self.kernels == "interpret" or jax.default_backend() == "gpu"

  def why_no_kernels(self) -> str:
    """What keeps kernels from doing this head's step; empty if nothing does."""
    optimizer, loss = self.optimizer, _kernel_loss(self.loss)
    for why, found in (
      ("it visits some blocks alone", bool(self.sample_blocks)),
      ("its loss has no kernel", loss is None),
      ("its optimizer is not plain SGD", optimizer.plain is None),
      ("rounding is corrected", optimizer.correction != "none"),
      ("the length of rows is limited", optimizer.max_norm is not None),
      ("it has a wide path", bool(self.wide_features)),
      ("rows count by direction", self.cosine),
      ("chunks may be skipped", bool(self.skip_below)),
    ):
      if found:
        return why
    mesh = jax.sharding.get_abstract_mesh()
    refusal = problem.refusal(
      platform="gpu",
      loss=loss or "",
      dtype=optimizer.dtype,
      num_rows=self.num_rows // math.prod(mesh.shape[a] for a in _axes()),
      dim=self.dim,
    )
    return refusal or ""

  def _row_step(self, params, opt_state, step, inputs):
    """What `LabelRows.step` does, on the blocks to visit."""
    rows, state, centroids = self.label_rows(), opt_state, None
    if self.hard_blocks:
      state, centroids = opt_state
    if self.sample_blocks:
      visit = self._visit(step, inputs, centroids)
      inputs = inputs._replace(visit=visit)
    new, state, dx, dwide, metrics = rows.step(
      self.loss, self.optimizer, step, _without_wide(params), state, inputs
    )
    if centroids is not None:
      centroids = block_sample.refreshed(rows, new, centroids, inputs.visit)
      state = block_sample.State(state, centroids)
    return new, state, dx, dwide, metrics

  def _visit(self, step, inputs, centroids) -> label_step.Visit:
    """The blocks that this device visits in a step."""
    scores, targets = None, inputs.targets
    if centroids is not None:
      scores = block_sample.scores(
        inputs.x, targets.weights, centroids, self.memory
      )
      scores = lax.all_gather(scores, sharding.AXES, tiled=True)
    choice = block_sample.choose(
      block_sample.of_positives(
        targets.ids, self.layout.rows_per_block, self.blocks
      ),
      self.sample_blocks,
      block_sample.random_keys(self.optimizer.seed, step, self.blocks),
      scores,
      self.hard_blocks,
    )
    blocks = self.blocks // _num_shards()
    return block_sample.of_device(choice, _shard_index() * blocks, blocks)

  def _kernel_step(self, params, opt_state, step, inputs):
    """What `LabelRows.step` does, by kernels."""
    plain, loss = self.optimizer.plain, _kernel_loss(self.loss)
    assert plain is not None and loss is not None  # See why_no_kernels.
    weights = inputs.targets.weights
    scale = weights / jnp.maximum(weights.sum(), 1e-9)
    num_rows = self.num_rows // _num_shards()

    def merge(found):
      stats = softmax.SoftmaxStatistics(*found)
      return tuple(softmax.Softmax().merge(stats, sharding.AXES))

    found = kernel_step.fused_step(
      inputs.x,
      params,
      params.get("bias"),
      inputs.targets.ids,
      scale,
      loss=loss,
      dtype=self.optimizer.dtype,
      learning_rate=plain.learning_rate(step),
      weight_decay=plain.weight_decay,
      seed=self.optimizer.seed,
      step=step,
      first_row=jnp.asarray(_shard_index() * num_rows, jnp.int32),
      layout=self.layout,
      merge=merge,
      rounding=self.optimizer.rounding,
      interpret=self.kernels == "interpret",
    )
    new = dict(found.stored)
    if found.bias is not None:
      new["bias"] = found.bias
    finished = self.optimizer.finish(params, opt_state)
    by_row, _ = self.optimizer.split(opt_state)
    opt_state = self.optimizer.join(opt_state, by_row, finished)
    metrics = {"loss": (found.losses * scale).sum()}
    return new, opt_state, found.dx, None, metrics

  def label_rows(self) -> label_step.LabelRows:
    """What the pass over a device's rows needs to know."""
    correction = self.optimizer.correction == "kahan"
    kahan = self._first_rows(self.kahan_labels) if correction else 0
    return label_step.LabelRows(
      self.layout,
      self.optimizer.format,
      _axes(),
      self.cosine,
      self.wide_columns // self.blocks if self.wide_features else 0,
      kahan // self.blocks,
      self.chunk_size,
      self.memory,
      self.keep_logits,
      self.skip_below,
    )

  def _inputs(
    self, params, x, features, targets=None, label_values=None
  ) -> label_step.Inputs:
    """What this shard's rows are given of a batch, gathered."""
    wide = None
    if features is not None:
      wide = feature_rows.sparse_matmul(features, params["wide"])
    if targets is not None:
      memory = targets.memory
      if memory is not None:
        memory = memory._replace(ids=self.rows_of(memory.ids))
      targets = targets._replace(ids=self.rows_of(targets.ids), memory=memory)
    return label_step.Inputs(x, wide, targets, label_values)

  def rows_of(self, ids: targets_lib.Array) -> jax.Array:
    """Rows of label ids; -1 stays."""
    ids = jnp.asarray(ids)
    return jnp.where(ids < 0, -1, self.layout.row_of_label(ids))

  def _input_specs(self, x, features) -> tuple[P | None, P | None]:
    """Specs of the two optional inputs."""
    return (
      None if x is None else sharding.BATCH,
      None if features is None else sharding.BATCH,
    )


def _axes() -> tuple[str, ...]:
  """The mesh axes that rows are split over; none without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return tuple(axis for axis in sharding.AXES if axis in mesh.shape)


def _num_shards() -> int:
  """Number of devices that rows are split over, inside `shard_map`."""
  return lax.axis_size(_axes()) if _axes() else 1


def _shard_index() -> jax.Array | int:
  """Which of them this is."""
  return lax.axis_index(_axes()) if _axes() else 0


def merge_shards(
  scores: jax.Array, ids: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
  """The best k of all shards.

  Args:
    scores: `[N, S k]` of S shards, side by side, each with its own part.
    ids: `[N, S k]` int32 of them.
    k: How many to keep.

  Returns:
    Scores `[N, k]` and ids `[N, k]`, sharded over examples; see `merge_topk`.
  """
  # Split by shard of labels -> split by example, for the merge.
  scores = jax.reshard(scores, sharding.BATCH)
  ids = jax.reshard(ids, sharding.BATCH)

  @jax.shard_map(
    in_specs=(sharding.BATCH, sharding.BATCH),
    out_specs=(sharding.BATCH, sharding.BATCH),
  )
  def merge(scores, ids):
    return topk_lib.merge_topk(scores, ids, k)

  return merge(scores, ids)


def all_gather(tree: Any) -> Any:
  """Gathers the examples of all devices: `[n, ...]` to `[N, ...]`."""
  return jax.tree.map(
    lambda a: lax.all_gather(a, sharding.AXES, tiled=True), tree
  )


def _kernel_loss(loss: loss_lib.Loss) -> str | None:
  """The kernels' name of a loss, or None."""
  if isinstance(loss, softmax.Softmax) and not loss.z_loss:
    return "softmax"
  return "bce" if isinstance(loss, bce.BinaryCrossEntropy) else None


def _has_softmax(loss: loss_lib.Loss) -> bool:
  """Whether a shift of logits weighs labels in the loss, as in a softmax."""
  if isinstance(loss, margin.Margin | logit_adjustment.LogitAdjustment):
    return _has_softmax(loss.base)
  return isinstance(loss, softmax.Softmax | decoupled_softmax.DecoupledSoftmax)


def _without_wide(params: Params) -> Params:
  """The parameters that the optax optimizer updates."""
  return {name: value for name, value in params.items() if name != "wide"}
