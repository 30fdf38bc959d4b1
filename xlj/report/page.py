"""The HTML of the report: a page, its sections and tables.

Everything passed in is text and gets escaped here, except charts, which are
`<svg>` elements.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from xlj.report import figures as figures_lib

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6b7c;
  --line: #e2e7ee; --paper: #ffffff; --card: #f6f8fb; --accent: #2563eb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa7b6;
  --line: #2c3542; --paper: #12161c; --card: #1a2029; --accent: #7aa5ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue",
  "DejaVu Sans", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 28px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 44px 0 12px; padding-bottom: 6px;
  border-bottom: 1px solid var(--line); }
p { max-width: 90ch; margin: 12px 0; }
.top { display: flex; flex-wrap: wrap; gap: 14px; align-items: center; }
.state { font-size: 13px; color: var(--accent); border: 1px solid currentColor;
  border-radius: 99px; padding: 1px 11px; }
.soft { color: var(--soft); font-size: 13.5px; }
.cards { display: grid; gap: 12px; margin-top: 22px;
  grid-template-columns: repeat(auto-fit, minmax(125px, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 12px 16px; }
.card b { display: block; font-size: 25px; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13px; }
.charts { display: grid; gap: 20px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(430px, 100%), 1fr)); }
.charts.wide { grid-template-columns: 1fr; }
.charts.wide div { overflow-x: auto; }
.charts.wide svg { min-width: 560px; }
svg { width: 100%; height: auto; stroke-linejoin: round; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px;
  font-variant-numeric: tabular-nums; }
.grid { width: 100%; }
.grid th, .grid td { padding: 6px 10px; text-align: right;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
.grid th:first-child, .grid td:first-child { text-align: left; }
.grid thead th { color: var(--soft); font-weight: 500; }
.grid thead tr:first-child th { color: var(--ink); font-weight: 600;
  text-align: center; border: 0; }
.grid thead.plain tr:first-child th { color: var(--soft); font-weight: 500;
  text-align: right; border-bottom: 1px solid var(--line); }
.grid thead.plain tr:first-child th:first-child { text-align: left; }
.keys { display: flex; flex-wrap: wrap; gap: 4px 22px; font-size: 13.5px; }
.keys div { overflow-wrap: anywhere; }
.grid .first { border-left: 1px solid var(--line); }
.grid .main { font-weight: 600; }
.grid td.gap { text-align: left; white-space: normal; color: var(--soft); }
.grid .best { font-weight: 600; color: var(--accent); }
.grid.named td:first-child { min-width: 150px; white-space: normal;
  overflow-wrap: anywhere; }
code { font: 12.5px/1.4 ui-monospace, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.key { display: inline-block; width: 26px; height: 10px; margin-right: 8px; }
h3 { font-size: 15px; margin: 26px 0 8px; overflow-wrap: anywhere; }
.facts { columns: 2 400px; column-gap: 36px; margin: 12px 0; }
.facts div { display: flex; justify-content: space-between; gap: 16px;
  border-bottom: 1px solid var(--line); padding: 3px 0; font-size: 13.5px;
  break-inside: avoid; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
dl { margin: 0; }
@media (max-width: 600px) { main { padding: 24px 14px 48px; }
  .grid th, .grid td { padding: 6px 7px; } .facts { columns: 1; }
  .gap div { max-width: calc(100vw - 200px); } }
"""


class Gap(NamedTuple):
  """Cells of a table with what is missing there, and what would fill it.

  Attributes:
    text: What is missing.
    command: That brings it; empty if none does.
    width: How many cells.
  """

  text: str
  command: str = ""
  width: int = 1


class Best(NamedTuple):
  """A cell of a table that is the best of its column.

  Attributes:
    text: What it says.
  """

  text: str


Cell = str | Gap | Best


def html(title: str, body: Iterable[str]) -> str:
  """A page with its style inside.

  Args:
    title: the title, as text.
    body: elements of this module.

  Returns:
    The document.
  """
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
    "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
  )


def header(
  title: str, state: str, text: str, cards: Sequence[tuple[str, str]]
) -> str:
  """The head of the page.

  Args:
    title: what the page is about.
    state: one or two words beside it.
    text: the paragraph that sums up.
    cards: names and values of the figures to see first.

  Returns:
    HTML.
  """
  boxes = "".join(
    f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
    for name, value in cards
  )
  return (
    f'<div class="top"><h1>{escape(title)}</h1>'
    f'<span class="state">{escape(state)}</span></div>\n'
    f"<p>{escape(text)}</p>\n" + (boxes and f'<div class="cards">{boxes}</div>')
  )


def section(title: str, content: str, otherwise: str) -> str:
  """A titled section.

  Args:
    title: its heading.
    content: HTML; may be empty.
    otherwise: the text to show in place of empty content.

  Returns:
    HTML.
  """
  content = content or note(otherwise)
  return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def figures(
  charts: Sequence[str], caption: str = "", wide: bool = False
) -> str:
  """Charts in a grid, or one below the other.

  Args:
    charts: `<svg>` elements; none gives no HTML.
    caption: text above them.
    wide: whether each takes the whole width.

  Returns:
    HTML.
  """
  if not charts:
    return ""
  text = note(caption) if caption else ""
  kind = "charts wide" if wide else "charts"
  items = "".join(f"<div>{chart}</div>\n" for chart in charts)
  return f'{text}<div class="{kind}">\n{items}</div>'


def note(text: str) -> str:
  """A paragraph in small print.

  Args:
    text: what it says.

  Returns:
    HTML.
  """
  return f'<p class="soft">{escape(text)}</p>\n'


def grouped_table(
  groups: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
  """A table whose columns repeat under each group; the first group is bold.

  Args:
    groups: G headings over `columns`.
    columns: C headings.
    rows: the name of each row, then its G * C cells.

  Returns:
    HTML.
  """
  over = "".join(
    f'<th class="first" colspan="{len(columns)}">{escape(group)}</th>'
    for group in groups
  )
  classes = [
    " ".join(["first"] * (c == 0) + ["main"] * (g == 0))
    for g in range(len(groups))
    for c in range(len(columns))
  ]
  names = list(columns) * len(groups)
  head = "".join(
    f'<th class="{kind}">{escape(name)}</th>'
    for kind, name in zip(classes, names)
  )
  body = "".join(
    f"<tr><td>{escape(row[0])}</td>"
    + "".join(
      f'<td class="{kind}">{escape(cell)}</td>'
      for kind, cell in zip(classes, row[1:])
    )
    + "</tr>\n"
    for row in rows
  )
  return (
    '<div class="scroll"><table class="grid">\n<thead>'
    f"<tr><th></th>{over}</tr><tr><th></th>{head}</tr></thead>\n"
    f"<tbody>\n{body}</tbody></table></div>"
  )


def table(
  columns: Sequence[str],
  rows: Sequence[Sequence[Cell]],
  keys: Sequence[int] = (),
) -> str:
  """A table with a line for each thing.

  Args:
    columns: C headings; the first is that of names.
    rows: The name of each row, then cells for the other columns.
    keys: Numbers of the lines that charts have for rows (see `figures.COLORS`);
      none for a table without them.

  Returns:
    HTML.
  """
  head = "".join(f"<th>{escape(column)}</th>" for column in columns)
  body = ""
  for i, (name, *cells) in enumerate(rows):
    key = _key(keys[i]) if keys else ""
    body += f"<tr><td>{key}{escape(str(name))}</td>"
    body += "".join(map(_cell, cells)) + "</tr>\n"
  return (
    '<div class="scroll"><table class="grid named">\n<thead class="plain">'
    f"<tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
  )


def heading(text: str) -> str:
  """A heading inside of a section."""
  return f"<h3>{escape(text)}</h3>\n"


def key(names: Sequence[str], numbers: Sequence[int]) -> str:
  """What the lines of charts stand for.

  Args:
    names: Of the lines.
    numbers: Of each of them.

  Returns:
    HTML.
  """
  items = "".join(
    f"<div>{_key(number)}{escape(name)}</div>\n"
    for name, number in zip(names, numbers)
  )
  return f'<div class="keys">\n{items}</div>'


def _key(number: int) -> str:
  """A piece of the line that a chart has for a number."""
  cycle, color = divmod(number, len(figures_lib.COLORS))
  dashes = figures_lib.DASHES[cycle % len(figures_lib.DASHES)]
  return (
    '<svg class="key" viewBox="0 0 26 10" aria-hidden="true"><path d="M0 5H26"'
    f' stroke="{figures_lib.COLORS[color]}" stroke-width="2.5"'
    f' stroke-dasharray="{dashes or "none"}"/></svg>'
  )


def _cell(cell: Cell) -> str:
  if isinstance(cell, Best):
    return f'<td class="best">{escape(cell.text)}</td>'
  if isinstance(cell, Gap):
    command = f" <code>{escape(cell.command)}</code>" if cell.command else ""
    return (
      f'<td class="gap" colspan="{cell.width}"><div>{escape(cell.text)}'
      f"{command}</div></td>"
    )
  return f"<td>{escape(cell)}</td>"


def facts(rows: Sequence[tuple[str, str]]) -> str:
  """Names and values in two columns.

  Args:
    rows: the pairs; none gives no HTML.

  Returns:
    HTML.
  """
  if not rows:
    return ""
  items = "".join(
    f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n"
    for name, value in rows
  )
  return f'<dl class="facts">\n{items}</dl>'
