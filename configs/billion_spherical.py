"""Very many labels, and exact steps at a cost that does not grow with them.

  xlj train --config=billion_spherical --workdir=WD
  xlj train \\
    --config=billion_spherical:num_labels=1000000000,dim=32 \\
    --workdir=WD

The Z-loss with label rows in factored form (`xlj.heads.spherical`): what has to
fit is one float32 row for each label, 4 D bytes, over all devices, without
state of an optimizer; 1,000,000,000 x 32 are 119 GiB, the 1,000,000 x 64 that
are the default 244 MiB. The data are made up as in `configs/billion_mhp.py`:
features of the digits of a label, with noise. Keys after the colon: see
`get_config`.
"""

import ml_collections

from xlj import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """The config.

  Args:
    arg: `num_labels` (the cube of a whole number), `dim` (of embeddings and
      label rows), `loss` (one of `SPHERICAL` in `xlj.config.losses`), `rows` of
      training data, `learning_rate` of label rows, and `blocks`, each
      `key=value`.

  Returns:
    The config.

  Raises:
    ConfigError: `num_labels` is no cube.
  """
  chosen = config_lib.parse_arg(
    arg,
    (),
    num_labels=1_000_000,
    dim=64,
    loss="z_loss",
    rows=200_000,
    learning_rate=10.0,
    blocks=64,
  )
  num_labels = chosen["num_labels"]
  factor = round(max(num_labels, 1) ** (1 / 3))
  if factor**3 != num_labels:
    raise config_lib.ConfigError(
      f"num_labels={num_labels} is no cube; {factor**3} is"
    )
  config = config_lib.base()
  config.update_from_flattened_dict(
    {
      "family": "embedding",
      "data.generator.rows": chosen["rows"],
      "data.generator.factors": (factor,) * 3,
      "data.generator.features": 128,
      "data.generator.noise": 0.5,
      "data.validation": 0.005,
      "encoder.dim": chosen["dim"],
      "encoder.embedding_dropout": 0.0,
      "encoder.scale": 0.0,
      "head.type": "spherical",
      "head.order": "none",
      "head.loss": chosen["loss"],
      "head.blocks": chosen["blocks"],
      "optim.encoder.learning_rate": 1e-3,
      "optim.head.learning_rate": chosen["learning_rate"],
      "optim.decay": "linear",
      "predict.propensity_power": 0.0,
      "train.batch_size": 512,
      "train.epochs": 1.0,
    }
  )
  return config
