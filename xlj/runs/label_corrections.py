"""Labels that a run has come to take for positives, beside the data.

The data set itself is never changed. The log is kept with the run: who goes on
from the checkpoint of a step sees the corrections up to that step, whatever the
mesh.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xlj import files

FILE = "label_flips.npz"
_LEAST = 4  # more labels that a row has room for; then twice as many, ...


class LabelCorrections:
  """A log of (row, label) pairs, each of them once.

  Labels are numbered as the head does.
  """

  def __init__(self) -> None:
    """No label is corrected."""
    self._labels: dict[int, list[int]] = {}
    self._log: list[tuple[int, int, int]] = []  # step, row, label
    self._width = 0

  def __len__(self) -> int:
    """How many labels are corrected."""
    return len(self._log)

  def add(self, step: int, rows: np.ndarray, labels: np.ndarray) -> None:
    """Corrects labels of rows.

    Args:
      step: The step that found them.
      rows: int `[K]`, rows of the training split; -1 is none.
      labels: int `[K]`.
    """
    for row, label in zip(rows.tolist(), labels.tolist()):
      known = self._labels.setdefault(row, []) if row >= 0 else [label]
      if label not in known:
        known.append(label)
        self._log.append((step, row, label))
        while self._width < len(known):
          self._width = max(_LEAST, 2 * self._width)

  def renumbered(self, table: np.ndarray) -> LabelCorrections:
    """The log for labels with other numbers.

    Args:
      table: int `[L]`, their numbers; -1 for those that there are no more.

    Returns:
      A new log.
    """
    out = LabelCorrections()
    for step, row, label in self._log:
      if table[label] >= 0:
        out.add(step, np.asarray([row]), np.asarray([table[label]]))
    return out

  def apply(self, label_ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The labels of a batch with those that are corrected.

    Args:
      label_ids: int32 `[N, P]`, -1 for padding.
      rows: int `[N]`.

    Returns:
      int32 `[N, P + W]`, with room for the corrections of any row.
    """
    if not self._log:
      return label_ids
    more = np.full((len(rows), self._width), -1, label_ids.dtype)
    for i, row in enumerate(rows.tolist()):
      found = self._labels.get(row, [])
      # Those of the data may contain them: a copy of the row, say.
      found = [label for label in found if label not in label_ids[i]]
      more[i, : len(found)] = found
    return np.concatenate([label_ids, more], 1)

  def save(self, directory: Path) -> None:
    """Writes the log; a reader sees all of it, or the one before."""
    log = np.asarray(self._log, np.int64).reshape(-1, 3)
    with (
      files.replacing(directory / FILE) as partial,
      partial.open("wb") as file,
    ):
      np.savez(file, step=log[:, 0], row=log[:, 1], label=log[:, 2])

  @classmethod
  def load(cls, directory: Path, step: int) -> LabelCorrections:
    """Reads what was corrected up to a step.

    Args:
      directory: Of the run.
      step: The last step that counts.

    Returns:
      The log; an empty one if there is no file.

    Raises:
      ValueError: If the file cannot be read, or is damaged.
    """
    out = cls()
    path = directory / FILE
    if not path.exists():
      return out
    try:
      with np.load(path) as file:
        log = np.stack([file["step"], file["row"], file["label"]], 1)
      if log.dtype != np.int64 or log.ndim != 2 or log.min(initial=0) < 0:
        raise ValueError("not of whole numbers from 0 up")
    except Exception as error:  # whatever NumPy and zipfile say of damage
      raise ValueError(
        f"{path} is damaged ({error}); restore it, or begin a new run"
      ) from None
    for number, row, label in log[log[:, 0] <= step].tolist():
      out.add(number, np.asarray([row]), np.asarray([label]))
    return out
