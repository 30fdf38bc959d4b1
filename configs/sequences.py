"""The next item of a sequence: a causal transformer, exact cross-entropy.

  xlj train --config=sequences:Beauty --config.data.dir=DIR --workdir=WD
  xlj evaluate --workdir=WD

`DIR` holds `Beauty.txt`, of the form of S3-Rec: a line `user item item ...` for
each user, in the order of time; any other name will do that is a file there.
The last item of each user is the test label, the one before it that of
validation, and items that a user has had are no answers. The model is SASRec
(Kang and McAuley 2018), tied to the label rows, trained by the softmax over all
items at every place of a sequence; counts of what came after an item in
training are added to its logits (see `xlj.data.transitions`).
"""

import ml_collections

from xlj import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """The config.

  Args:
    arg: Name of the file, without `.txt`.

  Returns:
    The config; set `data.dir`.
  """
  config = config_lib.base()
  config.update_from_flattened_dict(
    {
      "data.sequences": arg or "Beauty",
      "encoder.type": "causal",
      "encoder.dim": 64,
      "encoder.depth": 1,
      "encoder.heads": 1,
      "encoder.sizes.positions": 50,
      "encoder.tied": True,
      "encoder.hidden_dropout": 0.4,
      "encoder.feature_dropout": 0.15,
      "head.loss": "softmax",
      "head.use_bias": False,
      "head.transitions": 250.0,
      "head.cosine": False,
      "head.init": "normal",
      "head.init_scale": 0.02,
      "optim.encoder.name": "adam",
      "optim.encoder.learning_rate": 3e-3,
      "optim.head.name": "adam",
      "optim.head.learning_rate": 3e-3,
      "optim.warmup": 0.05,
      "optim.decay": "cosine",
      "eval.figures": "recommendation",
      "eval.ks": (5, 10, 20),
      "eval.metric": "nDCG@10",
      "predict.exclude_seen": True,
      "train.batch_size": 128,
      "train.epochs": 16.0,
    }
  )
  return config
