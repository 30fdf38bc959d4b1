"""The dense head with a spherical loss and SGD, at a cost free of L.

Every step equals one of the dense head that it holds, but the label rows are
kept as `W = V U + 1 w^T`: a step reads and writes the rows of V that positives
have, and small matrices. See `xlj.heads.spherical.factors` for the maths, and
`xlj.losses.spherical` for the losses.

V is split by rows over all devices, the rest is on all of them. Devices
exchange the examples, N x P logits and N x D numbers a step.

Legend: N examples of the batch, L label rows (padded), l of this device, D
width, P positives.
"""

import dataclasses
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from xlj import sharding
from xlj.heads import head as head_lib
from xlj.heads.dense import head as dense
from xlj.heads.spherical import factors as spherical
from xlj.losses import spherical as spherical_losses
from xlj.ops import choice as choice_lib
from xlj.ops import feature_rows
from xlj.ops import label_gather
from xlj.ops import label_sums
from xlj.ops import layout as layout_lib
from xlj.ops import precision
from xlj.ops import row_optimizer
from xlj.ops import shards as shards_lib
from xlj.ops import targets as targets_lib

Params = dict[str, jax.Array]
_CHUNK = 4096  # rows multiplied out at a time
# Beyond it V is multiplied out: float32 has by then lost a digit or two.
_MAX_CONDITION = 10.0


class _Batch(NamedTuple):
  """A batch, the same on all devices; rows in place of label ids."""

  x: jax.Array  # [N, D]
  rows: jax.Array  # [N, P], -1 for padding
  weights: jax.Array  # [N]


class _Read(NamedTuple):
  """What a step reads of V."""

  index: jax.Array  # [N, P], rows of this device; l for others
  rows: jax.Array  # [N, P, D], 0 for others


@dataclasses.dataclass(frozen=True)
class SphericalHead:
  """Factored label rows.

  Attributes:
    labels: The dense head that steps are equal to. Its loss is a
      `losses.spherical.Spherical`, its optimizer plain SGD on float32 rows.
    refactor_every: Steps after which V is multiplied out at the latest:
      rounding errors end there. It also is whenever U has become
      ill-conditioned. It takes about as long as the gradients of 64 examples in
      the dense head.
    curvature_rate: Below 1, the gradient of the sum of squares by label rows is
      that of examples of earlier steps also: their Gram matrix is a running
      mean, to which a step contributes this share (Krichene et al. 2019,
      "Efficient training on very large corpora via Gramian estimation", section
      4.2, SOGram).

  Raises:
    ValueError: A setting cannot be had in this form.
  """

  labels: dense.DenseHead
  refactor_every: int = 1000
  curvature_rate: float = 1.0

  def __post_init__(self) -> None:
    """Checks the fields."""
    labels, rows = self.labels, self.labels.label_rows
    optimizer = rows.optimizer
    for found, why in (
      (
        not isinstance(labels.loss, spherical_losses.Spherical),
        "labels.loss must be a losses.spherical.Spherical",
      ),
      (optimizer.plain is None, "the optimizer must be plain SGD"),
      (optimizer.dtype != "float32", "rows must be float32"),
      (optimizer.max_norm is not None, "the length of rows cannot be limited"),
      (not labels.dim, "dim is 0: there must be embeddings"),
      (bool(rows.wide_features), "there can be no wide path"),
      (rows.use_bias, "labels can have no bias: set use_bias=False"),
      (rows.cosine, "rows cannot count by direction: set cosine=False"),
      (bool(labels.sample_blocks), "all labels count: set sample_blocks=0"),
      (bool(rows.skip_below), "nothing is skipped: set skip_below=0"),
      (self.refactor_every < 1, "refactor_every must be at least 1"),
      (not 0 < self.curvature_rate <= 1, "curvature_rate must be in (0, 1]"),
    ):
      if found:
        raise ValueError(
          f"the spherical head: {why}; or use the dense head, with the same"
          " loss and what else it needs"
        )

  @property
  def loss(self) -> spherical_losses.FunctionOfSums:
    """The loss."""
    loss = self.labels.loss
    assert isinstance(loss, spherical_losses.Spherical)
    return loss.of

  @property
  def sgd(self) -> row_optimizer.Sgd:
    """Learning rate and weight decay."""
    plain = self.labels.label_rows.optimizer.plain
    assert plain is not None
    return plain

  @property
  def layout(self) -> layout_lib.Layout:
    """Where each label's row is."""
    return self.labels.layout

  @property
  def dim(self) -> int:
    """Width D of the embeddings."""
    return self.labels.dim

  @property
  def num_rows(self) -> int:
    """Number of label rows including padding."""
    return self.labels.num_rows

  @property
  def name(self) -> str:
    """What users call it."""
    return "spherical"

  @property
  def can(self) -> frozenset[str]:
    """What it can do (see `xlj.heads.head`)."""
    return frozenset({"offset", "centroids"})

  @property
  def confidences(self) -> tuple[str, ...]:
    """What `confidence` can go by."""
    return ()

  @property
  def is_likelihood(self) -> bool:
    """Whether the loss is a negative log-likelihood of the positives."""
    likelihoods = (
      spherical_losses.SphericalSoftmax | spherical_losses.TaylorSoftmax
    )
    return isinstance(self.loss, likelihoods)

  def init(self, key: jax.Array) -> Params:
    """Initial parameters, on the mesh in context; they do not depend on it.

    Args:
      key: Random key.

    Returns:
      `rows [L, D]`, V, and the fields of `spherical.Factors`.
    """
    return self.factored(self.labels.init(key)["rows"])

  def factored(self, rows: jax.Array) -> Params:
    """Parameters for label rows `[L, D]`; padding becomes 0."""
    layout = self.layout

    @jax.shard_map(in_specs=sharding.LABELS, out_specs=sharding.LABELS)
    def without_padding(rows):
      is_label = layout.is_label(sharding.own_rows(layout.num_rows))
      return jnp.where(is_label[:, None], rows, 0)

    rows = without_padding(rows)
    sums = label_sums.label_statistics(
      rows, placement=shards_lib.Placement(row_axes=sharding.AXES)
    )
    return {"rows": rows, **spherical.unfactored(sums)._asdict()}

  def init_optimizer(self, params: Params) -> dict[str, jax.Array]:
    """Optimizer state: `curvature [D, D]`, where it is a running mean."""
    if self.curvature_rate == 1:
      return {}
    return {"curvature": jnp.zeros_like(params["gram"])}

  def specs(self) -> dict[str, jax.P]:
    """`PartitionSpec` of each parameter."""
    small = dict.fromkeys(spherical.Factors._fields, sharding.REPLICATED)
    return {"rows": sharding.LABELS, **small}

  def optimizer_specs(self) -> dict[str, jax.P]:
    """`PartitionSpec` of each leaf of the optimizer state."""
    return {"curvature": sharding.REPLICATED} if self.curvature_rate < 1 else {}

  @jax.named_scope("pass")
  def step(
    self,
    params: Params,
    opt_state: dict[str, jax.Array],
    step: jax.Array,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> tuple[Params, dict[str, jax.Array], jax.Array, dict[str, jax.Array]]:
    """One training step of the head.

    Args:
      params: Parameters, sharded as `specs()`; donate them.
      opt_state: Optimizer state, sharded as `optimizer_specs()`.
      step: Scalar int32, number of steps taken.
      x: `[N, D]` embeddings sharded over examples.
      features: None.
      targets: Positives and example weights, sharded over examples.
      label_values: None.

    Returns:
      New parameters, new optimizer state, `dx [N, D]` sharded over examples,
      and "loss", the weighted mean over the batch.

    Raises:
      ValueError: There are no embeddings, or there is what it cannot use.
    """
    x = head_lib.embeddings(
      self, x, features=features, label_values=label_values
    )
    batch = self._batch(x, targets)
    everywhere = sharding.REPLICATED

    @jax.shard_map(
      in_specs=(self.specs(), everywhere, everywhere, everywhere),
      out_specs=(self.specs(), everywhere, everywhere, everywhere),
    )
    def run(params, opt_state, step, batch):
      rows, factors = _parts(params)
      sgd, x = self.sgd, batch.x
      rate = jnp.asarray(sgd.learning_rate(step)).astype(x.dtype)
      read, losses, by_logits, by_sums = self._losses(rows, factors, batch)
      share = _shares(batch)
      by_logits *= share[:, None]
      by_sums = jax.tree.map(lambda a: share * a, by_sums)
      by_rows = lax.psum(_weighted(by_logits, read.rows), sharding.AXES)
      grad, dx = spherical.gradient(
        factors, x, batch.rows, by_logits, by_sums, by_rows
      )
      if self.curvature_rate < 1:
        mean = opt_state["curvature"]
        mean += self.curvature_rate * (grad.curvature - mean)
        grad, opt_state = grad._replace(curvature=mean), {"curvature": mean}
      factors = spherical.updated(
        factors, x, grad, rate, sgd.weight_decay, self.layout.num_labels
      )
      inverse = jnp.linalg.inv(factors.u)
      rows = spherical.add_to_rows(
        rows, read.index, by_logits, x, inverse, rate
      )
      due = step % self.refactor_every == self.refactor_every - 1
      due |= spherical.condition(factors.u, inverse) > _MAX_CONDITION
      rows, factors = spherical.refactored(
        rows,
        factors,
        due,
        self.layout,
        _first_row(rows),
        _CHUNK,
        sharding.AXES,
      )
      new = {"rows": rows, **factors._asdict()}
      return new, opt_state, dx, {"loss": (share * losses).sum()}

    new, opt_state, dx, metrics = run(params, opt_state, step, batch)
    dx = jax.reshard(dx.astype(x.dtype), sharding.BATCH)
    return new, opt_state, dx, metrics

  def evaluate_loss(
    self,
    params: Params,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> jax.Array:
    """The weighted mean loss of a batch; for arguments see `step`."""
    x = head_lib.embeddings(
      self, x, features=features, label_values=label_values
    )
    batch = self._batch(x, targets)

    @jax.shard_map(
      in_specs=(self.specs(), sharding.REPLICATED),
      out_specs=sharding.REPLICATED,
    )
    def run(params, batch):
      losses = self._losses(*_parts(params), batch)[1]
      return (_shares(batch) * losses).sum()

    return run(params, batch)

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
    """The k labels of highest logit for each example, exactly.

    Args:
      params: Parameters, sharded as `specs()`.
      x: `[N, D]` embeddings sharded over examples.
      features: None.
      k: How many labels.
      choice: The label ids that may be returned; by default all.
      offset: `[L]` added to the logits before ranking, sharded like the rows.

    Returns:
      Scores `[N, k]`, descending, and int32 ids `[N, k]`, sharded over
      examples; id -1 and score -inf where fewer than k labels exist.

    Raises:
      ValueError: There are no embeddings, or there is what it cannot use.
    """
    extra = choice_lib.of(choice).extra
    x = head_lib.embeddings(self, x, features=features, extra=extra)
    rows, factors = _parts(params)
    small, more = spherical.embedded(factors, x)
    scores, ids = self.labels.topk(
      {"rows": rows}, small, None, k, choice, offset
    )
    return scores + more[:, None].astype(scores.dtype), ids

  def zero_sums(self) -> jax.Array:
    """As `DenseHead.zero_sums`."""
    return self.labels.zero_sums()

  def add_to_rows(
    self, rows: jax.Array, ids: targets_lib.Array, x: jax.Array
  ) -> jax.Array:
    """As `DenseHead.add_to_rows`."""
    return self.labels.add_to_rows(rows, ids, x)

  def at_centroids(
    self, params: Params, sums: jax.Array, length: float
  ) -> Params:
    """As `DenseHead.at_centroids`, for parameters of `init`."""
    rows = {"rows": params["rows"]}
    return self.factored(self.labels.at_centroids(rows, sums, length)["rows"])

  rows = head_lib.refused(head_lib.Head.rows, "rows")
  tied_step = head_lib.refused(head_lib.Head.tied_step, "tied")
  at_prior = head_lib.refused(head_lib.Head.at_prior, "prior")
  with_keys = head_lib.refused(head_lib.Head.with_keys, "keys")
  with_pairs = head_lib.refused(head_lib.Head.with_pairs, "features")
  confidence = head_lib.without_confidence

  def unfactored(self, params: Params) -> jax.Array:
    """The label rows `[L, D]`; padding is 0."""

    @jax.shard_map(in_specs=(self.specs(),), out_specs=sharding.LABELS)
    def run(params):
      rows, factors = _parts(params)
      return spherical.refactored(
        rows,
        factors,
        jnp.bool_(True),
        self.layout,
        _first_row(rows),
        _CHUNK,
        sharding.AXES,
      )[0]

    return run(params)

  def _batch(self, x: jax.Array, targets: targets_lib.Targets) -> _Batch:
    """The batch on all devices."""
    rows = self.labels.label_rows.of_labels(targets.ids)
    batch = _Batch(x, rows, jnp.asarray(targets.weights))
    return jax.tree.map(lambda a: jax.reshard(a, sharding.REPLICATED), batch)

  def _losses(
    self, rows: jax.Array, factors: spherical.Factors, batch: _Batch
  ) -> tuple[_Read, jax.Array, jax.Array, spherical_losses.Sums]:
    """What is read of V, losses `[N]`, and gradients by logits and sums."""
    small, more = spherical.embedded(factors, batch.x)
    index = sharding.own_index(batch.rows, len(rows))
    own = label_gather.take(rows, index)
    products = jnp.einsum(
      "npd,nd->np", own, small, precision=lax.Precision.HIGHEST
    )
    logits = lax.psum(products, sharding.AXES) + more[:, None]
    sums = spherical.sums_of_logits(factors, batch.x)
    found = spherical_losses.losses_and_gradients(
      self.loss, logits, batch.rows >= 0, sums
    )
    return _Read(index, own), *found


def _parts(params: Params) -> tuple[jax.Array, spherical.Factors]:
  """V and the rest."""
  fields = spherical.Factors._fields
  return params["rows"], spherical.Factors(*(params[f] for f in fields))


def _first_row(rows: jax.Array) -> jax.Array:
  """The first row of this device, of `[l, D]` each."""
  return lax.axis_index(sharding.AXES) * rows.shape[0]


def _shares(batch: _Batch) -> jax.Array:
  """Each example's share of the batch, `[N]`."""
  return batch.weights / jnp.maximum(batch.weights.sum(), 1e-9)


def _weighted(by_logits: jax.Array, rows: jax.Array) -> jax.Array:
  """`[N, D]` sums over the positives' rows `[N, P, D]`, by their gradients."""
  return jnp.einsum(
    "np,npd->nd", by_logits, rows, precision=lax.Precision.HIGHEST
  )
