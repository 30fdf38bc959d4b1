"""Probabilities that labels are right, from the scores of `topk`.

    logit p = slope_b z + bias_b + place log(1 + j)

with z the score of a label, j its place in the answer, from 0, and b the bucket
of how many training rows have it; one bucket and no place is the scaling of
Platt ("Probabilistic outputs for support vector machines", 1999). The likeliest
weights of the best labels of held-out rows are taken. Scores of two rows that
are alike say less than they seem to: how many labels of a row are better tells
the rest, and makes p hold for the best label alone as well as for the ten best.
Place and buckets are left out where they do not help on rows that the weights
were not fitted on. Within a row and a bucket p falls with the score.

A threshold for a precision is the least p from which on the labels of held-out
rows were right that often, by a lower bound of what they show (Wilson,
"Probable inference, the law of succession, and statistical inference", 1927).

Legend: n rows, k labels of each, B buckets, L label ids, T thresholds.
"""

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import logging
import numpy as np
import scipy

from xlj import shell
from xlj.data import errors

FILE = "calibration.json"  # of a run
BINS = 15  # of as many labels each, for ECE
LEAST_ROWS = 30
_FORMAT = 1
_BUCKETS = 4
_STEP = 0.002  # of precisions that thresholds are kept for
_ONE_SIDED = 1.2816  # standard deviations: a bound holds in 9 of 10 cases


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
  """What makes probabilities of scores; see the module.

  Attributes:
    slopes: float64 `[B]`, not negative.
    biases: float64 `[B]`.
    place: Not positive.
    buckets: `[B - 1]`, ascending: most training rows of labels of each bucket
      but the last one.
    thresholds: float64 `[T]`, ascending probabilities.
    precisions: float64 `[T]`, ascending: lower bounds of the share of right
      labels among those of at least that probability.
    about: What it was fitted on, how well, and `model`, which tells of what.
    counts: `[L]` training rows of labels; only needed for several buckets.
    label_ids: `[L]`, ascending, where ids are no places in `counts`.
  """

  slopes: np.ndarray
  biases: np.ndarray
  place: float
  buckets: np.ndarray
  thresholds: np.ndarray
  precisions: np.ndarray
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  counts: np.ndarray | None = None
  label_ids: np.ndarray | None = None

  def probabilities(self, scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """How likely it is that labels are right.

    Args:
      scores: `[n, k]` as `topk` gives them: each row from its best label on.
      ids: Label ids `[n, k]`; -1 for none.

    Returns:
      float32 `[n, k]`; 0 where there is no label.
    """
    scores, ids = np.asarray(scores, np.float64), np.asarray(ids)
    known = (ids >= 0) & np.isfinite(scores)
    bucket = self._bucket(np.where(known, ids, -1))
    logits = self.slopes[bucket] * np.where(known, scores, 0)
    logits += self.biases[bucket] + self.place * _places(scores.shape)
    p = scipy.special.expit(logits)
    return np.where(known, p, 0).astype(np.float32)

  def threshold(self, precision: float) -> float:
    """The probability from which on labels are right often enough.

    Args:
      precision: The share of labels that are to be right, in (0, 1).

    Returns:
      The least probability that held-out rows bear out.

    Raises:
      ValueError: They bear out none.
    """
    if not 0 < precision < 1:
      raise ValueError(
        f"precision is {precision!r}; give a share of labels between 0 and 1,"
        " such as 0.9"
      )
    enough = self.precisions >= precision
    if not enough.any():
      raise ValueError(
        f"precision is {precision:g}, and the {self.about.get('rows', '')}"
        f" held-out rows bear out {self.precisions.max():.3f} at most; ask for"
        " less, or calibrate on more rows"
      )
    return float(self.thresholds[enough].min())

  def passing(
    self, scores: np.ndarray, ids: np.ndarray, least: float
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labels of at least a probability, which may be none.

    Args:
      scores: `[n, k]`, as for `probabilities`.
      ids: Likewise.
      least: The probability.

    Returns:
      Scores, ids and probabilities `[n, k]`, in their order, with -inf, -1 and
      0 after the last label that is left.

    Raises:
      ValueError: It is no probability.
    """
    if not 0 <= least <= 1:
      raise ValueError(
        f"min_probability is {least!r}; give a number from 0 to 1"
      )
    p = self.probabilities(scores, ids)
    kept = (p >= least) & (np.asarray(ids) >= 0)
    order = np.argsort(~kept, axis=-1, kind="stable")
    scores, ids, p = (
      np.take_along_axis(np.where(kept, values, none), order, -1)
      for values, none in ((scores, -np.inf), (ids, -1), (p, 0))
    )
    return scores, ids, p

  def _bucket(self, ids: np.ndarray) -> np.ndarray:
    """Buckets of labels; any for -1."""
    if not len(self.buckets):
      return np.zeros(ids.shape, np.int64)
    assert self.counts is not None
    if self.label_ids is not None:
      ids = np.searchsorted(self.label_ids, ids)
    return np.searchsorted(self.buckets, self.counts[ids])

  def to_dict(self) -> dict[str, Any]:
    """What `from_dict` reads, without what is known of labels, for JSON."""
    return {
      "format": _FORMAT,
      "slopes": self.slopes.tolist(),
      "biases": self.biases.tolist(),
      "place": self.place,
      "buckets": self.buckets.tolist(),
      "thresholds": self.thresholds.tolist(),
      "precisions": self.precisions.tolist(),
      "about": dict(self.about),
    }

  @classmethod
  def from_dict(
    cls,
    saved: Mapping[str, Any],
    counts: np.ndarray | None = None,
    label_ids: np.ndarray | None = None,
  ) -> "Calibration":
    """Makes again what `to_dict` gave.

    Args:
      saved: What it gave.
      counts: `[L]` training rows of labels, by id.
      label_ids: `[L]`, ascending, where ids are no places in `counts`.

    Returns:
      The calibration.

    Raises:
      ValueError: It is not what `to_dict` gives, or needs counts.
    """
    if not isinstance(saved, Mapping) or saved.get("format") != _FORMAT:
      raise ValueError(f"its format is not {_FORMAT}")
    try:
      arrays = {
        name: np.array(saved[name], np.float64)
        for name in ("slopes", "biases", "buckets", "thresholds", "precisions")
      }
      place, about = float(saved["place"]), dict(saved["about"])
    except (KeyError, TypeError) as error:
      raise ValueError(f"{error} is missing, or no such thing") from None
    sizes = {name: array.shape for name, array in arrays.items()}
    count = len(arrays["buckets"]) + 1
    points = arrays["thresholds"].shape
    if sizes["slopes"] != (count,) or sizes["biases"] != (count,):
      raise ValueError(f"slopes and biases are not {count} numbers")
    if len(points) != 1 or not points[0] or sizes["precisions"] != points:
      raise ValueError("thresholds and precisions are not as many numbers")
    if not all(np.isfinite(a).all() for a in (*arrays.values(), place)):
      raise ValueError("a number is not finite")
    if count > 1 and counts is None:
      raise ValueError("it needs the training rows of labels")
    return cls(
      **arrays, place=place, about=about, counts=counts, label_ids=label_ids
    )


def fit(
  scores: np.ndarray,
  ids: np.ndarray,
  hits: np.ndarray,
  counts: np.ndarray | None = None,
  about: Mapping[str, Any] | None = None,
) -> Calibration:
  """Fits probabilities to held-out rows.

  Args:
    scores: `[n, k]` of the best labels of rows that no training has seen,
      descending.
    ids: Label ids `[n, k]`; -1 for none.
    hits: bool `[n, k]`, which of them are right.
    counts: `[L]` training rows of labels; None for one bucket.
    about: What to note.

  Returns:
    The calibration; it notes `rows`, and `ECE` in percent and `log_loss` of
    these labels with the logistic function of the scores, and now.

  Raises:
    ValueError: There are too few rows.
  """
  scores, ids, hits = np.asarray(scores), np.asarray(ids), np.asarray(hits)
  if len(scores) < LEAST_ROWS:
    raise ValueError(
      f"{len(scores)} held-out rows; give {LEAST_ROWS} at least, and some"
      " hundreds for thresholds"
    )
  known = (ids >= 0) & np.isfinite(scores)
  if not known.any():
    raise ValueError("no held-out row has a label with a score")
  order = np.random.default_rng(0).permutation(len(scores))
  first, second = np.array_split(order, 2)
  buckets = np.zeros(0)
  if counts is not None:
    of_labels = counts[ids[known]]
    shares = np.arange(1, _BUCKETS) / _BUCKETS
    buckets = np.unique(np.quantile(of_labels, shares, method="lower"))
    buckets = buckets[buckets < of_labels.max(initial=0)]

  def made(rows: np.ndarray, form: Mapping[str, Any]) -> Calibration:
    return _likeliest(scores[rows], ids[rows], hits[rows], counts, **form)

  def losses(form: Mapping[str, Any]) -> np.ndarray:
    """Of the rows of the second half, from the first half's weights."""
    p = made(first, form).probabilities(scores[second], ids[second])
    return (_losses(p, hits[second]) * known[second]).sum(1)

  form: dict[str, Any] = {"with_place": False, "buckets": np.zeros(0)}
  now = losses(form)
  more = {"with_place": scores.shape[1] > 1, "buckets": buckets}
  for name, value in more.items():
    changed = form | {name: value}
    gain = now - (then := losses(changed))
    if np.mean(gain) > 2 * np.std(gain) / np.sqrt(len(gain)):  # not by chance
      form, now = changed, then
  found = made(order, form)
  p, right = found.probabilities(scores, ids)[known], hits[known]
  before = scipy.special.expit(scores[known].astype(np.float64))
  thresholds, precisions = _curve(p, right)
  figures = {
    "rows": len(scores),
    "ECE": [ece(before, right), ece(p, right)],
    "log_loss": [log_loss(before, right), log_loss(p, right)],
  }
  return dataclasses.replace(
    found,
    thresholds=thresholds,
    precisions=precisions,
    about=figures | dict(about or {}),
  )


def load(
  workdir: Path,
  model: str,
  counts: np.ndarray | None,
  label_ids: np.ndarray | None = None,
) -> Calibration | None:
  """The calibration of a run.

  Args:
    workdir: Directory of the run.
    model: What tells its scores from those of another model.
    counts: As of `Calibration`.
    label_ids: Likewise.

  Returns:
    The calibration; None if there is none, or it is of another model, which is
    logged.

  Raises:
    DataError: It is not as it was written.
  """
  path = workdir / FILE
  if not path.exists():
    return None
  try:
    saved = json.loads(path.read_text())
    found = Calibration.from_dict(saved, counts, label_ids)
  except (OSError, ValueError, RecursionError) as error:
    raise errors.DataError(
      path,
      f"no calibration ({error})",
      "what calibrating has written",
      hint=f"make it again by {_again(workdir)}, or remove it",
    ) from error
  if found.about.get("model") == model:
    return found
  logging.warning(
    "%s is of another checkpoint, or of other fields of the section predict,"
    " and is left out; make it again by %s",
    *(path, _again(workdir)),
  )
  return None


def _again(workdir: Path) -> str:
  """What makes one."""
  return shell.command("calibrate", workdir=workdir)


def needed(found: Calibration | None, workdir: Path) -> Calibration:
  """The calibration of a run or model that is asked for probabilities.

  Raises:
    ValueError: There is none.
  """
  if found is None:
    raise ValueError(
      f"min_probability needs probabilities, and {workdir} has none for these"
      f" scores; calibrate it by {_again(workdir)}, or, if it is an"
      " exported model, its run, and export that again"
    )
  return found


def ece(probabilities: np.ndarray, hits: np.ndarray, bins: int = BINS) -> float:
  """The expected calibration error, over bins of as many labels each.

  How far the mean probability of a bin is from the share of its labels that are
  right, on average (Nguyen and O'Connor, "Posterior calibration and exploratory
  analysis for natural language processing models", EMNLP 2015).

  Args:
    probabilities: `[m]`.
    hits: bool `[m]`.
    bins: How many.

  Returns:
    Percent.
  """
  order = np.argsort(probabilities, kind="stable")
  error = 0.0
  for bin_ in np.array_split(order, bins):
    error += abs(float(np.sum(probabilities[bin_] - hits[bin_], dtype=float)))
  return 100 * error / max(len(order), 1)


def log_loss(probabilities: np.ndarray, hits: np.ndarray) -> float:
  """The mean negative log-likelihood of `[m]` labels, in nats."""
  return float(np.mean(_losses(probabilities, hits)))


def reached(
  probabilities: np.ndarray, hits: np.ndarray, least: float
) -> tuple[float, float]:
  """What the labels of at least a probability are worth.

  Args:
    probabilities: `[n, k]`; 0 where there is no label.
    hits: bool `[n, k]`.
    least: The probability.

  Returns:
    How many of them are right, and how many rows get an answer, in percent.
  """
  given = (probabilities >= least) & (probabilities > 0)
  right = np.count_nonzero(given & hits) / max(np.count_nonzero(given), 1)
  return 100 * float(right), 100 * float(np.mean(given.any(-1)))


def _likeliest(
  scores: np.ndarray,
  ids: np.ndarray,
  hits: np.ndarray,
  counts: np.ndarray | None,
  with_place: bool,
  buckets: np.ndarray,
) -> Calibration:
  """The weights of the greatest likelihood, without thresholds."""
  none, count = np.zeros(0), len(buckets) + 1
  empty = Calibration(none, none, 0.0, buckets, none, none, counts=counts)
  known = (ids >= 0) & np.isfinite(scores)
  bucket = empty._bucket(ids)[known]
  places = np.broadcast_to(_places(scores.shape), scores.shape)[known]
  right, z = hits[known].astype(np.float64), scores[known].astype(np.float64)
  size, mean, scale = len(z), float(z.mean()), float(z.std()) or 1.0
  z = (z - mean) / scale

  def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
    slopes, biases = w[:count], w[count:-1]
    logits = slopes[bucket] * z + biases[bucket] + w[-1] * places
    wrong = scipy.special.expit(logits) - right
    slope = [
      np.bincount(bucket, wrong * z, count),
      np.bincount(bucket, wrong, count),
      [wrong @ places],
    ]
    # A little of a prior, or weights would be infinite where all are right.
    value = np.sum(np.logaddexp(0, logits) - right * logits) + w @ w / 2
    return float(value) / size, (np.concatenate(slope) + w) / size

  least = [0.0] * count + [-np.inf] * count + [-np.inf if with_place else 0.0]
  most = [np.inf] * 2 * count + [0.0]
  start, limits = np.zeros(2 * count + 1), list(zip(least, most))
  w = scipy.optimize.minimize(
    loss, start, jac=True, method="L-BFGS-B", bounds=limits
  ).x
  slopes = w[:count] / scale
  biases = w[count:-1] - slopes * mean
  return dataclasses.replace(
    empty, slopes=slopes, biases=biases, place=float(w[-1])
  )


def _curve(p: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Thresholds, and lower bounds of the precision from each on; ascending."""
  order = np.argsort(-p, kind="stable")
  p, found = p[order], np.cumsum(right[order])
  last = np.flatnonzero(np.append(p[1:] < p[:-1], True))  # of equal ones
  p, bounds = p[last][::-1], _bound(found[last], last + 1)[::-1]
  # A threshold is of use if none below it is borne out as well.
  _, kept = np.unique(np.maximum.accumulate(bounds) // _STEP, return_index=True)
  return p[kept].astype(np.float64), bounds[kept]


def _bound(right: np.ndarray, count: np.ndarray) -> np.ndarray:
  """Wilson's lower bounds of shares `right / count`."""
  share, square = right / count, _ONE_SIDED**2
  spread = share * (1 - share) / count + square / (4 * count**2)
  middle = share + square / (2 * count)
  return (middle - _ONE_SIDED * np.sqrt(spread)) / (1 + square / count)


def _places(shape: tuple[int, ...]) -> np.ndarray:
  """How much the place of a label counts, `[k]`."""
  return np.log1p(np.arange(shape[-1]))


def _losses(p: np.ndarray, hits: np.ndarray) -> np.ndarray:
  """Negative log-likelihoods, in nats."""
  p = np.clip(np.where(hits, p, 1 - p.astype(np.float64)), 1e-12, None)
  return -np.log(p)
