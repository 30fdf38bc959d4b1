"""The long tail of numbers: its counts, and images made of their digits."""

import numpy as np
import pytest

from tests import runs
from xlj.data import store


@pytest.fixture(scope="module")
def script():
  return runs.benchmark("digits_open")


@pytest.fixture(scope="module")
def data_dir(script, tmp_path_factory):
  directory = tmp_path_factory.mktemp("numbers")
  script.write(directory, 0)
  return directory


def test_the_tail_is_long_and_a_tenth_is_open(data_dir):
  train = store.open_split(data_dir)
  counts = np.sort(np.bincount(train.labels.indices))[::-1]
  assert len(counts) == 900 and (counts[0], counts[-1]) == (200, 2)
  halves = counts[[0, 225, 450, 674, 899]] / 200  # even steps of the logarithm
  np.testing.assert_allclose(
    np.log10(halves), [0, -0.5, -1, -1.5, -2], atol=0.1
  )
  assert len(store.open_split(data_dir, "test").labels.indices) == 9000


def test_numbers_are_made_of_their_digits(script, data_dir):
  names = (data_dir / "labels.txt").read_text().split()
  train, test = store.open_split(data_dir), store.open_split(data_dir, "test")
  assert train.image == (8, 24, 1)
  for split, pool in zip((train, test), script.digits.pools()):
    check(split.features[:300], [names[i] for i in split.labels.indices], pool)
  images = np.load(data_dir / "open.npy")
  others = sorted({f"{i:03}" for i in range(1000)} - set(names))
  assert len(others) == 100
  check(images, np.repeat(others, 30), script.digits.pools()[1])


def check(images, names, pool):
  """Each third of an image is a digit of the pool with the value named."""
  own = {}
  for image, value in zip(np.round(255 * pool.images), pool.values):
    own.setdefault(image.astype(np.uint8).tobytes(), set()).add(int(value))
  for image, name in zip(images, names):
    for part, value in zip(np.split(image.reshape(8, 24), 3, axis=1), name):
      assert int(value) in own[part.tobytes()]
