"""Trains a model, or continues the run that --workdir holds.

  xlj train --config=xmc:bibtex --config.data.dir=DIR --workdir=runs/bibtex

A config is one of those that come with xlj, or a file of your own:
--config=my_config.py.

Without --config it continues as the run's own config says. A complete run goes
on for longer, or as another one with other data:

  xlj train --workdir=runs/bibtex --config.train.epochs=40
  xlj train --workdir=runs/new --from=runs/bibtex --config.data.dir=DIR
"""

import contextlib

from absl import flags

from xlj.commands import launching
from xlj.commands import processes
from xlj.distributed import exit_status
from xlj.runs import directory
from xlj.training import fusing
from xlj.training import profiling
from xlj.training import successor

_CONFIG = launching.define_config(
  "Default: that of the run.", of_run=("workdir", "from")
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run.", required=True
)
_FROM = flags.DEFINE_string(
  "from",
  None,
  "Directory of a run that a new one in --workdir begins with: its weights, on"
  " other data with the same labels and features.",
)

_PROFILE = flags.DEFINE_string(
  "profile_steps",
  None,
  "FIRST:LAST, such as 10:20: steps to write a trace of, for xprof and"
  " Perfetto, into the directory profile of the run.",
)


def main() -> int:
  """Trains."""
  config = _CONFIG.value
  if config is None:
    config = directory.load_config(directory.resolve(_WORKDIR.value))
  if _FROM.value is not None:
    config = successor.begin(config, _FROM.value, _WORKDIR.value)
  with contextlib.ExitStack() as stack:
    if _PROFILE.value is not None:
      first, last = profiling.parse(_PROFILE.value)
      stack.enter_context(profiling.steps(first, last))
    complete = fusing.train_all(config, _WORKDIR.value)
  return exit_status.DONE if complete else exit_status.STOPPED


def run() -> None:
  """Runs the command."""
  processes.run_distributed(main)
