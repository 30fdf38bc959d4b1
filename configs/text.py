"""Classification of texts: rows of `{"text": ..., "labels": [...]}`.

  xlj train --config=text --config.data.dir=DIR \\
    --workdir=WD

`DIR` holds `train.jsonl`, `test.jsonl` and, if labels have texts of their own,
`labels.jsonl` of `{"label": ..., "text": ...}`; other forms: docs/data.md.
"""

import ml_collections

from xlj import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """The config of a model of texts.

  Args:
    arg: Nothing.

  Returns:
    The config; set `data.dir`.
  """
  config_lib.parse_arg(arg, ())
  config = config_lib.base()
  config.data.text = "auto"
  return config
