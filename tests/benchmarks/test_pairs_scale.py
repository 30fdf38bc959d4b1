"""The benchmark of many linear weights counts its pairs right."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from xlj.config import splits
from xlj.data import label_pairs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def pairs_scale(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  monkeypatch.setattr(label_pairs, "find", label_pairs.find)  # it is replaced
  import pairs_scale

  return pairs_scale


def test_counts_what_meets_and_how_often_it_is_read(pairs_scale, tmp_path):
  options = argparse.Namespace(
    rows=700, features=200, labels=2500, row_features=10, row_labels=3
  )
  pairs_scale.write_rows(options, tmp_path)
  row = pairs_scale.run(tmp_path, 8, 2**62)
  split = splits.open_split(pairs_scale.config_of(tmp_path))
  x, y = (a.to_scipy() for a in (split.features, split.labels))
  meet = (x.T @ y).toarray() > 0
  assert row["found"] == row["kept"] == meet.sum()
  assert row["visits"] == (x.sum(0) * meet.sum(1)).sum()
  assert row["blocks"] == 8 and row["rows"] == 700
  assert row["pass_s"] > 0 and row["model_bytes"] > 4 * row["kept"]
  # Rows have as many labels as they should, each of them once.
  assert np.diff(y.indptr).mean() > 2.8
  assert pairs_scale.COLUMNS.keys() == row.keys()
