"""What one device computes, reads and writes in a training step, by formula.

The compiler's own count is no help: it counts the body of a loop once.

Legend: N examples of the batch, n of a device, K features of an example, F
features, L label rows (padded), l of a device, D embedding width.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections

from xlj.config import encoders
from xlj.heads.dense import head as dense
from xlj.heads.prototypes import head as prototypes
from xlj.model import model as model_lib
from xlj.ops import feature_rows
from xlj.ops import loss as loss_lib
from xlj.ops import targets as targets_lib
from xlj.planning import accelerators

# What each is worth in exponentials and logarithms.
_EXPONENTIALS = {
  "exp": 1,
  "exp2": 1,
  "expm1": 1,
  "log": 1,
  "log1p": 1,
  "logistic": 1,
  "tanh": 1,
  "pow": 2,
}


def of_step(
  config: ml_collections.ConfigDict,
  model: model_lib.Model,
  state_bytes: dict[str, int],
  num_devices: int,
  sent_bytes: int,
) -> accelerators.Work:
  """The work of a device in a training step.

  Products of the head: `2 N D l` each for the logits, once for the statistics
  if the loss has any and once for its gradient (unless they are kept), for
  `dX`, and for `dW`. Logits that leave the chip are float32: the statistics
  write them once and read them twice (maximum, sum), the gradient once and
  once; it is itself written once and read twice, in the products' type.

  Args:
    config: Resolved.
    model: Of that config.
    state_bytes: Of a device: `rows` (what the head's passes read), `head`
      (optimizer state of the head), `encoder`, `encoder_optimizer`.
    num_devices: Of the mesh.
    sent_bytes: Sent to other devices.

  Returns:
    The work.
  """
  head, n_all = _by_row(model), config.train.batch_size
  local = head.num_rows / num_devices
  statistics = has_statistics(head.loss)
  kept = statistics and head.label_rows.keep_logits is not None
  forward = 1 + (statistics and not kept)
  head_flops = 2.0 * n_all * head.dim * local * (forward + 2)
  # A gather and a scatter of linear weights for each feature of an example.
  head_flops += 2 * wide_flops(config, model) / num_devices
  narrow = config.head.dtype != "float32"  # decoded to bfloat16
  logit_bytes = 8 + 3 * (2 if narrow else 4)
  if statistics:
    logit_bytes += 12
  head_bytes = (2 + statistics) * state_bytes["rows"] + 2 * state_bytes["head"]
  if config.head.wide:  # read for the logits; read and written by the update
    # Weights, and where they belong.
    head_bytes += (3 * 4 + 2 * 4) * _products(config, model) / num_devices
  # Read by the forward pass; its gradient written and read; updated.
  encoder_bytes = 5 * state_bytes["encoder"]
  encoder_bytes += 2 * state_bytes["encoder_optimizer"]
  return accelerators.Work(
    head_flops=head_flops,
    encoder_flops=encoder_flops(config) / num_devices,
    narrow_head=narrow,
    exponentials=float(n_all) * local * exponentials(head.loss),
    state_bytes=head_bytes + encoder_bytes,
    logit_bytes=float(n_all) * local * logit_bytes,
    sent_bytes=sent_bytes,
  )


def encoder_flops(config: ml_collections.ConfigDict) -> float:
  """Products of the encoder, forward and backward, for the whole batch."""
  n, encoder = config.train.batch_size, config.encoder
  if not encoder.dim:
    return 0.0
  if encoder.type != "bag":
    return _compiled_flops(config)
  features = (
    config.data.num_features if config.data.dense else config.data.max_features
  )
  flops = 4.0 * n * features * encoder.dim  # no gradient of the features
  widths = (encoder.dim, *encoder.hidden)
  for a, b in zip(widths[:-1], widths[1:]):
    flops += 6.0 * n * a * b
  return flops


def _compiled_flops(config: ml_collections.ConfigDict) -> float:
  """Thrice the compiler's count of the forward pass, which has no loops."""
  module: Any = nnx.eval_shape(lambda: encoders.make(config, nnx.Rngs(0)))
  graph, weights = nnx.split(module)

  def forward(weights: Any, features: Any) -> jax.Array:
    return nnx.merge(graph, weights)(features)

  one: Any = jax.ShapeDtypeStruct((1, config.data.num_features), jnp.float32)
  if encoders.reads_in_order(config):
    row = 1, encoders.longest(config)
    one = jax.eval_shape(
      lambda: feature_rows.sparse_rows(jnp.zeros(row, int), jnp.ones(row))
    )
  cost: Any = jax.jit(forward).lower(weights, one).cost_analysis()
  return 3.0 * config.train.batch_size * cost["flops"]


def wide_flops(
  config: ml_collections.ConfigDict, model: model_lib.Model
) -> float:
  """One product with the linear weights, for the whole batch."""
  if not config.head.wide:
    return 0.0
  return 2.0 * _products(config, model)


def _products(
  config: ml_collections.ConfigDict, model: model_lib.Model
) -> float:
  """Pairs that a batch reads, if all features have as many."""
  rows, n = _by_row(model).label_rows, config.train.batch_size
  pairs = rows.blocks * rows.wide_pairs / rows.wide_features
  return n * config.data.max_features * pairs


def _by_row(model: model_lib.Model) -> dense.DenseHead:
  """The dense head of all rows; others are not planned."""
  head = model.head
  if isinstance(head, prototypes.PrototypeHead):
    return head.by_row
  assert isinstance(head, dense.DenseHead)
  return head


def has_statistics(loss: loss_lib.Loss) -> bool:
  """Whether the loss needs a pass over the logits before its gradient."""
  return bool(jax.tree.leaves(jax.eval_shape(lambda: loss.init(1, 1))))


def exponentials(loss: loss_lib.Loss) -> int:
  """Exponentials and logarithms of each logit, as the loss is written."""
  shape = (7, 11)  # of no other array

  def trace(z: jax.Array, ids: jax.Array) -> Any:
    positives = targets_lib.positives_in_chunk(ids, 0, shape[1])
    stats = loss.accumulate(loss.init(*ids.shape), z, positives)
    return loss.value_and_grad(stats, z, positives)

  jaxpr = jax.make_jaxpr(trace)(
    jax.ShapeDtypeStruct(shape, jnp.float32),
    # Where labels have several rows, positives are multiples of that.
    jax.ShapeDtypeStruct((shape[0], 3 * getattr(loss, "rows", 1)), jnp.int32),
  )
  return _count(jaxpr.jaxpr, shape)


def _count(jaxpr: Any, shape: tuple[int, int]) -> int:
  """Exponentials in a jaxpr with results of a shape."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.outvars[0].aval.shape == shape:
      total += _EXPONENTIALS.get(equation.primitive.name, 0)
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        total += _count(inner, shape)
  return total
