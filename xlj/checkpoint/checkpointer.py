"""Saves and restores a run's state, whatever happens meanwhile.

Orbax writes: asynchronously, atomically, every process its shards. What is
read again is compared with checksums (see `checksum`), and the newest good
checkpoint is used. A save that fails does not end the run.
"""

from collections.abc import Iterable, Mapping
import json
import math
from pathlib import Path
import threading
import time
from typing import Any

from absl import logging
import orbax.checkpoint as ocp

from xlj.checkpoint import commit
from xlj.checkpoint import errors
from xlj.checkpoint import reader
from xlj.checkpoint import steps
from xlj.checkpoint import stream
from xlj.checkpoint import trees as trees_lib
from xlj.distributed import exchange

DIRECTORY = "checkpoints"
_MODEL, _TRAINING = "model", "training"


class Checkpointer:
  """Saves and restores a run's state.

  The newest `keep` checkpoints are kept, the best one by `best_metric` among
  those saved with metrics, and those of every `keep_every`-th step.

  All processes of a job have to call the same methods in the same order.
  """

  def __init__(
    self,
    directory: str | Path,
    *,
    keep: int = 2,
    keep_every: int = 0,
    best_metric: str = "P@1",
    timeout: int = 1200,
    read_only: bool = False,
    rows: Mapping[str, trees_lib.Rows] | None = None,
  ):
    """Opens (or creates) the directory.

    Args:
      directory: Of the checkpoints, shared by all processes: a path, made
        absolute here, or the URL of a bucket (`gs://...`, `s3://...`).
      keep: How many of the newest checkpoints to keep; with two, a damaged one
        has a predecessor.
      keep_every: Checkpoints whose step is a multiple are kept; 0 for none.
      best_metric: Metric whose best checkpoint is kept as well.
      timeout: Seconds after which a save is given up.
      read_only: Open for restoring alone.
      rows: By item ("model" and "training"), how many rows of an array, by its
        name as in "head/rows", are saved, where not all are; others are 0 when
        it is restored.
    """
    self._path = steps.resolve(directory)
    self._keep, self._keep_every = keep, keep_every
    self._best_metric = best_metric
    self._rows = rows or {}
    self._first = exchange.process_id() == 0
    self._scores: dict[int, float] = {}
    self._bad: set[int] = set()  # checkpoints that could not be restored
    self._thread: threading.Thread | None = None
    self._asked: int | None = None
    self._fault = ""  # why the newest state asked for is not saved
    self._cause: Exception | None = None  # what was raised then
    self._commit = commit.Commit(timeout)
    self._orbax: Any = None
    if read_only:
      return
    options = ocp.options.AsyncOptions(
      timeout_secs=timeout,
      barrier_sync_fn=self._commit.barrier,
      # If that fails in the background, threads wait for it for minutes. But if
      # it fails in the foreground, other processes do so for ever.
      create_directories_asynchronously=exchange.num_processes() > 1,
    )
    self._orbax = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(
        model=_writer(),
        training=_writer(),
        meta=ocp.JsonCheckpointHandler(),
        composite_options=ocp.CompositeOptions(async_options=options),
      ),
      async_options=options,
    )
    if self._first:
      self._path.mkdir(parents=True, exist_ok=True)
      steps.remove_remains(self._path)

  def save(
    self,
    step: int,
    model: Any,
    training: Any,
    meta: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Starts saving in the background; the arrays may be donated after.

    If it fails there is a warning, the last good checkpoint stays, and the
    next save tries again; `close` raises if the newest state is not saved. A
    checkpoint of the same step is replaced.

    Args:
      step: Number of steps taken.
      model: Tree of arrays needed for prediction.
      training: Tree of arrays needed to go on training.
      meta: JSON-serialisable facts.
      metrics: Validation metrics of this state, if it was evaluated.
    """
    begun = time.monotonic()
    self.wait()
    items = {_MODEL: trees_lib.flat(model), _TRAINING: trees_lib.flat(training)}
    document = steps.seal(
      {
        "facts": dict(meta),
        "metrics": dict(metrics or {}),
        "arrays": {
          name: trees_lib.describe(flat, self._rows.get(name, trees_lib.ALL))
          for name, flat in items.items()
        },
      }
    )
    self._asked, self._cause = step, None
    self._fault = self._commit.begin(self._prepare, step)
    if self._fault:
      self._warn(step)
      return
    error = None
    try:
      self._orbax.save(
        self._path / str(step),
        args=ocp.args.Composite(
          **{name: _save_args(flat) for name, flat in items.items() if flat},
          **{steps.META: ocp.args.JsonSave(document)},
        ),
      )
    except Exception as raised:  # whatever it is, training goes on
      error = raised
    size = sum(trees_lib.num_bytes(flat) for flat in items.values())
    self._thread = threading.Thread(
      target=self._finish,
      args=(step, size, begun, time.monotonic() - begun, error),
      name=f"save of step {step}",
    )
    self._thread.start()

  def wait(self) -> None:
    """Blocks until the save in the background has ended, well or not."""
    if self._thread is not None:
      self._thread.join()
      self._thread = None

  def close(self) -> None:
    """Waits for the save in the background.

    Raises:
      CheckpointError: If the newest state that was to be saved is not.
    """
    self.wait()
    if self._orbax is not None:
      self._orbax.close()
      self._orbax = None
    if self._fault:
      good = set(self._all_steps()) - self._bad
      last = max(good, default=None)
      raise errors.CheckpointError(
        f"the checkpoint of step {self._asked} could not be saved in"
        f" {self._path}: {self._fault}; the newest that is saved there is"
        f" {'none' if last is None else f'that of step {last}'}. Make room, or"
        " set right what is wrong there, and run the same command to continue"
      ) from self._cause

  def __enter__(self) -> "Checkpointer":
    """Returns itself."""
    return self

  def __exit__(self, kind: Any, *_: object) -> None:
    """Closes; a save that is under way when the run fails is finished."""
    try:
      self.close()
    except errors.CheckpointError as error:
      if kind is None:
        raise
      logging.warning("%s", error)  # what ended the run matters more

  def latest_step(self) -> int | None:
    """Step of the newest finished checkpoint, or None."""
    return max(self._all_steps(), default=None)

  def best_step(self) -> int | None:
    """Step of the best finished checkpoint by the metric, else the newest."""
    best = steps.best_of(self._all_scores())
    if best is not None:
      return best
    newest = self.latest_step()
    if newest is not None and self._first:
      logging.info(
        "No checkpoint in %s was scored by %s: the newest, of step %d, is taken"
        " for the best",
        *(self._path, self._best_metric, newest),
      )
    return newest

  def restore_newest(
    self, abstract_model: Any, abstract_training: Any
  ) -> tuple[int, Any, Any, dict[str, Any]] | None:
    """Restores the newest good checkpoint, to go on training.

    Those that are damaged, or of other arrays, are passed over with a warning.

    Args:
      abstract_model: Tree of `ShapeDtypeStruct` with the shardings to restore
        to; they need not be those it was saved with.
      abstract_training: The same for the other arrays.

    Returns:
      Step, the two trees of arrays, and the facts given to `save`; None if
      there is no finished checkpoint.

    Raises:
      CheckpointError: If there are checkpoints, and none is good.
    """
    self.wait()
    trees = {_MODEL: abstract_model, _TRAINING: abstract_training}
    found = self._restore(reversed(self._all_steps()), trees)
    if found is None:
      return None
    step, restored, facts = found
    return step, restored[_MODEL], restored[_TRAINING], facts

  def restore_model(
    self, abstract: Any, *, best: bool = True
  ) -> tuple[int, Any] | None:
    """Restores what prediction needs.

    Args:
      abstract: As `abstract_model` of `restore_newest`.
      best: Try the best checkpoint first, and then the newest ones.

    Returns:
      Step and the tree of arrays; None if there is no finished checkpoint.

    Raises:
      CheckpointError: If there are checkpoints, and none is good.
    """
    self.wait()
    candidates = self._all_steps()[::-1]
    if best and (first := self.best_step()) is not None:
      candidates = [first, *(step for step in candidates if step != first)]
    found = self._restore(candidates, {_MODEL: abstract})
    return None if found is None else (found[0], found[1][_MODEL])

  # --- saving ----------------------------------------------------------------

  def _prepare(self, step: int) -> None:
    """Makes room under the name of a step; raises if one cannot write there."""
    if self._first:
      self._path.mkdir(parents=True, exist_ok=True)
      steps.remove_remains(self._path)
      steps.remove(self._path, step)
      steps.try_writing(self._path, step)
      self._scores.pop(step, None)

  def _finish(
    self,
    step: int,
    size: int,
    begun: float,
    blocked: float,
    error: Exception | None,
  ) -> None:
    """Waits until a save has ended; tidies up after it."""
    try:
      if error is not None:
        raise error
      self._orbax.wait_until_finished()
    except Exception as raised:  # of this process, or of another
      self._fault, self._cause = self._commit.give_up(raised), raised
      self._warn(step)
      self._remove_remains()
      return
    self._bad.discard(step)
    if not self._first:
      return
    seconds = time.monotonic() - begun
    logging.info(
      "Saved the checkpoint of step %d: %s in %.1f s (%.1f s before the next"
      " step)",
      step,
      trees_lib.size(size),
      seconds,
      blocked,
    )
    try:
      scores = self._all_scores()
      good = {s: score for s, score in scores.items() if s not in self._bad}
      for old in steps.superfluous(good, self._keep, self._keep_every):
        steps.remove(self._path, old)
    except OSError as raised:
      logging.warning("Cannot remove an old checkpoint: %s", raised)

  def _warn(self, step: int) -> None:
    if self._first:
      logging.warning(
        "The checkpoint of step %d is not saved in %s: %s. Training goes on;"
        " the next save tries again",
        step,
        self._path,
        self._fault,
      )

  def _remove_remains(self) -> None:
    if self._first:
      try:
        steps.remove_remains(self._path)
      except OSError as error:
        logging.warning("Cannot remove what is left of it: %s", error)

  # --- what is there ---------------------------------------------------------

  def _all_steps(self) -> list[int]:
    """Steps of finished checkpoints, ascending."""
    return steps.finished(self._path)

  def _all_scores(self) -> dict[int, float]:
    """What the best checkpoint has most of; -inf where there is nothing."""
    found = self._all_steps()
    for step in found:
      if step not in self._scores:
        try:
          metrics = steps.read_meta(self._path, step)["metrics"]
        except errors.CheckpointError:
          continue
        self._scores[step] = metrics.get(self._best_metric, -math.inf)
    return {step: self._scores.get(step, -math.inf) for step in found}

  # --- restoring -------------------------------------------------------------

  def _restore(
    self, candidates: Iterable[int], trees: dict[str, Any]
  ) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """The first good one of some checkpoints."""
    # Processes need not have seen the same; the first one decides.
    said = exchange.gather("checkpoints", json.dumps(list(candidates)))
    faults = {}
    for step in json.loads(said[0]):
      try:
        restored, facts = reader.read(self._path, step, trees, self._rows)
      except errors.CheckpointError as error:
        faults[step] = str(error)
        self._bad.add(step)
        if self._first:
          logging.warning(
            "The checkpoint of step %d in %s is not used: %s",
            step,
            self._path,
            error,
          )
      else:
        return step, restored, facts
    if not faults:
      return None
    listed = "; ".join(f"step {step}: {text}" for step, text in faults.items())
    raise errors.CheckpointError(
      f"none of the checkpoints in {self._path} can be used ({listed}). Bring"
      " back a copy of one of them, or move the directory away to start afresh"
    )


def _writer() -> ocp.PyTreeCheckpointHandler:
  # Trained weights do not get shorter; compressing would take time and memory.
  return ocp.PyTreeCheckpointHandler(use_compression=False)


def _save_args(flat: trees_lib.Flat) -> Any:
  args = ocp.SaveArgs(chunk_byte_size=stream.PIECE_BYTES)
  return ocp.args.PyTreeSave(flat, save_args=dict.fromkeys(flat, args))
