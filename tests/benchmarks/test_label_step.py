"""The benchmark of a step: what it writes, and whether sides do the same."""

import json
from pathlib import Path
import sys

import numpy as np
import pytest

from tests import runs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZE = {"N": 16, "D": 8, "L": 1000}


@pytest.fixture
def benchmarks(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
def test_contract(tmp_path):
  file = tmp_path / "out.json"
  job = runs.launch(
    *(BENCHMARKS / "label_step.py", f"--json={file}"),
    *(f"--{name}={value}" for name, value in SIZE.items()),
    *("--losses=bce", "--dtypes=bfloat16", "--rounds=1"),
    *("--peers=torch,jax", "--torch_python=/no/such/python"),
  )
  status, out, err = runs.finish(job, timeout=None)
  assert not status, err
  (record,) = json.loads(file.read_text())
  assert {key: record[key] for key in SIZE} == SIZE
  assert (record["loss"], record["dtype"]) == ("bce", "bfloat16")
  assert record["time_vs_torch"] is record["torch_time_s"] is None
  assert "/no/such/python" in out
  time_s = record["time_s"]
  assert record["time_vs_jax"] == time_s / record["jax_time_s"]
  assert record["roofline_fraction"] == record["products_time_s"] / time_s
  assert record["fastest_roofline_fraction"] <= record["roofline_fraction"]
  assert record["weight_bytes"] == 2 * SIZE["L"] * SIZE["D"]
  if sys.platform == "linux":
    assert 0 <= record["peak_bytes"] < 2**27
  for name in ("xlj", "plain JAX", "three products, JAX"):
    assert name in out


def test_sides_that_disagree_are_found(benchmarks):
  import contestant
  import label_step

  problem = contestant.Problem("softmax", "float32", **SIZE)
  ours = {"outcomes": [{"loss": 7.0, "dx": 0.5}, {"loss": 6.0, "dx": 0.5}]}
  label_step.check(problem, {"xlj": ours, "jax": ours, "products": {}})
  other = {"outcomes": [{"loss": 7.0, "dx": 0.5}, {"loss": 8.0, "dx": 0.5}]}
  with pytest.raises(AssertionError, match="jax and xlj disagree"):
    label_step.check(problem, {"xlj": ours, "jax": other})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_step_is_the_peak_beyond_what_is_there(benchmarks):
  import contestant

  kept = np.ones(2**23)  # 64 MiB
  memory = contestant.ProcessMemory()
  for _ in range(2):
    memory.reset()
    assert memory.peak() < 2**22
    np.ones(2**23).sum()
    assert abs(memory.peak() - 2**26) < 2**22
  assert kept.sum() == 2**23
