"""Checkpoints: asynchronous, atomic, restored on any mesh.

A step directory holds three items: `model` (encoder and head parameters and
what prediction needs), `training` (optimizer states) and `meta` (JSON: the
resolved config, the data set's fingerprint and sizes, the count of examples
consumed). Prediction restores `model` alone.
"""

from collections.abc import Mapping
import math
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

DIRECTORY = "checkpoints"
# Large arrays are written and read in pieces of this size, or a save would
# hold a second copy of the label matrix in memory, and then a compressed one.
_PIECE_BYTES = 64 << 20


class Checkpointer:
  """Saves and restores a run's state under `workdir/checkpoints`.

  The last `keep` checkpoints are kept, and the best one by `best_metric`
  among those saved with metrics.
  """

  def __init__(
    self,
    workdir: str | Path,
    *,
    keep: int = 1,
    best_metric: str = "P@1",
    read_only: bool = False,
  ):
    """Opens (or creates) the directory.

    Args:
      workdir: Working directory of the run; made absolute here because Orbax
        accepts a relative path and fails only when it saves.
      keep: How many of the newest checkpoints to keep.
      best_metric: Metric whose best checkpoint is kept as well.
      read_only: Open for restoring alone.
    """
    directory = Path(workdir).absolute() / DIRECTORY
    self._best_metric = best_metric
    policy = preservation_policy.AnyPreservationPolicy(
      [
        preservation_policy.LatestN(keep),
        preservation_policy.BestN(
          get_metric_fn=self._score,
          n=1,
          keep_checkpoints_without_metrics=False,
        ),
      ]
    )
    self._manager = ocp.CheckpointManager(
      directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        # The policy decides what is kept, but without this Orbax does not
        # write the metrics, and a continued run would not know its best.
        best_fn=self._score,
        create=not read_only,
        cleanup_tmp_directories=not read_only,
      ),
      item_handlers={
        "model": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
      },
    )

  def save(
    self,
    step: int,
    model: Any,
    training: Any,
    meta: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Starts saving in the background; the arrays may be donated after.

    Args:
      step: Number of steps taken.
      model: Tree of arrays needed for prediction.
      training: Tree of arrays needed to go on training.
      meta: JSON-serialisable facts.
      metrics: Validation metrics of this state, if it was evaluated.
    """
    self._manager.save(
      step,
      args=ocp.args.Composite(
        model=ocp.args.StandardSave(model, _in_pieces(model)),
        training=ocp.args.StandardSave(training, _in_pieces(training)),
        meta=ocp.args.JsonSave(dict(meta)),
      ),
      metrics=dict(metrics or {}),
    )

  def latest_step(self) -> int | None:
    """Step of the newest finished checkpoint, or None."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Step of the best finished checkpoint by the metric, else the newest."""
    metrics = {
      step: self._manager.metrics(step) for step in self._manager.all_steps()
    }
    scored = [
      (self._score(found), step) for step, found in metrics.items() if found
    ]
    return max(scored)[1] if scored else self.latest_step()

  def meta(self, step: int) -> dict[str, Any]:
    """The JSON facts saved with a checkpoint."""
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    restored: Any = self._manager.restore(step, args=args)
    return restored["meta"]

  def restore_model(self, step: int, abstract: Any) -> Any:
    """Restores what prediction needs.

    Args:
      step: Which checkpoint.
      abstract: Tree of `ShapeDtypeStruct` with the shardings to restore to;
        they need not be those it was saved with.

    Returns:
      The tree of arrays.
    """
    args = ocp.args.Composite(model=ocp.args.StandardRestore(abstract))
    restored: Any = self._manager.restore(step, args=args)
    return restored["model"]

  def restore(
    self, step: int, abstract_model: Any, abstract_training: Any
  ) -> tuple[Any, Any]:
    """Restores everything needed to go on training.

    Args:
      step: Which checkpoint.
      abstract_model: As for `restore_model`.
      abstract_training: The same for the optimizer states.

    Returns:
      The two trees of arrays.
    """
    restored: Any = self._manager.restore(
      step,
      args=ocp.args.Composite(
        model=ocp.args.StandardRestore(abstract_model),
        training=ocp.args.StandardRestore(abstract_training),
      ),
    )
    return restored["model"], restored["training"]

  def wait(self) -> None:
    """Blocks until saves in the background have finished."""
    self._manager.wait_until_finished()

  def __enter__(self) -> "Checkpointer":
    """Returns itself."""
    return self

  def __exit__(self, *_: object) -> None:
    """Closes; a save that is under way when the run fails is finished."""
    self.close()

  def close(self) -> None:
    """Waits for saves and releases the threads."""
    self._manager.close()

  def _score(self, metrics: Mapping[str, float]) -> float:
    """What the best checkpoint has most of; least for one not evaluated."""
    return metrics[self._best_metric] if metrics else -math.inf


def _in_pieces(tree: Any) -> Any:
  """How to write each array of a tree."""
  return jax.tree.map(
    lambda _: ocp.SaveArgs(chunk_byte_size=_PIECE_BYTES), tree
  )
