"""As many linear weights as a machine holds: one pass of xlj, timed.

  python benchmarks/pairs_scale.py --json=out.json
  python benchmarks/pairs_scale.py --blocks=16,64
  python benchmarks/pairs_scale.py --rows=3000 --features=500 --labels=3000

Trains the default linear model on generated rows, each time in a process of its
own. A row is of a cluster: its labels are, and most of its features are words
of the cluster's; the others are any. Frequencies of labels, clusters and
features follow power laws. By default 150 million pairs of a feature and a
label meet, and all get a weight, as `head.wide_work` is out of the way.

Prints a line for each number of blocks, and writes the origin of the figures
and a row:

  blocks        of labels
  found, kept   pairs that meet, and those with a weight
  visits        how often pairs are read in a pass, those of a row's features
                for each row
  find_s        seconds to find the pairs
  pass_s        seconds that the steps of the pass take
  visit_ns      nanoseconds of one core for each visit
  train_s       seconds from the arrays on disk to the saved model
  others        processors that other work kept busy meanwhile, on Linux
  peak_bytes    memory of the process that trains, at most, imports and mapped
                files included
  model_bytes   size on disk of what prediction reads
"""

import argparse
from concurrent import futures
import json
import multiprocessing
import pathlib
import sys
import tempfile
import time
from typing import Any

import contestant
import numpy as np
import one_vs_all
import one_vs_all_side
import scipy.sparse

from xlj import config as config_lib
from xlj.config import splits
from xlj.data import csr as csr_lib
from xlj.data import label_pairs
from xlj.data import statistics
from xlj.report import progress
from xlj.runs import directory
from xlj.training import train

# The label of rank r has a frequency of about r^-0.9, and so on.
LABEL_POWER, FEATURE_POWER = 0.9, 0.4
LABELS, WORDS = 1000, 130  # of a cluster
OWN = 0.9  # share of a row's features that are words of its cluster
CHUNK = 50_000  # rows made at a time
STEPS = 10  # between looks at the clock
COLUMNS = {
  "blocks": "{:,}",
  "rows": "{:,}",
  "features": "{:,}",
  "labels": "{:,}",
  "found": "{:,}",
  "kept": "{:,}",
  "visits": "{:.2e}",
  "find_s": "{:.1f} s",
  "pass_s": "{:.1f} s",
  "examples_per_s": "{:,.0f}",
  "visits_per_s": "{:.2e}",
  "visit_ns": "{:.2f}",
  "train_s": "{:.1f} s",
  "others": "{:.1f}",
  "peak_bytes": "{:,}",
  "model_bytes": "{:,}",
}


def main() -> None:
  options = parse()
  origin = one_vs_all.origin_of(
    " ".join(["python benchmarks/pairs_scale.py", *sys.argv[1:]])
  )
  rows = []
  with tempfile.TemporaryDirectory() as name:
    data = pathlib.Path(name)
    write_rows(options, data)
    for blocks in options.blocks:
      # What the rows were made with, or another run, is not to be its peak.
      context = multiprocessing.get_context("spawn")
      with futures.ProcessPoolExecutor(1, mp_context=context) as process:
        row = process.submit(run, data, blocks, options.work).result()
      print_row(row)
      rows.append({"cells": [row[name] for name in COLUMNS]})
      if options.json:
        columns = list(COLUMNS.items())
        record = {"origin": origin, "columns": columns, "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", type=int, default=2_000_000)
  parser.add_argument("--features", type=int, default=500_000)
  parser.add_argument("--labels", type=int, default=3_000_000)
  parser.add_argument("--row_features", type=int, default=60)
  parser.add_argument("--row_labels", type=int, default=4)
  parser.add_argument("--work", type=int, default=2**62, help="head.wide_work")
  parser.add_argument("--blocks", default="0", help="several; 0: the default")
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  options = parser.parse_args()
  options.blocks = [int(blocks) for blocks in options.blocks.split(",")]
  return options


def write_rows(options: argparse.Namespace, data: pathlib.Path) -> None:
  """Writes a training split, and has xlj read it."""
  rng = np.random.default_rng(0)
  clusters = max(1, options.labels // LABELS)
  name = rng.permutation(options.features).astype(np.int32)
  words = name[
    power_law(rng.random((clusters, WORDS)), options.features, FEATURE_POWER)
  ]
  own = round(OWN * options.row_features)
  x = np.empty((options.rows, options.row_features), np.int32)
  y = np.empty((options.rows, options.row_labels), np.int32)
  for first in range(0, options.rows, CHUNK):
    part = slice(first, first + CHUNK)
    size = len(x[part])
    u = rng.random((size, 1))
    cluster = power_law(u, options.labels, LABEL_POWER) % clusters
    found = power_law(spread(rng, y[part]), options.labels, LABEL_POWER)
    found += cluster - found % clusters
    for i in range(1, options.row_labels):  # no label twice
      np.maximum(found[:, i], found[:, i - 1] + clusters, out=found[:, i])
    y[part] = np.minimum(found, options.labels - 1)
    u = spread(rng, x[part, :own])
    x[part, :own] = words[cluster, power_law(u, WORDS, FEATURE_POWER)]
    u = spread(rng, x[part, own:])
    x[part, own:] = name[power_law(u, options.features, FEATURE_POWER)]
  for letter, ids, count in (
    ("X", x, options.features),
    ("Y", y, options.labels),
  ):
    scipy.sparse.save_npz(
      data / f"{letter}.train.npz", matrix(ids, count), compressed=False
    )
  splits.open_split(config_of(data))


def spread(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
  """Random numbers in [0, 1), one in each of as many parts as a row has."""
  width = like.shape[1]
  return (np.arange(width) + rng.random(like.shape)) / width


def power_law(u: np.ndarray, count: int, power: float) -> np.ndarray:
  """Ranks below a number, of which r has a probability of about r^-power."""
  rest = 1 - power
  ranks = (((count + 1.0) ** rest - 1) * u + 1) ** (1 / rest) - 1
  return np.minimum(ranks, count - 1).astype(np.int32)


def matrix(ids: np.ndarray, num_columns: int) -> scipy.sparse.csr_array:
  """Rows of ids, each of them once; sorts them."""
  ids.sort(axis=1)
  new = np.ones(ids.shape, bool)
  new[:, 1:] = ids[:, 1:] != ids[:, :-1]
  indptr = np.concatenate([[0], np.cumsum(new.sum(1))])
  indices = ids[new]
  return scipy.sparse.csr_array(
    (np.ones(len(indices), np.int8), indices, indptr), (len(ids), num_columns)
  )


def config_of(data: pathlib.Path) -> Any:
  """The config of one pass."""
  config = config_lib.base()
  config.data.dir = str(data)
  config.data.validation = 0.0
  config.train.epochs = 1.0
  config.train.log_every = STEPS
  return config


def run(data: pathlib.Path, blocks: int, work: int) -> dict[str, Any]:
  """Trains.

  Args:
    data: Where `write_rows` has written.
    blocks: Of labels; 0 for the default.
    work: `head.wide_work`.

  Returns:
    What `COLUMNS` names.
  """
  config, workdir = config_of(data), data / f"run_{blocks}"
  config.head.blocks = blocks or None
  config.head.wide_work = work
  find, found = label_pairs.find, {}

  def timed_find(*args: Any, **named: Any) -> label_pairs.Pairs:
    begun = time.perf_counter()
    pairs = find(*args, **named)
    found.update(pairs=pairs, seconds=time.perf_counter() - begun)
    return pairs

  label_pairs.find = timed_find
  before = one_vs_all_side.seconds_of_others()
  begun = time.perf_counter()
  train.train(config, workdir)
  train_s = time.perf_counter() - begun
  after = one_vs_all_side.seconds_of_others()
  peak = contestant.process_bytes("VmHWM")
  config, pairs = directory.load_config(workdir), found["pairs"]
  split = splits.open_split(config)
  assert isinstance(split.features, csr_lib.Csr)
  frequency = statistics.column_counts(split.features)
  visits = sum(int(np.dot(np.diff(s), frequency)) for s in pairs.starts)
  pass_s = seconds_of_pass(workdir, config.train.num_steps)
  cores = contestant.num_threads()
  model = pathlib.Path(
    directory.checkpoints(workdir, config), str(config.train.num_steps), "model"
  )
  return {
    "blocks": config.head.blocks,
    "rows": split.num_rows,
    "features": split.num_features,
    "labels": split.num_labels,
    "found": pairs.found,
    "kept": pairs.kept,
    "visits": visits,
    "find_s": found["seconds"],
    "pass_s": pass_s,
    "examples_per_s": split.num_rows / pass_s,
    "visits_per_s": visits / pass_s,
    "visit_ns": 1e9 * pass_s * cores / visits,
    "train_s": train_s,
    "others": (after - before) / train_s if before and after else None,
    "peak_bytes": peak,
    "model_bytes": sum(
      path.stat().st_size for path in model.rglob("*") if path.is_file()
    ),
  }


def seconds_of_pass(workdir: pathlib.Path, steps: int) -> float:
  """What all steps take if the first take as long as the others."""
  lines = (workdir / progress.METRICS_FILE).read_text().splitlines()
  first, *_, last = map(json.loads, lines)
  share = (last["step"] - first["step"]) / steps
  return (last["time"] - first["time"]) / share


def print_row(row: dict[str, Any]) -> None:
  """Prints what was measured."""
  shown = (
    f"{name} {form.format(row[name])}"
    for name, form in COLUMNS.items()
    if row[name] is not None
  )
  print(", ".join(shown), flush=True)


if __name__ == "__main__":
  main()
