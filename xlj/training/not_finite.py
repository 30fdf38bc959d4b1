"""Batches whose loss is not finite: seen, told, and skipped within a budget."""

from collections.abc import Mapping
import json
import math
from pathlib import Path
from typing import Any

from absl import logging
import jax
import ml_collections

from xlj.checkpoint import checkpointer
from xlj.training import preparation

FILE = "not_finite.jsonl"


class NotFiniteError(Exception):
  """The loss of a step is not finite, or its gradient is not."""

  def __init__(self, step: int, loss: float):
    """Of a step."""
    super().__init__(step, loss)
    self.step, self.loss = step, loss


def check(losses: Mapping[int, Any]) -> None:
  """Raises for the first step whose loss is not finite.

  Args:
    losses: Device scalars by step, which are waited for.

  Raises:
    NotFiniteError: There is one.
  """
  for step, loss in jax.device_get(losses).items():
    if not math.isfinite(loss):
      raise NotFiniteError(step, float(loss))


def skip_too(
  error: NotFiniteError,
  skip: frozenset[int],
  keeper: checkpointer.Checkpointer,
  config: ml_collections.ConfigDict,
  data: preparation.Data,
  workdir: Path,
) -> frozenset[int]:
  """The steps to skip from now on; the end, if they are too many.

  Args:
    error: Which step came to no end.
    skip: The steps that are skipped already.
    keeper: Of the run.
    config: Likewise.
    data: Likewise.
    workdir: Likewise.

  Returns:
    `skip` and the step.

  Raises:
    FloatingPointError: More than `train.skip_nonfinite`.
  """
  keeper.wait()
  rows = data.batches(config)[error.step - 1].tolist()
  if jax.process_index() == 0:
    found = {"step": error.step, "loss": str(error.loss), "rows": rows}
    with (workdir / FILE).open("a") as file:
      file.write(json.dumps(found) + "\n")
  what = (
    f"the loss is {error.loss}, or its gradient is not finite, at step"
    f" {error.step}; its batch is the rows {', '.join(map(str, rows[:8]))}, ..."
    f" ({len(rows)} in {workdir / FILE}) of {data.split.name}"
  )
  budget = config.train.skip_nonfinite
  if len(skip) >= budget:
    last = keeper.latest_step()
    raise FloatingPointError(
      f"{what}; {'no checkpoint' if last is None else f'step {last}'} is saved."
      f" Look at the rows, lower optim.*.learning_rate in a new run, or let"
      f" this one skip such batches: train.skip_nonfinite is {budget}, and"
      f" {len(skip)} were skipped"
    )
  logging.warning("%s; skipping it, %d of %d", what, len(skip) + 1, budget)
  return skip | {error.step}
