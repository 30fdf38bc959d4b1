"""Charts as SVG text to put inside an HTML page, in its font and colours.

What is drawn in black by matplotlib takes the page's text colour, so that the
charts follow a light or a dark theme. It is imported where something is drawn:
that takes a quarter of the time in which a command starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import io
import re
from typing import Any, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from matplotlib import axes
  from matplotlib import figure

# Readable on white and on near-black.
COLORS = ("#3b82f6", "#e08a1e", "#10a37f", "#a06bf0", "#e0527a")
# What tells lines of one colour apart, where there are more of them.
DASHES = ("", "5 2", "1 2", "8 2 1 2")
_INK = "#010203"  # stands for the page's text colour until the SVG is text
_MAX_POINTS = 400  # of a line; more are averaged, or the page grows with a run

_STYLE = {
  "axes.edgecolor": _INK,
  "axes.labelcolor": _INK,
  "axes.prop_cycle": f"cycler('color', {list(COLORS)})",
  "axes.spines.right": False,
  "axes.spines.top": False,
  "font.size": 9,
  "legend.frameon": False,
  "svg.fonttype": "none",  # text stays text, in the font of the page
  "svg.hashsalt": "xlj",  # the same figure gives the same SVG
  "text.color": _INK,
  "xtick.color": _INK,
  "ytick.color": _INK,
}

Line = tuple[Sequence[float], Sequence[float]]


def line_chart(
  name: str,
  lines: Mapping[str, Line],
  *,
  x_label: str,
  y_label: str,
  key: Mapping[str, int] | None = None,
) -> str:
  """Draws lines over a common axis.

  Args:
    name: letters, the prefix of the ids in the SVG; distinct within a page.
    lines: x and y of each line, by its name in the legend, equally long. Lines
      of many points are averaged over stretches.
    x_label: what x is.
    y_label: what y is, with its unit.
    key: number of each line in the page's own key; None for a legend.

  Returns:
    An `<svg>` element.
  """
  import matplotlib
  from matplotlib import ticker

  with matplotlib.rc_context(_STYLE):
    drawing, ax = _axes(4.8, 3.0)
    for label, (x, y) in lines.items():
      x, y = _averaged(np.asarray(x, float)), _averaged(np.asarray(y, float))
      marker = "o" if len(x) <= 30 else ""
      style: dict[str, Any] = {"label": label}
      if key is not None:
        style = _numbered(key[label])
      ax.plot(x, y, marker=marker, markersize=3, linewidth=1.6, **style)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(_thousands))
    ax.set(xlabel=x_label, ylabel=y_label)
    if len(lines) > 1 and key is None:
      _legend(ax, len(lines))
    return _svg(name, drawing)


def bar_chart(
  name: str,
  groups: Sequence[str],
  bars: Mapping[str, Sequence[float]],
  *,
  x_label: str,
  y_label: str,
  key: Mapping[str, int] | None = None,
) -> str:
  """Draws groups of bars side by side.

  Args:
    name: letters, the prefix of the ids in the SVG; distinct within a page.
    groups: the label below each group; may have two lines.
    bars: heights by their name in the legend, one per group.
    x_label: what the groups are.
    y_label: what the heights are, with their unit.
    key: number of each bar in the page's own key; None for a legend.

  Returns:
    An `<svg>` element.
  """
  import matplotlib

  with matplotlib.rc_context(_STYLE):
    drawing, ax = _axes(9.6, 2.7)
    width = 0.8 / len(bars)
    middle = np.arange(len(groups))
    for i, (label, heights) in enumerate(bars.items()):
      offset = (i - (len(bars) - 1) / 2) * width
      style: dict[str, Any] = {"label": label}
      if key is not None:
        style = {"color": COLORS[key[label] % len(COLORS)]}
      ax.bar(middle + offset, heights, 0.9 * width, **style)
    ax.set_xticks(middle, groups)
    ax.set_xlim(-0.6, len(groups) - 0.4)
    ax.tick_params(axis="x", length=0)
    ax.set(xlabel=x_label, ylabel=y_label)
    if key is None:
      _legend(ax, len(bars))
    return _svg(name, drawing)


def _axes(width: float, height: float) -> tuple[figure.Figure, axes.Axes]:
  from matplotlib import figure

  drawing = figure.Figure(figsize=(width, height), layout="constrained")
  ax = drawing.add_subplot()
  ax.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.8)
  ax.set_axisbelow(True)
  return drawing, ax


def _numbered(number: int) -> dict[str, Any]:
  """How the line of a number is drawn."""
  cycle, color = divmod(number, len(COLORS))
  dashes = [float(part) for part in DASHES[cycle % len(DASHES)].split()]
  style = (0, dashes) if dashes else "solid"
  return {"color": COLORS[color], "linestyle": style}


def _legend(ax: axes.Axes, columns: int) -> None:
  """Above the axes, where it hides no data."""
  ax.legend(
    loc="lower left",
    bbox_to_anchor=(0, 1),
    ncols=columns,
    borderaxespad=0.2,
    handlelength=1.2,
    columnspacing=1.2,
  )


def _averaged(values: np.ndarray) -> np.ndarray:
  """Means over equal stretches, `_MAX_POINTS` of them at most."""
  if len(values) <= _MAX_POINTS:
    return values
  parts = np.array_split(values, _MAX_POINTS)
  return np.array([part.mean() for part in parts])


def _thousands(value: float, _: int | None) -> str:
  return f"{value:,.0f}"


def _svg(name: str, drawing: figure.Figure) -> str:
  text = io.StringIO()
  nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
  drawing.savefig(text, format="svg", transparent=True, metadata=nothing)
  svg = text.getvalue()
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
  # The size is the page's to choose; the viewBox keeps the proportions.
  svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
  svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
  svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
  svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
  svg = re.sub(r'(id="|href="#|url\(#)', rf"\1{name}-", svg)
  return svg.replace(_INK, "currentColor")
