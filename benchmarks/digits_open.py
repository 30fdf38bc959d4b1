"""Long-tailed numbers of three digits, a tenth of which is never trained.

Real images (the 8x8 digits that come with scikit-learn) stand side by side; the
label is the number that they make. A number in ten is open: it has no training
images. The others have from 200 training images down to 2, exponentially less
with their rank (Cui et al. 2019, "Class-balanced loss based on effective number
of samples", section 4.1). Images to train and to test with are made of
different digits. Rare numbers consist of frequent digits, so that clean images
have no tail to speak of once trained well (`--noise=0`); noise on the pixels
makes one.

  python benchmarks/digits_open.py --output=DIR

DIR is a data set as `configs/images.py` trains on, with `open.npy`, the images
of open numbers.

Legend: N images, H digits, L labels.
"""

import argparse
import dataclasses
import pathlib

import digits
import numpy as np

from xlj.data import images as images_lib

OPEN = "open.npy"
NOISE = 0.35
_PER_TEST = 10  # test images of a number
_PER_OPEN = 30  # of an open one: 3,000 images beside 9,000 of labels


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
  unknown = np.repeat(numbers.unknown, _PER_OPEN)
  pixels = compose(to_test, rng, unknown, numbers.num_digits, noise)
  np.save(directory / OPEN, pixels)
  names = [f"{number:0{numbers.num_digits}}\n" for number in numbers.known]
  (directory / "labels.txt").write_text("".join(names))
  return numbers


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--output", type=pathlib.Path, required=True)
  parser.add_argument("--noise", type=float, default=NOISE, help="on pixels")
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  numbers = write(options.output, options.seed, options.noise)
  print(f"{len(numbers.known)} labels, {numbers.counts.sum()} images")


if __name__ == "__main__":
  main()
