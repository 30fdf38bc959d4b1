"""The head that a config describes."""

import dataclasses

import ml_collections
import optax

from xlj import optim
from xlj.heads import cascade
from xlj.heads import dense
from xlj.heads import product
from xlj.losses import asymmetric
from xlj.losses import bce
from xlj.losses import decoupled_softmax
from xlj.losses import focal
from xlj.losses import softmax
from xlj.losses import squared_hinge
from xlj.ops import row_optimizer

Head = dense.DenseHead | cascade.CascadeHead | product.ProductHead

# Those of `xlj.losses` that need nothing but the logits and the positives.
LOSSES = {
  "softmax": softmax.Softmax,
  "bce": bce.BinaryCrossEntropy,
  "decoupled_softmax": decoupled_softmax.DecoupledSoftmax,
  "focal": focal.Focal,
  "asymmetric": asymmetric.Asymmetric,
  "squared_hinge": squared_hinge.SquaredHinge,
}


def make_head(config: ml_collections.ConfigDict) -> Head:
  """Builds the head, with its loss and optimizers.

  Args:
    config: A resolved config (`xlj.config.resolve`).

  Returns:
    The head of `head.type`.
  """
  head = config.head
  if head.type == "mhp":
    return _product(config)
  labels = _dense(config)
  if head.type == "dense":
    return labels
  if head.type == "mhs":
    return dataclasses.replace(
      labels,
      blocks=head.groups[-1],
      sample_blocks=head.sample_groups,
      hard_blocks=head.hard_groups,
    )
  sizes = (*head.groups, config.data.num_labels)
  above = (head.blocks, *head.groups)
  levels = tuple(
    dataclasses.replace(labels, num_labels=size, blocks=blocks)
    for size, blocks in zip(sizes, above)
  )
  return cascade.CascadeHead(levels, head.candidates, head.beam)


def width(config: ml_collections.ConfigDict) -> int:
  """Width D of the embeddings that reach the head."""
  encoder = config.encoder
  return encoder.hidden[-1] if encoder.hidden else encoder.dim


def _dense(config: ml_collections.ConfigDict) -> dense.DenseHead:
  """A row for each label."""
  head, wide = config.head, _schedule(config, config.optim.wide)
  return dense.DenseHead(
    num_labels=config.data.num_labels,
    dim=width(config),
    loss=LOSSES[head.loss](),
    optimizer=_row_optimizer(config),
    wide_features=config.data.num_features if head.wide else 0,
    # The head's loss is a mean; this rate is for the sum over the batch.
    wide_learning_rate=lambda step: config.train.batch_size * wide(step),
    wide_labels=head.wide_labels,
    blocks=head.blocks,
    init_scale=head.init_scale,
    init_bias=head.bias,
    kahan_labels=head.kahan_labels,
    cosine=head.cosine,
    memory=head.chunk_bytes or None,
    use_bias=head.use_bias,
    skip_below=head.skip_below,
    kernels=head.kernels,
    keep_logits=head.keep_logits or None,
  )


def _product(config: ml_collections.ConfigDict) -> product.ProductHead:
  """A row for each value of a digit of labels."""
  head = config.head
  return product.ProductHead(
    num_labels=config.data.num_labels,
    dim=width(config),
    lengths=tuple(head.lengths),
    optimizer=_transformation(config),
    components=head.components,
    loss=head.loss,
    use_bias=head.use_bias,
    init_scale=head.init_scale,
  )


def _row_optimizer(
  config: ml_collections.ConfigDict,
) -> row_optimizer.RowOptimizer:
  """How label rows are stored and updated."""
  head, settings = config.head, config.optim.head
  plain = None
  if settings.name == "sgd":
    schedule = _schedule(config, settings)
    plain = row_optimizer.Sgd(schedule, settings.weight_decay)
  return row_optimizer.RowOptimizer(
    _transformation(config),
    dtype=head.dtype,
    rounding=head.rounding,
    correction=head.correction,
    max_norm=head.max_norm or None,
    seed=config.seed,
    plain=plain,
  )


def _transformation(
  config: ml_collections.ConfigDict,
) -> optax.GradientTransformation:
  """The optimizer of the head's weights."""
  settings = config.optim.head
  return optim.make_optimizer(settings, _schedule(config, settings))


def _schedule(
  config: ml_collections.ConfigDict, part: ml_collections.ConfigDict
) -> optim.Schedule:
  """The learning rate of a part of the model."""
  return optim.make_schedule(
    part.learning_rate,
    config.train.num_steps,
    warmup=config.optim.warmup,
    decay=config.optim.decay,
  )
