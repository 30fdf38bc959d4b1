"""The comparison of a dual encoder with and without its second task."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import render_tables
from xlj.data import csr as csr_lib

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def self_supervised(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  import self_supervised

  return self_supervised


def test_true_labels_are_found_by_how_many_rows_have_them(
  self_supervised, monkeypatch
):
  monkeypatch.setattr(self_supervised, "_FEWEST", 2)
  labels = csr_lib.Csr(
    np.array([0, 2, 3, 5]), np.array([0, 1, 2, 1, 3], np.int32), None, 5
  )
  ids = np.array([[1, 4], [2, 0], [4, 3]])
  counts = np.array([0, 2, 3, 9, 1])
  found = self_supervised.by_rows(ids, labels, counts)
  # Label 0 is the only one without a row, 3 the only one with more than three.
  np.testing.assert_allclose(found, [np.nan, 200 / 3, np.nan, 60])


def test_a_gain_has_the_error_of_differences(self_supervised):
  found = np.array([[[10.0, np.nan], [11, np.nan]], [[20, np.nan], [21, 1]]])
  rows = self_supervised.table_rows("10%", [0.3], found)
  assert [row["cells"] for row in rows] == [
    ["10%", "without", [15, 5], None],
    ["10%", "weight 0.3", [16, 5], None],
    ["10%", "gain", [1, 0], None],
  ]


def test_the_table_can_be_shown(self_supervised, tmp_path, monkeypatch):
  monkeypatch.setattr(
    "sys.argv",
    ["", "--data=D", f"--json={tmp_path / 'kept.json'}", "--set", "a=1"],
  )
  found = np.full((2, 2, 4), 40.0)
  rows = self_supervised.table_rows("100%", [0.3], found)
  self_supervised.write_table(self_supervised.parse(), rows)
  monkeypatch.setattr(render_tables, "RESULTS", tmp_path)
  shown = render_tables.table("kept").splitlines()
  assert shown[0].startswith("| training rows | the task | no row |")
  assert shown[2].startswith("| 100% | without | 40.0 ± 0.0 | 40.0")
  assert shown[4].startswith("| 100% | gain | +0.0 ± 0.0 |")
