"""An encoder and a head, put together: init, training step, prediction.

Everything here is a function of arrays; the mesh is the one in context
(`jax.set_mesh`). The state is two trees: `model`, what prediction needs, and
`training`, what only training needs.

Legend: N examples, K features per example, P positives per example,
F features, L label rows (padded), D embedding width.
"""

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from xlj import sharding
from xlj.config import dual
from xlj.config import encoders
from xlj.config import heads
from xlj.config import optim
from xlj.encoders import bag
from xlj.heads import head as head_lib
from xlj.model import dual as dual_lib
from xlj.model import example_memory
from xlj.model import inputs as inputs_lib
from xlj.model import items
from xlj.model import label_values
from xlj.model import state as state_lib
from xlj.ops import choice as choice_lib
from xlj.ops import feature_rows
from xlj.ops import gradient_cache
from xlj.ops import label_gather
from xlj.ops import layout as layout_lib
from xlj.ops import precision
from xlj.ops import targets as targets_lib

State = state_lib.State
Inputs = inputs_lib.Inputs


class Model:
  """The functions of one configured model; holds no arrays."""

  def __init__(self, config: ml_collections.ConfigDict):
    """Builds encoder, head and optimizers.

    Args:
      config: A resolved config (`xlj.config.resolve`).
    """
    self._config = config
    self._encoder_tx = optim.of_encoder(config)
    self.head: head_lib.Head = heads.make(config)
    self._graph = None
    if config.encoder.dim:
      module = nnx.eval_shape(lambda: self._make_encoder(jax.random.key(0)))
      self._graph = nnx.graphdef(module)

  @property
  def every(self) -> bool:
    """Whether a step trains on every place of a row, with `next_items`."""
    return self._config.encoder.type == "causal"

  @property
  def layout(self) -> layout_lib.Layout:
    """Where what is kept of each label is: with its row, if it has one."""
    return self.head.layout

  def by_row(self, values: np.ndarray, fill: int) -> jax.Array:
    """Values of labels by row of `layout`, each device given its own alone.

    Args:
      values: `[num_labels]` by the head's labels, the same in every process.
      fill: For padding rows.

    Returns:
      `[L]` on the mesh in context.
    """
    return label_values.by_row(self.layout, values, fill)

  # --- state -----------------------------------------------------------------

  def init(
    self,
    key: jax.Array,
    label_ids: jax.Array | None,
    label_counts: jax.Array | None,
    idf: jax.Array,
  ) -> State:
    """The state before the first step, created sharded.

    Args:
      key: Random key.
      label_ids: `[L]` int32 by row (see `by_row`), the data set's id of the
        head's labels, -1 for padding; None if `head.order` is "none".
      label_counts: `[L]` int32 by row, training examples of each of them, 0 for
        padding; None likewise.
      idf: `[F]` float32, inverse document frequencies; ones if not used.

    Returns:
      The state.
    """
    make = jax.jit(self._init, out_shardings=self.shardings())
    return make(key, label_ids, label_counts, idf)

  def with_pairs(self, state: State, *arrays: np.ndarray) -> State:
    """The first state with a wide path for the pairs that meet.

    Args:
      state: The state of `init`.
      *arrays: Those of `xlj.data.label_pairs.Pairs`, the same in every process.

    Returns:
      The state.
    """
    placed = map(sharding.put_blocks, arrays)
    head = self.head.with_pairs(state.model["head"], *placed)
    return state._replace(model={**state.model, "head": head})

  def abstract(self) -> State:
    """Shapes, dtypes and shardings of the state; nothing is allocated."""
    return jax.tree.map(
      lambda a, s: a.update(sharding=s), self._shapes(), self.shardings()
    )

  @property
  def is_filled_up(self) -> bool:
    """Whether arrays have empty rows, for the devices in context."""
    head = self._config.head  # of which "mhs" has groups alone
    return any(map(sharding.fill, (head.blocks or 1, *(head.groups or ()))))

  def saved(self) -> State:
    """Shapes and dtypes of the state in a checkpoint, on whatever devices.

    They are those of one device: with more of them, arrays may have empty rows
    at the end, so that all have as many.
    """
    with jax.set_mesh(sharding.one_device()):
      return self._shapes()

  def _shapes(self) -> State:
    """Shapes and dtypes of the state on the mesh in context."""
    data, by_label = self._config.data, None
    if self._config.head.order != "none":
      mesh = jax.sharding.get_abstract_mesh()
      by_label = jax.ShapeDtypeStruct(
        (self.layout.num_rows,),
        jnp.int32,
        sharding=jax.NamedSharding(mesh, sharding.LABELS),
      )
    return jax.eval_shape(
      lambda *args: self._init(jax.random.key(0), *args),
      by_label,
      by_label,
      jax.ShapeDtypeStruct((data.num_features,), jnp.float32),
    )

  def shardings(self) -> Any:
    """`NamedSharding` of every leaf of the state on the mesh in context."""
    return sharding.named(sharding.mesh(), self.specs)

  @functools.cached_property
  def specs(self) -> Any:
    """`PartitionSpec` of every leaf of the state, the same on every mesh."""
    encoder = {}
    if self._graph is not None:
      encoder = jax.eval_shape(lambda: self._init_encoder(jax.random.key(0)))
    buffers = {"idf": sharding.REPLICATED}
    if self._config.head.order != "none":
      buffers |= dict.fromkeys(("label_counts", "label_ids"), sharding.LABELS)
    return State(
      model={
        "encoder": sharding.replicated_like(encoder),
        "head": self.head.specs(),
        "buffers": buffers,
      },
      training={
        "encoder": sharding.replicated_like(
          jax.eval_shape(self._encoder_tx.init, encoder)
        ),
        "head": self.head.optimizer_specs(),
        **jax.tree.map(
          lambda _: sharding.BATCH,
          jax.eval_shape(lambda: example_memory.of(self._config)),
        ),
      },
      step=sharding.REPLICATED,  # pyrefly: ignore[bad-argument-type]
    )

  # --- functions of the state ------------------------------------------------

  def train_step(
    self, state: State, inputs: Inputs
  ) -> tuple[State, dict[str, jax.Array]]:
    """One step; the random numbers depend on (seed, step) alone.

    Args:
      state: The state; donate it.
      inputs: A training batch.

    Returns:
      The new state, and `loss`, the weighted mean over the batch, not finite
      either if its gradient is not, with what the loss reports (see
      `xlj.ops.loss.Reporting`).
    """
    with jax.default_matmul_precision(self._config.train.precision):
      return self._train_step(state, inputs)

  def _train_step(
    self, state: State, inputs: Inputs
  ) -> tuple[State, dict[str, jax.Array]]:
    seed = self._config.seed + self._config.train.shuffle
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    drop_key, encode_key = jax.random.split(key)
    rate = self._config.encoder.feature_dropout
    features = inputs_lib.dropped(inputs, rate, drop_key)
    texts = () if inputs.dual is None else inputs.dual.texts
    encoder = state.model["encoder"]
    if self._config.encoder.tied:
      assert isinstance(features, feature_rows.SparseRows)  # They are items.
      return self._tied_step(state, inputs, features, encode_key)
    x, embedded, vjp = None, [], None
    if self._graph is not None:

      def encode(params):
        keys = [jax.random.fold_in(key, i) for i in range(len(texts))]
        x = self._encode(params, (features,), encode_key, every=self.every)
        return x, [
          self._encode(params, (inputs_lib.dropped(text, rate, k),), k)
          for text, k in zip(texts, keys)
        ]

      (x, embedded), vjp = jax.vjp(encode, encoder)
    memory = state.training.get("memory")
    targets = inputs.targets
    if self.every:
      targets = inputs_lib.next_items(inputs)
    if memory is not None:
      assert inputs.rows is not None  # It is a training batch.
      targets = targets._replace(
        memory=example_memory.take(memory, jnp.asarray(inputs.rows))
      )
    head, head_opt = state.model["head"], state.training["head"]
    if dual.has_learned_rows(self._config):
      head, head_opt, dx, metrics = self.head.step(
        head,
        head_opt,
        state.step,
        x,
        self._wide(features),
        targets,
        self._label_values(state.model),
      )
    else:
      assert x is not None  # The config says so.
      dx, metrics = jnp.zeros_like(x), {"loss": jnp.float32(0)}
    encoder_opt, dtexts = state.training["encoder"], []
    weights = self._config.range
    if texts or weights.intra or weights.inter:
      assert dx is not None  # There are embeddings.
      terms = jax.value_and_grad(
        lambda x, y: dual_lib.losses(self._config, x, y, inputs, state.step),
        argnums=(0, 1),
        has_aux=True,
      )
      (value, found), (grad, dtexts) = terms(x, embedded)
      metrics = {**metrics, "loss": metrics["loss"] + value, **found}
      dx += grad.astype(dx.dtype)
    if vjp is not None:
      assert dx is not None
      for gradient in (dx, *dtexts):
        metrics["loss"] += 0 * jnp.sum(gradient.astype(jnp.float32))
      (grads,) = vjp((dx, dtexts))
      encoder, encoder_opt = self._updated(encoder, encoder_opt, grads)
    model = {**state.model, "encoder": encoder, "head": head}
    training = {**state.training, "encoder": encoder_opt, "head": head_opt}
    if memory is not None:
      training["memory"] = example_memory.put(
        memory,
        jnp.asarray(inputs.rows),
        metrics.pop("memory_ids"),
        metrics.pop("memory_values"),
      )
    return State(model, training, state.step + 1), metrics

  def _tied_step(
    self,
    state: State,
    inputs: Inputs,
    features: feature_rows.SparseRows,
    key: jax.Array,
  ) -> tuple[State, dict[str, jax.Array]]:
    """`train_step` of an encoder that reads label rows."""
    model, training, _ = state
    ids = items.rows_of(self.layout, model["buffers"], features)

    def embed(encoder: Any, rows: jax.Array) -> jax.Array:
      vectors = label_gather.label_rows(rows, ids)
      return self._encode(encoder, (features, vectors), key, every=self.every)

    head, head_opt, grads, metrics = self.head.tied_step(
      *(model["head"], training["head"], state.step, embed),
      model["encoder"],
      inputs_lib.next_items(inputs),
      self._label_values(model),
    )
    encoder, encoder_opt = self._updated(
      model["encoder"], training["encoder"], grads
    )
    model = {**model, "encoder": encoder, "head": head}
    training = {**training, "encoder": encoder_opt, "head": head_opt}
    return State(model, training, state.step + 1), metrics

  @jax.named_scope("update")
  def _updated(self, encoder: Any, state: Any, grads: Any) -> tuple[Any, Any]:
    """The encoder's parameters, and its optimizer's state, after a step."""
    updates, state = self._encoder_tx.update(grads, state, encoder)
    return optax.apply_updates(encoder, updates), state

  @precision.exact
  def loss(self, model: dict[str, Any], inputs: Inputs) -> jax.Array:
    """The loss of a batch in evaluation mode, a scalar."""
    x, wide = self._forward(model, inputs)
    if wide is not None and self._config.head.transitions:
      # It is no part of what is trained.
      wide = wide._replace(values=jnp.zeros_like(wide.values))
    return self.head.evaluate_loss(
      model["head"],
      x,
      wide,
      inputs.targets,
      self._label_values(model),
    )

  @precision.exact
  def topk(
    self,
    model: dict[str, Any],
    inputs: Inputs,
    k: int,
    choice: choice_lib.Choice | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """The k best labels of each example.

    Args:
      model: The `model` part of the state.
      inputs: A batch; its labels are not used.
      k: How many labels.
      choice: The labels, by the head's numbers, that may be returned.

    Returns:
      Scores `[N, k]`, descending, and int32 label ids `[N, k]`.
    """
    counts = model["buffers"].get("label_counts")
    offset = label_values.offset(self._config, counts)
    return self.head.topk(
      model["head"], *self._forward(model, inputs), k, choice, offset
    )

  @precision.exact
  def nearest_wrong(
    self, model: dict[str, Any], inputs: Inputs, k: int
  ) -> jax.Array:
    """The labels of highest score that each example lacks.

    Args:
      model: The `model` part of the state.
      inputs: A batch with its labels.
      k: How many labels.

    Returns:
      `[N, k]` int32, -1 where there are fewer.
    """
    labels = jnp.asarray(inputs.label_ids)
    most = min(k + labels.shape[1], self._config.data.num_labels)
    x, wide = self._forward(model, inputs)
    _, ids = self.head.topk(model["head"], x, wide, most)
    first = functools.partial(dual_lib.without, k=k)
    return sharding.by_compiler(first)(ids, labels)

  @precision.exact
  def confidence(
    self, model: dict[str, Any], inputs: Inputs, by: str
  ) -> jax.Array:
    """How sure it is that an example is of any label at all, `[N]`.

    Args:
      model: The `model` part of the state.
      inputs: A batch; its labels are not used.
      by: One of the head's `confidences`.

    Returns:
      `[N]`.
    """
    x, wide = self._forward(model, inputs)
    return self.head.confidence(model["head"], x, wide, by)

  @precision.exact
  def embed(self, model: dict[str, Any], inputs: Inputs) -> jax.Array:
    """What the encoder makes of a batch, `[N, D]`, without dropout."""
    x, _ = self._forward(model, inputs)
    assert x is not None  # Who asks has an encoder.
    return x

  def add_to_centroids(
    self, rows: jax.Array, model: dict[str, Any], inputs: Inputs
  ) -> jax.Array:
    """Adds the embeddings of a batch to the rows `[L, D]` of its labels."""
    x = self.embed(model, inputs)
    return self.head.add_to_rows(rows, inputs.label_ids, x)

  def zero_rows(self) -> jax.Array:
    """`[L, D]` zeros, sharded like the label rows; see `add_to_centroids`."""
    make = jax.jit(
      self.head.zero_sums,
      out_shardings=jax.NamedSharding(jax.sharding.get_mesh(), sharding.LABELS),
    )
    return make()

  def start_at_centroids(self, sums: jax.Array, state: State) -> State:
    """The first state, with label rows of length `head.init_scale`.

    Args:
      sums: Those of `add_to_centroids` over the training rows.
      state: The state of `init`; the rows of labels without an example stay.

    Returns:
      The state.
    """
    is_memory = self._config.head.init == "normal"  # beside the rows
    length = 0 if is_memory else self._config.head.init_scale
    head = self.head.at_centroids(state.model["head"], sums, length)
    training = {**state.training, "head": self.head.init_optimizer(head)}
    model = {**state.model, "head": head}
    return state._replace(model=model, training=training)

  def recentred(self, sums: jax.Array, state: State) -> State:
    """The state with the means of now in a memory, or as label rows.

    Args:
      sums: Those of `add_to_centroids`, over the training rows for the memory
        of "oltr", over label texts for rows that are not learned.
      state: The state.

    Returns:
      The state.
    """
    is_memory = dual.has_learned_rows(self._config)
    length = 0 if is_memory else self._config.head.init_scale
    head = self.head.at_centroids(state.model["head"], sums, length)
    return state._replace(model={**state.model, "head": head})

  # --- parts -----------------------------------------------------------------

  def _make_encoder(self, key: jax.Array) -> nnx.Module:
    return encoders.make(self._config, nnx.Rngs(key))

  def _init_encoder(self, key: jax.Array) -> Any:
    return nnx.to_pure_dict(nnx.state(self._make_encoder(key), nnx.Param))

  def _init(
    self,
    key: jax.Array,
    label_ids: jax.Array | None,
    label_counts: jax.Array | None,
    idf: jax.Array,
  ) -> State:
    encoder_key, head_key = jax.random.split(key)
    encoder = {}
    if self._graph is not None:
      encoder = self._init_encoder(encoder_key)
    head = self.head.init(head_key)
    if self._config.head.prior_bias and label_counts is not None:
      head = self.head.at_prior(head, label_counts, self._config.data.num_rows)
    buffers = {"idf": idf}
    if label_ids is not None:
      buffers["label_ids"] = label_ids
    if label_counts is not None:
      buffers["label_counts"] = label_counts
    return State(
      model={"encoder": encoder, "head": head, "buffers": buffers},
      training={
        "encoder": self._encoder_tx.init(encoder),
        "head": self.head.init_optimizer(head),
        **example_memory.of(self._config),
      },
      step=jnp.int32(0),
    )

  def _label_values(
    self, model: dict[str, Any]
  ) -> targets_lib.LabelValues | None:
    """What the loss weighs or shifts labels by, `[L]` each."""
    counts = model["buffers"].get("label_counts")
    return label_values.of(self._config, counts)

  @jax.named_scope("encoder")
  def _encode(
    self,
    params: Any,
    features: tuple[bag.Features] | tuple[bag.Features, jax.Array],
    key: jax.Array | None,
    *,
    every: bool = False,
  ) -> jax.Array:
    """Embeddings `[N, D]`, or `[N K, D]` of every place; dropout with a key.

    Features come with their vectors `[N, K, D]` if the encoder has none.
    """
    graph: Any = self._graph

    def encode(params, features, key):
      state = jax.tree.map(nnx.Param, params)
      module = nnx.merge(graph, state)
      rngs = None if key is None else nnx.Rngs(dropout=key)
      return (module.every if every else module)(*features, rngs=rngs)

    count = len(jax.tree.leaves(features)[0])
    encode = gradient_cache.in_chunks(
      encode,
      gradient_cache.num_chunks(
        count, self._config.encoder.chunk, sharding.num_shards()
      ),
    )

    def run(params, features, key):
      x = encode(params, features, key)
      return x.reshape(-1, x.shape[-1]) if every else x

    return sharding.by_compiler(run)(params, features, key)

  def _forward(
    self, model: dict[str, Any], inputs: Inputs
  ) -> tuple[jax.Array | None, feature_rows.SparseRows | None]:
    """What the head reads, without dropout."""
    features = inputs_lib.features(inputs)
    x = None
    if self._graph is not None:
      read: Any = (features,)
      if self._config.encoder.tied:
        assert isinstance(features, feature_rows.SparseRows)  # They are items.
        rows = self.head.rows(model["head"])
        ids = items.rows_of(self.layout, model["buffers"], features)
        read = features, label_gather.label_rows(rows, ids)
      x = self._encode(model["encoder"], read, None)
    return x, self._wide(features)

  def _wide(self, features: bag.Features) -> feature_rows.SparseRows | None:
    head = self._config.head
    if not head.wide and not head.transitions:
      return None
    assert isinstance(features, feature_rows.SparseRows)  # The config says so.
    if head.transitions:
      decayed = functools.partial(items.decayed, decay=head.transitions_decay)
      return sharding.by_compiler(decayed)(features)
    return features
