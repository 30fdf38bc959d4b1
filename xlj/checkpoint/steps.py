"""The directory of the checkpoints: which are there, and what they say.

A finished checkpoint is a directory named like its step, with the items `model`
and `training` (arrays that Orbax wrote) and `meta` (JSON: facts of the caller,
metrics, and shape, type and checksum of each array). While it is written, or
removed, its name has a suffix; on buckets, which cannot rename, a file that
Orbax writes at last makes it finished.
"""

from collections.abc import Mapping
import hashlib
import json
import math
from pathlib import Path
import re
from typing import Any

from etils import epath
from orbax.checkpoint import path as ocp_path

from xlj.checkpoint import errors

META = "meta"
_META_FILE = "metadata"  # as Orbax calls it
_SEAL = "seal"
_REMOVED = ".removed"
_REMAINS = re.compile(r"\d+(\.orbax-checkpoint-tmp.*|\.removed)")
_TRIAL_BYTES = 1 << 16
_COMMITTED = "commit_success.txt"


def resolve(directory: str | Path | epath.Path) -> epath.Path:
  """The directory as an absolute path; the URL of a bucket stays as it is.

  Args:
    directory: Of the checkpoints.

  Returns:
    Its path, which may be on a bucket.

  Raises:
    CheckpointError: If nothing here knows such URLs.
  """
  if "://" in str(directory):
    try:
      return epath.Path(str(directory).rstrip("/"))
    except KeyError:
      raise errors.CheckpointError(
        f"{directory} is a URL of an unknown kind; give a path, or the URL of a"
        " bucket (gs://..., s3://...)"
      ) from None
  return epath.Path(Path(directory).absolute())


def finished(directory: epath.Path) -> list[int]:
  """Steps of the finished checkpoints, ascending; whether good is not known."""
  if not directory.exists():
    return []
  return sorted(
    int(path.name)
    for path in directory.iterdir()
    if path.name.isdecimal() and _is_finished(path)
  )


def _is_finished(path: epath.Path) -> bool:
  return ocp_path.step.is_path_finalized(path)


def remove(directory: epath.Path, step: int) -> None:
  """Removes a checkpoint; never leaves half of it under its name.

  Args:
    directory: Of the checkpoints.
    step: Which one; it need not be there.

  Raises:
    OSError: If that is not possible.
  """
  path = directory / str(step)
  if not path.exists():
    return
  if "://" in str(directory):
    (path / _COMMITTED).unlink(missing_ok=True)
    path.rmtree()
    return
  removed = directory / f"{step}{_REMOVED}"
  if removed.exists():
    removed.rmtree()
  path.rename(removed).rmtree()


def remove_remains(directory: epath.Path) -> None:
  """Removes what saves and removals left that were interrupted.

  Args:
    directory: Of the checkpoints; nobody else may be saving there.

  Raises:
    OSError: If that is not possible.
  """
  if not directory.exists():
    return
  for path in directory.iterdir():
    unfinished = path.name.isdecimal() and "://" in str(directory)
    if _REMAINS.fullmatch(path.name) or (unfinished and not _is_finished(path)):
      path.rmtree()


def try_writing(directory: epath.Path, step: int) -> None:
  """Writes something, and removes it.

  Args:
    directory: Of the checkpoints.
    step: Which one is about to be saved.

  Raises:
    OSError: If that is not possible.
  """
  trial = directory / f"{step}{_REMOVED}"
  try:
    trial.mkdir()
    (trial / "trial").write_bytes(bytes(_TRIAL_BYTES))
  finally:
    if trial.exists():
      trial.rmtree()


def superfluous(
  scores: Mapping[int, float], keep: int, keep_every: int
) -> list[int]:
  """Steps of checkpoints that need not be kept.

  Args:
    scores: Score of each checkpoint by step; -inf if it was not evaluated.
    keep: How many of the newest to keep.
    keep_every: Steps that are multiples of it are kept; 0 for none.

  Returns:
    All but those and the one with the greatest score.
  """
  kept = set(sorted(scores)[-keep:])
  if keep_every:
    kept |= {step for step in scores if step % keep_every == 0}
  if (best := best_of(scores)) is not None:
    kept.add(best)
  return sorted(scores.keys() - kept)


def best_of(scores: Mapping[int, float]) -> int | None:
  """The step with the greatest score; None if nothing was evaluated."""
  evaluated = [(s, step) for step, s in scores.items() if s > -math.inf]
  return max(evaluated)[1] if evaluated else None


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
  """Adds a checksum to a JSON document."""
  plain = json.loads(json.dumps(dict(document)))
  return {**plain, _SEAL: _digest(plain)}


def read_meta(directory: epath.Path, step: int) -> dict[str, Any]:
  """Reads the JSON document of a checkpoint.

  Args:
    directory: Of the checkpoints.
    step: Which one.

  Returns:
    What was given to `seal`.

  Raises:
    CheckpointError: If it is missing or damaged.
  """
  path = directory / str(step) / META / _META_FILE
  try:
    document = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError) as error:  # not text, or JSON
    raise errors.CheckpointError(f"{path} cannot be read: {error}") from None
  if not isinstance(document, dict) or _SEAL not in document:
    raise errors.CheckpointError(
      f"{path} has no checksum; it is damaged, or of another version of xlj"
    )
  if document.pop(_SEAL) != _digest(document):
    raise errors.CheckpointError(f"{path} is damaged: its checksum is wrong")
  return document


def _digest(document: Mapping[str, Any]) -> str:
  return hashlib.sha256(
    json.dumps(document, sort_keys=True).encode()
  ).hexdigest()
