"""The product head (MHP): a softmax for each digit of the label, no label rows.

A billion labels are three digits of a thousand values: `W [R, S, D]` with S the
sum of the lengths is all there is, on every device; examples are split over
devices. For one label per example. See `xlj.heads.product.distribution` for the
maths (Liang et al., "Multi-Head Encoding for extreme label classification",
TPAMI 2024).

Legend: N examples of the batch, n of this device, D embedding width, R
products, H digits, C_h length of digit h, S their sum, P positives, E named
labels of an example.
"""

import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from xlj import sharding
from xlj.heads import head as head_lib
from xlj.heads.product import distribution as product_lib
from xlj.heads.product import mixed_radix
from xlj.heads.product import topk as product_topk
from xlj.ops import choice as choice_lib
from xlj.ops import feature_rows
from xlj.ops import layout as layout_lib
from xlj.ops import precision
from xlj.ops import targets as targets_lib

Params = dict[str, jax.Array]
LOSSES = ("softmax", "joint_softmax", "bce")


@dataclasses.dataclass(frozen=True)
class ProductHead:
  """Weights from embeddings to the values of digits, and their optimizer.

  Attributes:
    num_labels: Number of labels L.
    dim: Width D of the embeddings.
    lengths: `C_1 .. C_H` with a product of at least L, as of
      `mixed_radix.balanced_lengths`.
    optimizer: Updates the parameters.
    components: Number of products R that are mixed.
    loss: "softmax" for the negative log-likelihood of the label;
      "joint_softmax" and "bce" for what the authors' scripts train with, see
      `xlj.heads.product.distribution`. Predictions are those of a softmax per
      digit anyway.
    use_bias: Whether values of digits, and products, have a bias.
    init_scale: Standard deviation of the initial weights.
    blocks: Number of blocks that what is kept of labels is dealt out to.

  Raises:
    ValueError: A setting is not known, or does not go with another.
  """

  num_labels: int
  dim: int
  lengths: tuple[int, ...]
  optimizer: optax.GradientTransformation
  components: int = 1
  loss: str = "softmax"
  use_bias: bool = True
  init_scale: float = 0.02
  blocks: int = 64

  def __post_init__(self):
    """Checks the fields."""
    _ = self.radix  # checks the lengths
    if self.loss not in LOSSES:
      raise ValueError(f"loss {self.loss!r} is not known; use one of {LOSSES}")
    if self.components < 1:
      raise ValueError(f"components is {self.components}: at least 1")
    if self.components > 1 and self.loss != "softmax":
      raise ValueError(
        f"loss {self.loss!r} is of one product; with components="
        f"{self.components} use 'softmax'"
      )
    if self.components > 1 and not self.init_scale:
      raise ValueError(
        "with init_scale=0 all components start, and stay, the same"
      )

  @property
  def name(self) -> str:
    """What users call it."""
    return "mhp"

  @property
  def can(self) -> frozenset[str]:
    """What it can do (see `xlj.heads.head`)."""
    return frozenset({"mean"})

  @property
  def confidences(self) -> tuple[str, ...]:
    """What `confidence` can go by."""
    return ()

  @property
  def is_likelihood(self) -> bool:
    """Whether the loss is a negative log-likelihood of the label."""
    return self.loss == "softmax"

  @property
  def layout(self) -> layout_lib.Layout:
    """Where what is kept of each label, which has no row, is."""
    empty = sharding.fill(self.blocks)
    return layout_lib.Layout(self.num_labels, self.blocks, empty)

  @property
  def num_rows(self) -> int:
    """There are no label rows."""
    return 0

  @property
  def radix(self) -> mixed_radix.MixedRadix:
    """Digits of labels."""
    return mixed_radix.MixedRadix(self.num_labels, self.lengths)

  def init(self, key: jax.Array) -> Params:
    """Initial parameters; they do not depend on the mesh.

    Args:
      key: Random key.

    Returns:
      `rows [R, S, D]`, `bias [R, S]`, and of a mixture `mixture [R, D]` and
      `mixture_bias [R]`, float32.
    """
    count, size = self.components, sum(self.lengths)
    rows_key, mixture_key = jax.random.split(key)
    normal = jax.random.normal
    params = {
      "rows": self.init_scale * normal(rows_key, (count, size, self.dim))
    }
    if self.use_bias:
      params["bias"] = jnp.zeros((count, size))
    if count > 1:
      params["mixture"] = self.init_scale * normal(
        mixture_key, (count, self.dim)
      )
      if self.use_bias:
        params["mixture_bias"] = jnp.zeros(count)
    return params

  def init_optimizer(self, params: Params) -> Any:
    """Optimizer state for `params`."""
    return self.optimizer.init(params)

  def specs(self) -> dict[str, jax.P]:
    """`PartitionSpec` of each parameter."""
    return sharding.replicated_like(self._abstract())

  def optimizer_specs(self) -> Any:
    """`PartitionSpec` of each leaf of the optimizer state."""
    state = jax.eval_shape(self.init_optimizer, self._abstract())
    return sharding.replicated_like(state)

  def _abstract(self) -> Params:
    return jax.eval_shape(lambda: self.init(jax.random.key(0)))

  rows = head_lib.refused(head_lib.Head.rows, "rows")
  tied_step = head_lib.refused(head_lib.Head.tied_step, "tied")
  at_prior = head_lib.refused(head_lib.Head.at_prior, "prior")
  zero_sums = head_lib.refused(head_lib.Head.zero_sums, "centroids")
  add_to_rows = head_lib.refused(head_lib.Head.add_to_rows, "centroids")
  at_centroids = head_lib.refused(head_lib.Head.at_centroids, "centroids")
  with_keys = head_lib.refused(head_lib.Head.with_keys, "keys")
  with_pairs = head_lib.refused(head_lib.Head.with_pairs, "features")

  # --- by label ---------------------------------------------------------------

  def step(
    self,
    params: Params,
    opt_state: Any,
    step: jax.Array,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> tuple[Params, Any, jax.Array, dict[str, jax.Array]]:
    """One training step of the head.

    Args:
      params: Parameters, on all devices.
      opt_state: Optimizer state, on all devices.
      step: Not used; the optimizer counts.
      x: `[N, D]` embeddings sharded over examples.
      features: None.
      targets: Positives, of which an example's first counts, and weights;
        sharded over examples. Examples without one have no weight.
      label_values: None.

    Returns:
      New parameters, new optimizer state, `dx [N, D]` sharded over examples,
      and "loss", the weighted mean over the batch.

    Raises:
      ValueError: There are no embeddings, or there is what it cannot use.
    """
    del step
    x = head_lib.embeddings(
      self, x, features=features, label_values=label_values
    )
    digits = sharding.by_compiler(self._digits_of)(targets.ids)
    params, opt_state, dx, loss = self.step_digits(
      params, opt_state, x, digits, jnp.asarray(targets.weights)
    )
    return params, opt_state, dx, {"loss": loss}

  def evaluate_loss(
    self,
    params: Params,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> jax.Array:
    """The mean negative log-likelihood, whatever the loss of training.

    So its exponential is the perplexity. For arguments see `step`.
    """
    x = head_lib.embeddings(
      self, x, features=features, label_values=label_values
    )
    digits = sharding.by_compiler(self._digits_of)(targets.ids)
    return self.evaluate_digits(params, x, digits, jnp.asarray(targets.weights))

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
    """The k labels of highest probability for each example, exactly.

    Args:
      params: Parameters, on all devices.
      x: `[N, D]` embeddings sharded over examples.
      features: None.
      k: How many labels.
      choice: The label ids that may be returned; by default all. There are no
        rows that all examples could be allowed.
      offset: None.

    Returns:
      Scores `[N, k]`, descending log-probabilities, and int32 ids `[N, k]`,
      sharded over examples; id -1 and score -inf where fewer than k labels
      exist.

    Raises:
      ValueError: There are no embeddings, there is what it cannot use, or
        labels pass 2^31 (use `topk_digits`).
    """
    choice = choice_lib.of(choice)
    x = head_lib.embeddings(
      self,
      x,
      features=features,
      offset=choice.offset(offset),
      extra=choice.extra,
    )
    choice = choice.map(sharding.by_compiler(self.radix.digits_on_device))
    scores, digits = self.topk_digits(params, x, k, choice)
    return scores, sharding.by_compiler(self.radix.labels_on_device)(digits)

  confidence = head_lib.without_confidence

  def _digits_of(self, ids: jax.Array) -> jax.Array:
    """`[N, P]` ids to digits `[N, H]` of the first that is no padding."""
    first = jnp.argmax(ids >= 0, 1)
    labels = jnp.take_along_axis(ids, first[:, None], 1)[:, 0]
    return self.radix.digits_on_device(labels)

  # --- by digits, for any number of labels ------------------------------------

  @jax.named_scope("pass")
  def step_digits(
    self,
    params: Params,
    opt_state: Any,
    x: jax.Array,
    digits: jax.Array,
    weights: jax.Array,
  ) -> tuple[Params, Any, jax.Array, jax.Array]:
    """One training step, for labels given by their digits.

    Args:
      params: Parameters, on all devices.
      opt_state: Optimizer state, on all devices.
      x: `[N, D]` embeddings sharded over examples.
      digits: `[N, H]` int32 digits of labels, as of `radix.digits`, sharded
        over examples; -1 for examples without one.
      weights: `[N]` weights of examples, sharded alike.

    Returns:
      As `step`.
    """
    everywhere = self.specs(), self.optimizer_specs()
    batch = sharding.BATCH

    @jax.shard_map(
      in_specs=(*everywhere, batch, batch, batch),
      out_specs=(*everywhere, batch, sharding.REPLICATED),
    )
    def run(params, opt_state, x, digits, weights):
      def loss(params, x):
        losses = self._losses(params, x, digits)
        return (losses * _shares(digits, weights)).sum()

      # Parameters are the same on all devices, so their gradient comes summed
      # over them.
      value, (grads, dx) = jax.value_and_grad(loss, (0, 1))(params, x)
      updates, opt_state = self.optimizer.update(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
      return params, opt_state, dx, lax.psum(value, sharding.AXES)

    return run(params, opt_state, x, digits, weights)

  def evaluate_digits(
    self,
    params: Params,
    x: jax.Array,
    digits: jax.Array,
    weights: jax.Array,
  ) -> jax.Array:
    """The mean negative log-likelihood; for arguments see `step_digits`."""
    batch = sharding.BATCH

    @jax.shard_map(
      in_specs=(self.specs(), batch, batch, batch),
      out_specs=sharding.REPLICATED,
    )
    def run(params, x, digits, weights):
      product = self.distribution(params, x)
      losses = -product_lib.log_likelihood(product, digits)
      mean = (losses * _shares(digits, weights)).sum()
      return lax.psum(mean, sharding.AXES)

    return run(params, x, digits, weights)

  @precision.exact
  def topk_digits(
    self,
    params: Params,
    x: jax.Array,
    k: int,
    choice: choice_lib.Choice | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """As `topk`, with labels given by their digits.

    Args:
      params: Parameters, on all devices.
      x: `[N, D]` embeddings sharded over examples.
      k: How many labels.
      choice: The labels that may be returned, as int32 digits `[N, E, H]`; -1
        pads.

    Returns:
      Scores `[N, k]` and int32 digits `[N, k, H]`, sharded over examples; -inf
      and -1 where fewer than k labels exist.
    """
    batch, choice = sharding.BATCH, choice_lib.of(choice)

    @jax.shard_map(
      in_specs=(self.specs(), batch, choice.specs()),
      out_specs=(batch, batch),
    )
    def run(params, x, choice):
      product = self.distribution(params, x)
      if choice.only:
        return product_topk.topk_of(product, choice.ids, k)
      return product_topk.product_topk(product, self.radix, k, choice.ids)

    return run(params, x, choice)

  def distribution(self, params: Params, x: jax.Array) -> product_lib.Product:
    """Distributions over labels of examples `[n, D]`; on this device alone."""
    logits, weight_logits = self._logits(params, x)
    return product_lib.from_logits(logits, weight_logits, self.radix)

  def _logits(
    self, params: Params, x: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Logits of digits `[n, R, S]` and of products `[n, R]`, float32."""

    def linear(rows, bias):
      flat = rows.reshape(-1, self.dim)
      z = jnp.matmul(x, flat.T, preferred_element_type=jnp.float32)
      z = z.reshape(x.shape[0], *rows.shape[:-1])
      return z if bias is None else z + bias

    logits = linear(params["rows"], params.get("bias"))
    if self.components == 1:
      return logits, jnp.zeros_like(logits[..., 0])
    return logits, linear(params["mixture"], params.get("mixture_bias"))

  def _losses(
    self, params: Params, x: jax.Array, digits: jax.Array
  ) -> jax.Array:
    """The loss of training of each example, `[n]`."""
    if self.loss == "softmax":
      product = self.distribution(params, x)
      return -product_lib.log_likelihood(product, digits)
    logits = self._logits(params, x)[0][:, 0]
    if self.loss == "bce":
      return product_lib.bce_loss(logits, digits, self.lengths)
    return product_lib.joint_softmax_loss(logits, digits, self.lengths)


def _shares(digits: jax.Array, weights: jax.Array) -> jax.Array:
  """Each example's share of the batch, `[n]`; 0 without a label."""
  weights = jnp.where((digits < 0).any(1), 0, weights)
  total = lax.psum(weights.sum(), sharding.AXES)
  return weights / jnp.maximum(total, 1e-9)
