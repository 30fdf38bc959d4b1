"""Tables in memory: pandas, polars, PyArrow, `datasets`; none is imported.

What they share is asked for: names of columns, a column by its name, and its
values as a list or an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

TEXT = "text"
_LISTS = ("to_pylist", "to_list", "tolist")  # what columns call it


def is_frame(found: Any) -> bool:
  """Whether something is a table with named columns."""
  return hasattr(found, "column_names") or (
    hasattr(found, "columns") and hasattr(found, "__getitem__")
  )


def names(frame: Any) -> list[str]:
  """The names of the columns, in their order.

  Raises:
    ValueError: when two are the same.
  """
  found = getattr(frame, "column_names", None)
  found = list(frame.columns if found is None else found)
  for name in found:
    if found.count(name) > 1:
      raise ValueError(f"column {name!r} is twice in the table; rename one")
  return found


def as_list(column: Any) -> list[Any]:
  """The values of a column, an array or any other sequence."""
  for method in _LISTS:
    if hasattr(column, method):
      return getattr(column, method)()
  return list(column)


def column(frame: Any, name: str) -> Any:
  """A column by its name.

  Raises:
    ValueError: when there is none; it names those that there are.
  """
  known = names(frame)
  if name not in known:
    raise ValueError(
      f"there is no column {name!r}; there are {', '.join(map(str, known))}"
    )
  return frame[name]


def texts(frame: Any, name: str) -> list[str]:
  """A column of texts.

  Raises:
    ValueError: when a value is none, with its row.
  """
  found = as_list(column(frame, name))
  for i, text in enumerate(found):
    if not isinstance(text, str):
      raise ValueError(
        f"row {i} (from 0) of column {name!r} is {type(text).__name__}, not a"
        " text; fill or drop such rows"
      )
  return found


def matrix(frame: Any, chosen: Sequence[str]) -> np.ndarray:
  """Columns of numbers, or one of lists of them, side by side.

  Args:
    frame: the table, of N rows.
    chosen: names of columns.

  Returns:
    float32 [N, F].

  Raises:
    ValueError: when a column is no numbers, or lists differ in length.
  """
  parts = [_numbers(column(frame, name), name) for name in chosen]
  if not parts:
    raise ValueError(
      "no column has numbers; name a column of texts by text=, or columns of"
      " numbers by features="
    )
  return np.concatenate(parts, axis=1)


def numeric(frame: Any, other: str | None) -> list[str]:
  """Names of the columns of numbers, or of lists of them, but one."""
  return [
    name for name in names(frame) if name != other and _is_numeric(frame[name])
  ]


def _is_numeric(values: Any) -> bool:
  array = np.asarray(values)
  if array.dtype != object:
    return array.dtype.kind in "fiub"
  first = next((v for v in array if v is not None), None)
  if first is None or isinstance(first, str | dict):
    return False
  return np.asarray(first).dtype.kind in "f"


def _numbers(values: Any, name: str) -> np.ndarray:
  array = np.asarray(values)
  if array.dtype == object:
    rows = as_list(values)
    lengths = [-1 if row is None else np.size(row) for row in rows]
    for i, length in enumerate(lengths):
      if length < 0 or length != lengths[0]:
        found = "nothing" if length < 0 else f"{length} numbers"
        raise ValueError(
          f"row {i} (from 0) of column {name!r} has {found}, and row 0 has"
          f" {lengths[0]}; all rows need as many"
        )
    try:
      array = np.array([np.asarray(row, np.float32) for row in rows])
    except (TypeError, ValueError):
      array = np.asarray(rows, str)  # which is refused
  if array.dtype.kind not in "fiub":
    raise ValueError(
      f"column {name!r} has no numbers; name columns of numbers by features=,"
      " or one of texts by text="
    )
  found = array.astype(np.float32).reshape(len(array), -1)
  if not (finite := np.isfinite(found).all(axis=1)).all():
    row = int(np.argmin(finite))
    raise ValueError(
      f"row {row} (from 0) of column {name!r} is missing or not finite; fill or"
      " drop such rows"
    )
  return found
