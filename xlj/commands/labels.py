"""Appends, deletes, renames or merges labels of a trained run, or lists them.

What comes out is the directory of another run, which evaluates, predicts and
trains on; the first one stays as it is.

  xlj labels --workdir=runs/a --output=runs/b --append=FILE
  xlj labels --workdir=runs/a --output=runs/b --delete=IDS
  xlj labels --workdir=runs/a --list

A label is given by its id, or by its name. Of --merge each line is a label, a
tab and the one that it is merged into; of --rename a label, a tab and its name.
Of --append all labels that have no row yet are new, those deleted earlier
included. Ids never change.

Of a run on texts, labels start at what is said of them by --append=labels.jsonl
(rows of {"label": ..., "text": ...}) and --method=features.
"""

from absl import flags

from xlj import config as config_lib
from xlj.commands import processes
from xlj.data import names as names_lib
from xlj.labels import append
from xlj.labels import edit
from xlj.labels import files
from xlj.labels import runs
from xlj.runs import directory

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the new run.")
_APPEND = flags.DEFINE_string(
  "append",
  None,
  "Examples of new labels, in any format of the data; of texts also a"
  " labels.jsonl, with --method=features.",
)
_METHOD = flags.DEFINE_enum(
  "method", "prototype", append.METHODS, "How --append makes rows."
)
_NAMES = flags.DEFINE_string(
  "names", None, "Names of the labels of --append, one per line, by id."
)
_DELETE = flags.DEFINE_string("delete", None, "A label per line.")
_RENAME = flags.DEFINE_string("rename", None, "Label, tab, name per line.")
_MERGE = flags.DEFINE_string("merge", None, "Label, tab, label per line.")
_LIST = flags.DEFINE_bool("list", False, "Prints id, name, count and state.")
_TRAIN_DIR = flags.DEFINE_string(
  "train_dir", None, "Data to train on with; default: those that it has."
)
_STEPS = flags.DEFINE_integer(
  "steps", 0, "How many more steps to train.", lower_bound=0
)


def main() -> None:
  """Edits labels, or lists them."""
  wanted = {
    "append": _APPEND.value,
    "delete": _DELETE.value,
    "rename": _RENAME.value,
    "merge": _MERGE.value,
    "list": _LIST.value,
  }
  given = [name for name, value in wanted.items() if value]
  if len(given) != 1:
    found = " and ".join(f"--{name}" for name in given) or "none of them"
    raise config_lib.ConfigError(
      f"one of {', '.join(f'--{name}' for name in wanted)} says what to do;"
      f" {found} was given"
    )
  if _OUTPUT.value is None and not _LIST.value:
    raise config_lib.ConfigError("--output: where should the new run go?")
  run = runs.load(_WORKDIR.value)
  if _LIST.value:
    print("id\tname\tcount\tstate")
    for label in edit.listed(run):
      print(*label._replace(name=names_lib.escaped(label.name)), sep="\t")
    return
  runs.save(
    _edited(run),
    _OUTPUT.value or "",  # given; see above
    train_dir=_TRAIN_DIR.value,
    steps=_STEPS.value,
  )


def _edited(run: directory.Run) -> directory.Run:
  if _DELETE.value:
    return edit.delete(run, files.read_ids(_DELETE.value, run))
  if _MERGE.value:
    return edit.merge(run, files.read_merges(_MERGE.value, run))
  if _RENAME.value:
    return edit.rename(run, files.read_renames(_RENAME.value, run))
  assert _APPEND.value
  names = _NAMES.value and names_lib.read_names(_NAMES.value)
  data = files.read_examples(_APPEND.value, run)
  return append.append(run, data, method=_METHOD.value, names=names or None)


def run() -> None:
  """Runs the command."""
  processes.run_distributed(main)
