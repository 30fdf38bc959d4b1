"""The one command for accelerators, at a toy size, and what it makes of it."""

import json
import os
import subprocess
import sys

import pytest

from tests import runs

# A machine with an accelerator may have nothing but jax and what is its own.
LACKING = "grain", "ml_collections", "matplotlib", "sklearn", "tensorboard"


@pytest.fixture(scope="module")
def script():
  return runs.benchmark("accelerator")


@pytest.mark.slow
def test_a_toy_run(script, tmp_path, monkeypatch):
  file = tmp_path / "out.json"
  monkeypatch.setattr(script, "machine", lambda: {"platform": "cpu"})
  monkeypatch.setattr(
    sys, "argv", ["accelerator.py", f"--json={file}", "--only=search_billion"]
  )
  script.main()
  report = json.loads(file.read_text())
  found = report["results"]["search_billion"]["found"]
  assert found["distinct"] and found["L"] == 3001 and found["k"] == 10
  assert len(report["goals"]) == 5
  assert not any(goal["met"] for goal in report["goals"])


def test_what_fails_or_takes_too_long_leaves_its_lines(
  script, tmp_path, monkeypatch
):
  code = "import sys, time; print('begun', flush=True); "
  (tmp_path / "fails.py").write_text(code + "sys.exit(3)")
  partial = "open(sys.argv[1][7:], 'w').write('[1]'); time.sleep(60)"
  (tmp_path / "sleeps.py").write_text(code + partial)
  monkeypatch.setattr(script, "HERE", tmp_path)
  fails, sleeps = (
    script.run(script.Measurement("a", (name,), (name,), 9), False, seconds)
    for name, seconds in (("fails.py", 9), ("sleeps.py", 1.5))
  )
  assert fails["failed"] == "it ended with status 3"
  assert fails["lines"] == ["begun"] and "found" not in fails
  assert sleeps["failed"] == "it was not through after 2 s"
  assert sleeps["found"] == [1] and sleeps["seconds"] < 9


def test_goals_are_those_of_an_h200(script):
  run = {"losses": [20.0, 10.0], "examples_per_s": 700.0}
  kernel = {"loss": "softmax", "N": 1024, "D": 256, "L": 3 * 10**6}
  kernel |= {"time_s": 0.0104, "wall_fraction": 0.72}
  results = {
    "billion_bfloat16": {"found": run | {"peak_bytes": 130 * 2**30}},
    "billion_float8": {"found": run | {"peak_bytes": 76 * 2**30}},
    "kernels_256": {"found": [{"loss_apart": 0.0}, kernel]},
    "steps_1e6_64": {"failed": "it ended with status 1"},
  }
  found = script.goals(results, toy=False)
  assert [goal["met"] for goal in found] == [True, False, True, True, True]
  assert found[3]["found"] == pytest.approx(605, abs=1)
  # What did not learn has not trained a billion labels.
  results["billion_bfloat16"]["found"]["losses"] = [20.0, 20.0]
  assert script.goals(results, toy=False)[0]["met"] is None
  assert all(goal["met"] is None for goal in script.goals({}, toy=False))


@pytest.mark.slow
def test_scripts_need_nothing_that_such_a_machine_lacks(script):
  measured = list(script.measurements("python"))
  names = [m.name for m in measured]
  assert len(set(names)) == len(names) and names[0] == "heads"
  files = {m.command[0].removesuffix(".py") for m in measured}
  code = f"""
import sys
sys.modules |= dict.fromkeys({LACKING})
for name in {sorted(files)}:
  __import__(name)
from xlj.checkpoint import checkpointer
from xlj.encoders import transformer
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | {"PYTHONPATH": f"{runs.ROOT}:{script.HERE}"},
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
