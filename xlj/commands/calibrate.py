"""Fits how likely it is that a run's labels are right, to rows it has not seen.

xlj calibrate --workdir=runs/bibtex --precision=0.9
"""

from absl import flags

from xlj.commands import processes
from xlj.evaluation import calibrate

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run.", required=True
)
_ROWS = flags.DEFINE_enum(
  "rows",
  calibrate.HELD_OUT,
  [calibrate.HELD_OUT, "validation", "test"],
  "Rows that the run was not trained on: those that data.validation has held"
  " out, or a split.",
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Directory of the data; default: that of the training."
)
_CHECKPOINT = flags.DEFINE_enum(
  "checkpoint", "best", ["best", "last"], "Which checkpoint to calibrate."
)
_PRECISION = flags.DEFINE_float(
  "precision",
  0.9,
  "Share of labels that are to be right; a threshold for it is told and noted.",
)


def main() -> None:
  """Calibrates."""
  calibrate.calibrate(
    _WORKDIR.value,
    rows=_ROWS.value,
    data_dir=_DATA_DIR.value,
    which=_CHECKPOINT.value,
    precision=_PRECISION.value,
  )


def run() -> None:
  """Runs the command."""
  processes.run_distributed(main)
