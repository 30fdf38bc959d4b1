"""Scores a run on a test split: a table, then one line of JSON.

xlj evaluate --workdir=runs/bibtex
"""

import re

from absl import flags

from xlj.commands import launching
from xlj.commands import processes
from xlj.evaluation import evaluate
from xlj.inference import label_files

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run.", required=True
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Directory of the data; default: that of the training."
)
_SPLIT = flags.DEFINE_string("split", "test", "Which split to score.")
_CHECKPOINT = flags.DEFINE_enum(
  "checkpoint", "best", ["best", "last"], "Which checkpoint to score."
)
_KS = flags.DEFINE_list(
  "ks", [], "Cut-offs of the metrics, e.g. 1,5,20; default: the config's."
)
flags.register_validator(
  _KS,
  lambda ks: all(re.fullmatch("0*[1-9][0-9]{0,9}", k) for k in ks),
  "give whole numbers from 1 up, such as --ks=1,5,20",
)
_ASKED = launching.define_label_files()
_PREDICT = launching.define_predict()


def main() -> None:
  """Evaluates."""
  evaluate.evaluate(
    _WORKDIR.value,
    data_dir=_DATA_DIR.value,
    split=_SPLIT.value,
    which=_CHECKPOINT.value,
    ks=[int(k) for k in _KS.value],
    predict=_PREDICT(),
    asked=label_files.Asked(**_ASKED()),
  )


def run() -> None:
  """Runs the command."""
  processes.run_distributed(main)
