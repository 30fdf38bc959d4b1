"""What the comparison of open worlds trains on, and what it tests with."""

import numpy as np
import pytest

from tests import runs
from xlj.data import store


@pytest.fixture(scope="module")
def script():
  return runs.benchmark("open_world")


def test_as_many_examples_of_each_label_and_all_unknown_ones(script):
  truth = np.array([2, -1, 0, 2, 2, 0, -1, 0, 5, 5, -1, -1])
  chosen = script.balanced(truth)
  assert len(set(chosen)) == len(chosen)
  values, counts = np.unique(truth[chosen], return_counts=True)
  np.testing.assert_array_equal(values, [-1, 0, 2, 5])
  np.testing.assert_array_equal(counts, [4, 2, 2, 2])


def test_a_label_in_ten_of_texts_is_never_trained(script, tmp_path):
  source, output = runs.make_data(tmp_path / "source"), tmp_path / "made"
  output.mkdir()
  world = script.of_texts(output, source, 1)
  before, after = store.open_split(source), store.open_split(output)
  test = store.open_split(source, "test")
  np.testing.assert_array_equal(np.bincount(after.labels.indices), world.counts)
  assert world.counts.min() > 0
  seen = len(np.unique(before.labels.indices))
  assert 0 < len(world.counts) < 0.95 * seen

  # A label has one name before and one after, or none.
  number = {}
  texts = {text(before, row): row for row in range(before.num_rows)}
  for row in range(after.num_rows):
    old = before.labels.slice_rows(*between(texts[text(after, row)])).indices
    new = after.labels.slice_rows(*between(row)).indices
    for pair in zip(old, new, strict=True):
      assert number.setdefault(*pair) == pair[1]
  assert len(number) == len(world.counts)
  known = [
    row
    for row in range(test.num_rows)
    if set(test.labels.slice_rows(*between(row)).indices) <= set(number)
  ]
  found = np.flatnonzero(world.truth >= 0)
  assert len(found) == len(known) > 0
  for here, there in zip(found, known):
    first = test.labels.slice_rows(*between(there)).indices[0]
    assert world.truth[here] == number[first]
    part = world.features.slice_rows(*between(here))
    np.testing.assert_array_equal(
      part.indices, test.features.slice_rows(*between(there)).indices
    )


def between(row):
  return row, row + 1


def text(split, row):
  """What tells a row from others."""
  part = split.features.slice_rows(*between(row))
  return part.indices.tobytes(), np.asarray(part.values).tobytes()
