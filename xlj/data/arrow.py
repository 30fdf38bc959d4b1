"""Parquet, Arrow and Feather tables, a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import os
from typing import Any

from xlj.data import cells
from xlj.data import errors

Path = str | os.PathLike[str]
ENDINGS = errors.WITHOUT_LINES
_PARQUET = ".parquet"
_BATCH_ROWS = 1024


class Table:
  """A table that is open.

  Attributes:
    schema: of PyArrow.
  """

  def __init__(self, path: Path, file: Any):
    """Reads what it says of itself."""
    import pyarrow
    from pyarrow import ipc
    from pyarrow import parquet

    self._path = path
    self._reader: Any
    if _ending(path) == _PARQUET:
      self._reader = parquet.ParquetFile(file)
      self.schema = self._reader.schema_arrow
      return
    try:
      self._reader = ipc.open_file(file)
    except pyarrow.ArrowInvalid:  # a stream, as `datasets` saves it
      file.seek(0)
      self._reader = ipc.open_stream(file)
    self.schema = self._reader.schema

  @property
  def names(self) -> list[str]:
    """The names of the columns."""
    return self.schema.names

  def batches(self, names: Sequence[str]) -> Iterator[Any]:
    """Yields record batches with some columns, all rows in order."""
    batches = self._all(list(names))
    while True:
      with _whole(self._path):
        batch = next(batches, None)
      if batch is None:
        return
      yield batch

  def _all(self, names: list[str]) -> Iterator[Any]:
    if hasattr(self._reader, "iter_batches"):
      yield from self._reader.iter_batches(_BATCH_ROWS, columns=names)
      return
    batches = self._reader
    if hasattr(self._reader, "get_batch"):
      count = self._reader.num_record_batches
      batches = map(self._reader.get_batch, range(count))
    for batch in batches:
      for start in range(0, batch.num_rows, _BATCH_ROWS):
        yield batch.select(names).slice(start, _BATCH_ROWS)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Table]:
  """Opens a table.

  Args:
    path: that ends with one of `ENDINGS`.

  Yields:
    The table.

  Raises:
    DataError: when the file is no such table.
    ImportError: without pyarrow, with what to install.
    OSError: when it cannot be read.
  """
  try:
    import pyarrow as pyarrow
  except ImportError:
    raise ImportError(
      f"{os.fspath(path)} is a table of {_what(path)}: pip install"
      " 'xlj-jax[parquet]', or save its rows as JSONL or CSV"
    ) from None
  with open(path, "rb") as file:
    with _whole(path):
      table = Table(path, file)
    yield table


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
  """Says which file is damaged."""
  import pyarrow

  try:
    yield
  except (pyarrow.ArrowException, OSError) as error:
    reason = cells.shown(str(error).split("\n")[0])
    raise errors.DataError(
      path,
      f"no {_what(path)} table ({reason})",
      "a whole one",
      hint="copy or download the file again",
    ) from None


def _what(path: Path) -> str:
  return "Parquet" if _ending(path) == _PARQUET else "Arrow"


def _ending(path: Path) -> str:
  return os.path.splitext(os.fspath(path))[1].lower()
