"""Examples whose labels a model does not believe: probably wrong ones.

The target of an example, an average of what the model thought of it while it
learned, prefers another label (Liu et al. 2020, "Early-learning regularization
prevents memorization of noisy labels", section 4.2).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xlj import files
from xlj.data import csr as csr_lib
from xlj.data import names as names_lib

FILE = "suspects.tsv"


def find(
  labels: csr_lib.Csr, rows: np.ndarray, ids: np.ndarray, values: np.ndarray
) -> np.ndarray:
  """Finds the rows whose best remembered label is not one of theirs.

  Args:
    labels: [N, L] of the training split.
    rows: int [n], the rows that were trained on.
    ids: int [N or more, M], remembered labels of each row; -1 is none.
    values: [N or more, M], their probabilities.

  Returns:
    int64 [m], the rows, the surest first.
  """
  best = values[rows].argmax(1)
  label = ids[rows, best]
  mine = labels.take(rows)
  owner = np.repeat(np.arange(len(rows)), mine.row_lengths)
  agrees = np.zeros(len(rows), bool)
  agrees[owner[mine.indices == label[owner]]] = True
  found = rows[~agrees & (label >= 0) & (mine.row_lengths > 0)]
  return found[np.argsort(-values[found].max(1), kind="stable")]


def write(
  path: Path,
  suspects: np.ndarray,
  labels: csr_lib.Csr,
  ids: np.ndarray,
  values: np.ndarray,
  names: list[str] | None,
) -> None:
  """Writes a table of suspects, for people.

  Args:
    path: Tab-separated columns row, labels, believed, probability.
    suspects: As of `find`.
    labels: As there.
    ids: As there.
    values: As there.
    names: Of labels, to be written `escaped`; None for their numbers.
  """
  lines = ["row\tlabels\tbelieved\tprobability"]
  for row in suspects.tolist():
    own = labels.take([row]).indices.tolist()
    best = values[row].argmax()
    texts = [
      names_lib.escaped(names[i]) if names else str(i)
      for i in (*own, int(ids[row, best]))
    ]
    cells = row, ", ".join(texts[:-1]), texts[-1], f"{values[row, best]:.3f}"
    lines.append("\t".join(map(str, cells)))
  files.write_text(path, "\n".join([*lines, ""]))
