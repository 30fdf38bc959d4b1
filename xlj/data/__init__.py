"""Formats, cached data sets, statistics and the input pipeline.

`write` makes a data set of what Python has in memory. It is imported when it is
asked for, so that a reader of one format needs no other module.
"""

import importlib
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
  from xlj.data.writing import write as write

__all__ = ["write"]


def __getattr__(name: str) -> Any:
  """Imports `write` when it is asked for."""
  if name == "write":
    return importlib.import_module("xlj.data.writing").write
  raise AttributeError(f"module 'xlj.data' has no attribute {name!r}")
