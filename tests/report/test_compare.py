"""Runs side by side: what the page says, what is missing, what is text."""

import json
import re

import pytest

from tests.report import test_report
from xlj.report import compare

HOSTILE = "<img src=x onerror=alert(1)> $x_1$"


def write_run(directory, *, steps=100, of=100, p1=None, data="bibtex"):
  """Leaves what a run leaves; without P@1 it is not evaluated."""
  directory.mkdir()
  data = {
    "dir": f"/data/{data}",
    "fingerprint": data,
    "num_labels": 50,
    "num_rows": 12345,
  }
  config = {
    "family": "linear",
    "data": data,
    "train": {"num_steps": of, "batch_size": 8},
    "checkpoint": {"dir": ""},
  }
  lines = [
    {"step": step, "time": 1e9 + step, "kind": kind, name: 1000 / step}
    for step in range(10, steps + 1, 10)
    for kind, name in (("train", "loss"), ("eval", "P@1"))
  ]
  (directory / "config.json").write_text(json.dumps(config))
  (directory / "metrics.jsonl").write_text(
    "".join(json.dumps(line) + "\n" for line in lines)
  )
  machine = {"cores": 2, "devices": "cpu x 1", "peak_memory_gib": 1.25}
  (directory / "machine.json").write_text(json.dumps(machine))
  weights = directory / "checkpoints" / "100" / "model" / "x"
  weights.parent.mkdir(parents=True)
  weights.write_bytes(bytes(2_500_000))
  if p1 is not None:
    deciles = [
      {"decile": i, "P@5": i / 10, "MacroRecall@5": 50.0} for i in range(1, 11)
    ]
    evaluation = {
      "split": "test",
      "step": steps,
      "metrics": {"P@1": p1, "PSP@1": p1 / 2, "MacroF1@5": 7.77},
      "deciles": deciles,
    }
    (directory / "evaluation.json").write_text(json.dumps(evaluation))
  return directory


def write_exported(directory, measured=None):
  directory.mkdir()
  manifest = {
    "format": 1,
    "kind": "linear",
    "dtype": "int8",
    "measured": measured,
    "config": {
      "data.dir": "",
      "data.fingerprint": "bibtex",
      "family": "linear",
    },
    "files": {"weights.safetensors": {"bytes": 700_000}, "a": {"bytes": 1000}},
  }
  (directory / "manifest.json").write_text(json.dumps(manifest))
  return directory


def page_of(tmp_path, *directories, **kwargs):
  """The page's elements, and its text in one line."""
  path = compare.write(directories, tmp_path / "page.html", **kwargs)
  checker = test_report.Checker()
  checker.feed(path.read_text(encoding="utf-8"))
  checker.close()
  assert not checker.open
  return checker, " ".join(" ".join(checker.text).split())


def test_runs_side_by_side(tmp_path):
  a = write_run(tmp_path / "a", p1=61.25)
  b = write_run(tmp_path / "b", p1=59.5)
  c = write_exported(tmp_path / "c")
  measured = {"rows": 2000, "of": "train", "after": {"P@1": 65.4321}}
  d = write_exported(tmp_path / "d", measured)
  page, text = page_of(tmp_path, a, b, c, d)
  for figure in ("61.25", "59.50", "30.62", "7.77", "test, step 100", "12,345"):
    assert figure in text
  # Time by the clock of metrics.jsonl, memory, and sizes on disk.
  for figure in ("1:30", "1.25 GiB", "2.5 MB", "0.7 MB", "2 CPU cores"):
    assert figure in text
  assert "exported, linear, int8" in text
  assert "on bibtex." in text  # of the model, too, whose data has no place
  assert "not to be compared" not in text
  assert "Its export has measured nothing" in text
  assert "65.43" in text and "2,000 rows of train" in text
  for axis in ("part of P@5, points", "training loss", "seconds of training"):
    assert axis in page.text
  # The best of a column stands out.
  html = (tmp_path / "page.html").read_text(encoding="utf-8")
  assert re.findall('"best">([^<]*)<', html) == ["61.25", "30.62"]


def test_what_is_missing_is_said_with_the_command_that_brings_it(tmp_path):
  complete = write_run(tmp_path / "done")
  running = write_run(tmp_path / "half way", steps=40)
  _, text = page_of(tmp_path, complete, running)
  assert f"xlj evaluate --workdir={complete}" in text
  assert "at step 40 of 100, stopped" in text
  assert f"xlj train '--workdir={running}'" in text
  (running / "owner-1.json").write_text("{}")
  assert "at step 40 of 100, under way" in page_of(tmp_path, running)[1]
  empty = tmp_path / "new"
  empty.mkdir()
  (empty / "config.json").write_text('{"seed": 1}')
  _, text = page_of(tmp_path, empty)
  assert "not started" in text and "No step is recorded yet." in text


def test_names_are_text_and_nothing_is_loaded(tmp_path):
  run = write_run(tmp_path / HOSTILE, p1=1.0, data="<script>alert(2)</script>")
  other = write_run(tmp_path / "b", p1=2.0, data="<script>alert(2)</script>")
  third = write_run(tmp_path / "c", p1=2.0)
  rows = tmp_path / "rows.json"
  rows.write_text(json.dumps([{"<b>": "<i>", "system": {"values": ["<u>"]}}]))
  page, text = page_of(tmp_path, run, other, third, benchmarks=[rows])
  assert not {"img", "script", "b", "i", "u"} & set(page.tags)
  assert HOSTILE in text and "<i>" in text and "<u>" in text
  assert all(reference.startswith("#") for reference in page.references)
  assert len(set(page.ids)) == len(page.ids)
  html = (tmp_path / "page.html").read_text(encoding="utf-8")
  assert not re.search(r"@import|url\((?!#)", html)
  assert "not to be compared" in text


def test_any_number_of_runs_has_lines_of_its_own(tmp_path):
  runs = [write_run(tmp_path / f"r{i}", p1=float(i)) for i in range(12)]
  page_of(tmp_path, *runs)
  html = (tmp_path / "page.html").read_text(encoding="utf-8")
  keys = re.findall(
    r'<path d="M0 5H26" stroke="(.*?)".*?dasharray="(.*?)"', html
  )
  assert len(set(keys)) == 12


def test_names_are_as_long_as_it_takes(tmp_path):
  for parent in ("x", "y"):
    (tmp_path / parent).mkdir()
  runs = [write_run(tmp_path / parent / "run", p1=1.0) for parent in "xy"]
  _, text = page_of(tmp_path, *runs, runs[0])
  assert "x/run" in text and "y/run" in text and "2 runs" in text


def test_measured_rows(tmp_path):
  run = write_run(tmp_path / "a")
  answers = tmp_path / "answers.json"
  rows = [{"system": "xlj", "row_p50_ms": 0.1234567, "model_bytes": 21224608}]
  answers.write_text(json.dumps({"rows": rows}))
  table = tmp_path / "table.json"
  table.write_text(
    json.dumps(
      {
        "columns": [["what", None], ["P@1 / P@5", "{:.1f} / {:.1f}"]],
        "rows": [{"cells": ["all", [50.52, 15.38]]}],
      }
    )
  )
  _, text = page_of(tmp_path, run, benchmarks=[answers, table])
  for figure in ("row_p50_ms", "0.1235", "21,224,608", "50.52 / 15.38"):
    assert figure in text


@pytest.mark.parametrize(
  "text, why",
  [
    ("{", "is no JSON"),
    ('{"a": 1}', "holds no rows"),
    ("[1]", "holds no rows"),
  ],
)
def test_files_without_rows_are_refused(text, why, tmp_path):
  run = write_run(tmp_path / "a")
  path = tmp_path / "x.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=f"x.json {why}"):
    compare.write([run], tmp_path / "page.html", [path])


def test_other_directories_are_refused(tmp_path):
  with pytest.raises(ValueError, match="neither a run .* nor an exported"):
    compare.write([tmp_path], tmp_path / "page.html")
  with pytest.raises(ValueError, match="--runs names no directory"):
    compare.write([], tmp_path / "page.html")
