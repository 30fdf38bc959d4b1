"""The benchmark of searches, at a toy size."""

import argparse

import numpy as np
import pytest

from tests import runs


@pytest.fixture(scope="module")
def script():
  return runs.benchmark("topk")


def test_each_method_has_its_times_and_recall(script, monkeypatch):
  monkeypatch.setattr(script, "BATCHES", (1, 16))
  monkeypatch.setattr(script, "_TUNED_ON", 64)
  monkeypatch.setattr(script, "_LEAST_TURNS", 1)
  rows, x = script.made(2000, 16, num_examples=128)
  assert rows.dtype == x.dtype == np.float32
  options = argparse.Namespace(threads=2, without="", kept=None, lists=40)
  methods = script.build(rows, x[:64], options)
  found = script.measure(methods, rows, x[64:], seconds=0)
  names = [method.name for method in methods]
  assert len(set(names)) == len(names) == 13
  assert [(row["method"], row["batch"]) for row in found] == [
    (name, batch) for batch in (1, 16) for name in names
  ]
  for row in found:
    assert row["p50_ms"] <= row["p99_ms"] and row["L"] == 2000
    if row["method"] in (*names[:2], "exact float32"):
      assert row["recall"] > 0.999
    elif row["batch"] == 16:
      assert row["recall"] > 0.85, row
  assert min(row["time_vs_faiss_flat"] for row in found[:2]) == 1
