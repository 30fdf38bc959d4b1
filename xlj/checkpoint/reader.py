"""Reads one checkpoint, and compares it with what was noted at its saving."""

from collections.abc import Mapping
import time
from typing import Any

from absl import logging
from etils import epath
import jax

from xlj.checkpoint import checksum
from xlj.checkpoint import commit
from xlj.checkpoint import errors
from xlj.checkpoint import steps
from xlj.checkpoint import stream
from xlj.checkpoint import trees as trees_lib
from xlj.distributed import exchange


def read(
  directory: epath.Path,
  step: int,
  trees: dict[str, Any],
  rows: Mapping[str, trees_lib.Rows] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads some items of a checkpoint; all processes have to.

  Args:
    directory: Of the checkpoints.
    step: Which one.
    trees: Trees of `ShapeDtypeStruct` with shardings, by item.
    rows: By item, how many rows of its arrays are saved, where not all are.

  Returns:
    The trees of arrays by item, and the facts given to `save`.

  Raises:
    CheckpointError: In all processes, if one of them finds a fault.
  """
  begun, rows = time.monotonic(), rows or {}
  wanted = {name: trees_lib.flat(tree) for name, tree in trees.items()}
  document, found, fault = {}, {}, ""
  try:
    document = steps.read_meta(directory, step)
    for name, flat in wanted.items():
      saved = rows.get(name, trees_lib.ALL)
      trees_lib.check_same(document["arrays"].get(name, {}), flat, saved)
      found[name] = stream.read(directory / str(step) / name, flat, saved)
  except errors.CheckpointError as error:
    fault = str(error)
  # Before the devices of all processes work together.
  if text := commit.first_fault(exchange.gather(f"checkpoint {step}", fault)):
    raise errors.CheckpointError(text)
  complete = time.monotonic()
  for name, flat in found.items():
    saved = document["arrays"][name]
    sums = checksum.checksums(flat, rows.get(name))
    for array, value in sums.items():
      if value != saved[array]["checksum"]:
        raise errors.CheckpointError(
          f"array {array} is damaged: its checksum is {value:08x}, and was"
          f" {saved[array]['checksum']:08x}"
        )
  if exchange.process_id() == 0:
    size, seconds = (
      sum(map(trees_lib.num_bytes, found.values())),
      complete - begun,
    )
    logging.info(
      "Restored the checkpoint of step %d: %s in %.1f s (%s/s), and %.1f s"
      " to check it",
      step,
      trees_lib.size(size),
      seconds,
      trees_lib.size(size / max(seconds, 1e-9)),
      time.monotonic() - complete,
    )
  restored = {
    name: jax.tree.unflatten(
      jax.tree.structure(tree), [found[name][key] for key in wanted[name]]
    )
    for name, tree in trees.items()
  }
  return restored, document["facts"]
