"""The benchmark of geometry-aware prediction: its data and figures."""

import numpy as np
import pytest

from benchmarks import loki
from xlj.open_world import label_tree


def test_a_data_set_and_figures_of_it(tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  (source / "train.txt").write_text("3 2 4\n0 0:1\n1 1:1\n2 0:1 1:2\n")
  (source / "labels.txt").write_text(
    "a\tx\ttop\t-1\nb\ty\t\t0\nc\tz\tmiddle\t0\nd\tw\tlow\t2\n"
  )
  loki.write_training(source, tmp_path / "part", np.array([2, 0]))
  text = (tmp_path / "part" / "train.txt").read_text()
  assert text == "2 2 4\n2 0:1 1:2\n0 0:1\n"

  tree = loki.read_tree(source)
  pairs = np.array([[1, 3], [0, 0], [3, 2]])
  np.testing.assert_array_equal(label_tree.distances(tree, *pairs.T), [3, 0, 1])
  is_new = np.array([False, False, True, False])
  got = loki.figures(tree, *pairs.T, is_new)
  assert got == pytest.approx(
    {
      "squared_distance": 10 / 3,
      "P@1": 100 / 3,
      "predicted_new": 0,
      "squared_distance_new": 1,
      "P@1_new": 0,
      "rows_new": 1,
    }
  )
  found = loki.Candidates(
    np.array([[1.0, 1.0, -np.inf]]), np.array([[1, 3, 2]])
  )
  # Half at b and half at d: a and c, between them, are at 1 and 4 or 4 and 1.
  assert loki.by_geometry(tree, found, 1.0)[0] in (0, 2)
