"""The head that a config describes."""

import dataclasses
import math
from typing import Any

import ml_collections
import optax

from xlj.config import optim
from xlj.heads import head as head_lib
from xlj.heads.cascade import head as cascade
from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib
from xlj.heads.oltr import head as oltr
from xlj.heads.oltr import meta_embedding
from xlj.heads.product import head as product
from xlj.heads.prototypes import head as prototypes
from xlj.heads.spherical import head as spherical
from xlj.losses import assume_negative
from xlj.losses import asymmetric
from xlj.losses import bce
from xlj.losses import decoupled_softmax
from xlj.losses import focal
from xlj.losses import large_loss
from xlj.losses import logit_adjustment
from xlj.losses import prototype_softmax
from xlj.losses import remembered
from xlj.losses import role
from xlj.losses import softmax
from xlj.losses import spherical as spherical_losses
from xlj.losses import squared_hinge
from xlj.losses import weighted_bce
from xlj.ops import loss as loss_lib
from xlj.ops import row_optimizer

# Those of `xlj.losses` that need nothing but the logits and the positives.
LOSSES = {
  "softmax": softmax.Softmax,
  "bce": bce.BinaryCrossEntropy,
  "decoupled_softmax": decoupled_softmax.DecoupledSoftmax,
  "focal": focal.Focal,
  "asymmetric": asymmetric.Asymmetric,
  "squared_hinge": squared_hinge.SquaredHinge,
}
_LARGE = ("ll_r", "ll_ct", "ll_cp")  # in the order of their schemes


def make_head(config: ml_collections.ConfigDict) -> head_lib.Head:
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
  if head.prototypes > 1:
    return _with_prototypes(labels, config)
  if head.type == "dense":
    return labels
  if head.type == "spherical":
    return spherical.SphericalHead(
      labels, head.refactor_every, head.curvature_rate
    )
  if head.type == "oltr":
    return _oltr(config, labels)
  if head.type == "mhs":
    return dataclasses.replace(
      _with(labels, blocks=head.groups[-1]),
      sample_blocks=head.sample_groups,
      hard_blocks=head.hard_groups,
    )
  sizes = (*head.groups, config.data.num_labels)
  above = (head.blocks, *head.groups)
  levels = tuple(
    _with(labels, num_labels=size, blocks=blocks)
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
  rows = rows_lib.Rows(
    num_labels=config.data.num_labels,
    dim=width(config),
    optimizer=_row_optimizer(config),
    blocks=head.blocks,
    use_bias=head.use_bias,
    wide_features=config.data.num_features if head.wide else 0,
    wide_labels=head.wide_labels,
    kahan_labels=head.kahan_labels,
    init_scale=head.init_scale,
    init_bias=head.bias,
    cosine=head.cosine,
    memory=head.chunk_bytes or None,
    keep_logits=head.keep_logits or None,
    skip_below=head.skip_below,
  )
  return dense.DenseHead(
    rows,
    _loss(config),
    # The head's loss is a mean; this rate is for the sum over the batch.
    wide_learning_rate=lambda step: config.train.batch_size * wide(step),
    kernels=head.kernels,
  )


def _with(labels: dense.DenseHead, **fields: Any) -> dense.DenseHead:
  """A dense head with other fields of its rows."""
  rows = dataclasses.replace(labels.label_rows, **fields)
  return dataclasses.replace(labels, label_rows=rows)


def _with_prototypes(
  labels: dense.DenseHead, config: ml_collections.ConfigDict
) -> prototypes.PrototypeHead:
  """Several rows for each of the first labels."""
  head, num_labels = config.head, config.data.num_labels
  decoupled = head.loss == "decoupled_softmax"
  more = head.prototype_labels * (head.prototypes - 1)
  by_row = dataclasses.replace(
    _with(labels, num_labels=num_labels + more),
    loss=prototype_softmax.PrototypeSoftmax(head.prototypes, decoupled),
  )
  return prototypes.PrototypeHead(by_row, num_labels)


def steps_per_epoch(config: ml_collections.ConfigDict) -> int:
  """Steps in which as many examples are seen as there are to train on."""
  data = config.data
  rows = data.num_rows - round(data.validation * data.num_rows)
  return max(1, round(rows / config.train.batch_size))


def recentre_every(config: ml_collections.ConfigDict) -> int:
  """Steps after which the memory of "oltr" is recomputed; 0 for never."""
  epochs = config.oltr.recentre_every if config.head.type == "oltr" else 0
  return max(1, round(epochs * steps_per_epoch(config))) if epochs else 0


def num_remembered(config: ml_collections.ConfigDict) -> int:
  """How many labels of each training example the loss remembers."""
  if config.noisy.method != "none":
    return config.noisy.remembered
  missing = config.missing
  if missing.method != "role":
    return 0
  wanted = missing.remembered or math.ceil(missing.positives)
  return min(wanted, config.data.num_labels)


def _loss(config: ml_collections.ConfigDict) -> loss_lib.Loss:
  """The loss, with what is done about missing, wrong and rare labels."""
  missing, noisy, tail = config.missing, config.noisy, config.tail
  epoch = steps_per_epoch(config)
  num_epochs = -(-config.train.num_steps // epoch)
  if config.head.loss not in LOSSES:
    return spherical_losses.Spherical(_spherical(config))
  loss: loss_lib.Loss = LOSSES[config.head.loss]()
  if missing.method.startswith("ll_"):
    way = next((w for w in ("threshold", "share") if missing[w] > 0), None)
    schedule = large_loss.Schedule(
      epoch,
      num_epochs,
      **{way or "per_example": missing[way or "per_example"]},
      decay=missing.decay,
      grows=missing.method != "ll_cp",
    )
    scheme = large_loss.SCHEMES[_LARGE.index(missing.method)]
    loss = large_loss.LargeLoss(schedule, config.data.num_labels, scheme)
  elif missing.method == "wan":
    weight = 1 / max(1, config.data.num_labels - 1)
    loss = assume_negative.AssumeNegative(weight)
  elif missing.method == "lsan":
    loss = assume_negative.AssumeNegative(smoothing=missing.smoothing)
  elif missing.method == "iu":
    loss = assume_negative.AssumeNegative(0.0)
  elif missing.method == "role":
    loss = role.OnlineEstimation(
      config.data.num_labels,
      missing.positives,
      num_remembered(config),
      rate=missing.rate,
    )
  elif noisy.method == "elr":
    loss = remembered.EarlyLearning(
      noisy.remembered, noisy.strength, noisy.momentum
    )
  elif noisy.method == "ps_kd":
    loss = remembered.SelfDistillation(
      noisy.remembered, noisy.last, epoch, num_epochs
    )
  elif tail.weights != "none":
    loss = weighted_bce.WeightedBinaryCrossEntropy()
  if tail.adjustment:
    loss = logit_adjustment.LogitAdjustment(tail.adjustment, loss)
  return loss


def _oltr(
  config: ml_collections.ConfigDict, labels: dense.DenseHead
) -> oltr.OltrHead:
  """A memory of centroids beside the rows of labels."""
  settings = config.oltr
  scale = settings.scale or meta_embedding.cosine_scale(config.data.num_labels)
  return oltr.OltrHead(
    _with(labels, use_bias=False),
    _transformation(config),
    scale,
    tied=settings.tied,
    own_keys=settings.own_keys,
    attend_to=settings.attend_to,
    reach=settings.reach,
    centre_weight=settings.centre_weight,
    centre_rate=settings.centre_rate,
    repel_weight=settings.repel_weight,
    margin=settings.margin,
  )


def _spherical(
  config: ml_collections.ConfigDict,
) -> spherical_losses.FunctionOfSums:
  """The loss of positives' logits and sums over all of that name."""
  head, num_labels = config.head, config.data.num_labels
  if head.loss == "z_loss":
    threshold = head.z_threshold or spherical_losses.threshold_of(num_labels)
    return spherical_losses.ZLoss(num_labels, threshold, head.z_sharpness)
  if head.loss == "gramian":
    return spherical_losses.Gramian(num_labels, head.gramian_weight)
  if head.loss == "squared_error":
    return spherical_losses.SquaredError()
  if head.loss == "taylor_softmax":
    return spherical_losses.TaylorSoftmax(num_labels)
  return spherical_losses.SphericalSoftmax(num_labels)


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
    blocks=head.blocks,
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
