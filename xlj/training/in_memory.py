"""Trains on what Python has in memory, in one call."""

from collections.abc import Iterator
import contextlib
import filecmp
import os
from pathlib import Path
import tempfile
from typing import Any

from absl import logging
import jax
import ml_collections

from xlj import config as config_lib
from xlj.config import named
from xlj.data import writing
from xlj.inference import predictor
from xlj.runs import directory
from xlj.training import fusing

DATA = "data"  # directory of a run


def train(
  config: str | os.PathLike[str] | ml_collections.ConfigDict,
  X: Any,
  Y: Any = None,
  *,
  workdir: str | Path | None = None,
  test: Any = None,
  validation: Any = None,
  **columns: Any,
) -> predictor.Predictor:
  """Trains a model on examples in memory, or continues the run of these.

  The examples are written into the run's directory, so that all commands find
  them there. Called again, it goes on where the run was stopped, and returns at
  once what is complete.

  Args:
    config: What `--config` takes, such as `"xmc"`, or a config as
      `xlj.config.base()` gives it; its `data.dir` is not looked at.
    X: Examples, or a table; as of `xlj.data.write`.
    Y: Their labels; likewise.
    workdir: Directory of the run; by default a temporary one, which a line of
      the log names.
    test: A test split, `(X, Y)`, or a table where `X` is one.
    validation: Another one; likewise.
    **columns: `labels`, `text`, `features` and `label_names`, as there.

  Returns:
    The run, as `xlj.load(workdir)` gives it.

  Raises:
    ConfigError: The config cannot be run, or the run in `workdir` has another
      one, or other data.
    ValueError: The examples are none; see `xlj.data.write`.

  Example:
    >>> run = xlj.train("xmc", frame, labels="tags", text="title")
    >>> scores, ids = run.topk(["a new title"], k=5)
    >>> run.names(ids)
  """
  if jax.process_count() > 1:
    raise config_lib.ConfigError(
      f"there are {jax.process_count()} processes, and xlj.train is for one:"
      " write the data by xlj.data.write, and start xlj train in each"
    )
  if isinstance(config, str | os.PathLike):
    config = named.read(os.fspath(config))
  if workdir is None:
    workdir = tempfile.mkdtemp(prefix="xlj-")
    logging.warning("The run is kept in %s; workdir= names another", workdir)
  workdir = directory.resolve(workdir)
  splits = {"train": (X, Y), "test": test, "validation": validation}
  with _written(workdir, splits, columns) as data_dir:
    _keep(data_dir, workdir)
  config = ml_collections.ConfigDict(config.to_dict())  # The caller's stays.
  config.data.dir = str(workdir / DATA)
  if not fusing.train_all(config, workdir):
    logging.warning("Training was stopped; the same call goes on with it")
  return predictor.load(workdir)


@contextlib.contextmanager
def _written(
  workdir: Path, splits: dict[str, Any], columns: dict[str, Any]
) -> Iterator[Path]:
  """A new directory with the data, which is gone at the end if it is there."""
  workdir.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f"{DATA}-", dir=workdir) as name:
    made = Path(name) / DATA
    for split, rows in splits.items():
      if rows is not None:
        rows = rows if isinstance(rows, tuple) else (rows, None)
        writing.write(made, *rows, split=split, **columns)
        columns = columns | {"label_names": None}  # training has them
    yield made


def _keep(made: Path, workdir: Path) -> None:
  """Makes data those of a run, or refuses others than it has."""
  kept = workdir / DATA
  if not kept.exists():
    made.rename(kept)
    return
  names = {p.name for d in (made, kept) for p in d.iterdir() if p.is_file()}
  _, other, missing = filecmp.cmpfiles(made, kept, names, shallow=False)
  if other or missing:
    raise config_lib.ConfigError(
      f"{workdir} has other data, {', '.join(sorted(other + missing))} in"
      f" {kept}; give the data that it was begun with, or another workdir"
    )
