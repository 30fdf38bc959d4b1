"""The figures of README.md and docs/ are those that are kept."""

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
  shown = [render_tables.names(ROOT / page).count(name) for page in PAGES]
  assert sum(shown) == 1


def test_a_typed_figure_is_seen(tmp_path):
  page = tmp_path / "page.md"
  whole = (ROOT / "README.md").read_text()
  page.write_text(whole.replace("72.53", "73.53"))
  assert page.read_text() != whole
  assert render_tables.render(page) == whole
