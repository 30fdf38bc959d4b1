"""A step of the dense head by the kernels of `xlj.ops.kernels`."""

from typing import Any

import jax
import jax.numpy as jnp

from xlj import sharding
from xlj.heads.dense import rows as rows_lib
from xlj.losses import bce
from xlj.losses import softmax
from xlj.ops import label_step
from xlj.ops import loss as loss_lib
from xlj.ops import platform
from xlj.ops.kernels import problem
from xlj.ops.kernels import step as kernel_step


def why_not(rows: rows_lib.Rows, loss: loss_lib.Loss) -> str:
  """What keeps kernels from a step over all rows; empty if nothing does.

  Args:
    rows: The label rows.
    loss: Their loss.

  Returns:
    A reason in words.
  """
  optimizer, name = rows.optimizer, _name(loss)
  for why, found in (
    ("its loss has no kernel", name is None),
    ("its optimizer is not plain SGD", optimizer.plain is None),
    ("rounding is corrected", optimizer.correction != "none"),
    ("the length of rows is limited", optimizer.max_norm is not None),
    ("it has a wide path", bool(rows.wide_features)),
    ("rows count by direction", rows.cosine),
    ("chunks may be skipped", bool(rows.skip_below)),
  ):
    if found:
      return why
  refusal = problem.refusal(
    platform="gpu",
    loss=name or "",
    dtype=optimizer.dtype,
    num_rows=rows.num_rows // sharding.num_shards(),
    dim=rows.dim,
  )
  return refusal or ""


def have_a_device() -> bool:
  """Whether what is traced is for devices that kernels are made for."""
  return platform.current() == "gpu"


def step(
  rows: rows_lib.Rows,
  loss: loss_lib.Loss,
  step: jax.Array,
  params: rows_lib.Params,
  opt_state: Any,
  inputs: label_step.Inputs,
  interpret: bool,
) -> tuple[Any, Any, jax.Array, label_step.Metrics]:
  """What `LabelRows.step` does, for rows and a loss that `why_not` lets pass.

  Args:
    rows: The label rows.
    loss: Their loss.
    step: Scalar int32, number of steps taken.
    params: Stored rows of this device, and maybe bias.
    opt_state: The optimizer's state of them.
    inputs: The batch, with embeddings.
    interpret: Whether to interpret the kernels.

  Returns:
    New params, new state, this device's part of the gradient of `x` `[N, D]`
    float32, and its part of the loss.
  """
  optimizer, name, targets = rows.optimizer, _name(loss), inputs.targets
  plain = optimizer.plain
  assert plain is not None and name is not None  # See why_not.
  assert targets is not None and inputs.x is not None  # This is a step.
  scale = label_step.share_of_weights(targets)

  def merge(found):
    stats = softmax.SoftmaxStatistics(*found)
    return tuple(softmax.Softmax().merge(stats, sharding.AXES))

  found = kernel_step.fused_step(
    inputs.x,
    params,
    params.get("bias"),
    jnp.asarray(targets.ids),
    scale,
    loss=name,
    dtype=optimizer.dtype,
    learning_rate=plain.learning_rate(step),
    weight_decay=plain.weight_decay,
    seed=optimizer.seed,
    step=step,
    first_row=jnp.asarray(rows.of_device().first_row(), jnp.int32),
    layout=rows.layout,
    merge=merge,
    rounding=optimizer.rounding,
    interpret=interpret,
  )
  new = dict(found.stored)
  if found.bias is not None:
    new["bias"] = found.bias
  finished = optimizer.finish(params, opt_state)
  by_row, _ = optimizer.split(opt_state)
  opt_state = optimizer.join(opt_state, by_row, finished)
  return new, opt_state, found.dx, {"loss": (found.losses * scale).sum()}


def _name(loss: loss_lib.Loss) -> str | None:
  """The kernels' name of a loss, or None."""
  if isinstance(loss, softmax.Softmax) and not loss.z_loss:
    return "softmax"
  return "bce" if isinstance(loss, bce.BinaryCrossEntropy) else None
