"""A training step on label rows that an encoder reads as well.

The gradient of a row then has two parts: that of the label pass, and that of
the embeddings in which the row is. Rows are updated when both are there, so the
gradient of all of them is held, `[L, D]` float32, split like the rows; the
logits are still those of a chunk at a time. A wide path stays as it is, and
counts in answers alone.

Legend: N examples of the batch, L label rows (padded), D embedding width.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from xlj import sharding
from xlj.heads.dense import rows as rows_lib
from xlj.losses import sampled_softmax
from xlj.ops import label_pass
from xlj.ops import label_sample
from xlj.ops import label_step
from xlj.ops import loss as loss_lib
from xlj.ops import normalize
from xlj.ops import row_optimizer
from xlj.ops import shards
from xlj.ops import targets as targets_lib


def step(
  rows: rows_lib.Rows,
  loss: loss_lib.Loss,
  params: rows_lib.Params,
  opt_state: row_optimizer.RowState,
  step: jax.Array,
  embed: Callable[[Any, jax.Array], jax.Array],
  encoder: Any,
  targets: targets_lib.Targets,
  label_values: targets_lib.LabelValues | None,
) -> tuple[rows_lib.Params, Any, Any, label_step.Metrics]:
  """Updates rows and bias; gives the encoder's gradient.

  Args:
    rows: What is stored of labels.
    loss: On a chunk of logits.
    params: Stored rows and bias, sharded as `rows.specs()`.
    opt_state: The optimizer's state of them.
    step: Scalar int32, number of steps taken.
    embed: From parameters of the encoder and the label rows `[L, D]` float32,
      row by row (see `Layout.by_row`), to embeddings `[N, D]`.
    encoder: Those parameters.
    targets: Positives by label, and example weights.
    label_values: Vectors `[L]` that the loss needs, or None.

  Returns:
    New parameters, new optimizer state, the gradient of `encoder`, and "loss",
    the weighted mean, not finite either if a gradient is not.
  """
  trained = rows_lib.without_wide(params)
  targets = targets._replace(ids=rows.of_labels(targets.ids))

  def mean(encoder, values):
    x = embed(encoder, values["rows"])
    scored, bias = values["rows"], values.get("bias")
    if rows.cosine:
      scored = normalize.unit_rows(scored)
    if rows.num_rows > rows.num_labels:  # Padding lies between labels too.
      zero = jnp.zeros_like(scored[:, 0])
      bias = jnp.where(
        rows.is_label(), zero if bias is None else bias, -jnp.inf
      )
    run = label_pass.label_loss
    if rows.sampled:
      key = jax.random.fold_in(jax.random.key(rows.optimizer.seed), step)
      sample = label_sample.uniform_sample(key, rows.sampled, rows.num_rows)
      run = functools.partial(sampled_softmax.sampled_loss, sample=sample)
    return run(
      *(x, scored, bias, targets),
      loss=loss_lib.at_step(loss, step),
      label_values=label_values,
      placement=shards.Placement(memory=rows.memory),
    )

  values = {"rows": rows.decoded(trained)}
  if "bias" in params:
    values["bias"] = params["bias"]
  value, (dencoder, dvalues) = jax.value_and_grad(mean, argnums=(0, 1))(
    encoder, values
  )
  for gradient in jax.tree.leaves((dencoder, dvalues)):
    value += 0 * jnp.sum(gradient.astype(jnp.float32))

  def update(params, opt_state, step, grads):
    ids = rows.of_device().first_row() + jnp.arange(len(grads["rows"]))
    return rows.optimizer.update(step, ids, params, opt_state, grads)

  if sharding.axes():
    of_rows = {n: s for n, s in rows.specs().items() if n in trained}
    specs = of_rows, rows.optimizer_specs()
    update = jax.shard_map(
      update,
      in_specs=(*specs, sharding.REPLICATED, sharding.LABELS),
      out_specs=specs,
    )
  new, opt_state = update(trained, opt_state, step, dvalues)
  return params | new, opt_state, dencoder, {"loss": value}
