"""Writes the k best labels of each row of a file.

  xlj predict --workdir=runs/bibtex --input=FILE \\
    --output=predictions.jsonl --k=5
"""

from absl import flags

from xlj.commands import launching
from xlj.commands import processes
from xlj.inference import label_files
from xlj.inference import predict

_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Directory of the run, or of an exported model.",
  required=True,
)
_INPUT = flags.DEFINE_string(
  "input",
  None,
  "Rows to label, in any format of the data, or an image, or a directory of"
  " them; '-' is stdin.",
  required=True,
)
_OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "TSV, or JSONL if it ends in .jsonl; '-' is stdout.",
  required=True,
)
_K = flags.DEFINE_integer(
  "k", None, "Labels per row; default: 5, or all if there are fewer.", 1
)
_LABELS = flags.DEFINE_string(
  "labels",
  None,
  "File with a label name per line; default: those of the run.",
)
_CHECKPOINT = flags.DEFINE_enum(
  "checkpoint", "best", ["best", "last"], "Which checkpoint to use."
)
_ON_ERROR = flags.DEFINE_enum(
  "on_error",
  "stop",
  predict.ON_ERROR,
  "A row that cannot be read ends it, or gets an answer without labels.",
)
_THRESHOLD = flags.DEFINE_float(
  "threshold", None, "Score that a label has to reach."
)
_MIN_PROBABILITY = flags.DEFINE_float(
  "min_probability",
  None,
  "Probability of being right that a label has to reach; for runs that"
  " xlj calibrate has calibrated.",
  0,
  1,
)
_PROBES = flags.DEFINE_integer(
  "probes",
  None,
  "How many lists, or candidates, of an exported model's index to look at; 0"
  " for as many as its manifest says. Default: all labels are looked at.",
  0,
)
_ASKED = launching.define_label_files()
_PREDICT = launching.define_predict()


def main() -> None:
  """Predicts."""
  predict.predict(
    _WORKDIR.value,
    _INPUT.value,
    _OUTPUT.value,
    k=_K.value,
    labels=_LABELS.value,
    which=_CHECKPOINT.value,
    predict=_PREDICT(),
    asked=label_files.Asked(**_ASKED()),
    threshold=_THRESHOLD.value,
    min_probability=_MIN_PROBABILITY.value,
    probes=_PROBES.value,
    on_error=_ON_ERROR.value,
  )


def run() -> None:
  """Runs the command."""
  processes.run_distributed(main)
