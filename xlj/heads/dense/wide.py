"""Updates of the wide path: by the batch, or example by example.

Legend: N examples of the batch, L labels (padded), l of this device.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp

from xlj.heads.dense import rows as rows_lib
from xlj.ops import feature_rows
from xlj.ops import targets as targets_lib
from xlj.ops.pairs import label_pairs

ArrayLike = jax.typing.ArrayLike
_NO_LABEL = -1e30  # the bias of padding: no probability


@dataclasses.dataclass(frozen=True)
class ByExample:
  """SGD on the binary cross-entropy of linear weights, example by example.

  Attributes:
    bias_learning_rate: Step -> learning rate of the biases.
    threshold: Probability up to which a label that an example does not have is
      left alone.
  """

  bias_learning_rate: Callable[[jax.Array], ArrayLike]
  threshold: float


def updated(
  params: rows_lib.Params,
  features: feature_rows.SparseRows,
  grad: jax.Array,
  rate: jax.Array,
) -> rows_lib.Params:
  """The wide path after a step of SGD by the batch.

  Args:
    params: With the wide path of this device.
    features: Of all examples of the batch.
    grad: `[N, l]`, gradient of the logits.
    rate: Scalar, learning rate.

  Returns:
    New parameters, those of the wide path alone.
  """
  pairs = rows_lib.pairs(params)
  weights = label_pairs.add_outer(pairs, features, grad, -rate)
  return rows_lib.of_pairs(pairs._replace(weights=weights))


def step_by_example(
  rows: rows_lib.Rows,
  how: ByExample,
  rate: ArrayLike,
  params: rows_lib.Params,
  step: jax.Array,
  features: feature_rows.SparseRows,
  targets: targets_lib.Targets,
  row_rates: jax.Array,
) -> tuple[rows_lib.Params, jax.Array]:
  """Parameters after a step by each example; see `ByExample`.

  Args:
    rows: What is stored of labels.
    how: Rate of the biases, and what is left alone.
    rate: Learning rate of the weights.
    params: Wide path and bias of this device.
    step: Scalar int32, number of steps taken.
    features: Of all examples of the batch.
    targets: Likewise.
    row_rates: `[l]`, what multiplies the rates for each label.

  Returns:
    New parameters, and this device's part of the mean loss of the batch.
  """
  rates = label_pairs.Rates(
    rate,
    how.bias_learning_rate(step),
    math.log(how.threshold / (1 - how.threshold)),
  )
  ids, first = rows.of_labels(targets.ids), rows.of_device().first_row()
  positives = jnp.where(ids < 0, -1, ids - first)
  bias = params["bias"]
  is_label = rows.layout.is_label(first + jnp.arange(len(bias)))
  pairs = rows_lib.pairs(params)
  weights, bias, losses = label_pairs.step_by_example(
    *(pairs, jnp.where(is_label, bias, _NO_LABEL), row_rates, features),
    *(positives, jnp.asarray(targets.weights), rates),
  )
  new = rows_lib.of_pairs(pairs._replace(weights=weights))
  # As a mean over the batch, like that of a step by the batch.
  share = 1 / jnp.maximum(targets.weights.sum(), 1e-12)
  return params | new | {"bias": bias}, losses.sum() * share
