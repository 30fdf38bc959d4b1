"""Samplers by label: what is drawn how often, and again."""

import numpy as np
import pytest

from xlj.data import csr as csr_lib
from xlj.data import sampler

# Label 0 has 6 rows, label 1 three, label 2 one, label 3 none; row 7 none.
LABELS = csr_lib.Csr.from_rows(
  [[0], [0], [0], [0], [0], [0, 1], [1], [], [1, 2]], 4
)
DRAWS = 200_000


@pytest.mark.parametrize(
  "kind,power", [("class_aware", 0), ("square_root", 0.5)]
)
def test_every_row_is_drawn_as_often_as_expected(kind, power):
  counts = np.asarray([6.0, 3.0, 1.0])
  of_label = counts**power / (counts**power).sum()
  expected = np.zeros(9)
  for row in range(9):
    for label in LABELS.take([row]).indices:
      expected[row] += of_label[label] / counts[label]
  rows = sampler.ByLabel(LABELS, kind, 3).rows(0, DRAWS)
  found = np.bincount(rows, minlength=9)
  deviation = np.sqrt(DRAWS * expected * (1 - expected))
  assert (np.abs(found - DRAWS * expected) <= 5 * deviation).all()
  assert found[7] == 0


def test_an_example_depends_on_its_number_and_the_seed_alone():
  order = sampler.ByLabel(LABELS, "class_aware", 3)
  whole = order.rows(0, 1000)
  np.testing.assert_array_equal(order.rows(400, 700), whole[400:700])
  far = 10**15
  np.testing.assert_array_equal(
    order.rows(far, far + 9)[3:], order.rows(far + 3, far + 9)
  )
  other = sampler.ByLabel(LABELS, "class_aware", 4).rows(0, 1000)
  assert (other != whole).any()


def test_what_cannot_be_drawn_is_refused():
  with pytest.raises(ValueError, match="'fair'"):
    sampler.ByLabel(LABELS, "fair", 0)
  with pytest.raises(ValueError, match="no row has a label"):
    sampler.ByLabel(csr_lib.Csr.from_rows([[], []], 4), "class_aware", 0)
