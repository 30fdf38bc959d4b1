"""What the thread of a server computes: the requests of a batch as one.

Legend: n rows of a request, k labels.
"""

from collections.abc import Callable, Hashable, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from xlj.serving import batching
from xlj.serving import models as models_lib
from xlj.serving import requests

# Lists of more labels are computed alone, as a choice for all rows.
_SHORT = 1000
_LEAST_K = 8  # up to so many labels share a program


class Answer(NamedTuple):
  """The best labels of the rows of a request.

  Attributes:
    scores: float32 `[n, k]`, -inf past the end.
    ids: `[n, k]`, -1 past the end.
    probabilities: float32 `[n, k]`, if the model is calibrated.
  """

  scores: np.ndarray
  ids: np.ndarray
  probabilities: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
  """A request for labels that fits its model.

  Attributes:
    model: That is asked.
    rows: n of them.
    k: How many labels.
    allow: Label ids of which no others may be; None for any.
    deny: Label ids that may not be.
    threshold: Score that a label has to reach, or None.
    min_probability: Probability, likewise.
  """

  model: models_lib.Model
  rows: requests.Rows
  k: int
  allow: np.ndarray | None
  deny: np.ndarray
  threshold: float | None
  min_probability: float | None

  def key(self) -> Hashable:
    """Equal for questions that can be asked at once."""
    size = max(_LEAST_K, 1 << (self.k - 1).bit_length())
    longest = max(len(self.deny), 0 if self.allow is None else len(self.allow))
    alone = id(self) if longest > _SHORT else self.allow is not None
    return id(self.model), self.rows.form, size, alone


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """Anything else of a model that is computed, by itself."""

  call: Callable[[], Any]

  def key(self) -> Hashable:
    """Of no other."""
    return id(self)


def compute(jobs: Sequence[batching.Job]) -> list[Any]:
  """Answers, or errors, of jobs of one key."""
  works = [job.work for job in jobs]
  if isinstance(works[0], Task):
    return [_tried(works[0].call)]
  try:
    return _together(works)
  except Exception as error:
    if len(works) == 1:
      return [error]
    # Whose fault it is the others need not know.
    return [_tried(lambda w=work: _together([w])[0]) for work in works]


def _tried(call: Callable[[], Any]) -> Any:
  try:
    return call()
  except Exception as error:
    return error


def _together(works: Sequence[Question]) -> list[Any]:
  model = works[0].model
  scores, ids, wrong = model.answers.answers(
    requests.together([work.rows.features for work in works]),
    max(work.k for work in works),
    _choice(works),
  )
  found, start = [], 0
  for work in works:
    stop = start + len(work.rows)
    bad = [row for row in wrong if start <= row < stop]
    if bad:
      row = min(bad)
      found.append(ValueError(f"row {row - start}: {wrong[row]}"))
    else:
      found.append(
        _answer(work, scores[start:stop, : work.k], ids[start:stop, : work.k])
      )
    start = stop
  return found


def _answer(work: Question, scores: np.ndarray, ids: np.ndarray) -> Answer:
  if work.threshold is not None:
    missed = scores < work.threshold
    scores, ids = np.where(missed, -np.inf, scores), np.where(missed, -1, ids)
  known = work.model.calibration
  if known is None:
    return Answer(scores, ids, None)
  if work.min_probability is not None:
    return Answer(*known.passing(scores, ids, work.min_probability))
  return Answer(scores, ids, known.probabilities(scores, ids))


def _choice(works: Sequence[Question]) -> Any:
  """The labels that may be answers to each row."""
  model = works[0].model
  if len(works) == 1:
    (work,) = works
    deny = work.deny if len(work.deny) else None
    return model.choice(deny, work.allow)
  exclude = among = None
  if any(len(work.deny) for work in works):
    exclude = [work.deny for work in works for _ in range(len(work.rows))]
  if works[0].allow is not None:
    among = [work.allow for work in works for _ in range(len(work.rows))]
  return model.choice(exclude, among)
