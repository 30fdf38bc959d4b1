"""What a run takes over from an earlier one: its encoder, and label rows."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from xlj import config as config_lib
from xlj.checkpoint import checkpointer
from xlj.model import model as model_lib
from xlj.runs import workdir as workdir_lib

# Where the two must agree for weights to mean the same.
_SAME = ("data.fingerprint", "data.weighting", "data.l2", "data.num_features")
_SAME_ROWS = ("head.blocks", "head.order")


class Stage(NamedTuple):
  """What was trained before.

  Attributes:
    encoder: Its parameters.
    rows: `[L, D]` float32, label rows; None if the head had none that fit.
    bias: `[L]` float32, or None.
  """

  encoder: Any
  rows: jax.Array | None
  bias: jax.Array | None


def load(config: ml_collections.ConfigDict) -> Stage:
  """The last checkpoint of the run that `train.start_from` names.

  Args:
    config: Resolved config of the run that starts.

  Returns:
    What it takes over, on the mesh in context. Rows are given to the head
    "oltr" alone, as its keys.

  Raises:
    ConfigError: The run does not exist or does not fit this one.
    CheckpointError: None of its checkpoints is good.
  """
  workdir = workdir_lib.resolve(config.train.start_from, "train.start_from")
  saved = config_lib.load(workdir / config_lib.FILE)
  with_rows = config.head.type == "oltr" and config.oltr.own_keys
  _check(saved, config, _SAME + (_SAME_ROWS if with_rows else ()), workdir)
  if with_rows and saved.head.type != "dense":
    raise config_lib.ConfigError(
      f"train.start_from is {workdir}, whose head.type is {saved.head.type!r};"
      " own keys start at the rows of a dense head: set oltr.own_keys=False"
    )
  first = model_lib.Model(saved)
  expected = model_lib.Model(config).abstract().model["encoder"]
  abstract = first.abstract().model
  if _shapes(abstract["encoder"]) != _shapes(expected):
    raise config_lib.ConfigError(
      f"train.start_from is {workdir}, whose encoder has other weights; give"
      " the same section encoder"
    )
  with checkpointer.Checkpointer(
    saved.checkpoint.dir or workdir / checkpointer.DIRECTORY,
    best_metric=saved.eval.metric,
    read_only=True,
  ) as keeper:
    found = keeper.restore_model(abstract, best=False)
  if found is None:
    raise config_lib.ConfigError(
      f"train.start_from is {workdir}, which holds no finished checkpoint"
    )
  model = found[1]
  if not with_rows:
    return Stage(model["encoder"], None, None)
  rows = jax.jit(first.head.rows)(model["head"])
  return Stage(model["encoder"], rows, model["head"].get("bias"))


def _check(
  saved: ml_collections.ConfigDict,
  config: ml_collections.ConfigDict,
  names: tuple[str, ...],
  workdir: Path,
) -> None:
  """Refuses a first stage with other values of some fields."""
  found = config_lib.differences(saved, config)
  for name in names:
    if name in found:
      before, now = found[name]
      raise config_lib.ConfigError(
        f"train.start_from is {workdir}, whose {name} is {before!r}; here it is"
        f" {now!r}, and must be the same"
      )


def _shapes(tree: Any) -> Any:
  """Shapes of the leaves by path."""
  return jax.tree.map(lambda a: a.shape, tree)
