"""Long-tailed numbers of three digits, a tenth of which is never trained.

Real images (the 8x8 digits that come with scikit-learn) stand side by side; the
label is the number that they make. A number in ten is open: it has no training
images. The others have from 200 training images down to 2, exponentially less
with their rank (Cui et al. 2019, "Class-balanced loss based on effective number
of samples", section 4.1). Images to train and to test with are made of
different digits. Rare numbers consist of frequent digits, so that clean images
have no tail to speak of once trained well (`--noise=0`); noise on the pixels
makes one.

Trains a residual network with each method for some seeds, of the data and of
the run. Columns, in percent: the mean over labels of the accuracy on their test
images, for all labels, those with many training images (at least 100), few (at
most 20), and in between (medium), as in Liu et al. 2019, "Large-scale
long-tailed recognition in an open world". Prints mean and standard deviation;
the last line is JSON.

  python benchmarks/digits_open.py --methods=plain,class_aware --seeds=3
  python benchmarks/digits_open.py --output=DIR   # no more than the data

DIR is a data set as `configs/images.py` trains on, with `open.npy`, the images
of open numbers.

Legend: N images, H digits, L labels.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
import time
from typing import Any

from absl import logging
import digits
import jax
import numpy as np

from xlj import config as config_lib
from xlj import predictor
from xlj import train
from xlj.data import images as images_lib
from xlj.data import store

OPEN = "open.npy"
METHODS: dict[str, dict[str, Any]] = {
  "plain": {},
  "class_aware": {"tail.sampler": "class_aware"},
  "square_root": {"tail.sampler": "square_root"},
  "adjusted": {"tail.adjustment": 1.0},
  "focal": {"head.loss": "focal"},
}
MANY, FEW = 100, 20  # training images of a label
_PER_TEST = 10  # test images of a number


@dataclasses.dataclass(frozen=True)
class Numbers:
  """Which numbers there are, and how many images of each.

  Attributes:
    known: `[L]` int, ascending: the numbers that are labels.
    counts: `[L]` int, training images of each.
    unknown: int, the open numbers.
    num_digits: H.
  """

  known: np.ndarray
  counts: np.ndarray
  unknown: np.ndarray
  num_digits: int


def draw_numbers(
  rng: np.random.Generator,
  num_digits: int = 3,
  most: int = 200,
  imbalance: float = 100.0,
) -> Numbers:
  """Draws which numbers are open, and which of the others are rare."""
  numbers = rng.permutation(10**num_digits)
  unknown, known = np.split(numbers, [len(numbers) // 10])
  rank = np.arange(len(known)) / (len(known) - 1)
  counts = np.round(most * imbalance**-rank).astype(np.int64)
  order = np.argsort(known)
  return Numbers(known[order], counts[order], np.sort(unknown), num_digits)


def compose(
  pool: digits.Pool,
  rng: np.random.Generator,
  numbers: np.ndarray,
  num_digits: int,
  noise: float,
) -> np.ndarray:
  """Images uint8 `[N, 8, 8 H, 1]` of numbers `[N]`, of random digits each.

  With normal noise of that standard deviation, in shares of the brightest.
  """
  powers = 10 ** np.arange(num_digits)[::-1]
  values = numbers[:, None] // powers % 10  # [N, H]
  by_value = np.argsort(pool.values, kind="stable")
  counts = np.bincount(pool.values, minlength=10)
  first = np.cumsum(counts) - counts
  place = (rng.random(values.shape) * counts[values]).astype(np.int64)
  pixels = pool.images[by_value[first[values] + place]]  # [N, H, 64]
  if noise:
    added = noise * rng.standard_normal(pixels.shape, np.float32)
    pixels = np.clip(pixels + added, 0, 1)
  pixels = np.round(255 * pixels).astype(np.uint8)
  pixels = pixels.reshape(len(numbers), num_digits, 8, 8)
  return np.moveaxis(pixels, 1, 2).reshape(len(numbers), 8, -1, 1)


def write(directory: pathlib.Path, seed: int, noise: float = 0.0) -> Numbers:
  """Writes the data set of a seed, and tells what is in it."""
  rng = np.random.default_rng(seed)
  numbers = draw_numbers(rng)
  to_train, to_test = digits.pools()
  labels = np.arange(len(numbers.known))
  for split, pool, times in (
    ("train", to_train, numbers.counts),
    ("test", to_test, _PER_TEST),
  ):
    ids = rng.permutation(np.repeat(labels, times))
    shown = numbers.known[ids]
    pixels = compose(pool, rng, shown, numbers.num_digits, noise)
    images_lib.write_split(directory, split, pixels, ids)
  unknown = np.repeat(numbers.unknown, _PER_TEST)
  pixels = compose(to_test, rng, unknown, numbers.num_digits, noise)
  np.save(directory / OPEN, pixels)
  names = [f"{number:0{numbers.num_digits}}\n" for number in numbers.known]
  (directory / "labels.txt").write_text("".join(names))
  return numbers


def make_config(
  options: argparse.Namespace, data: pathlib.Path, method: str, seed: int
) -> Any:
  """A residual network and a softmax, with what a method changes."""
  config = config_lib.base()
  fields: dict[str, Any] = {
    "seed": seed,
    "data.dir": str(data),
    "data.validation": 0.0,
    "encoder.type": "resnet",
    "encoder.dim": options.dim,
    "encoder.depth": 1,
    "train.epochs": options.epochs,
    "optim.encoder.weight_decay": 1e-4,
    "checkpoint.keep": 1,
  }
  config.update_from_flattened_dict(fields | METHODS[method])
  return config


def score(
  workdir: pathlib.Path, data: pathlib.Path, counts: np.ndarray
) -> dict[str, float]:
  """Mean accuracy of labels by their number of training images."""
  test = store.open_split(data, "test")
  _, found = predictor.load(workdir, which="last").topk(
    np.asarray(test.features), 1
  )
  labels = test.labels.indices
  right = np.bincount(labels, found[:, 0] == labels, minlength=len(counts))
  accuracy = 100 * right / np.bincount(labels, minlength=len(counts))
  parts = {
    "all": counts > 0,
    "many": counts >= MANY,
    "medium": (counts > FEW) & (counts < MANY),
    "few": counts <= FEW,
  }
  return {name: float(accuracy[part].mean()) for name, part in parts.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--output", type=pathlib.Path, help="write the data here")
  parser.add_argument(
    "--methods", default="plain", help=f"of {', '.join(METHODS)}; with commas"
  )
  parser.add_argument("--noise", type=float, default=0.35, help="on pixels")
  parser.add_argument("--dim", type=int, default=64, help="of embeddings")
  parser.add_argument("--epochs", type=float, default=6.0)
  parser.add_argument("--seeds", type=int, default=3)
  options = parser.parse_args()
  if options.output:
    numbers = write(options.output, 0, options.noise)
    print(f"{len(numbers.known)} labels, {numbers.counts.sum()} images")
    return
  logging.set_verbosity(logging.ERROR)
  found: dict[str, list[dict[str, float]]] = {}
  with tempfile.TemporaryDirectory() as temporary:
    directory = pathlib.Path(temporary)
    jax.config.update("jax_compilation_cache_dir", str(directory / "compiled"))
    for seed in range(options.seeds):
      data = directory / f"data_{seed}"
      numbers = write(data, seed, options.noise)
      for method in options.methods.split(","):
        begun = time.perf_counter()
        workdir = directory / f"{method}_{seed}"
        train.train(make_config(options, data, method, seed), workdir)
        scores = score(workdir, data, numbers.counts)
        scores["seconds"] = time.perf_counter() - begun
        found.setdefault(method, []).append(scores)
        print(f"seed {seed}, {method}: {_line([scores])}", flush=True)
  for method, runs in found.items():
    print(f"{method:<12} {_line(runs)}")
  print(json.dumps({**vars(options), "found": found}))


def _line(runs: list[dict[str, float]]) -> str:
  """Mean and standard deviation of each score."""
  cells = []
  for name in runs[0]:
    values = [run[name] for run in runs]
    cells.append(f"{name} {np.mean(values):.1f} ± {np.std(values):.1f}")
  return ", ".join(cells)


if __name__ == "__main__":
  main()
