"""Refuses a run that memory or disk cannot hold, before it takes any.

Every figure is the least that a run takes, so that what would do is not refused
(unless others give up memory meanwhile: `train.check_room`).
"""

from collections.abc import Callable, Iterator
import math
from pathlib import Path
from typing import Any

from absl import logging
import jax
import ml_collections

from xlj import config as config_lib
from xlj import mesh as mesh_lib
from xlj.checkpoint import steps as steps_lib
from xlj.checkpoint import trees
from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import largest as largest_lib
from xlj.data import store
from xlj.model import model as model_lib
from xlj.planning import memory
from xlj.planning import needs as needs_lib
from xlj.runs import directory

# Fields that a run takes less with, in the order in which they are proposed.
_SMALLER = (
  ("family", "linear"),
  ("encoder.dim", 64),
  ("head.dtype", "bfloat16"),
  ("checkpoint.keep", 1),
)
_PROPOSED = 2
_MOST_ROWS = 2**31 - 1  # of int32
Resolve = Callable[[ml_collections.ConfigDict], ml_collections.ConfigDict]


def check(
  config: ml_collections.ConfigDict,
  resolve: Resolve,
  split: store.Split,
  workdir: Path | None,
) -> None:
  """Refuses a run that cannot be held; reads nothing unless it refuses.

  Args:
    config: A config with open fields.
    resolve: Decides them, without measuring the data.
    split: The training split.
    workdir: Of the run, if there is to be one.

  Raises:
    ConfigError: Naming the width, the largest id and its line, and fields that
      the run fits with.
  """
  resolved = resolve(config)
  rows = model_lib.Model(resolved).layout.num_rows
  if resolved.head.order != "none" and rows > _MOST_ROWS:
    raise config_lib.ConfigError(
      f"{rows:,} label rows are more than an int32 can number:"
      f" {_wide('label', resolved, split)}. Set right what is wrong there"
    )
  short, what = "", ""
  if config.train.check_room:
    short, what = _short(resolved, workdir)
  if short:
    advice = [
      *_proposals(config, resolve, workdir),
      "--config.train.check_room=False to begin nevertheless",
    ]
    raise config_lib.ConfigError(
      f"{short}: {_wide(what, resolved, split)}. Set right what is wrong there,"
      f" or give {', or '.join(advice)}"
    )


def check_disk(
  config: ml_collections.ConfigDict, workdir: Path, state: model_lib.State
) -> None:
  """Says what checkpoints take; refuses what the disk cannot hold.

  Args:
    config: The resolved config.
    workdir: Of the run.
    state: As training starts.

  Raises:
    ConfigError: Naming the directory, and what would help.
  """
  where = directory.checkpoints(workdir, config)
  size = trees.num_bytes(trees.flat((state.model, state.training)))
  free = memory.of_disk(where)
  logging.info(
    "A checkpoint takes %s; %d or more are in %s at a time%s",
    *(trees.size(size), _at_once(config, []), where),
    "" if free is None else f", where {trees.size(free)} are free",
  )
  short = config.train.check_room and _disk_short(size, config, workdir)
  if short:
    raise config_lib.ConfigError(
      f"{short}. Make room, or give another --config.checkpoint.dir, a lower"
      " --config.checkpoint.keep, or --config.train.check_room=False to begin"
      " nevertheless"
    )


def _short(
  config: ml_collections.ConfigDict, workdir: Path | None
) -> tuple[str, str]:
  """What there is too little of for a resolved config; "" if there is enough.

  And what most of it is for: "feature" or "label".
  """
  data = config.data
  with jax.set_mesh(mesh_lib.make_mesh(tuple(config.mesh.shape) or None)):
    state = model_lib.Model(config).abstract()
  size = needs_lib.device_bytes(state)
  widths = {data.num_features, data.num_features + 1}
  by_feature = [a for a in jax.tree.leaves(state) if widths & {*a.shape}]
  share = needs_lib.device_bytes(by_feature) / size
  what = "feature" if share > 0.5 else "label"
  # Counts of features and labels, and inverse document frequencies.
  host = 0 if data.dense else 12 * data.num_features
  if config.head.order != "none":
    host += 8 * data.num_labels
  own = memory.of_device()
  if own is None:
    host += size * jax.local_device_count()
  elif size > own:
    return _said("on each device", size, own), what
  have = memory.of_host()
  if have is not None and host > have:
    return _said("of memory", host, have), what
  if workdir is None:
    return "", what
  saved = trees.num_bytes(trees.flat((state.model, state.training)))
  return _disk_short(saved, config, workdir), what


def _disk_short(
  size: int, config: ml_collections.ConfigDict, workdir: Path
) -> str:
  """The same for checkpoints of so many bytes."""
  where = directory.checkpoints(workdir, config)
  free = memory.of_disk(where)
  if free is None:
    return ""
  number = _at_once(config, steps_lib.finished(steps_lib.resolve(where)))
  if number * size <= free:
    return ""
  which = f"each of {number} checkpoints" if number > 1 else "a checkpoint"
  return _said(f"of disk in {where} for {which}", size, free)


def _at_once(config: ml_collections.ConfigDict, there: list[int]) -> int:
  """How many checkpoints there will be, at least, beside those there are.

  An old one goes when the next is complete.
  """
  left = config.train.num_steps - max(there, default=0)
  saves = max(0, math.ceil(left / config.checkpoint.every))
  return min(saves, max(1, config.checkpoint.keep + 1 - len(there)))


def _said(what: str, need: int, have: int) -> str:
  return (
    f"this run takes at least {trees.size(need)} {what}, and there are"
    f" {trees.size(have)}"
  )


def _wide(
  what: str, config: ml_collections.ConfigDict, split: store.Split
) -> str:
  """How many features or labels there are, and where the largest id stands."""
  count = config.data[f"num_{what}s"]
  matrix = split.features if what == "feature" else split.labels
  said = f"data.num_{what}s is {count:,}"
  if split.numbering is not None:
    return f"{said}, as many ids as occur"
  if split.encoding is not None:
    fewer = "; --config.text.words.max_features=N keeps N of them"
    return said + (fewer if what == "feature" else "")
  named = what == "label" and split.label_names is not None
  if named or not isinstance(matrix, csr_lib.Csr):
    return said
  found = largest_lib.find(matrix)
  if found is None:
    return f"{said}, and no {what} occurs"
  first, where = 0, f"{split.name}, row {found.row} from 0"
  in_files = config.data.dir and not (
    config.data.context or config.data.sequences
  )
  if in_files:
    files = discover.find(config.data.dir, "train")
    first = int(what == "feature" and not config.data.zero_based)
    where = largest_lib.place(files, what, found.id + first, found.row)
  said += f", the largest {what} id is {found.id + first} ({where})"
  if found.distinct is not None:
    said += f", and {found.distinct:,} ids occur"
    if in_files and 2 * found.distinct < count:
      said += f" ({checks.RENUMBER})"
  return said


def _proposals(
  config: ml_collections.ConfigDict, resolve: Resolve, workdir: Path | None
) -> list[str]:
  """Flags of which each alone makes the run fit, and that it may take."""
  begun = None if workdir is None else directory.begun(workdir)

  def fitting() -> Iterator[str]:
    for name, value in _SMALLER:
      changed = ml_collections.ConfigDict(config.to_dict())
      changed.update_from_flattened_dict({name: value})
      try:
        resolved = resolve(changed)
        if begun is not None and workdir is not None:
          config_lib.check_same_run(begun, resolved, workdir)
        if not _short(resolved, workdir)[0]:
          yield f"--config.{name}={value}"
      except ValueError:  # it does not go with others, or the run
        continue

  found: list[Any] = list(fitting())
  return found[:_PROPOSED]
