"""All losses beside their textbook references: one table for all tests."""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests import dense_heads
from tests import meshes
from tests import reference as ref
from xlj import sharding
from xlj.losses import assume_negative
from xlj.losses import asymmetric
from xlj.losses import bce
from xlj.losses import decoupled_softmax
from xlj.losses import focal
from xlj.losses import label_smoothing
from xlj.losses import logit_adjustment
from xlj.losses import margin
from xlj.losses import soft_targets
from xlj.losses import softmax
from xlj.losses import squared_hinge
from xlj.losses import weighted_bce
from xlj.ops import chunks
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib


@dataclasses.dataclass(frozen=True)
class Case:
  """A loss and its reference.

  Attributes:
    loss: The loss.
    reference: (logits, hot or weighted targets, values per label) -> `[N]`.
    label_values: Names of the values per label that it needs.
    soft: Whether it needs weighted positives.
  """

  loss: object
  reference: Callable
  label_values: tuple = ()
  soft: bool = False


def _weighted(unbiased, negative):
  def reference(z, hot, values):
    other = values["negative"] if negative else jnp.ones(z.shape[1])
    return ref.weighted_bce_loss(z, hot, values["positive"], other, unbiased)

  names = ("positive", "negative") if negative else ("positive",)
  loss = weighted_bce.WeightedBinaryCrossEntropy(unbiased)
  return Case(loss, reference, names)


def _asymmetric(*args):
  return Case(
    asymmetric.Asymmetric(*args),
    lambda z, hot, _: ref.asymmetric_loss(z, hot, *args),
  )


def _assume_negative(weight, smoothing):
  def reference(z, hot, _):
    target = (1 - smoothing) * hot + smoothing / 2
    losses = jnp.logaddexp(0, z) - target * z
    return jnp.where(hot == 1, losses, weight * losses).sum(1)

  loss = assume_negative.AssumeNegative(weight, smoothing)
  return Case(loss, reference)


def _margin(angle, cosine, base, reference):
  # Logits of order 1 pass both branches of an angle as large as this.
  return Case(
    margin.Margin(8.0, angle, cosine, base),
    lambda z, hot, _: reference(
      ref.with_margin(z, hot, 8.0, angle, cosine), hot
    ),
  )


CASES = {
  "softmax": Case(softmax.Softmax(), lambda z, y, _: ref.softmax_loss(z, y)),
  "z_loss": Case(
    softmax.Softmax(z_loss=0.1),
    lambda z, y, _: ref.softmax_loss(z, y) + 0.1 * ref.z_loss(z, y),
  ),
  "bce": Case(bce.BinaryCrossEntropy(), lambda z, y, _: ref.bce_loss(z, y)),
  "decoupled": Case(
    decoupled_softmax.DecoupledSoftmax(),
    lambda z, y, _: ref.decoupled_softmax_loss(z, y),
  ),
  "weighted_bce": _weighted(False, True),
  "propensity_bce": _weighted(True, False),
  "weighted_negatives": _assume_negative(0.02, 0.0),
  "smoothed_negatives": _assume_negative(1.0, 0.1),
  "ignored_negatives": _assume_negative(0.0, 0.0),
  "focal": Case(
    focal.Focal(1.5, 0.3), lambda z, y, _: ref.focal_loss(z, y, 1.5, 0.3)
  ),
  "asymmetric": _asymmetric(1.0, 4.0, 0.05, False),
  "asymmetric_constant": _asymmetric(1.0, 4.0, 0.05, True),
  "asymmetric_no_clip": _asymmetric(0.0, 0.5, 0.0, False),
  "squared_hinge": Case(
    squared_hinge.SquaredHinge(), lambda z, y, _: ref.squared_hinge_loss(z, y)
  ),
  "arcface": _margin(1.2, 0.0, softmax.Softmax(), ref.softmax_loss),
  "cosface": _margin(0.0, 0.2, softmax.Softmax(), ref.softmax_loss),
  "margin_decoupled": _margin(
    0.3,
    0.1,
    decoupled_softmax.DecoupledSoftmax(),
    ref.decoupled_softmax_loss,
  ),
  "logit_adjustment": Case(
    logit_adjustment.LogitAdjustment(0.7),
    lambda z, y, v: ref.softmax_loss(z + 0.7 * v["log_prior"], y),
    ("log_prior",),
  ),
  "label_smoothing": Case(
    label_smoothing.LabelSmoothing(0.15),
    lambda z, y, _: ref.label_smoothing_loss(z, y, 0.15),
  ),
  "soft_targets": Case(
    soft_targets.SoftTargets(2.0),
    lambda z, t, _: ref.soft_target_loss(z, t, 2.0),
    soft=True,
  ),
}


def make_targets(case, num_examples, num_labels, width, seed=0):
  """Numpy targets: padded positives, also in the middle, or none at all."""
  rng = np.random.default_rng(seed)
  ids = np.stack(
    [rng.permutation(num_labels)[:width] for _ in range(num_examples)]
  )
  ids[rng.random(ids.shape) < 0.4] = -1
  ids[0], ids[1, 0], ids[2, -1] = -1, 0, num_labels - 1
  weights = rng.uniform(0.5, 1.5, num_examples).astype(np.float32)
  weights[-1] = 0
  values = rng.uniform(0.1, 0.6, ids.shape) if case.soft else None
  if case.soft:
    values = values.astype(np.float32)
  return targets_lib.Targets(ids.astype(np.int32), weights, values)


def dense_targets(targets, num_labels):
  """`[N, L]`: 1, or the weight, at positives."""
  out = np.zeros((len(targets.ids), num_labels))
  for n, ids in enumerate(targets.ids):
    for p, label in enumerate(ids):
      if label >= 0:
        out[n, label] = 1 if targets.values is None else targets.values[n, p]
  return out


def make_label_values(case, num_labels, seed=1):
  """Positive values per label, `[num_labels]` float32, by name."""
  rng = np.random.default_rng(seed)
  values = {
    "positive": rng.uniform(1, 3, num_labels),
    "negative": rng.uniform(0.2, 1, num_labels),
    "log_prior": np.log(rng.dirichlet(np.ones(num_labels))),
  }
  named = {name: values[name].astype(np.float32) for name in case.label_values}
  return named or None


# --- steps of a head ----------------------------------------------------------

# The change of a parameter is its gradient.
_GRADIENTS = row_optimizer.RowOptimizer(optax.sgd(1.0))


def put_labels_on(monkeypatch, axis):
  """From now on labels lie on that axis of chunks, as elsewhere than here."""
  monkeypatch.setattr(chunks, "label_axis", lambda *_: axis)


def make_head(loss, num_labels, dim, **options):
  """A dense head of 8 blocks, whose steps subtract gradients."""
  return dense_heads.make(
    num_labels=num_labels,
    dim=dim,
    loss=loss,
    optimizer=_GRADIENTS,
    blocks=8,
    **options,
  )


def init(head):
  """First parameters, by row, as numpy."""
  return dict(_init(dataclasses.replace(head, loss=CASES["softmax"].loss)))


@functools.cache
def _init(head):
  return jax.tree.map(np.asarray, jax.jit(head.init)(jax.random.key(0)))


def take_step(
  head, params, x, targets, shape, *, step=0, values=None, run=None
):
  """A step on a mesh: metrics, gradients of x and of parameters, by row.

  Args:
    head: One of `make_head`.
    params: Parameters, by row.
    x: Examples.
    targets: Of the whole batch.
    shape: Of the mesh.
    step: Number of the step.
    values: Values per label, by row.
    run: The compiled step of the head, if it is used again.

  Returns:
    (metrics, gradient of x, gradients of parameters), as numpy.
  """
  with meshes.mesh(shape) as mesh:
    labels = jax.NamedSharding(mesh, sharding.LABELS)
    placed, values = jax.device_put((params, values), labels)
    x, targets = sharding.put_batch((x, targets))
    new, _, dx, metrics = (run or jax.jit(head.step))(
      placed,
      head.init_optimizer(placed),
      jnp.int32(step),
      x,
      None,
      targets,
      values,
    )
    changes = {name: params[name] - np.asarray(new[name]) for name in params}
    return *jax.tree.map(np.asarray, (metrics, dx)), changes
