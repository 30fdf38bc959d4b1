"""What a run takes over from an earlier one: its encoder, and label rows."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from xlj import config as config_lib
from xlj import sharding
from xlj.config import encoders
from xlj.heads import head as head_lib
from xlj.model import model as model_lib
from xlj.runs import directory

# Where the two must agree for weights to mean the same.
_SAME = ("data.fingerprint", "data.weighting", "data.l2", "data.num_features")
_SAME_ROWS = ("head.blocks", "head.order")
_SAME_TEXTS = ("text.pretrained", "data.num_labels", "head.cosine", *_SAME_ROWS)


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


def start(
  model: model_lib.Model, state: model_lib.State, stage: Stage
) -> model_lib.State:
  """The first state with what was trained before.

  Args:
    model: The model.
    state: The state of its `init`.
    stage: Parameters of the same encoder, or some of them, and label rows for
      the keys of a memory, or whose directions rows take.

  Returns:
    The state.
  """
  head = state.model["head"]
  if stage.rows is not None and "keys" in model.head.can:
    head = model.head.with_keys(head, stage.rows, stage.bias)
  elif stage.rows is not None:
    head = model.head.at_centroids(head, stage.rows, 1.0)
  training = state.training | {"head": model.head.init_optimizer(head)}
  whole = encoders.laid_over(state.model["encoder"], stage.encoder)
  parameters = state.model | {"encoder": whole, "head": head}
  return state._replace(model=parameters, training=training)


def load(
  config: ml_collections.ConfigDict, label_ids: jax.Array | None
) -> Stage:
  """The last checkpoint of the run that `train.start_from` names.

  Args:
    config: Resolved config of the run that starts.
    label_ids: The label of each of its rows; None if they are in order.

  Returns:
    What it takes over, on the mesh in context. Rows are given to the head
    "oltr" as its keys, and to a transformer whose embeddings, computed once,
    are what the earlier run was trained on.

  Raises:
    ConfigError: The run does not exist or does not fit this one.
    CheckpointError: None of its checkpoints is good.
  """
  workdir = directory.resolve(config.train.start_from, "train.start_from")
  saved = directory.load_config(workdir)
  model, first = model_lib.Model(config), model_lib.Model(saved)
  if saved.data.text == "vectors" and config.data.text == "tokens":
    return _of_vectors(config, saved, first, label_ids, workdir)
  with_rows = "keys" in model.head.can
  _check(saved, config, _SAME + (_SAME_ROWS if with_rows else ()), workdir)
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
  trained = _restored(saved, first, workdir)
  if not with_rows:
    return Stage(trained["encoder"], None, None)
  rows = jax.jit(first.head.rows)(trained["head"])
  return Stage(trained["encoder"], rows, trained["head"].get("bias"))


def _of_vectors(
  config: ml_collections.ConfigDict,
  saved: ml_collections.ConfigDict,
  first: model_lib.Model,
  label_ids: jax.Array | None,
  workdir: Path,
) -> Stage:
  """A pretrained encoder with the map, scale and rows that were trained on it.

  It answers as the earlier run does, and then all of it is trained.
  """
  _check(saved, config, _SAME_TEXTS, workdir)
  if not config.encoder.projection or not config.encoder.scale:
    raise config_lib.ConfigError(
      f"train.start_from is {workdir}, which has a map from the embeddings of"
      " text.pretrained and unit embeddings; set encoder.projection=True, and"
      " leave encoder.scale out"
    )
  if saved.encoder.hidden or saved.encoder.activation or saved.head.use_bias:
    raise config_lib.ConfigError(
      f"train.start_from is {workdir}, whose map is not linear, or whose labels"
      " have a bias; give a run with the encoder and head that configs/text.py"
      " decides for"
    )
  trained = _restored(saved, first, workdir)
  before = trained["buffers"].get("label_ids")
  if (before is None) != (label_ids is None) or not (
    before is None or jax.jit(jnp.array_equal)(before, label_ids)
  ):
    raise config_lib.ConfigError(
      f"train.start_from is {workdir}, whose labels are in another order; give"
      " the same data and data.validation"
    )
  bag = trained["encoder"]
  scale = jnp.log(jnp.float32(saved.encoder.scale))
  encoder = sharding.replicate(encoders.pretrained_weights(config)) | {
    "projection": {
      "kernel": bag["table"],
      "bias": jnp.zeros_like(bag["table"][0]),
    },
    "log_scale": bag.get("log_scale", sharding.replicate(scale)),
  }
  return Stage(encoder, jax.jit(first.head.rows)(trained["head"]), None)


def _restored(
  saved: ml_collections.ConfigDict, first: model_lib.Model, workdir: Path
) -> dict[str, Any]:
  """The parameters and buffers of the run's last checkpoint."""
  with directory.keeper(workdir, saved, first, read_only=True) as keeper:
    found = keeper.restore_model(first.abstract().model, best=False)
  if found is None:
    raise config_lib.ConfigError(
      f"train.start_from is {workdir}, which holds no finished checkpoint"
    )
  return found[1]


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
