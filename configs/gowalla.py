"""Recommendation: users as bags of items, whose next items are ranked.

  xlj train --config=gowalla --config.data.dir=DIR --workdir=WD

`DIR` has the form of Gowalla (He et al. 2020, "LightGCN"): a row for each user
whose features and labels are the same, its items; in the test split the labels
are those that were held out, and `filter_labels_test.txt` has the others. Or it
has one file of interactions, see `xlj.data.user_items`. The model is found in
closed form: a ridge regression of items on items and the least squares in its
first directions, see `xlj.training.closed_form`. Its settings were chosen on a
fifth of every user's training items; Recall@20 and nDCG@20 of the test are
0.193 and 0.160, in 70 seconds of one core and 3.1 GB.
"""

import ml_collections

from xlj import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """The config; set `data.dir`."""
  config = config_lib.base()
  config.update_from_flattened_dict(
    {
      "family": "embedding",
      "data.validation": 0.0,
      "data.weighting": "none",
      "data.l2": True,
      "encoder.dim": 896,
      "encoder.scale": 0.0,
      "encoder.embedding_dropout": 0.0,
      "head.init": "ridge",
      "head.ridge": 0.3,
      "head.ridge_power": 0.2,
      "head.ridge_least_squares": 1.3,
      "head.cosine": False,
      "head.use_bias": False,
      "head.wide": True,
      "predict.exclude_seen": True,
      "predict.propensity_power": 0.0,
      "train.epochs": 0.0,
      "eval.figures": "recommendation",
      "eval.ks": (10, 20),
      "eval.metric": "nDCG@20",
    }
  )
  return config
