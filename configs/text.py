"""Classification of texts: rows of `{"text": ..., "labels": [...]}`.

  xlj train --config=text --config.data.dir=DIR \\
    --workdir=WD

`DIR` holds `train.jsonl`, `test.jsonl` and, if labels have texts of their own,
`labels.jsonl` of `{"label": ..., "text": ...}`; other forms: docs/data.md.

A run on the embeddings of a pretrained encoder (`text.pretrained`) is a first
stage, from which a second one trains that encoder, too:

  python launch/train.py --config=configs/text.py:tune \\
    --config.data.dir=DIR --config.text.pretrained=ENCODER \\
    --config.train.start_from=WD --workdir=WD2
"""

import ml_collections

from xlj import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """The config of a model of texts.

  Args:
    arg: "tune" for the second stage; nothing for what the data decide.

  Returns:
    The config; set `data.dir`.
  """
  tunes = config_lib.parse_arg(arg, ("tune",))["name"] == "tune"
  config = config_lib.base()
  config.data.text = "tokens" if tunes else "auto"
  if tunes:
    config.encoder.type = "transformer"
    config.encoder.projection = True  # the map that the first stage learned
    config.encoder.layer_decay = 0.9
    config.optim.encoder.learning_rate = 5e-5
    config.optim.head.learning_rate = 2e-4  # rows have been trained
    config.optim.warmup = 0.1
    config.train.batch_size = 256
    config.train.epochs = 1.0
  return config
