"""One billion labels, exact softmax, on one device or on hundreds.

Its data need not exist to plan it:

  xlj plan --config=billion --devices=8

By default 1,000,000,000 labels x 64 with rows of bfloat16 rounded
stochastically, SGD, and 1024 examples a step, which one GPU of 139 GiB holds.
Others by keys after the colon, for instance
`configs/billion.py:num_labels=100000000,dim=128,dtype=float8,optimizer=adagrad`.
"""

import ml_collections

from xlj import config as config_lib

# Learning rates of the label rows at which the loss of planted labels falls
# within 20 steps; SGD's are for the sum over the batch, whose mean is the loss.
_RATE_OF_SUM = {"sgd": 2.0, "momentum": 0.2}
_RATE = 0.1


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """The config.

  Args:
    arg: `num_labels`, `dim` (of embeddings and label rows), `dtype` (of label
      rows), `optimizer` (of label rows), `loss`, `batch_size` and
      `blocks`, each `key=value`.

  Returns:
    A config that holds the facts about its data.
  """
  chosen = config_lib.parse_arg(
    arg,
    (),
    num_labels=1_000_000_000,
    dim=64,
    dtype="bfloat16",
    optimizer="sgd",
    loss="softmax",
    batch_size=1024,
    blocks=512,
  )
  rate = _RATE
  if chosen["optimizer"] in _RATE_OF_SUM:
    rate = _RATE_OF_SUM[chosen["optimizer"]] * chosen["batch_size"]
  config = config_lib.base()
  config.update_from_flattened_dict(
    {
      "family": "embedding",
      "data.num_rows": 10_000_000,
      "data.num_features": 65_536,
      "data.num_labels": chosen["num_labels"],
      "data.dense": False,
      "data.fingerprint": "stated",
      "data.feature_norm": 1.0,
      "data.features_per_row": 32.0,
      "data.max_features": 32,
      "data.max_labels": 4,
      "data.weighting": "none",
      "data.l2": True,
      "data.validation": 0.0,
      "encoder.dim": chosen["dim"],
      "encoder.embedding_dropout": 0.0,
      "encoder.input_scale": 1.0,
      "encoder.scale": 0.0,
      "head.loss": chosen["loss"],
      "head.dtype": chosen["dtype"],
      "head.rounding": "stochastic",
      "head.blocks": chosen["blocks"],
      "head.cosine": False,
      "head.use_bias": False,
      "head.init": "normal",
      "head.init_scale": 0.05,
      "optim.warmup": 0.0,
      "optim.decay": "constant",
      "optim.head.name": chosen["optimizer"],
      "optim.head.learning_rate": rate,
      "train.batch_size": chosen["batch_size"],
      "train.num_steps": 10_000,
    }
  )
  return config
