"""Checks at the start that all processes see and can write one directory."""

from collections.abc import Callable
import json
from pathlib import Path
import secrets

from xlj.checkpoint import errors
from xlj.checkpoint import steps
from xlj.distributed import exchange
from xlj.distributed import rendezvous


def probe(
  directory: str | Path,
  gather: Callable[[str, str], list[str]] = exchange.gather,
) -> None:
  """Refuses a directory that some process cannot write, or sees differently.

  Each process writes a small file and looks for that of process 0; the files
  are removed again. All processes have to call it.

  Args:
    directory: Of the checkpoints, a path or the URL of a bucket; created.
    gather: Gives every process the text of every process; see `exchange`.

  Raises:
    OSError: In all processes; it names those that have a problem.
  """
  path = steps.resolve(directory)
  mine = path / f".probe-{secrets.token_hex(8)}"
  fault = ""
  try:
    path.mkdir(parents=True, exist_ok=True)
    mine.write_text(mine.name)
  except (OSError, ImportError) as error:  # ImportError: no driver for the URL
    fault = errors.reason(error)
  said = [
    json.loads(text)
    for text in gather(
      "probe", json.dumps([mine.name, fault, rendezvous.who()])
    )
  ]
  faults = [
    f"{_process(i, said)} cannot write to {path}: {text}"
    for i, (_, text, _) in enumerate(said)
    if text
  ]
  try:
    if faults:
      raise OSError("; ".join(faults))
    first = path / said[0][0]
    seen = gather("probe seen", "yes" if first.exists() else "")
  finally:
    if not fault:
      mine.unlink(missing_ok=True)
  blind = [_process(i, said) for i, yes in enumerate(seen) if not yes]
  if blind:
    raise OSError(
      f"{', '.join(blind)} {'does' if len(blind) == 1 else 'do'} not see {path}"
      " as process 0 does: it must be a directory that all processes share"
    )


def _process(number: int, said: list[list[str]]) -> str:
  if len(said) == 1:
    return "this process"
  return f"process {number} ({said[number][2]})"
