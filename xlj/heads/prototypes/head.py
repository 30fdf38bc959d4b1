"""The dense head with several rows for each of the most frequent labels.

The logit of a label is the log-sum-exp of those of its rows (see
`xlj.losses.prototype_softmax`). The first M labels, the most frequent ones when
labels are numbered by frequency, have R rows each, all others one.

It is a dense head of `L + M (R - 1)` rows: row label i < L is the first row of
label i, and `L + j M + i` the (j + 2)-th row of label i < M. So rows are
stored, sharded and updated like any others, and the frequent labels' rows are
dealt out evenly to the devices.

Legend: N examples, D width, L labels, M labels with several rows, R rows of
each of those, P positives, k best labels.
"""

import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from xlj import sharding
from xlj.heads import head as head_lib
from xlj.heads.dense import head as dense
from xlj.losses import prototype_softmax
from xlj.ops import choice as choice_lib
from xlj.ops import feature_rows
from xlj.ops import label_step
from xlj.ops import layout as layout_lib
from xlj.ops import precision
from xlj.ops import targets as targets_lib
from xlj.ops import topk as topk_lib

Params = dict[str, jax.Array]
_ELEMENTS = 2**20  # of rows that are looked up at a time


@dataclasses.dataclass(frozen=True)
class PrototypeHead:
  """A dense head by row, and the labels that its rows are of.

  Attributes:
    by_row: The head of all rows, with embeddings alone; its loss is a
      `PrototypeSoftmax`, which knows R.
    num_labels: Number of labels L.

  Raises:
    ValueError: They do not fit.
  """

  by_row: dense.DenseHead
  num_labels: int

  def __post_init__(self) -> None:
    """Checks the fields."""
    if not isinstance(self.by_row.loss, prototype_softmax.PrototypeSoftmax):
      raise ValueError("the loss of the rows must be a PrototypeSoftmax")
    if not self.by_row.dim or self.by_row.label_rows.wide_features:
      raise ValueError("several rows of a label need embeddings, no wide path")
    more = self.by_row.layout.num_labels - self.num_labels
    most = self.num_labels * (self.per_label - 1)
    if not 0 < more <= most or more % (self.per_label - 1):
      raise ValueError(
        f"{self.by_row.layout.num_labels} rows for {self.num_labels} labels, of"
        f" which some have {self.per_label}"
      )

  @property
  def name(self) -> str:
    """What users call it."""
    return "dense with prototypes"

  @property
  def can(self) -> frozenset[str]:
    """What it can do (see `xlj.heads.head`)."""
    can = frozenset({"offset", "centroids", "mean", "plan"})
    return can | (self.by_row.can & {"prior"})

  @property
  def confidences(self) -> tuple[str, ...]:
    """What `confidence` can go by."""
    return ()

  @property
  def per_label(self) -> int:
    """Rows R of a frequent label."""
    return self.loss.rows

  @property
  def frequent(self) -> int:
    """Number of labels M with so many rows."""
    more = self.by_row.layout.num_labels - self.num_labels
    return more // (self.per_label - 1)

  @property
  def loss(self) -> prototype_softmax.PrototypeSoftmax:
    """The loss, by row."""
    loss = self.by_row.loss
    assert isinstance(loss, prototype_softmax.PrototypeSoftmax)
    return loss

  @property
  def dim(self) -> int:
    """Width D of the embeddings."""
    return self.by_row.dim

  @property
  def num_rows(self) -> int:
    """Number of rows including padding."""
    return self.by_row.num_rows

  @property
  def layout(self) -> layout_lib.Layout:
    """Where what is kept of each label, not of each row, is."""
    rows = self.by_row.layout
    return dataclasses.replace(rows, num_labels=self.num_labels)

  @property
  def is_likelihood(self) -> bool:
    """Whether the loss is a negative log-likelihood of the positives."""
    return not self.loss.decoupled

  def init(self, key: jax.Array) -> Params:
    """As `DenseHead.init`; the rows of a label start apart."""
    return self.by_row.init(key)

  def init_optimizer(self, params: Params) -> Any:
    """Optimizer state for `params`."""
    return self.by_row.init_optimizer(params)

  def specs(self) -> dict[str, jax.P]:
    """`PartitionSpec` of each parameter."""
    return self.by_row.specs()

  def optimizer_specs(self) -> Any:
    """`PartitionSpec` of each leaf of the optimizer state."""
    return self.by_row.optimizer_specs()

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
    """One training step; see `DenseHead.step`.

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
    targets = self._of_rows(targets)
    return self.by_row.step(params, opt_state, step, x, None, targets)

  def evaluate_loss(
    self,
    params: Params,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> jax.Array:
    """The loss of a batch over all labels, without an update."""
    x = head_lib.embeddings(
      self, x, features=features, label_values=label_values
    )
    return self.by_row.evaluate_loss(params, x, None, self._of_rows(targets))

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
    """The k labels of highest score for each example.

    The labels of the k R best rows are scored, each with all of its rows. Among
    them are the k labels whose best rows are highest. Only a label without any
    of those rows is not scored; its logit is at most `log R` above the last of
    them.

    Args:
      params: Parameters, sharded as `specs()`.
      x: `[N, D]` embeddings sharded over examples.
      features: None.
      k: How many labels.
      choice: The label ids that may be returned; by default all.
      offset: `[L]` added to the logits of labels before ranking, sharded like
        `layout`.

    Returns:
      Scores `[N, k]`, descending, and int32 ids `[N, k]`, sharded over
      examples; id -1 and score -inf where fewer than k labels exist.
    """
    choice = choice_lib.of(choice)
    x = head_lib.embeddings(self, x, features=features, extra=choice.extra)
    offset = choice.offset(offset)
    of_rows = choice.map(sharding.by_compiler(self.rows_of))
    of_rows = dataclasses.replace(of_rows, allowed=None)  # it is in the offset
    by_row = by_label = None
    if offset is not None:
      by_label = jax.reshard(offset, sharding.REPLICATED)[
        self.layout.row_of_label(jnp.arange(self.num_labels))
      ]
      by_row = self._to_rows(offset)
    count = min(k * self.per_label, self.by_row.layout.num_labels)
    _, rows = self.by_row.topk(params, x, None, count, of_rows, by_row)
    ids = sharding.by_compiler(self._distinct)(rows)
    rows = sharding.by_compiler(self.rows_of)(ids)
    z = self._logits(params, x, rows)

    def best(z: jax.Array, ids: jax.Array, by_label: Any) -> Any:
      scores = jax.nn.logsumexp(z.reshape(*ids.shape, -1), axis=2)
      if by_label is not None:
        scores += by_label[ids]
      scores = jnp.where(ids < 0, -jnp.inf, scores)
      return topk_lib.merge_topk(scores, ids, min(k, ids.shape[1]))

    return sharding.by_compiler(best)(z, ids, by_label)

  def add_to_rows(
    self, rows: jax.Array, ids: targets_lib.Array, x: jax.Array
  ) -> jax.Array:
    """As `DenseHead.add_to_rows`, each example to one row of its labels.

    Examples of a batch take turns: an equal start would never end.
    """

    def turns(ids: jax.Array) -> jax.Array:
      rows = self.rows_of(ids).reshape(*ids.shape, self.per_label)
      turn = jnp.arange(len(ids))[:, None, None] % self.per_label
      mine = jnp.take_along_axis(rows, turn, axis=2)[..., 0]
      return jnp.where(mine < 0, ids, mine)

    ids = sharding.by_compiler(turns)(jnp.asarray(ids))
    return self.by_row.add_to_rows(rows, ids, x)

  def at_prior(
    self, params: Params, counts: jax.Array, num_examples: int
  ) -> Params:
    """As `DenseHead.at_prior`; rows share the examples of their label."""
    head_lib.need(self, "prior")
    layout = self.layout

    @jax.shard_map(in_specs=sharding.LABELS, out_specs=sharding.LABELS)
    def shared(counts):
      rows = sharding.own_rows(layout.num_rows)
      several = layout.label_of_row(rows) < self.frequent
      return counts / jnp.where(several, self.per_label, 1)

    counts = self._to_rows(shared(counts))
    return self.by_row.at_prior(params, counts, num_examples)

  def zero_sums(self) -> jax.Array:
    """As `DenseHead.zero_sums`, by row."""
    return self.by_row.zero_sums()

  def at_centroids(
    self, params: Params, sums: jax.Array, length: float
  ) -> Params:
    """As `DenseHead.at_centroids`, by row."""
    return self.by_row.at_centroids(params, sums, length)

  rows = head_lib.refused(head_lib.Head.rows, "rows")
  tied_step = head_lib.refused(head_lib.Head.tied_step, "tied")
  with_keys = head_lib.refused(head_lib.Head.with_keys, "keys")
  with_pairs = head_lib.refused(head_lib.Head.with_pairs, "features")
  confidence = head_lib.without_confidence

  # --- labels and rows -------------------------------------------------------

  def rows_of(self, ids: targets_lib.Array) -> jax.Array:
    """Row labels of labels, `[N, P]` to `[N, P R]`; -1 where there are less."""
    ids = jnp.asarray(ids)[..., None]
    more = self.num_labels + jnp.arange(self.per_label - 1) * self.frequent
    several = (ids >= 0) & (ids < self.frequent)
    more = jnp.where(several, more + ids, -1)
    return jnp.concatenate([ids, more], -1).reshape(len(ids), -1)

  def label_of(self, rows: jax.Array) -> jax.Array:
    """Labels of row labels `[...]`; -1 stays."""
    extra = (rows - self.num_labels) % self.frequent
    return jnp.where(rows < self.num_labels, rows, extra)

  def _of_rows(self, targets: targets_lib.Targets) -> targets_lib.Targets:
    """Targets with the rows of the positives in place of labels."""
    ids = sharding.by_compiler(self.rows_of)(targets.ids)
    return targets_lib.Targets(ids, targets.weights)

  def _to_rows(self, values: jax.Array) -> jax.Array:
    """Values by row of `layout` as those of all rows; both `[L]` are split.

    Only those of labels with several rows go to all devices.
    """
    layout, rows = self.layout, self.by_row.layout
    places = -(-self.frequent // layout.blocks)  # of a block, at most
    spec = sharding.LABELS

    @jax.shard_map(in_specs=spec, out_specs=spec)
    def run(values):
      by_block = values.reshape(-1, layout.rows_per_block)
      several = sharding.gather_batch(by_block[:, :places])
      # The first row of a label is in its block, and as far from its start.
      more = rows.rows_per_block - layout.rows_per_block
      first = jnp.pad(by_block, ((0, 0), (0, more))).reshape(-1)
      label = rows.label_of_row(sharding.own_rows(rows.num_rows))
      of = (label - self.num_labels) % self.frequent
      other = several[of % layout.blocks, of // layout.blocks]
      return jnp.where(label < self.num_labels, first, other)

    return run(values)

  def _distinct(self, rows: jax.Array) -> jax.Array:
    """Labels `[n, C]` of row labels, each once; -1 in place of the others."""
    ids = self.label_of(rows)
    first = jnp.argmax(ids[:, :, None] == ids[:, None], axis=2)
    return jnp.where(first == jnp.arange(ids.shape[1]), ids, -1)

  def _logits(self, params: Params, x: jax.Array, rows: jax.Array) -> jax.Array:
    """Logits of row labels `[N, C]`, sharded over examples; -inf at padding."""
    spec = self.by_row.specs(), sharding.BATCH, sharding.BATCH

    @jax.shard_map(in_specs=spec, out_specs=sharding.BATCH)
    def run(params, x, rows):
      padding, every = rows < 0, self.by_row.label_rows
      x, rows = sharding.gather_batch((x, every.of_labels(rows)))
      label_rows = every.of_device()
      size = len(params["rows"])
      local = rows - label_rows.first_row()
      inside = (rows >= 0) & (local >= 0) & (local < size)

      def one(example):
        x, local, inside = example
        part = {k: a.at[local].get(mode="clip") for k, a in params.items()}
        found, _ = label_rows.decoded(part)
        z = jnp.matmul(
          found, x.astype(found.dtype), preferred_element_type=jnp.float32
        )
        return jnp.where(inside, z + part.get("bias", 0), 0)

      batch = max(1, _ELEMENTS // (rows.shape[1] * self.dim))
      z = lax.map(one, (x, local, inside), batch_size=min(batch, len(x)))
      # Each row is on one device; the others hold 0.
      z = lax.psum_scatter(z.astype(jnp.float32), sharding.AXES, tiled=True)
      return jnp.where(padding, -jnp.inf, z)

    return run(params, x, rows)
