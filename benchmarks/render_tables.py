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
`origins` stands for a table of all origins, and `one_vs_all` for one of all
files `one_vs_all_SET.json`, which are as `one_vs_all.py --json` writes them. No
figure is typed into a page.
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
ONE_VS_ALL = "one_vs_all"
_TABLE = re.compile(
  r"(?P<head><!-- table: (?P<name>\w+) -->\n).*?(?P<end><!-- end -->)",
  re.DOTALL,
)
_SYSTEMS = {
  "xlj": "xlj",
  "pecos": "PECOS XR-Linear",
  "napkinxc": "napkinXC PLT",
}
_OF_SYSTEMS = (
  ("set", None),
  ("system", None),
  ("P@1 / P@3 / P@5", "{:.1f} / {:.1f} / {:.1f}"),
  ("PSP@1 / 3 / 5", "{:.1f} / {:.1f} / {:.1f}"),
  ("training", "{:,.1f} s"),
  ("xlj takes", "{:.2f} times that"),
  ("other work", "{:.1f} cores"),
  ("peak memory", "{:.2f} GB"),
  ("model", "{:,.1f} MB"),
  ("a row, of all at once", "{:.3f} ms"),
  ("a row alone", "{:.2f} ms"),
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
  if name == ONE_VS_ALL:
    files = sorted(RESULTS.glob(f"{ONE_VS_ALL}_*.json"))
    rows = [row for path in files for row in load(path.stem)["rows"]]
    columns: Any = _OF_SYSTEMS
  else:
    kept = load(name)
    columns, rows = kept["columns"], kept["rows"]
  headings, shows = zip(*columns)
  return _markdown(
    headings,
    [
      [_shown(cell, show) for cell, show in zip(row["cells"], shows)]
      for row in rows
    ],
  )


def table_of(name: str) -> str:
  """The table that shows `benchmarks/results/NAME.json`."""
  return ONE_VS_ALL if name.startswith(f"{ONE_VS_ALL}_") else name


def load(name: str) -> dict[str, Any]:
  """What `benchmarks/results/NAME.json` holds, with columns and rows."""
  kept = json.loads((RESULTS / f"{name}.json").read_text())
  if table_of(name) == name:
    return kept
  first, *others = [{"cells": _of_system(row)} for row in kept["rows"]]
  first["cells"][0] = kept["set"]
  return kept | {"columns": _OF_SYSTEMS, "rows": [first, *others]}


def _of_system(row: dict[str, Any]) -> list[Any]:
  """The cells of what `one_vs_all.py` found of a system."""
  name = _SYSTEMS[row["system"]]
  if "failed" in row:
    missing = [None] * (len(_OF_SYSTEMS) - 3)
    return [None, name, f"failed: {row['failed']}", *missing]

  def scaled(name: str, unit: float) -> float | None:
    return None if row[name] is None else row[name] / unit

  return [
    None,
    f"{name} {row['version']}",
    *([row[f"{kind}@{k}"] for k in (1, 3, 5)] for kind in ("P", "PSP")),
    row["train_s"],
    row["xlj_takes"],
    row["others"],
    scaled("peak_bytes", 1e9),
    scaled("model_bytes", 1e6),
    row["batch_ms"],
    row["row_p50_ms"],
  ]


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
    page = where[table_of(path.stem)].relative_to(ROOT)
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
