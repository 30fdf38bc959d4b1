"""Labels that come after training, made from their examples without training.

Holds some labels of a data set out of training, appends them to the run in each
way of `xlj.labels.append`, and compares with a run that was trained with them
from the start. Labels held out have a training and a test row each, at least;
examples lose them, and those without another label are left out.

Columns, in percent: P@1 and P@5 of the new labels, on the test rows that have
one (all labels compete, and only new ones are right), P@1 of them where new
labels alone compete, P@1 and P@5 of the old labels on the test rows that have
one of them, and of all labels on all rows. Then as many labels are deleted from
the run trained with all: how often they are predicted among the best 100, and
by how much the scores of the others change. The last line is JSON.

  python benchmarks/label_append.py --data_dir=DIR --set encoder.dim=64

Legend: N rows, L labels, K of them new.
"""

import argparse
import json
import pathlib
import tempfile
import time
from typing import Any, NamedTuple

from absl import logging
import numpy as np

from xlj import config as config_lib
from xlj.data import csr as csr_lib
from xlj.data import store
from xlj.data import writers
from xlj.inference import predictor
from xlj.labels import append
from xlj.labels import edit
from xlj.labels import runs
from xlj.training import train

METHODS = ("prototype", "teen", "naive_bayes")
_SCORED_ROWS = 256  # of which all scores are compared after deletion


class Truth(NamedTuple):
  """Test rows.

  Attributes:
    features: N rows.
    labels: `[N, L]` of them.
    num_old: Labels below this one were trained.
  """

  features: csr_lib.Csr
  labels: csr_lib.Csr
  num_old: int


def choose(train_: store.Split, test: store.Split, count: int, seed: int):
  """Labels `[count]` to hold out."""
  seen = np.bincount(train_.labels.indices, minlength=train_.num_labels) > 0
  asked = np.bincount(test.labels.indices, minlength=train_.num_labels) > 0
  known = np.flatnonzero(seen & asked)
  return np.random.default_rng(seed).choice(known, count, replace=False)


def renumbered(labels: csr_lib.Csr, table: np.ndarray) -> csr_lib.Csr:
  """Labels `[N, L]` by other numbers."""
  ids = np.split(table[labels.indices], labels.indptr[1:-1])
  return csr_lib.Csr.from_rows(
    [np.sort(row).tolist() for row in ids], len(table)
  )


def among(labels: csr_lib.Csr, first: int, last: int, width: int):
  """Labels `[N, width]`, those of [first, last) alone."""
  rows = np.split(labels.indices, labels.indptr[1:-1])
  kept = [row[(row >= first) & (row < last)].tolist() for row in rows]
  return csr_lib.Csr.from_rows(kept, width)


def write(
  path: pathlib.Path, features: csr_lib.Csr, labels: csr_lib.Csr
) -> None:
  """A training file of the rows that have a label."""
  path.mkdir()
  rows = np.flatnonzero(labels.row_lengths)
  writers.write_one_file(
    path / "train.txt", features.take(rows), labels.take(rows)
  )


def prepare(
  source: pathlib.Path, output: pathlib.Path, count: int, seed: int
) -> Truth:
  """Writes the sets "old", "new" and "all"; new labels have the last ids."""
  split = store.open_split(source)
  size = split.num_labels
  test = store.open_split(source, "test", num_labels=size)
  held = choose(split, test, count, seed)
  table = np.empty(size, np.int64)
  kept = np.setdiff1d(np.arange(size), held)
  table[kept] = np.arange(size - count)
  table[held] = np.arange(size - count, size)
  labels, num_old = renumbered(split.labels, table), size - count
  features: Any = split.features
  write(output / "all", features, labels)
  write(output / "old", features, among(labels, 0, num_old, num_old))
  write(output / "new", features, among(labels, num_old, size, size))
  rows: Any = test.features
  return Truth(rows, renumbered(test.labels, table), num_old)


def hits(ids: np.ndarray, labels: csr_lib.Csr) -> dict[str, float]:
  """P@1 and P@5 in percent, over rows with a label."""
  rows = np.flatnonzero(labels.row_lengths)
  truth = np.split(labels.indices, labels.indptr[1:-1])
  right = np.array([np.isin(ids[row], truth[row]) for row in rows])
  return {f"P@{k}": float(100 * right[:, :k].mean()) for k in (1, 5)}


def score(workdir: pathlib.Path, truth: Truth) -> dict[str, Any]:
  """Figures of a run for old and new labels."""
  run = predictor.load(workdir, which="last")
  _, ids = run.topk(truth.features, 5)
  size = truth.labels.num_columns
  old = among(truth.labels, 0, truth.num_old, size)
  found = {"old": hits(ids, old), "all": hits(ids, truth.labels)}
  if run.num_ids > truth.num_old:
    new = among(truth.labels, truth.num_old, size, size)
    found["new"] = hits(ids, new)
    alone = edit.delete(runs.load(workdir), np.arange(truth.num_old))
    with tempfile.TemporaryDirectory() as directory:
      runs.save(alone, directory)
      rows = np.flatnonzero(new.row_lengths)
      few = predictor.load(directory, which="last")
      _, ids = few.topk(truth.features.take(rows), 5)
      found["new_alone"] = hits(ids, new.take(rows))
  return found


def deletion(
  workdir: pathlib.Path, output: pathlib.Path, gone: np.ndarray, truth: Truth
) -> dict[str, float]:
  """How often deleted labels are predicted, and what others' scores do."""
  runs.save(edit.delete(runs.load(workdir), gone), output)
  before = predictor.load(workdir, which="last")
  after = predictor.load(output, which="last")
  _, ids = after.topk(truth.features, 100)
  few = truth.features.take(np.arange(_SCORED_ROWS))
  size, left = truth.labels.num_columns, after.num_labels
  full = []
  for run, count in ((before, size), (after, left)):
    scores, labels = run.topk(few, count)
    by_label = np.full((_SCORED_ROWS, size), np.nan, np.float32)
    np.put_along_axis(by_label, labels, scores, 1)
    full.append(by_label)
  kept = np.setdiff1d(np.arange(size), gone)
  change = np.abs(full[0] - full[1])[:, kept]
  counts = after.label_counts()
  assert counts is not None
  return {
    "predicted": int(np.isin(ids, gone).sum()),
    "of": int(ids.size),
    "difference": float(change.max()),
    "largest_score": float(np.abs(full[0][:, kept]).max()),
    "counted": int(counts[gone].sum()),
  }


def fit(
  options: argparse.Namespace,
  data: pathlib.Path,
  workdir: pathlib.Path,
  seed: int,
) -> float:
  """Trains; returns the seconds."""
  config = config_lib.base()
  fields: dict[str, Any] = {
    "seed": seed,
    "family": "embedding",
    "data.dir": str(data),
    "data.validation": 0.0,
    "predict.propensity_power": 0.0,
    "checkpoint.keep": 1,
  }
  for text in options.set:
    name, _, value = text.partition("=")
    try:
      fields[name] = json.loads(value)
    except ValueError:
      fields[name] = value
  config.update_from_flattened_dict(fields)
  begun = time.perf_counter()
  train.train(config, workdir)
  return time.perf_counter() - begun


def compare(
  options: argparse.Namespace, directory: pathlib.Path, seed: int
) -> dict[str, Any]:
  """All ways for one seed, which also chooses the labels."""
  truth = prepare(
    pathlib.Path(options.data_dir), directory, options.labels, seed
  )
  found: dict[str, Any] = {}
  seconds = fit(options, directory / "old", directory / "before", seed)
  found["before"] = score(directory / "before", truth) | {"seconds": seconds}
  show(seed, "before", found["before"])
  new = store.open_split(directory / "new")
  config = config_lib.load(directory / "before" / config_lib.FILE)
  # Without an encoder there is nothing that the others could start from.
  for method in METHODS if config.encoder.dim else METHODS[:1]:
    begun = time.perf_counter()
    run = append.append(runs.load(directory / "before"), new, method=method)
    runs.save(run, directory / method)
    seconds = time.perf_counter() - begun
    found[method] = score(directory / method, truth) | {"seconds": seconds}
    show(seed, method, found[method])
  seconds = fit(options, directory / "all", directory / "again", seed)
  found["again"] = score(directory / "again", truth) | {"seconds": seconds}
  show(seed, "again", found["again"])
  gone = np.random.default_rng(seed).choice(
    truth.labels.num_columns, options.labels, replace=False
  )
  found["deleted"] = deletion(
    directory / "again", directory / "less", gone, truth
  )
  print(f"seed {seed}, deleted: {found['deleted']}", flush=True)
  return found


def show(seed: int, name: str, row: dict[str, Any]) -> None:
  """Prints the figures of a way."""
  cells = [
    f"{part} {row[part]['P@1']:.2f} / {row[part]['P@5']:.2f}"
    for part in ("new", "new_alone", "old", "all")
    if part in row
  ]
  print(f"seed {seed}, {name}: {', '.join(cells)}; {row['seconds']:.1f} s")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--labels", type=int, default=1000, help="held out")
  parser.add_argument("--set", nargs="*", default=[], help="FIELD=VALUE")
  parser.add_argument("--seeds", type=int, default=1)
  parser.add_argument("--first_seed", type=int, default=0)
  options = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  found = []
  for seed in range(options.first_seed, options.first_seed + options.seeds):
    with tempfile.TemporaryDirectory() as directory:
      found.append(compare(options, pathlib.Path(directory), seed))
  print(json.dumps({**vars(options), "found": found}))


if __name__ == "__main__":
  main()
