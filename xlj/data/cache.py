"""Directories of arrays, keyed by the content of the files they came from.

    ROOT/stamps/HASH.json   size and time of a source when it was hashed
    ROOT/KEY/meta.json      sizes and checksums; written last
    ROOT/KEY/NAME.npy       arrays
    ROOT/KEY.*.tmp/         an entry that is being written
    ROOT/KEY.lock           held by the process that writes it

An entry appears by one rename, so that readers never see half of it. One
process writes it while others wait; where files cannot be locked, the first
one wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time
from typing import Any, IO
import uuid

from absl import logging

from xlj import files
from xlj.data import errors

try:
  import fcntl
except ImportError:  # not POSIX
  fcntl = None

DIRECTORY = ".xlj_cache"
META = "meta.json"
_SEAL = "seal"

_STALE_SECONDS = 24 * 3600
# A file that changed this shortly before it was hashed could change again
# without its time stamp moving.
_TICK_NS = 10**9


def roots(
  source: pathlib.Path, cache_dir: str | os.PathLike[str] | None
) -> list[pathlib.Path]:
  """Lists where entries may be, the preferred place first.

  Args:
    source: directory of the source files.
    cache_dir: the only place, if given.

  Returns:
    `cache_dir`, or else `.xlj_cache` in the source directory and a directory
    of the user, `$XDG_CACHE_HOME/xlj` or `~/.cache/xlj`.
  """
  if cache_dir is not None:
    return [files.local(cache_dir, "data.cache_dir").absolute()]
  user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return [source.absolute() / DIRECTORY, pathlib.Path(user) / "xlj"]


def writable(places: Sequence[pathlib.Path]) -> pathlib.Path:
  """Returns the first place that can be written, and creates it.

  Args:
    places: directories to try in order.

  Returns:
    A directory that exists.

  Raises:
    DataError: when none can be written.
  """
  for place in places:
    # A directory that nobody may write is left alone even by root.
    nearest = next(p for p in (place, *place.parents) if p.exists())
    if not nearest.stat().st_mode & 0o222:
      continue
    with contextlib.suppress(OSError):
      place.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryFile(dir=place):
        return place
  raise errors.DataError(
    " and ".join(map(str, places)),
    "no directory that can be written",
    "a place for the cache",
    hint="give one with cache_dir",
  )


def content_hash(
  path: pathlib.Path, places: Sequence[pathlib.Path]
) -> tuple[str, dict[str, Any]]:
  """Returns the SHA-256 of a file; unchanged files are not read again.

  Args:
    path: the file.
    places: where stamps may be.

  Returns:
    The hash, and the stamp to hand to `write_stamp` when it may be kept.

  Raises:
    OSError: when the file cannot be read.
  """
  facts = path.stat()
  stamp = {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
  for place in places:
    known = _read_sealed(_stamp_path(place, path))
    if known and {**stamp, "sha256": known.get("sha256")} == known:
      return known["sha256"], {}
  settled = time.time_ns() - facts.st_mtime_ns > _TICK_NS
  out = _hash(path)
  return out, {**stamp, "sha256": out} if settled else {}


def write_stamp(
  place: pathlib.Path, path: pathlib.Path, stamp: dict[str, Any]
) -> None:
  """Remembers the hash of a file for the size and time that it has.

  Args:
    place: a directory that can be written.
    path: the file.
    stamp: from `content_hash`; nothing happens when it is empty.
  """
  if not stamp:
    return
  target = _stamp_path(place, path)
  target.parent.mkdir(exist_ok=True)
  with files.replacing(target) as partial:
    partial.write_text(_sealed(stamp))


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[None]:
  """Keeps other processes from doing the same thing at the same time.

  The lock is the operating system's: it is gone when its holder dies. Where
  there are none (not POSIX, some network file systems), nobody waits. The file
  that carries it is removed again.

  Args:
    path: what is written; the lock is a file beside it.

  Yields:
    When no other process is in such a block.
  """
  lock = path.with_name(f"{path.name}.lock")
  file = None
  with contextlib.suppress(OSError):
    while file is None:
      file = _lock(lock, path)
  try:
    yield
  finally:
    if file is not None:
      with contextlib.suppress(OSError):
        lock.unlink()  # while it is held
      file.close()


def _lock(lock: pathlib.Path, purpose: pathlib.Path) -> IO[bytes] | None:
  """Waits for a lock; None if its last holder has removed the file."""
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(open(lock, "ab"))
    if fcntl is not None:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        logging.info("Waiting for another process that prepares %s", purpose)
        fcntl.flock(file, fcntl.LOCK_EX)
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
        stack.pop_all()  # it stays open
        return file
  return None


@contextlib.contextmanager
def new_entry(entry: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a directory to write an entry in; it appears when the block ends.

  Args:
    entry: path of the entry.

  Yields:
    A temporary directory. Its content is discarded if the block raises, or if
    another process was faster.
  """
  _remove_stale(entry.parent)
  part = _temporary(entry)
  try:
    yield part
    with contextlib.suppress(OSError):  # it exists: the other one is as good
      part.rename(entry)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def discard(entry: pathlib.Path) -> None:
  """Removes an entry that is damaged, if it can be removed.

  Args:
    entry: path of the entry.
  """
  with contextlib.suppress(OSError):
    aside = _temporary(entry)
    # Moved first, so that nobody opens what is half removed.
    entry.rename(aside / "damaged")
    shutil.rmtree(aside, ignore_errors=True)


def write_meta(directory: pathlib.Path, meta: dict[str, Any]) -> None:
  """Writes the description of an entry.

  Args:
    directory: of the entry.
    meta: anything that JSON can hold.
  """
  (directory / META).write_text(_sealed(meta))


def read_meta(entry: pathlib.Path) -> dict[str, Any] | None:
  """Reads the description of an entry.

  Args:
    entry: path of the entry.

  Returns:
    What `write_meta` wrote, or None when it is missing or not as written.
  """
  return _read_sealed(entry / META)


def _hash(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp_path(place: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
  name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]
  return place / "stamps" / f"{name}.json"


def _sealed(document: dict[str, Any]) -> str:
  """A JSON text with a checksum of what is in it."""
  return json.dumps({**document, _SEAL: _checksum(document)}, indent=1)


def _read_sealed(path: pathlib.Path) -> dict[str, Any] | None:
  """What `_sealed` was given; None when there is something else."""
  try:
    out = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return None
  if not isinstance(out, dict) or _SEAL not in out:
    return None
  return out if out.pop(_SEAL) == _checksum(out) else None


def _checksum(document: dict[str, Any]) -> str:
  text = json.dumps(document, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _remove_stale(place: pathlib.Path) -> None:
  """Removes what killed processes left behind."""
  for path in place.glob("*.tmp"):
    with contextlib.suppress(OSError):
      if time.time() - path.stat().st_mtime > _STALE_SECONDS:
        shutil.rmtree(path, ignore_errors=True)


def _temporary(entry: pathlib.Path) -> pathlib.Path:
  path = entry.with_name(f"{entry.name}.{uuid.uuid4().hex}.tmp")
  path.mkdir()
  return path
