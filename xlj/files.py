"""Files that a reader, or a kill, never finds half written."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import uuid


@contextlib.contextmanager
def replacing(
  path: str | os.PathLike[str], *, shared: bool = False
) -> Iterator[Path]:
  """Gives another name to write a file under, which it has until it is whole.

  Args:
    path: Of the file; one that is there is replaced when the block ends.
    shared: Whether several processes may write it at the same time. Otherwise
      the other name is always the same, so that kills do not leave many.

  Yields:
    The other name, in the same directory. If the block raises, the file is
    removed, and what `path` names stays as it was.
  """
  path = Path(path)
  mark = f".{uuid.uuid4().hex}" if shared else ""
  partial = path.with_name(f"{path.name}{mark}.partial")
  try:
    yield partial
    with partial.open("rb+") as file:
      os.fsync(file.fileno())  # or a crash could leave the name and no bytes
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a text in UTF-8; a reader sees all of it, or what was there."""
  with replacing(path) as partial:
    partial.write_text(text, encoding="utf-8")
