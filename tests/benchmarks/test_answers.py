"""The benchmark of answers: what it writes."""

import json
from pathlib import Path

import pytest

from tests import runs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_least_of_what_is_known():
  answers = runs.benchmark("answers")
  assert answers.least(2.0, None, 1.0) == 1.0
  assert answers.least(None, None) is None


@pytest.mark.slow
def test_rows(data_dir, tmp_path):
  file = tmp_path / "out.json"
  job = runs.launch(
    *(BENCHMARKS / "answers.py", f"--json={file}", f"--data_dir={data_dir}"),
    *("--rounds=1", "--", "--config.train.epochs=1", "--config.family=linear"),
  )
  status, out, err = runs.finish(job, timeout=None)
  assert not status, err
  record = json.loads(file.read_text())
  assert {"machine", "cores", "commit", "date"} <= record["origin"].keys()
  rows = {row.pop("system"): row for row in record["rows"]}
  answers = runs.benchmark("answers")
  assert {answers.RUN, *answers.EXPORTS} <= set(rows)
  for name, row in rows.items():
    assert name in out and set(row) == set(answers.FIGURES)
    assert all(row[field] > 0 for field in answers.FIGURES)
  whole = rows[answers.RUN]
  assert rows["xlj exported"]["P@1"] == pytest.approx(whole["P@1"], abs=0.01)
