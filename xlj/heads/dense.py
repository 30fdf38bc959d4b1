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

Legend: N examples of the batch, n of this device, L labels (padded), l of this
device, D embedding width, F features, P positives, K features per example,
w labels of this device with a wide path.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from xlj import sharding
from xlj.ops import feature_rows
from xlj.ops import layout as layout_lib
from xlj.ops import loss as loss_lib
from xlj.ops import normalize
from xlj.ops import targets as targets_lib
from xlj.ops import topk as topk_lib

P = jax.P
Params = dict[str, jax.Array]
ArrayLike = jax.typing.ArrayLike


@dataclasses.dataclass(frozen=True)
class DenseHead:
  """Label rows, bias and wide path with their loss and optimizers.

  Attributes:
    num_labels: Number of labels L.
    dim: Width D of the embeddings; 0 for a purely linear model.
    loss: Loss on a chunk of logits.
    tx: Optimizer of rows and bias; element-wise (it is applied per shard).
    wide_features: Number of features F of the wide path; 0 for none.
    wide_labels: The first so many labels have a wide path, rounded up to a
      multiple of `blocks`; 0 for all.
    wide_learning_rate: Step -> learning rate of the wide path's SGD.
    blocks: Number of blocks that labels are dealt out to; a multiple of the
      number of devices.
    init_scale: Standard deviation of the initial rows.
    init_bias: Initial bias of every label.
    cosine: Label rows count by their direction alone (they are normalised in
      the logits; the embeddings are expected to be).
  """

  num_labels: int
  dim: int
  loss: loss_lib.Loss
  tx: optax.GradientTransformation
  wide_features: int = 0
  wide_labels: int = 0
  wide_learning_rate: Callable[[jax.Array], ArrayLike] = lambda _: 0.0
  blocks: int = 64
  init_scale: float = 0.0
  init_bias: float = 0.0
  cosine: bool = False

  @property
  def layout(self) -> layout_lib.Layout:
    """Where each label's row is."""
    return layout_lib.Layout(self.num_labels, self.blocks)

  @property
  def num_rows(self) -> int:
    """Number of label rows including padding."""
    return self.layout.num_rows

  @property
  def wide_columns(self) -> int:
    """Number of columns of the wide path including padding."""
    return layout_lib.Layout(
      self.wide_labels or self.num_labels, self.blocks
    ).num_rows

  def by_row(self, values: jax.Array, fill: int) -> jax.Array:
    """`[num_labels]` values by label to `[L]` by row, `fill` at padding."""
    labels = self.layout.label_of_row(jnp.arange(self.num_rows))
    return values.at[labels].get(mode="fill", fill_value=fill)

  def init(self, key: jax.Array) -> Params:
    """Initial parameters, to be created under `jit(..., out_shardings=...)`.

    Args:
      key: Random key.

    Returns:
      `rows [L, D]` and `bias [L]` (and `wide`, `[F, wide_columns]`), float32.
    """
    params = {"bias": jnp.full((self.num_rows,), self.init_bias)}
    if self.dim:
      shape = (self.num_rows, self.dim)
      params["rows"] = self.init_scale * jax.random.normal(key, shape)
    if self.wide_features:
      params["wide"] = jnp.zeros((self.wide_features, self.wide_columns))
    return params

  def init_optimizer(self, params: Params) -> Any:
    """Optimizer state for `params` (the wide path has none)."""
    return self.tx.init(_without_wide(params))

  def specs(self) -> dict[str, P]:
    """`PartitionSpec` of each parameter."""
    specs = {"bias": sharding.LABELS}
    if self.dim:
      specs["rows"] = sharding.LABELS
    if self.wide_features:
      specs["wide"] = sharding.LABELS_LAST
    return specs

  def optimizer_specs(self) -> Any:
    """`PartitionSpec` of each leaf of the optimizer state."""
    params = _without_wide(jax.eval_shape(self.init, jax.random.key(0)))
    specs = {name: self.specs()[name] for name in params}
    return sharding.optimizer_specs(self.tx, params, specs)

  def step(
    self,
    params: Params,
    opt_state: Any,
    step: jax.Array,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> tuple[Params, Any, jax.Array | None, jax.Array]:
    """One training step of the head.

    Args:
      params: Parameters, sharded as `specs()`.
      opt_state: Optimizer state, sharded as `optimizer_specs()`.
      step: Scalar int32, for the wide path's learning rate.
      x: `[N, D]` embeddings sharded over examples; None if `dim` is 0.
      features: Sparse features for the wide path; None without one.
      targets: Positives and example weights, sharded over examples.
      label_values: Vectors `[L]` by row (see `by_row`), sharded like the rows,
        that the loss needs, by name; None if it needs none.

    Returns:
      New parameters, new optimizer state, `dx [N, D]` sharded over examples,
      and the scalar loss, the weighted mean over the batch.
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
    )
    def run(params, opt_state, step, x, features, targets, label_values):
      x, features, targets = _all_gather((x, features, targets))
      z = self._logits(params, x, features)
      value, grad = self._value_and_grad(z, targets, label_values)
      weights = targets.weights / jnp.maximum(targets.weights.sum(), 1e-9)
      loss = lax.psum((value * weights).sum(), sharding.AXES)
      grad *= weights[:, None]  # [N, l]
      grads = {"bias": grad.sum(0)}
      dx = None
      if x is not None:
        rows, rows_vjp = jax.vjp(self._directions, params["rows"])
        (grads["rows"],) = rows_vjp(grad.T @ x)
        dx = lax.psum_scatter(grad @ rows, sharding.AXES, tiled=True)
      plain = _without_wide(params)
      updates, opt_state = self.tx.update(grads, opt_state, plain)
      new: Any = optax.apply_updates(plain, updates)
      if features is not None:
        rate = jnp.asarray(self.wide_learning_rate(step))
        # The logits have been read from it: without the barrier the compiler
        # may start the update earlier, on a copy of the whole array.
        wide, grad = lax.optimization_barrier((params["wide"], grad))
        columns = _first_of_blocks(
          grad, self._local_blocks(), wide.shape[1] // self._local_blocks()
        )
        new["wide"] = feature_rows.add_outer(wide, features, columns, -rate)
      return new, opt_state, dx, loss

    return run(params, opt_state, step, x, features, targets, label_values)

  def evaluate_loss(
    self,
    params: Params,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> jax.Array:
    """The loss of a batch without an update.

    Args:
      params: Parameters, sharded as `specs()`.
      x: `[N, D]` embeddings sharded over examples; None if `dim` is 0.
      features: Sparse features for the wide path; None without one.
      targets: Positives and example weights, sharded over examples.
      label_values: Vectors `[L]` by row (see `by_row`), sharded like the rows,
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
      x, features, targets = _all_gather((x, features, targets))
      z = self._logits(params, x, features)
      value, _ = self._value_and_grad(z, targets, label_values)
      weights = targets.weights / jnp.maximum(targets.weights.sum(), 1e-9)
      return lax.psum((value * weights).sum(), sharding.AXES)

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
      x, features, exclude = _all_gather((x, features, exclude))
      z = self._logits(params, x, features)
      if offset is not None:
        z += offset
      if exclude is not None:
        hidden = self._positives(exclude, z.shape[1])
        z = z.at[jnp.arange(z.shape[0])[:, None], hidden.columns].set(
          -jnp.inf, mode="drop"
        )
      scores, columns = topk_lib.local_topk(z, k)
      row = columns + self._offset(z.shape[1])
      return scores, jnp.where(columns < 0, -1, self.layout.label_of_row(row))

    scores, ids = candidates(params, x, features, exclude, offset)
    # [N, G k] split by shard of labels -> split by example, for the merge.
    scores = jax.reshard(scores, sharding.BATCH)
    ids = jax.reshard(ids, sharding.BATCH)

    @jax.shard_map(
      in_specs=(sharding.BATCH, sharding.BATCH),
      out_specs=(sharding.BATCH, sharding.BATCH),
    )
    def merge(scores, ids):
      return topk_lib.merge_topk(scores, ids, k)

    return merge(scores, ids)

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
      ids, x = _all_gather((ids, x))
      columns = self._positives(ids, rows.shape[0]).columns
      repeated = jnp.repeat(x, ids.shape[1], axis=0)
      return rows.at[columns.reshape(-1)].add(repeated, mode="drop")

    return run(rows, ids, x)

  def _logits(self, params, x, features) -> jax.Array:
    """Logits `[N, l]` of this shard; -inf at padding rows."""
    z = params["bias"][None]
    if x is not None:
      z = z + x @ self._directions(params["rows"]).T
    if features is not None:
      wide = feature_rows.sparse_matmul(features, params["wide"])
      z = _add_to_first_of_blocks(z, wide, self._local_blocks())
    row = self._offset(z.shape[1]) + jnp.arange(z.shape[1])
    return jnp.where(
      self.layout.label_of_row(row) < self.num_labels, z, -jnp.inf
    )

  def _value_and_grad(
    self,
    z: jax.Array,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None,
  ) -> tuple[jax.Array, jax.Array]:
    """Partial losses `[N]` of this shard's logits `[N, l]`, their gradient."""
    positives = self._positives(
      targets.ids, z.shape[1], targets.values, label_values
    )
    stats = self.loss.init(*targets.ids.shape)
    stats = self.loss.accumulate(stats, z, positives)
    stats = self.loss.merge(stats, sharding.AXES)
    return self.loss.value_and_grad(stats, z, positives)

  def _directions(self, rows: jax.Array) -> jax.Array:
    """The rows as the logits use them, `[l, D]`."""
    return normalize.unit_rows(rows) if self.cosine else rows

  def _offset(self, size: int) -> jax.Array:
    """First row of this shard of `size` rows."""
    return (lax.axis_index(sharding.AXES) * size).astype(jnp.int32)

  def _positives(
    self,
    ids: targets_lib.Array,
    size: int,
    values: targets_lib.Array | None = None,
    label_values: targets_lib.LabelValues | None = None,
  ) -> targets_lib.Positives:
    """The positives that this shard owns."""
    ids = jnp.asarray(ids)
    rows = jnp.where(ids < 0, -1, self.layout.row_of_label(ids))
    return targets_lib.positives_in_chunk(
      rows, self._offset(size), size, values, label_values
    )

  def _local_blocks(self) -> int:
    """Number of blocks of this shard."""
    return self.blocks // lax.axis_size(sharding.AXES)

  def _input_specs(self, x, features) -> tuple[P | None, P | None]:
    """Specs of the two optional inputs."""
    return (
      None if x is None else sharding.BATCH,
      None if features is None else sharding.BATCH,
    )


def _first_of_blocks(z: jax.Array, blocks: int, width: int) -> jax.Array:
  """The first `width` columns of each of `blocks` blocks of `z [N, l]`."""
  split = z.reshape(z.shape[0], blocks, -1)
  return split[:, :, :width].reshape(z.shape[0], -1)


def _add_to_first_of_blocks(
  z: jax.Array, wide: jax.Array, blocks: int
) -> jax.Array:
  """Adds `wide [N, w]` to the first columns of each block of `z [?, l]`."""
  per_block = z.shape[1] // blocks
  wide = wide.reshape(wide.shape[0], blocks, -1)
  missing = per_block - wide.shape[2]
  wide = jnp.pad(wide, ((0, 0), (0, 0), (0, missing)))
  return z + wide.reshape(wide.shape[0], -1)


def _all_gather(tree: Any) -> Any:
  """Gathers the examples of all devices: `[n, ...]` to `[N, ...]`."""
  return jax.tree.map(
    lambda a: lax.all_gather(a, sharding.AXES, tiled=True), tree
  )


def _without_wide(params: Params) -> Params:
  """The parameters that the optax optimizer updates."""
  return {name: value for name, value in params.items() if name != "wide"}
