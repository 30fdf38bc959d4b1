"""The benchmark of many labels trains, on several devices too."""

import json
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "label_scale.py"


@pytest.mark.slow
def test_loss_falls(tmp_path):
  file = tmp_path / "out.json"
  out = subprocess.run(
    [
      *(sys.executable, SCRIPT, "--L=3001", "--D=16", "--N=16", "--steps=4"),
      *("--dtype=bfloat16", "--loss=softmax", f"--json={file}"),
    ],
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  record = json.loads(out.splitlines()[-1])
  assert record == json.loads(file.read_text())
  assert record["devices"] == 8
  assert record["losses"][0] == pytest.approx(np.log(3001), abs=0.3)
  assert record["losses"][-1] < record["losses"][0] - 1
  assert record["weight_bytes"] == 2 * 3008 * 16  # a multiple of 8 rows
  assert record["step_s"] > 0
  assert record["tflops_per_s"] > 0
  if sys.platform == "linux":
    assert record["peak_bytes"] > record["weight_bytes"]
