"""Entries of the cache that are opened, and written first if there are none.

One that is damaged is removed and written again: small ones are compared with
their checksums whenever they are opened, large ones in the background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import os
import pathlib
from typing import Any, TypeVar

from absl import logging
import numpy as np

from xlj.data import cache
from xlj.data import errors
from xlj.data import mapped
from xlj.data import verification as verification_lib

_T = TypeVar("_T")
# Entries up to this size are compared with their checksums whenever opened,
# which takes a tenth of a second at most.
_CHECKED_BYTES = 2**26


def open_entry(
  sources: Sequence[pathlib.Path],
  key: Callable[[list[str]], str],
  write: Callable[[pathlib.Path], dict[str, Any]],
  load: Callable[[pathlib.Path, dict[str, Any]], _T],
  cache_dir: str | os.PathLike[str] | None = None,
) -> _T:
  """Opens what was made of some files; makes it if nobody has.

  Args:
    sources: the files; the cache is beside the first one.
    key: name of the entry, from the hashes of the files.
    write: writes arrays into a directory, and returns their description under
      "arrays", with whatever else `load` needs.
    load: opens an entry, given its directory and what `write` returned.
    cache_dir: the place of the cache, as of `cache.roots`.

  Returns:
    What `load` returns.

  Raises:
    DataError: what `write` raises, or if an entry cannot be read back.
    OSError: when a file cannot be read, or the cache cannot be written.
  """
  places = cache.roots(sources[0].parent, cache_dir)
  hashes = [cache.content_hash(path, places) for path in sources]
  name = key([digest for digest, _ in hashes])
  found, written = open_in(places, name, write, load)
  if written is not None:
    for path, (_, stamp) in zip(sources, hashes):
      cache.write_stamp(written, path, stamp)
  return found


def open_in(
  places: Sequence[pathlib.Path],
  name: str,
  write: Callable[[pathlib.Path], dict[str, Any]],
  load: Callable[[pathlib.Path, dict[str, Any]], _T],
) -> tuple[_T, pathlib.Path | None]:
  """Opens an entry of that name; makes it if nobody has.

  Args:
    places: where it may be.
    name: of the entry.
    write: as of `open_entry`.
    load: likewise.

  Returns:
    What `load` returns, and the place that it has just been written in, if so.

  Raises:
    DataError: as `open_entry`.
    OSError: likewise.
  """
  for place in places:
    found = _load(place / name, load)
    if found is not None:
      return found, None
  place = cache.writable(places)
  with cache.alone(place / name):
    found = _load(place / name, load)  # another one may have written it
    if found is not None:
      return found, None
    with cache.new_entry(place / name) as directory:
      cache.write_meta(directory, write(directory))
  found = _load(place / name, load)
  if found is None:
    raise errors.DataError(place / name, "no entry", "what was just written")
  return found, place


def arrays(entry: pathlib.Path, meta: dict[str, Any]) -> dict[str, np.ndarray]:
  """Maps the arrays of an entry.

  Args:
    entry: its directory.
    meta: its description.

  Returns:
    Read-only memory maps, by name.

  Raises:
    DataError: when one is missing or has another length.
  """
  return {
    name: mapped.open_array(entry / f"{name}.npy", facts)
    for name, facts in meta["arrays"].items()
  }


def check(entry: pathlib.Path) -> None:
  """Compares all arrays of an entry with their checksums; reads all of them.

  Args:
    entry: its directory.

  Raises:
    DataError: naming the array that is damaged.
  """
  meta = cache.read_meta(entry)
  if meta is None:
    raise errors.DataError(entry, f"no {cache.META}", "an entry of the cache")
  _check(entry, meta)


def verification(entry: pathlib.Path) -> verification_lib.Verification | None:
  """Starts to compare the arrays of an entry with their checksums.

  Args:
    entry: its directory.

  Returns:
    What does so in the background; None if opening it has done it.
  """
  meta = cache.read_meta(entry)
  if meta is None or _is_small(meta):
    return None
  return verification_lib.Verification(entry, meta["arrays"])


def _is_small(meta: dict[str, Any]) -> bool:
  """Whether an entry is checked whenever it is opened."""
  return sum(map(mapped.array_bytes, meta["arrays"].values())) <= _CHECKED_BYTES


def _load(
  entry: pathlib.Path, load: Callable[[pathlib.Path, dict[str, Any]], _T]
) -> _T | None:
  """Opens an entry; one that is damaged is removed."""
  meta = cache.read_meta(entry)
  if meta is None:
    if entry.exists():
      _discard(entry, f"{entry / cache.META} is not as written")
    return None
  try:
    if _is_small(meta):
      _check(entry, meta)
    return load(entry, meta)
  except errors.DataError as error:
    _discard(entry, str(error))
    return None


def _discard(entry: pathlib.Path, why: str) -> None:
  logging.warning("Removing a damaged cache entry: %s", why)
  cache.discard(entry)


def _check(entry: pathlib.Path, meta: dict[str, Any]) -> None:
  for name, facts in meta["arrays"].items():
    path = entry / f"{name}.npy"
    mapped.open_array(path, facts)
    mapped.check_array(path, facts)
