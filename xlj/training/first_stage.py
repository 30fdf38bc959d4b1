"""What a run takes over from an earlier one: its encoder, and label rows."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from xlj import config as config_lib
from xlj.heads import head as head_lib
from xlj.model import model as model_lib
from xlj.runs import directory

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
  workdir = directory.resolve(config.train.start_from, "train.start_from")
  saved = directory.load_config(workdir)
  model = model_lib.Model(config)
  with_rows = "keys" in model.head.can
  _check(saved, config, _SAME + (_SAME_ROWS if with_rows else ()), workdir)
  first = model_lib.Model(saved)
  if with_rows and "rows" not in first.head.can:
    raise config_lib.ConfigError(
      f"train.start_from is {workdir}: {head_lib.lack(first.head, 'rows')}; own"
      " keys start at the rows of a dense head: set oltr.own_keys=False"
    )
  expected = model.abstract().model["encoder"]
  abstract = first.abstract().model
  if _shapes(abstract["encoder"]) != _shapes(expected):
    raise config_lib.ConfigError(
      f"train.start_from is {workdir}, whose encoder has other weights; give"
      " the same section encoder"
    )
  with directory.keeper(workdir, saved, first, read_only=True) as keeper:
    found = keeper.restore_model(abstract, best=False)
  if found is None:
    raise config_lib.ConfigError(
      f"train.start_from is {workdir}, which holds no finished checkpoint"
    )
  trained = found[1]
  if not with_rows:
    return Stage(trained["encoder"], None, None)
  rows = jax.jit(first.head.rows)(trained["head"])
  return Stage(trained["encoder"], rows, trained["head"].get("bias"))


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
