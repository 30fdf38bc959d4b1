"""The open long-tailed head: a memory of centroids beside a cosine classifier.

An embedding is mixed with what it calls up from a memory `M [L, D]` of label
centroids, and made shorter the farther it is from all of them; a cosine
classifier follows (`xlj.heads.oltr.meta_embedding` has the maths; Liu et al.
2019, "Large-scale long-tailed recognition in an open world"). Memory, keys and
classifier are split over devices like label rows, which the authors' code
cannot do; nothing is formed for all examples and labels.

The memory has no gradient: it moves to the examples of a batch, or is set to
the means of all. Training has two stages in the paper: a plain softmax first,
whose encoder and rows, as keys, are where the second starts.

With `tied` the label rows are the memory, and without `own_keys` the memory is
its own key, by distance: one matrix then, not three.

Legend: N examples, D width, L label rows (padded), l of this device, P
positives.
"""

import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from xlj import sharding
from xlj.heads import head as head_lib
from xlj.heads.dense import head as dense
from xlj.heads.oltr import meta_embedding
from xlj.ops import choice as choice_lib
from xlj.ops import feature_rows
from xlj.ops import label_attention
from xlj.ops import label_distance
from xlj.ops import label_gather
from xlj.ops import label_step
from xlj.ops import layout as layout_lib
from xlj.ops import precision
from xlj.ops import shards as shards_lib
from xlj.ops import targets as targets_lib

P = jax.P
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class OltrHead:
  """A memory, a way to ask it, and a cosine classifier.

  Attributes:
    labels: The classifier: `cosine`, without bias and wide path.
    optimizer: Of keys and concept selector.
    scale: Of the cosine logits, see `meta_embedding.cosine_scale`.
    tied: Whether the label rows are the memory; they are float32 then.
    own_keys: Whether labels have keys (and a bias) that are trained; otherwise
      the memory is attended to by `softmax(-|x - c|^2 / 2)`.
    attend_to: How many keys are attended to; 0 for all.
    reach: Factor of the inverse distance to the memory.
    centre_weight: Of the loss that draws embeddings to their centroids.
    centre_rate: Of the memory's steps to its examples.
    repel_weight: Within that loss, of the hinge on distances to others.
    margin: Mean squared distance to others from which on it is 0.
  """

  labels: dense.DenseHead
  optimizer: optax.GradientTransformation
  scale: float
  tied: bool = False
  own_keys: bool = True
  attend_to: int = 0
  reach: float = 10.0
  centre_weight: float = 0.01
  centre_rate: float = 0.01
  repel_weight: float = 0.01
  margin: float = 10.0

  def __post_init__(self) -> None:
    """Refuses what does not go together.

    Raises:
      ValueError: Naming the field.
    """
    rows = self.labels.label_rows
    for what, found in (
      ("cosine is False", not rows.cosine),
      ("it has a bias", rows.use_bias),
      ("it has a wide path", bool(rows.wide_features)),
      ("it visits some blocks alone", bool(self.labels.sample_blocks)),
    ):
      if found:
        raise ValueError(f"labels must be a plain cosine classifier: {what}")
    if self.tied and rows.optimizer.dtype != "float32":
      raise ValueError(
        f"tied rows must be float32: got {rows.optimizer.dtype!r}"
      )

  @property
  def name(self) -> str:
    """What users call it."""
    return "oltr"

  @property
  def can(self) -> frozenset[str]:
    """What it can do (see `xlj.heads.head`)."""
    can = frozenset({"label_values", "offset", "centroids", "memory", "mean"})
    return can | {"keys"} if self.own_keys else can

  @property
  def confidences(self) -> tuple[str, ...]:
    """What `confidence` can go by."""
    return ("probability", "cosine", "reachability")

  @property
  def dim(self) -> int:
    """Width D of the embeddings."""
    return self.labels.dim

  @property
  def layout(self) -> layout_lib.Layout:
    """Where each label's row is."""
    return self.labels.layout

  @property
  def num_rows(self) -> int:
    """Number of label rows including padding."""
    return self.labels.num_rows

  @property
  def is_likelihood(self) -> bool:
    """Whether the loss is a negative log-likelihood of the positives."""
    return self.labels.is_likelihood

  # --- parameters ------------------------------------------------------------

  def init(self, key: jax.Array) -> Params:
    """Initial parameters, on the mesh in context if there is one.

    Args:
      key: Random key.

    Returns:
      `labels` (see `DenseHead.init`), `asked`: `selector [D, D]`, its bias
      `[D]` and, if they are own, `keys [L, D]` and `key_bias [L]`; `memory`
      `[L, D]` unless tied. Memory and keys are zeros: see `at_centroids`.
    """
    shape = self.num_rows, self.dim
    asked = {
      "selector": jnp.zeros((self.dim, self.dim)),
      "selector_bias": jnp.zeros(self.dim),
    }
    if self.own_keys:
      asked |= {"keys": jnp.zeros(shape), "key_bias": jnp.zeros(shape[0])}
    params: Params = {"labels": self.labels.init(key), "asked": asked}
    if not self.tied:
      params["memory"] = jnp.zeros(shape)
    return params

  def init_optimizer(self, params: Params) -> Params:
    """Optimizer states of `labels` and of what is `asked`."""
    return {
      "labels": self.labels.init_optimizer(params["labels"]),
      "asked": self.optimizer.init(params["asked"]),
    }

  def specs(self) -> Any:
    """`PartitionSpec` of each parameter."""
    asked = jax.eval_shape(lambda: self.init(jax.random.key(0)))["asked"]
    specs = {"labels": self.labels.specs(), "asked": _asked_specs(asked)}
    return specs if self.tied else {**specs, "memory": sharding.LABELS}

  def optimizer_specs(self) -> Any:
    """`PartitionSpec` of each leaf of the optimizer state."""
    asked = jax.eval_shape(lambda: self.init(jax.random.key(0)))["asked"]
    state = jax.eval_shape(self.optimizer.init, asked)
    specs = optax.tree_utils.tree_map_params(
      self.optimizer.init,
      lambda _, spec: spec,
      state,
      _asked_specs(asked),
      transform_non_params=lambda _: sharding.REPLICATED,
    )
    return {"labels": self.labels.optimizer_specs(), "asked": specs}

  def zero_sums(self) -> jax.Array:
    """As `DenseHead.zero_sums`, with one more column: means need a count."""
    return jnp.zeros((self.num_rows, self.dim + 1))

  def add_to_rows(
    self, rows: jax.Array, ids: targets_lib.Array, x: jax.Array
  ) -> jax.Array:
    """As `DenseHead.add_to_rows`, for rows with one more column: a count."""
    ones = jnp.ones_like(x[:, :1])
    return self.labels.add_to_rows(rows, ids, jnp.concatenate([x, ones], 1))

  def at_centroids(self, params: Params, sums: jax.Array, length: float) -> Any:
    """Parameters with the memory at the means of the labels' examples.

    Args:
      params: Parameters.
      sums: `[L, D + 1]` of `add_to_rows`; the memory of labels without examples
        is set to the mean of those that have some.
      length: Of the label rows, in the same directions, where labels have
        examples; 0 to leave them. If they are the memory they are set to it.

    Returns:
      New parameters.
    """
    counts = sums[:, -1:]
    sums = sums[:, :-1]
    every = sums.sum(0) / jnp.maximum(counts.sum(), 1)
    memory = jnp.where(counts > 0, sums / jnp.maximum(counts, 1), every)
    labels = params["labels"]
    if self.tied:
      labels = labels | self.labels.label_rows.encoded(memory)
      return params | {"labels": labels}
    if length:
      labels = self.labels.at_centroids(labels, sums, length)
    return params | {"labels": labels, "memory": memory}

  with_pairs = head_lib.refused(head_lib.Head.with_pairs, "features")

  def with_keys(
    self, params: Params, rows: jax.Array, bias: jax.Array | None
  ) -> Params:
    """Parameters with the label rows of a first stage as keys.

    Args:
      params: Parameters.
      rows: `[L, D]` split like label rows.
      bias: `[L]`, or None for zeros.

    Returns:
      New parameters.

    Raises:
      ValueError: The memory is its own key.
    """
    head_lib.need(self, "keys")
    bias = jnp.zeros_like(rows[:, 0]) if bias is None else bias
    asked = params["asked"] | {"keys": rows, "key_bias": bias}
    return params | {"asked": asked}

  rows = head_lib.refused(head_lib.Head.rows, "rows")
  tied_step = head_lib.refused(head_lib.Head.tied_step, "tied")
  at_prior = head_lib.refused(head_lib.Head.at_prior, "prior")

  # --- embeddings ------------------------------------------------------------

  def embed(self, params: Params, x: jax.Array) -> jax.Array:
    """Meta-embeddings as the classifier reads them.

    Args:
      params: Parameters, sharded as `specs()`.
      x: `[N, D]` direct embeddings sharded over examples.

    Returns:
      `[N, D]` of a length below `scale`, sharded over examples.
    """
    return self._embed(params["asked"], x, self._memory(params))

  def _embed(self, asked, x, memory):
    is_label = self.labels.label_rows.is_label()
    if self.own_keys:
      keys, bias = asked["keys"], asked["key_bias"]
      bias = jnp.where(is_label, bias, -jnp.inf)
    else:
      keys, bias = memory, label_distance.half_squares(memory, is_label)
    where = {"bias": bias, "placement": self._placement()}
    if self.attend_to:
      found = label_attention.label_attend_topk(
        x, keys, memory, 1.0, self.attend_to, **where
      )
    else:
      found = label_attention.label_attend(x, keys, memory, 1.0, **where)
    distance = self._distance(x, memory)
    meta = meta_embedding.meta_embedding(
      x,
      found,
      asked["selector"],
      asked["selector_bias"],
      distance,
      self.reach,
    )
    return self.scale * meta_embedding.squashed(meta)

  def _distance(self, x, memory):
    rows = self.labels.label_rows
    return label_distance.min_distance(
      x,
      memory,
      is_label=rows.is_label(),
      placement=self._placement(),
    )

  def _placement(self):
    """What passes over the memory are told."""
    return shards_lib.Placement(memory=self.labels.label_rows.memory)

  def _memory(self, params):
    """`[L, D]`, a constant."""
    if not self.tied:
      return lax.stop_gradient(params["memory"])
    return lax.stop_gradient(self.labels.label_rows.decoded(params["labels"]))

  # --- training --------------------------------------------------------------

  def step(
    self,
    params: Params,
    opt_state: Params,
    step: jax.Array,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> tuple[Params, Params, jax.Array, label_step.Metrics]:
    """One training step of the head.

    Args:
      params: Parameters, sharded as `specs()`.
      opt_state: Optimizer state, sharded as `optimizer_specs()`.
      step: Scalar int32, number of steps taken.
      x: `[N, D]` embeddings sharded over examples.
      features: None.
      targets: Positives and example weights, sharded over examples.
      label_values: As for `DenseHead.step`.

    Returns:
      New parameters, new optimizer state, `dx [N, D]` sharded over examples,
      "loss", the weighted mean over the batch with the loss of the centres, and
      "centre", that loss before its weight.
    """
    x = head_lib.embeddings(self, x, features=features)
    memory = self._memory(params)
    targets = targets._replace(
      ids=jnp.where(
        jnp.asarray(targets.weights)[:, None] > 0, jnp.asarray(targets.ids), -1
      )
    )
    meta, vjp = jax.vjp(
      lambda asked, x: self._embed(asked, x, memory), params["asked"], x
    )
    labels, labels_opt, dmeta, metrics = self.labels.step(
      params["labels"],
      opt_state["labels"],
      step,
      meta,
      None,
      targets,
      label_values,
    )
    dasked, dx = vjp(dmeta)
    updates, asked_opt = self.optimizer.update(
      dasked, opt_state["asked"], params["asked"]
    )
    new = {
      "labels": labels,
      "asked": optax.apply_updates(params["asked"], updates),
    }
    centre, dcentre = jax.value_and_grad(self._centre_loss)(x, memory, targets)
    metrics = dict(metrics)
    metrics["loss"] += self.centre_weight * centre
    metrics["centre"] = centre
    dx += self.centre_weight * dcentre
    if not self.tied:
      # `dx` comes of all that is read of the memory. Without a dependence on
      # it the compiler may write first, and read a copy.
      new["memory"] = self._attracted(memory, x + 0 * dx, targets)
    opt_state = {"labels": labels_opt, "asked": asked_opt}
    return new, opt_state, dx, metrics

  def _centre_loss(self, x, memory, targets):
    """Scalar weighted mean over the batch."""
    rows = self.labels.label_rows
    own = label_gather.label_rows(memory, rows.of_labels(targets.ids))
    is_label = rows.is_label()
    squares = -2 * label_distance.half_squares(memory)
    near, far = meta_embedding.centre_losses(
      x,
      own,
      targets.ids >= 0,
      # As a product it takes no copy of the memory.
      jnp.dot(is_label.astype(memory.dtype), memory, out_sharding=P()),
      jnp.where(is_label, squares, 0).sum(),
      self.layout.num_labels,
    )
    share = label_step.share_of_weights(targets)
    hinge = jnp.maximum(0, self.margin - (share * far).sum())
    return (share * near).sum() + self.repel_weight * hinge

  def _attracted(self, memory, x, targets):
    """The memory after a step to the examples of the batch."""

    @jax.shard_map(
      in_specs=(sharding.LABELS, sharding.BATCH, sharding.BATCH),
      out_specs=sharding.LABELS,
    )
    def run(memory, x, ids):
      x, ids = sharding.gather_batch((x, ids))
      columns = targets_lib.positives_in_chunk(
        self.labels.label_rows.of_labels(ids),
        self.labels.label_rows.of_device().first_row(),
        memory.shape[0],
      ).columns
      return meta_embedding.attracted(memory, columns, x, self.centre_rate)

    return run(memory, x, targets.ids)

  def evaluate_loss(
    self,
    params: Params,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> jax.Array:
    """The classifier's loss of a batch; for arguments see `step`."""
    x = head_lib.embeddings(self, x, features=features)
    return self.labels.evaluate_loss(
      params["labels"], self.embed(params, x), features, targets, label_values
    )

  # --- prediction ------------------------------------------------------------

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
    """The k labels of highest score; as `DenseHead.topk`."""
    extra = choice_lib.of(choice).extra
    x = head_lib.embeddings(self, x, features=features, extra=extra)
    return self.labels.topk(
      params["labels"], self.embed(params, x), features, k, choice, offset
    )

  def confidence(
    self,
    params: Params,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    by: str = "probability",
  ) -> jax.Array:
    """How sure it is that an example is of any label at all.

    Args:
      params: Parameters, sharded as `specs()`.
      x: `[N, D]` embeddings sharded over examples.
      features: None.
      by: "probability", the largest, which depends on L; "cosine", the largest;
        or "reachability", the inverse distance to the memory.

    Returns:
      `[N]`, sharded over examples; `xlj.open_world.open_set` has thresholds.

    Raises:
      ValueError: It is not known by what.
    """
    head_lib.check_confidence(self, by)
    x = head_lib.embeddings(self, x, features=features)
    if by == "reachability":
      return 1 / self._distance(x, self._memory(params))
    meta = self.embed(params, x)
    if by == "probability":
      return self.labels.confidence(params["labels"], meta, None)
    best, _ = self.labels.topk(params["labels"], meta, None, 1)
    return best[:, 0] / jnp.linalg.norm(meta, axis=1)


def _asked_specs(asked: Any) -> dict[str, P]:
  """Of keys and selector."""
  return {
    name: sharding.LABELS if name.startswith("key") else sharding.REPLICATED
    for name in asked
  }
