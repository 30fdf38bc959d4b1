"""Writes the model of a run as a small directory that answers without it.

python launch/export.py --workdir=runs/bibtex --output=models/bibtex
"""

from absl import flags

from xlj import launching
from xlj.export import export

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run.", required=True
)
_OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "Directory of the model: new, or of an exported model to replace.",
  required=True,
)
_CHECKPOINT = flags.DEFINE_enum(
  "checkpoint", "best", ["best", "last"], "Which checkpoint to export."
)
_PREDICT = launching.define_predict()


def main() -> None:
  """Exports."""
  export.export(
    _WORKDIR.value,
    _OUTPUT.value,
    which=_CHECKPOINT.value,
    predict=_PREDICT.value,
  )


if __name__ == "__main__":
  launching.run(main)
