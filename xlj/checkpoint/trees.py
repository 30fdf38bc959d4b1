"""Trees of arrays as arrays by name, and what is noted about them."""

from collections.abc import Mapping
import types
from typing import Any

import jax

from xlj.checkpoint import checksum
from xlj.checkpoint import errors

Flat = dict[str, Any]
# How many rows of an array are in a checkpoint, by its name, where there are
# more of it: empty ones behind them that make the shares of devices equal.
Rows = Mapping[str, int]
ALL: Rows = types.MappingProxyType({})


def flat(tree: Any) -> Flat:
  """Leaves by name, as in "head/rows"."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def describe(arrays: Flat, rows: Rows) -> dict[str, Any]:
  """Shape, type and checksum of each array, without rows behind `rows`."""
  sums = checksum.checksums(arrays, rows)
  return {
    name: {
      "shape": shape(name, array, rows),
      "dtype": array.dtype.name,
      "checksum": sums[name],
    }
    for name, array in arrays.items()
  }


def shape(name: str, array: Any, rows: Rows) -> list[int]:
  """The shape of an array in a checkpoint."""
  first = [rows[name]] if name in rows else array.shape[:1]
  return [*first, *array.shape[1:]]


def check_same(
  saved: Mapping[str, Any], wanted: Flat, rows: Rows = ALL
) -> None:
  """Refuses arrays of another model.

  Args:
    saved: What `describe` said of those of a checkpoint.
    wanted: Those to restore.
    rows: How many rows of them are saved, where not all are.

  Raises:
    CheckpointError: Naming the first array that differs.
  """
  for name in sorted(saved.keys() | wanted.keys()):
    if name not in wanted:
      raise errors.CheckpointError(f"array {name} is not one of this run")
    if name not in saved:
      raise errors.CheckpointError(f"array {name} is not there")
    there = f"{saved[name]['dtype']}{saved[name]['shape']}"
    want = wanted[name]
    here = f"{want.dtype.name}{shape(name, want, rows)}"
    if there != here:
      raise errors.CheckpointError(
        f"array {name} is {there} there, and {here} in this run"
      )


def num_bytes(arrays: Flat) -> int:
  """Bytes of all shards, counted once."""
  return sum(array.size * array.dtype.itemsize for array in arrays.values())


def size(count: float) -> str:
  """Bytes for people."""
  for unit, name in ((1e9, "GB"), (1e6, "MB")):
    if count >= unit:
      return f"{count / unit:.1f} {name}"
  return f"{count / 1e3:.1f} kB"
