"""The figures of README.md and docs/ are those that are kept."""

import json
from pathlib import Path

import pytest

from benchmarks import render_tables

ROOT = Path(__file__).parents[1]
PAGES = [path.relative_to(ROOT).as_posix() for path in render_tables.pages()]
ORIGIN = "machine cores commit date seeds load command".split()
RESULTS = sorted(path.stem for path in render_tables.RESULTS.glob("*.json"))


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_of_their_files(page):
  assert render_tables.render(ROOT / page) == (ROOT / page).read_text(), (
    "run python benchmarks/render_tables.py"
  )


@pytest.mark.parametrize("name", RESULTS)
def test_a_table_has_an_origin_and_a_page(name):
  kept = render_tables.load(name)
  assert list(kept["origin"]) == ORIGIN
  widths = {len(row["cells"]) for row in kept["rows"]}
  assert widths == {len(kept["columns"])}
  table = render_tables.table_of(name)
  shown = [render_tables.names(ROOT / page).count(table) for page in PAGES]
  assert sum(shown) == 1


def test_a_typed_figure_is_seen(tmp_path):
  page = tmp_path / "page.md"
  whole = (ROOT / "README.md").read_text()
  page.write_text(whole.replace("73.43", "74.43"))
  assert page.read_text() != whole
  assert render_tables.render(page) == whole


def test_files_of_one_vs_all_are_one_table(tmp_path, monkeypatch):
  peer = {
    "system": "pecos",
    "version": "1.2",
    "train_s": 40.0,
    "others": None,
    "peak_bytes": None,
    "xlj_takes": 0.25,
    "model_bytes": 3_000_000,
    "batch_ms": 0.5,
    "row_p50_ms": 0.75,
  }
  peer |= {"P@1": 1.0, "P@3": 2.0, "P@5": 3.0}
  peer |= {"PSP@1": 4.0, "PSP@3": 5.0, "PSP@5": 6.0}
  ours = peer | {"system": "xlj", "version": "0.1", "train_s": 10.0}
  ours |= {"others": 0.3, "peak_bytes": 1_500_000_000, "xlj_takes": 1.0}
  failed = {"system": "napkinxc", "failed": "no memory", "xlj_takes": None}
  origin = dict.fromkeys(ORIGIN, "")
  for name, rows in ("one", [ours, peer]), ("two", [failed]):
    record = {"origin": origin, "set": name, "rows": rows}
    (tmp_path / f"one_vs_all_{name}.json").write_text(json.dumps(record))
  monkeypatch.setattr(render_tables, "RESULTS", tmp_path)
  heading, _, *rows = render_tables.table("one_vs_all").splitlines()
  scores = "1.0 / 2.0 / 3.0 | 4.0 / 5.0 / 6.0"
  assert rows == [
    f"| one | xlj 0.1 | {scores} | 10.0 s | 1.00 times that | 0.3 cores |"
    " 1.50 GB | 3.0 MB | 0.500 ms | 0.75 ms |",
    f"| | PECOS XR-Linear 1.2 | {scores} | 40.0 s | 0.25 times that | | |"
    " 3.0 MB | 0.500 ms | 0.75 ms |",
    "| two | napkinXC PLT | failed: no memory" + " |" * 9,
  ]
  assert all(row.count("|") == heading.count("|") for row in rows)
  origins = render_tables.table("origins").splitlines()[2:]
  assert [row.split(" | ")[0] for row in origins] == [
    f"| [one_vs_all_{name}](results.md)" for name in ("one", "two")
  ]
