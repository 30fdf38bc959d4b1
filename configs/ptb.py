"""The next word of English text: a dense softmax beside products of digits.

  xlj train --config=ptb:head=mhp,components=4 \\
    --config.data.dir=DIR --workdir=WD
  xlj evaluate --workdir=WD   # perplexity of the test text

`DIR` holds `ptb.train.txt`, `ptb.valid.txt` and `ptb.test.txt`, the Penn
Treebank as prepared by Mikolov: one sentence a line, 10,000 words. The model is
the feed-forward one of Bengio et al. 2003, "A neural probabilistic language
model": embeddings of the words before, by place, and a hidden layer. Keys after
the colon: `head` (`dense`, `mhp` or `spherical`, which has no perplexity with
the Z-loss), `components` of the mixture of products, `context`, and `epochs`.
About a minute an epoch on 2 cores.
"""

import ml_collections

from xlj import config as config_lib
from xlj.config import heads


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """The config.

  Args:
    arg: See above, each `key=value`.

  Returns:
    The config; set `data.dir`.
  """
  chosen = config_lib.parse_arg(
    arg, (), head=tuple(heads.HEADS), components=1, context=4, epochs=3.0
  )
  config = config_lib.base()
  config.update_from_flattened_dict(
    {
      "family": "network",
      "data.context": chosen["context"],
      "data.validation": 0.01,
      "data.weighting": "none",
      "data.l2": False,
      "encoder.dim": 128,
      "encoder.activation": "relu",
      "encoder.embedding_dropout": 0.1,
      "encoder.init_scale": 0.3,
      "head.type": chosen["head"],
      "head.loss": "softmax",
      "optim.encoder.learning_rate": 3e-3,
      "optim.head.learning_rate": 3e-3,
      "predict.propensity_power": 0.0,
      "train.batch_size": 512,
      "train.epochs": chosen["epochs"],
    }
  )
  if chosen["head"] == "mhp":
    config.head.components = chosen["components"]
  if chosen["head"] == "spherical":
    config.head.loss = "z_loss"
    config.optim.head.learning_rate = 30.0  # of SGD
  return config
