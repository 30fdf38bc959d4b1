"""Writes the tables of figures of README.md and docs/ from where they are kept.

  python benchmarks/render_tables.py [--check]

A file `benchmarks/results/NAME.json` holds a table and its origin:

  origin   machine, cores, seeds, load, command, and the commit that wrote the
           figures, with its date; null for what was not kept
  columns  pairs [heading, how numbers are shown], such as
           ["P@1 / P@5", "{:.1f} / {:.1f}"]; null where there are none
  rows     {"cells": [...]}, and "commit" where it is not that of the origin.
           A cell is text, null for nothing, a number, several numbers, or
           {"show": ..., "values": [...]}, which shows them in its own way

and is written between `<!-- table: NAME -->` and `<!-- end -->`; the name
`origins` stands for a table of all origins. No figure is typed into a page.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import json
import pathlib
import re
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ORIGINS = "origins"
_TABLE = re.compile(
  r"(?P<head><!-- table: (?P<name>\w+) -->\n).*?(?P<end><!-- end -->)",
  re.DOTALL,
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--check", action="store_true", help="write nothing")
  options = parser.parse_args()
  old = [path for path in pages() if render(path) != path.read_text()]
  for path in old:
    if not options.check:
      path.write_text(render(path))
    print(f"{path.relative_to(ROOT)}: {'differs' if options.check else 'new'}")
  if options.check and old:
    sys.exit("Run python benchmarks/render_tables.py.")


def pages() -> Iterator[pathlib.Path]:
  """Yields all that may have tables."""
  yield ROOT / "README.md"
  yield from sorted((ROOT / "docs").glob("*.md"))


def names(path: pathlib.Path) -> list[str]:
  """The names of the tables that a page shows."""
  return [found["name"] for found in _TABLE.finditer(path.read_text())]


def render(path: pathlib.Path) -> str:
  """The text of a page, with its tables as the files have them."""
  return _TABLE.sub(
    lambda found: found["head"] + table(found["name"]) + found["end"],
    path.read_text(),
  )


def table(name: str) -> str:
  """A table in Markdown."""
  if name == ORIGINS:
    return _origins()
  kept = load(name)
  headings, shows = zip(*kept["columns"])
  return _markdown(
    headings,
    [
      [_shown(cell, show) for cell, show in zip(row["cells"], shows)]
      for row in kept["rows"]
    ],
  )


def load(name: str) -> dict[str, Any]:
  """What `benchmarks/results/NAME.json` holds."""
  return json.loads((RESULTS / f"{name}.json").read_text())


def _shown(cell: Any, show: str | None) -> str:
  if isinstance(cell, dict):
    return cell["show"].format(*cell["values"])
  if cell is None or isinstance(cell, str):
    return cell or ""
  assert show is not None, f"{cell}: its column says not how to show numbers"
  return show.format(*(cell if isinstance(cell, list) else [cell]))


def _origins() -> str:
  where = {name: path for path in pages() for name in names(path)}
  rows = []
  for path in sorted(RESULTS.glob("*.json")):
    origin = load(path.stem)["origin"]
    page = where[path.stem].relative_to(ROOT)
    link = f"../{page}" if page.parent == pathlib.Path() else page.name
    rows.append(
      [
        f"[{path.stem}]({link})",
        f"{origin['machine']}; cores: {origin['cores'] or 'not kept'}",
        f"{origin['commit']}, {origin['date']}",
        str(origin["seeds"]),
        origin["load"],
        f"`{origin['command']}`",
      ]
    )
  headings = ("table", "machine", "commit, date", "seeds", "load", "command")
  return _markdown(headings, rows)


def _markdown(headings: tuple[str, ...], rows: list[list[str]]) -> str:
  lines = [list(headings), ["---"] * len(headings), *rows]
  text = []
  for i, cells in enumerate(lines):
    joined = " | ".join(cells)
    text.append("|---" * len(cells) + "|" if i == 1 else f"| {joined} |")
  return "\n".join(re.sub(r"\|  (?=\|)", "| ", line) for line in text) + "\n"


if __name__ == "__main__":
  main()
