"""Averages checkpoints into the directory of a new run, shard by shard.

The last five of one run (stochastic weight averaging):

  xlj average --workdirs=runs/a --last=5 --output=runs/average

Several runs with the same start, those that help on held-out rows:

  xlj average --workdirs=runs/a,runs/b,runs/c --mode=greedy \\
    --output=runs/soup
"""

from absl import flags
from absl import logging

from xlj.averaging import soups
from xlj.commands import processes

_WORKDIRS = flags.DEFINE_list(
  "workdirs", None, "Directories of the runs.", required=True
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Directory of the new run.", required=True
)
_MODE = flags.DEFINE_enum(
  "mode",
  "uniform",
  soups.MODES,
  "Average all checkpoints, or those that do not make the score worse.",
)
_LAST = flags.DEFINE_integer(
  "last",
  0,
  "How many of the newest checkpoints of each run; default: all of a single"
  " run, one of each of several.",
)
_METRIC = flags.DEFINE_string(
  "metric", "", "Score of greedy, e.g. P@1; default: the config's eval.metric."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Directory of the data; default: that of the training."
)
_SPLIT = flags.DEFINE_string(
  "split",
  "",
  "Split that greedy scores on; default: the training rows held out.",
)


def main() -> None:
  """Averages."""
  recipe = soups.make_soup(
    _WORKDIRS.value,
    _OUTPUT.value,
    mode=_MODE.value,
    last=_LAST.value,
    metric=_METRIC.value,
    data_dir=_DATA_DIR.value,
    split=_SPLIT.value,
  )
  candidates = recipe["candidates"]
  logging.info(
    "%s is the average of %d of %d checkpoints",
    *(_OUTPUT.value, sum(c["kept"] for c in candidates), len(candidates)),
  )


def run() -> None:
  """Runs the command."""
  processes.run_distributed(main)
