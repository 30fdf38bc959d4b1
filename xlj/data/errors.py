"""The one exception for data that cannot be read as what it claims to be."""

from __future__ import annotations

import os

# Endings of tables whose rows are on no lines.
WITHOUT_LINES = (".parquet", ".arrow", ".feather")


class DataError(ValueError):
  """Refused data: where, what was found, what was expected, what to do.

  Attributes:
    path: the file or directory.
    line: line number from 1, or None when it is not about a line.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    found: str,
    expected: str,
    *,
    line: int | None = None,
    hint: str = "",
  ):
    """Builds the message `path:line: found X, expected Y; hint`.

    Args:
      path: the file or directory.
      found: what is there.
      expected: what should be there.
      line: line number from 1.
      hint: what the user can do about it.
    """
    self.path = os.fspath(path)
    self.line = line
    where = self.path if line is None else f"{self.path}:{line}"
    message = f"{where}: found {found}, expected {expected}"
    super().__init__(f"{message}; {hint}" if hint else message)

  def add_hint(self, hint: str) -> None:
    """Adds what the user can do, where more is known of why it is read."""
    self.args = (f"{self}; {hint}",)


class Refused(ValueError):
  """What is wrong with a row, by one that does not know where it is."""

  def __init__(self, found: str, expected: str, hint: str = ""):
    """As `DataError`."""
    super().__init__(found)
    self.found, self.expected, self.hint = found, expected, hint

  def at(self, path: str | os.PathLike[str], line: int) -> DataError:
    """The error with its place: a line, or where there is none a row from 0."""
    if os.fspath(path).lower().endswith(WITHOUT_LINES):
      found = f"in row {line} (from 0) {self.found}"
      return DataError(path, found, self.expected, hint=self.hint)
    return DataError(path, self.found, self.expected, line=line, hint=self.hint)
