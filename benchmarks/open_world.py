"""Long tails and unknown classes: open long-tailed recognition and baselines.

Trains each method on labels with many, some and few examples, and tests it on
those labels and on classes that it never saw (Liu et al. 2019, "Large-scale
long-tailed recognition in an open world"): numbers of three digits (see
`digits_open.py`), or a data set of texts, of which one label in ten is left out
with its examples.

  python benchmarks/open_world.py --seeds=3
  python benchmarks/open_world.py --data_dir=DIR --dim=64 --epochs=3

Columns, in percent: means over labels of their accuracy, for labels with many
training examples (at least 100), few (at most 20), and in between (medium);
then for each confidence that a method can reject by: the F-measure as the
authors corrected it, as they published it, and the AUROC. They are of unknown
examples and as many of each label, as in the paper; the threshold is the one of
the best corrected F-measure on one half of them, for all methods alike, and the
figures are those of the other. Prints mean and standard deviation over seeds,
of the data and of the run; the last line is JSON.

Methods whose name ends in "_2" start from the encoder of `plain` ("oltr_2"
also from its label rows) at a third of its rate, the others from scratch. All
but the plain ones draw labels first (`class_aware`). Rejection by OpenMax is of
the methods without a memory.

Legend: N examples, L labels.
"""

import argparse
import collections
import json
import pathlib
import tempfile
import time
from typing import Any, NamedTuple

from absl import logging
import digits_open
import jax
import numpy as np

from xlj import config as config_lib
from xlj.data import csr as csr_lib
from xlj.data import store
from xlj.data import writers
from xlj.inference import predictor
from xlj.open_world import open_set
from xlj.open_world import openmax
from xlj.training import train

CLASS_AWARE = {"tail.sampler": "class_aware"}
METHODS: dict[str, dict[str, Any]] = {
  "plain": {},
  "class_aware": CLASS_AWARE,
  "focal": CLASS_AWARE | {"head.loss": "focal", "head.prior_bias": True},
  "range": CLASS_AWARE
  | {"range.intra": 1e-4, "range.inter": 1e-2, "data.max_labels": 1},
  "plain_2": {},
  "class_aware_2": CLASS_AWARE,
  "oltr_2": CLASS_AWARE | {"head.type": "oltr"},
}
SECOND = "_2"


class World(NamedTuple):
  """What to train on, and what to test with.

  Attributes:
    directory: Of the data set; its labels are known.
    features: Of N examples to test with.
    truth: `[N]` their labels, -1 for those of an unknown class.
    counts: `[L]` training examples.
  """

  directory: pathlib.Path
  features: Any
  truth: np.ndarray
  counts: np.ndarray


def of_digits(directory: pathlib.Path, seed: int, noise: float) -> World:
  """Numbers of three digits."""
  counts = digits_open.write(directory, seed, noise).counts
  test = store.open_split(directory, "test")
  unknown = np.load(directory / digits_open.OPEN)
  features = [test.features, unknown.reshape(len(unknown), -1)]
  truth = np.append(test.labels.indices, np.full(len(unknown), open_set.OPEN))
  return World(directory, np.concatenate(features), truth, counts)


def of_texts(directory: pathlib.Path, source: pathlib.Path, seed: int) -> World:
  """A data set without one label in ten, and without their examples.

  Labels without training examples are no less unknown. The others have new
  numbers. Test rows of several labels count with the first, and are left out
  where some are known and some are not.
  """
  split = store.open_split(source)
  labels = split.labels
  unknown = np.random.default_rng(seed).random(labels.num_columns) < 0.1
  rows = np.flatnonzero(_share(labels, unknown) == 0)
  labels = labels.take(rows)
  counts = np.bincount(labels.indices, minlength=labels.num_columns)
  known = np.flatnonzero(counts)
  number = np.full(len(counts), open_set.OPEN)
  number[known] = np.arange(len(known))
  features: Any = split.features
  writers.write_one_file(
    directory / "train.txt",
    features.take(rows),
    csr_lib.Csr.from_scipy(labels.to_scipy()[:, known]),
  )
  test = store.open_split(source, "test")
  share = _share(test.labels, number == open_set.OPEN)
  rows = np.flatnonzero((share == 0) | (share == 1))
  truth = number[test.labels.indices[test.labels.indptr[rows]]]
  features = test.features
  return World(directory, features.take(rows), truth, counts[known])


def _share(labels: csr_lib.Csr, chosen: np.ndarray) -> np.ndarray:
  """The share of a row's labels that are chosen; NaN where it has none."""
  with np.errstate(invalid="ignore"):
    return (labels.to_scipy() @ chosen) / labels.row_lengths


def make_config(
  options: argparse.Namespace, world: World, method: str, seed: int
) -> Any:
  """The plain run's config, with what a method changes."""
  config = config_lib.base()
  fields: dict[str, Any] = {
    "seed": seed,
    "data.dir": str(world.directory),
    "data.validation": 0.0,
    "encoder.dim": options.dim,
    "head.loss": "softmax",
    "predict.propensity_power": 0.0,
    "train.epochs": options.epochs,
    "checkpoint.keep": 1,
  }
  rate = 2e-3
  if options.data_dir:
    fields["family"] = "embedding"
  else:
    rate = 3e-3
    fields |= {
      "encoder.type": "resnet",
      "encoder.depth": 1,
      "encoder.patch": 2,
      "optim.encoder.weight_decay": 1e-4,
    }
  if method.endswith(SECOND):
    fields["train.start_from"] = str(world.directory / "plain")
    fields["optim.encoder.learning_rate"] = rate / 3
  config.update_from_flattened_dict(fields | METHODS[method])
  return config


def score(workdir: pathlib.Path, world: World) -> dict[str, float]:
  """All figures of a run."""
  run = predictor.load(workdir, which="last")
  _, ids = run.topk(world.features, 1)
  found, truth = ids[:, 0], world.truth
  scores = open_set.by_shots(found, truth, world.counts)
  del scores["accuracy"]
  ways = {"probability": (found, run.confidence(world.features))}
  others = [by for by in run.model.head.confidences if by != "probability"]
  for kind in others:
    ways[kind] = found, run.confidence(world.features, kind)
  if not others:
    ways["openmax"] = openmax.fit(run).predict(world.features)
  for way, (found, sure) in ways.items():
    for name, value in rejecting(found, sure, truth).items():
      scores[f"{way} {name}"] = value
  return scores


def rejecting(
  found: np.ndarray, sure: np.ndarray, truth: np.ndarray
) -> dict[str, float]:
  """Figures of rejection, of one half of a balanced choice of examples."""
  order = np.random.default_rng(0).permutation(balanced(truth))
  choose, rest = order[::2], order[1::2]
  threshold = open_set.best_threshold(
    found[choose], sure[choose], truth[choose]
  )
  kept = open_set.rejected(found[rest], sure[rest], threshold)
  scores = {
    measure: open_set.open_f_measure(kept, truth[rest], measure)
    for measure in open_set.MEASURES
  }
  return {**scores, "auroc": open_set.auroc(sure[rest], truth[rest])}


def balanced(truth: np.ndarray) -> np.ndarray:
  """Examples to test with: as many of each label, and all that are unknown."""
  order = np.argsort(truth, kind="stable")
  _, first, counts = np.unique(
    truth[order], return_index=True, return_counts=True
  )
  rank = np.arange(len(truth)) - np.repeat(first, counts)
  is_known = truth[order] != open_set.OPEN
  most = counts[truth[order][first] != open_set.OPEN].min()
  return order[~is_known | (rank < most)]


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data_dir", type=pathlib.Path, help="digits if none")
  parser.add_argument(
    "--methods", default=",".join(METHODS), help="with commas; plain first"
  )
  parser.add_argument(
    "--noise", type=float, default=digits_open.NOISE, help="of digits"
  )
  parser.add_argument("--dim", type=int, default=64, help="of embeddings")
  parser.add_argument("--epochs", type=float, default=6.0)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--first_seed", type=int, default=0)
  return parser.parse_args()


def main() -> None:
  options = parse()
  logging.set_verbosity(logging.ERROR)
  found = collections.defaultdict(list)
  with tempfile.TemporaryDirectory() as temporary:
    root = pathlib.Path(temporary)
    jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
    for seed in range(options.first_seed, options.first_seed + options.seeds):
      directory = root / str(seed)
      directory.mkdir()
      if options.data_dir:
        world = of_texts(directory, options.data_dir, seed)
      else:
        world = of_digits(directory, seed, options.noise)
      shown = f"{len(world.counts)} labels, {world.counts.sum()} to train on"
      unknown = np.sum(world.truth == open_set.OPEN)
      print(f"seed {seed}: {shown}, {len(world.truth)} to test with, {unknown}"
            " of them unknown")  # fmt: skip
      for method in options.methods.split(","):
        begun = time.perf_counter()
        workdir = directory / method
        train.train(make_config(options, world, method, seed), workdir)
        scores = score(workdir, world)
        scores["seconds"] = time.perf_counter() - begun
        found[method].append(scores)
        print(f"seed {seed}, {method}: {_line([scores])}", flush=True)
  for method, runs in found.items():
    print(f"{method:<14} {_line(runs)}")
  print(json.dumps({**vars(options), "found": found}, default=str))


def _line(runs: list[dict[str, float]]) -> str:
  """Mean and standard deviation of each score."""
  cells = []
  for name in runs[0]:
    values = [run[name] for run in runs]
    cells.append(f"{name} {np.mean(values):.1f} ± {np.std(values):.1f}")
  return ", ".join(cells)


if __name__ == "__main__":
  main()
