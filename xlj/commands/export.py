"""Writes the model of a run as a small directory that answers without it.

  xlj export --workdir=runs/bibtex --output=models/bibtex

Weights become as narrow as held-out rows allow, which a table shows. To say how
narrow they are to be, or how small the file, and how many points may be lost:

  xlj export --workdir=runs/bibtex --output=models/bibtex \\
    --dtype=int8 --max_loss=0.5 --rows=validation

Any model becomes a program of JAX, beside its arrays or where those would not
tell. When a newer JAX does not read it any more, it is made again by:

  xlj export --refresh=models/bibtex

Of a network with very many labels, an index says which of them to look at:

  xlj export --workdir=WD --output=DIR --index=0.95
  xlj predict --workdir=DIR --probes=0 --input=ROWS --output=OUT
"""

from pathlib import Path

from absl import flags

from xlj.commands import launching
from xlj.export import compress
from xlj.export import export
from xlj.export import index

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "Directory of the model: new, or of an exported model to replace.",
)
_CHECKPOINT = flags.DEFINE_enum(
  "checkpoint", "best", ["best", "last"], "Which checkpoint to export."
)
_DTYPE = flags.DEFINE_enum(
  "dtype",
  "auto",
  ["auto", *compress.DTYPES],
  "Of weights; auto: the narrowest that does not lose too much, or float32"
  " without rows to measure with.",
)
_PRUNE = flags.DEFINE_float(
  "prune", 0.0, "Share of the sparse weights to drop, the smallest ones."
)
_MAX_BYTES = flags.DEFINE_integer(
  "max_bytes",
  0,
  "Most bytes of the file of weights, for which sparse weights are dropped; 0"
  " for any.",
  0,
)
_MAX_LOSS = flags.DEFINE_float(
  "max_loss",
  None,
  "Points of P@1, P@3, P@5 and PSP@5 that may be lost; default: 0.2, if there"
  " are rows to measure with.",
)
_ROWS = flags.DEFINE_string(
  "rows",
  "",
  "Rows to measure with: a split, or a file with labels; default: the training"
  " rows held out.",
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Directory of the data; default: that of the training."
)
_ARTIFACT = flags.DEFINE_bool(
  "artifact",
  False,
  "Write artifact/ as well, programs of JAX that need no xlj. Models of other"
  " heads than dense ones, or other encoders than a bag, always have one.",
)
_K = flags.DEFINE_integer(
  "k", None, "Labels that those find; default: 100, or all if fewer.", 1
)
_REFRESH = flags.DEFINE_string(
  "refresh",
  None,
  "Directory of an exported model whose programs to make again, and no more.",
)
_INDEX = flags.DEFINE_float(
  "index",
  0.0,
  "Share of the ten best labels that an index of label rows is to find, such as"
  " 0.95, as measured with the rows; 0 for no index.",
)
_INDEX_LIBRARY = flags.DEFINE_enum(
  "index_library", "xlj", index.LIBRARIES, "Whose index that is."
)
_PREDICT = launching.define_predict()


def main() -> None:
  """Exports."""
  if _REFRESH.value is not None:
    export.refresh(Path(_REFRESH.value))
    return
  if _WORKDIR.value is None or _OUTPUT.value is None:
    raise ValueError("give --workdir=RUN and --output=DIR, or --refresh=DIR")
  export.export(
    _WORKDIR.value,
    _OUTPUT.value,
    which=_CHECKPOINT.value,
    predict=_PREDICT(),
    dtype=_DTYPE.value,
    prune=_PRUNE.value,
    max_bytes=_MAX_BYTES.value,
    max_loss=_MAX_LOSS.value,
    rows=_ROWS.value,
    data_dir=_DATA_DIR.value,
    artifact=_ARTIFACT.value,
    k=_K.value,
    index=_INDEX.value,
    index_library=_INDEX_LIBRARY.value,
  )


def run() -> None:
  """Runs the command."""
  launching.run(main)
