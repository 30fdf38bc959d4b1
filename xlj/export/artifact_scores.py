"""Best labels of rows, by the programs of an artifact.

Legend: n rows, F features, L label rows, K labels that the programs find.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.data import padding
from xlj.export import host_loops
from xlj.export import run as run_lib
from xlj.export import scores as scores_lib

_BLOCK = 1024  # rows laid out at a time


class ArtifactScores:
  """What an exported model of the kind "artifact" computes; as `Scores`."""

  def __init__(
    self,
    directory: Path,
    manifest: Mapping[str, Any],
    order: label_order.LabelOrder,
  ):
    """Opens the artifact.

    Args:
      directory: Of it.
      manifest: What the model says of itself.
      order: Which label has which row.

    Raises:
      ValueError: A file of it is not as it was written, or JAX is missing or
        does not read it; it says what to do.
    """
    self._run = run_lib.Artifact(directory)
    self._directory, self._order = directory, order
    self._num_features = manifest["num_features"]
    self._num_labels = manifest["num_labels"]

  def weighted(self, rows: csr_lib.Csr) -> tuple[csr_lib.Csr, np.ndarray]:
    """The rows as they are, which programs weigh, and the status of each."""
    ids, status = rows.indices, np.zeros(rows.num_rows, np.uint8)
    bad = (ids < 0) | (ids >= self._num_features)
    if rows.values is not None:
      bad |= ~np.isfinite(rows.values)
    at = np.searchsorted(rows.indptr, np.flatnonzero(bad), side="right") - 1
    status[at] = host_loops.NO_FEATURE
    return rows, status

  def topk(
    self, rows: scores_lib.Rows, k: int, asked: scores_lib.Asked
  ) -> tuple[np.ndarray, np.ndarray]:
    """The best labels of rows.

    Args:
      rows: n rows.
      k: How many labels.
      asked: Which ones.

    Returns:
      float32 scores `[n, k]`, descending, and int32 label rows; -inf and -1
      where there are fewer. Scores of a row with numbers that are too large
      are infinite.

    Raises:
      ValueError: The K best labels do not tell.
    """
    most = self._run.about["k"]
    if k > most:
      self._refuse(f"k is {k}")
    count = rows.num_rows if isinstance(rows, csr_lib.Csr) else len(rows)
    is_free = not (len(asked.denied) or len(asked.of_excluded) or asked.among)
    scores, found = [np.zeros((0, k), np.float32)], [np.zeros((0, k), np.int32)]
    for start in range(0, count, _BLOCK):
      stop = min(start + _BLOCK, count)
      if isinstance(rows, csr_lib.Csr):
        part = rows.slice_rows(start, stop)
        if longest := self._run.about["longest"]:  # as in training
          part = padding.shorten(part, longest)
        width = max(1, int(part.row_lengths.max(initial=0)))
        ids, values, _ = part.pad(width, fill=0)
        every, labels, finite = self._run(ids, values)
      else:
        every, labels, finite = self._run(rows[start:stop])
      every = np.where(finite[:, None], every, np.inf)
      best = self._order.to_head(labels)
      if not is_free:
        every, best = self._chosen(every, best, asked, start)
        short = np.flatnonzero((best[:, :k] < 0).any(1) & (labels[:, -1] >= 0))
        if len(short) and most < self._num_labels:
          self._refuse(f"row {start + short[0]}: too many of them are left out")
      scores.append(every[:, :k])
      found.append(best[:, :k])
    return np.concatenate(scores), np.concatenate(found)

  def _chosen(
    self,
    scores: np.ndarray,
    found: np.ndarray,
    asked: scores_lib.Asked,
    start: int,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Of `[n, K]` those that may be answers, the first ones, then nothing."""
    allowed = (found >= 0) & ~np.isin(found, asked.denied)
    for i, row in enumerate(range(start, start + len(found))):
      if len(asked.of_excluded):
        part = slice(*asked.of_excluded[row : row + 2])
        allowed[i] &= ~np.isin(found[i], asked.excluded[part])
      if asked.among:
        part = slice(asked.first[row], asked.last[row])
        allowed[i] &= np.isin(found[i], asked.only[part])
    at = np.argsort(~allowed, axis=1, kind="stable")
    scores = np.where(allowed, scores, -np.inf)
    found = np.where(allowed, found, -1)
    return np.take_along_axis(scores, at, 1), np.take_along_axis(found, at, 1)

  def _refuse(self, why: str) -> NoReturn:
    raise ValueError(
      f"{why}, and the programs of {self._directory} find the"
      f" {self._run.about['k']} best labels of all; export the run again with a"
      f" larger --k, {self._num_labels} for any question"
    )
