"""An encoder and a head, put together: init, training step, prediction.

Everything here is a function of arrays; the mesh is the one in context
(`jax.set_mesh`). The state is two trees: `model`, what prediction needs, and
`training`, what only training needs.

Legend: N examples, K features per example, P positives per example,
F features, L label rows (padded), D embedding width.
"""

from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from xlj import optim
from xlj import sharding
from xlj.encoders import bag
from xlj.heads import dense
from xlj.losses import asymmetric
from xlj.losses import bce
from xlj.losses import decoupled_softmax
from xlj.losses import focal
from xlj.losses import softmax
from xlj.losses import squared_hinge
from xlj.ops import feature_rows
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib

# Those of `xlj.losses` that need nothing but the logits and the positives.
LOSSES = {
  "softmax": softmax.Softmax,
  "bce": bce.BinaryCrossEntropy,
  "decoupled_softmax": decoupled_softmax.DecoupledSoftmax,
  "focal": focal.Focal,
  "asymmetric": asymmetric.Asymmetric,
  "squared_hinge": squared_hinge.SquaredHinge,
}


Array = jax.Array | np.ndarray


class State(NamedTuple):
  """Everything that a training step reads and writes.

  Attributes:
    model: `encoder`, `head` (parameters) and `buffers`: `label_counts` and
      `label_ids` by row, `idf` by feature.
    training: `encoder` and `head` (optimizer states).
    step: Scalar int32, number of steps taken.
  """

  model: dict[str, Any]
  training: dict[str, Any]
  step: jax.Array


class Inputs(NamedTuple):
  """A batch: this process's rows as numpy, or all on the mesh by example.

  Attributes:
    feature_ids: `[N, K]` int32, None when the features are dense.
    feature_values: `[N, K]` float32, or dense features `[N, F]`.
    label_ids: `[N, P]` int32, -1 for padding.
    weights: `[N]` float32, 0 for padding examples.
  """

  feature_ids: Array | None
  feature_values: Array
  label_ids: Array
  weights: Array

  @property
  def targets(self) -> targets_lib.Targets:
    """Positives and example weights."""
    return targets_lib.Targets(self.label_ids, self.weights)


class Model:
  """The functions of one configured model; holds no arrays."""

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds encoder, head and optimizers.

    Args:
      config: A resolved config (`xlj.config.resolve`).
    """
    self._config = config

    def schedule(part: ml_collections.ConfigDict) -> optim.Schedule:
      return optim.make_schedule(
        part.learning_rate,
        config.train.num_steps,
        warmup=config.optim.warmup,
        decay=config.optim.decay,
      )

    optimizers = config.optim
    self._encoder_tx = optim.make_optimizer(
      optimizers.encoder, schedule(optimizers.encoder)
    )
    self.head = dense.DenseHead(
      num_labels=config.data.num_labels,
      dim=_width(config),
      loss=LOSSES[config.head.loss](),
      optimizer=self._row_optimizer(schedule(optimizers.head)),
      wide_features=config.data.num_features if config.head.wide else 0,
      wide_learning_rate=self._wide_learning_rate(schedule(optimizers.wide)),
      wide_labels=config.head.wide_labels,
      blocks=config.head.blocks,
      init_scale=config.head.init_scale,
      init_bias=config.head.bias,
      kahan_labels=config.head.kahan_labels,
      cosine=config.head.cosine,
      memory=config.head.chunk_bytes or None,
      use_bias=config.head.use_bias,
      skip_below=config.head.skip_below,
      kernels=config.head.kernels,
      keep_logits=config.head.keep_logits or None,
    )
    self._graph = None
    if config.encoder.dim:
      module = nnx.eval_shape(lambda: self._make_encoder(jax.random.key(0)))
      self._graph = nnx.graphdef(module)

  def _row_optimizer(
    self, schedule: optim.Schedule
  ) -> row_optimizer.RowOptimizer:
    """How label rows are stored and updated."""
    head, settings = self._config.head, self._config.optim.head
    plain = None
    if settings.name == "sgd":
      plain = row_optimizer.Sgd(schedule, settings.weight_decay)
    return row_optimizer.RowOptimizer(
      optim.make_optimizer(settings, schedule),
      dtype=head.dtype,
      rounding=head.rounding,
      correction=head.correction,
      max_norm=head.max_norm or None,
      seed=self._config.seed,
      plain=plain,
    )

  def _wide_learning_rate(self, schedule: optim.Schedule) -> optim.Schedule:
    """The head's loss is a mean; this rate is for the sum over the batch."""
    return lambda step: self._config.train.batch_size * schedule(step)

  # --- state -----------------------------------------------------------------

  def init(
    self,
    key: jax.Array,
    label_ids: jax.Array,
    label_counts: jax.Array,
    idf: jax.Array,
  ) -> State:
    """The state before the first step, created sharded.

    Args:
      key: Random key.
      label_ids: `[num_labels]` int32, the data set's id of the head's labels.
      label_counts: `[num_labels]` int32, training examples of each of them.
      idf: `[F]` float32, inverse document frequencies; ones if not used.

    Returns:
      The state.
    """
    make = jax.jit(self._init, out_shardings=self.shardings())
    return make(key, label_ids, label_counts, idf)

  def abstract(self) -> State:
    """Shapes, dtypes and shardings of the state; nothing is allocated."""
    data = self._config.data
    shapes = jax.eval_shape(
      self._init,
      jax.random.key(0),
      jax.ShapeDtypeStruct((data.num_labels,), jnp.int32),
      jax.ShapeDtypeStruct((data.num_labels,), jnp.int32),
      jax.ShapeDtypeStruct((data.num_features,), jnp.float32),
    )
    return jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
      shapes,
      self.shardings(),
    )

  def shardings(self) -> Any:
    """`NamedSharding` of every leaf of the state on the mesh in context."""
    encoder = {}
    if self._graph is not None:
      encoder = jax.eval_shape(self._init_encoder, jax.random.key(0))
    specs: Any = State(
      model={
        "encoder": sharding.replicated_like(encoder),
        "head": self.head.specs(),
        "buffers": {
          "label_counts": sharding.LABELS,
          "label_ids": sharding.LABELS,
          "idf": sharding.REPLICATED,
        },
      },
      training={
        "encoder": sharding.replicated_like(
          jax.eval_shape(self._encoder_tx.init, encoder)
        ),
        "head": self.head.optimizer_specs(),
      },
      step=sharding.REPLICATED,  # pyrefly: ignore[bad-argument-type]
    )
    return sharding.named(jax.sharding.get_mesh(), specs)

  # --- functions of the state ------------------------------------------------

  def train_step(
    self, state: State, inputs: Inputs
  ) -> tuple[State, dict[str, jax.Array]]:
    """One step; the random numbers depend on (seed, step) alone.

    Args:
      state: The state; donate it.
      inputs: A training batch.

    Returns:
      The new state, and `loss`, the weighted mean over the batch.
    """
    key = jax.random.fold_in(jax.random.key(self._config.seed), state.step)
    drop_key, encode_key = jax.random.split(key)
    features = self._drop_features(inputs, drop_key)
    encoder = state.model["encoder"]
    x = vjp = None
    if self._graph is not None:
      x, vjp = jax.vjp(
        lambda params: self._encode(params, features, encode_key), encoder
      )
    head, head_opt, dx, loss = self.head.step(
      state.model["head"],
      state.training["head"],
      state.step,
      x,
      self._wide(features),
      inputs.targets,
    )
    encoder_opt = state.training["encoder"]
    if vjp is not None:
      (grads,) = vjp(dx)
      updates, encoder_opt = self._encoder_tx.update(
        grads, encoder_opt, encoder
      )
      encoder = optax.apply_updates(encoder, updates)
    model = {**state.model, "encoder": encoder, "head": head}
    training = {"encoder": encoder_opt, "head": head_opt}
    return State(model, training, state.step + 1), {"loss": loss}

  def loss(self, model: dict[str, Any], inputs: Inputs) -> jax.Array:
    """The loss of a batch in evaluation mode, a scalar."""
    return self.head.evaluate_loss(
      model["head"], *self._forward(model, inputs), inputs.targets
    )

  def topk(
    self,
    model: dict[str, Any],
    inputs: Inputs,
    k: int,
    exclude: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """The k best labels of each example.

    Args:
      model: The `model` part of the state.
      inputs: A batch; its labels are not used.
      k: How many labels.
      exclude: `[N, E]` int32 labels not to return for an example; -1 pads.

    Returns:
      Scores `[N, k]`, descending, and int32 label ids `[N, k]`.
    """
    offset = None
    if self._config.predict.propensity_power:
      counts = model["buffers"]["label_counts"].astype(jnp.float32)
      offset = self._propensity_offset(counts)
    return self.head.topk(
      model["head"], *self._forward(model, inputs), k, exclude, offset
    )

  def add_to_centroids(
    self, rows: jax.Array, model: dict[str, Any], inputs: Inputs
  ) -> jax.Array:
    """Adds the embeddings of a batch to the rows `[L, D]` of its labels."""
    x, _ = self._forward(model, inputs)
    assert x is not None  # The config is checked: centroids need an encoder.
    return self.head.add_to_rows(rows, inputs.label_ids, x)

  def zero_rows(self) -> jax.Array:
    """`[L, D]` zeros, sharded like the label rows."""
    return jax.jit(
      lambda: jnp.zeros((self.head.num_rows, self.head.dim)),
      out_shardings=self.shardings().model["head"]["rows"],
    )()

  def start_at_centroids(self, sums: jax.Array, state: State) -> State:
    """The first state, with label rows of length `head.init_scale`.

    Args:
      sums: `[L, D]` sums of `add_to_centroids` over the training rows.
      state: The state of `init`; the rows of labels without an example stay.

    Returns:
      The state.
    """
    head = state.model["head"]
    length = jnp.linalg.norm(sums, axis=1, keepdims=True)
    unit = self._config.head.init_scale * sums / jnp.maximum(length, 1e-12)
    rows = jnp.where(length > 0, unit, self.head.rows(head))
    head = self.head.with_rows(head, rows)
    training = {**state.training, "head": self.head.init_optimizer(head)}
    model = {**state.model, "head": head}
    return state._replace(model=model, training=training)

  # --- parts -----------------------------------------------------------------

  def _make_encoder(self, key: jax.Array) -> nnx.Module:
    encoder = self._config.encoder
    return bag.BagEncoder(
      self._config.data.num_features,
      encoder.dim,
      hidden=tuple(encoder.hidden),
      activation=encoder.activation,
      embedding_dropout=encoder.embedding_dropout,
      hidden_dropout=encoder.hidden_dropout,
      std=encoder.init_scale
      / (encoder.input_scale * self._config.data.feature_norm),
      input_scale=encoder.input_scale,
      scale=encoder.scale,
      rngs=nnx.Rngs(key),
    )

  def _init_encoder(self, key: jax.Array) -> Any:
    return nnx.to_pure_dict(nnx.state(self._make_encoder(key), nnx.Param))

  def _init(
    self,
    key: jax.Array,
    label_ids: jax.Array,
    label_counts: jax.Array,
    idf: jax.Array,
  ) -> State:
    encoder_key, head_key = jax.random.split(key)
    encoder = {}
    if self._graph is not None:
      encoder = self._init_encoder(encoder_key)
    head = self.head.init(head_key)
    if self._config.head.prior_bias:
      odds = (label_counts + 0.5) / (self._config.data.num_rows + 1)
      head["bias"] = self.head.by_row(jax.scipy.special.logit(odds), 0)
    buffers = {
      "label_ids": self.head.by_row(label_ids, -1),
      "label_counts": self.head.by_row(label_counts, 0),
      "idf": idf,
    }
    return State(
      model={"encoder": encoder, "head": head, "buffers": buffers},
      training={
        "encoder": self._encoder_tx.init(encoder),
        "head": self.head.init_optimizer(head),
      },
      step=jnp.int32(0),
    )

  def _encode(
    self, params: Any, features: bag.Features, key: jax.Array | None
  ) -> jax.Array:
    """Embeddings `[N, D]`; dropout where a key is given."""
    graph: Any = self._graph

    def encode(params, features, key):
      state = jax.tree.map(nnx.Param, params)
      module = nnx.merge(graph, state)
      rngs = None if key is None else nnx.Rngs(dropout=key)
      return module(features, rngs=rngs)

    return sharding.by_compiler(encode)(params, features, key)

  def _forward(
    self, model: dict[str, Any], inputs: Inputs
  ) -> tuple[jax.Array | None, feature_rows.SparseRows | None]:
    """What the head reads, without dropout."""
    features = _features(inputs)
    x = None
    if self._graph is not None:
      x = self._encode(model["encoder"], features, None)
    return x, self._wide(features)

  def _wide(self, features: bag.Features) -> feature_rows.SparseRows | None:
    if not self._config.head.wide:
      return None
    assert isinstance(features, feature_rows.SparseRows)  # The config says so.
    return features

  def _drop_features(self, inputs: Inputs, key: jax.Array) -> bag.Features:
    """Features with a share of the values set to 0, the rest scaled up."""
    rate = self._config.encoder.feature_dropout
    if not rate:
      return _features(inputs)

    def drop(values, key):
      keep = jax.random.bernoulli(key, 1 - rate, values.shape)
      return jnp.where(keep, values / (1 - rate), 0)

    values = sharding.by_compiler(drop)(inputs.feature_values, key)
    return _features(inputs._replace(feature_values=values))

  def _propensity_offset(self, label_counts: jax.Array) -> jax.Array:
    """`power * log(1 / propensity)` of each label row, `[L]`."""
    data, power = self._config.data, self._config.predict.propensity_power
    scale = (jnp.log(data.num_rows) - 1) * (data.propensity_b + 1) ** (
      data.propensity_a
    )
    decay = jnp.exp(
      -data.propensity_a * jnp.log(label_counts + data.propensity_b)
    )
    return power * jnp.log1p(scale * decay)


def _features(inputs: Inputs) -> bag.Features:
  if inputs.feature_ids is None:
    return jnp.asarray(inputs.feature_values)
  make = sharding.by_compiler(feature_rows.sparse_rows)
  return make(inputs.feature_ids, inputs.feature_values)


def _width(config: ml_collections.ConfigDict) -> int:
  """Width D of the embeddings that reach the head."""
  encoder = config.encoder
  return encoder.hidden[-1] if encoder.hidden else encoder.dim
