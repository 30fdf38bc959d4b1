"""Ranking metrics of extreme classification, as sums that merge.

A `Ranking` takes batches of predicted label ids next to the true labels and
adds up what the metrics need. Two of them merge by addition, so that batches,
shards of a test set and processes combine to what one pass would have given.

There are two sets of figures, by `eval.figures`. Those of classification are in
percent, as in its literature. With y_i the true labels of point i, r_i(1..K)
its predictions from best to worst and N the points:

* `P@k`      = 1/N sum_i |top k of r_i in y_i| / k
* `nDCG@k`   = 1/N sum_i DCG_i@k / ideal_i@k, DCG_i@k = sum over hits at rank
  j <= k of 1 / log2(j + 1), ideal_i@k the same sum over j <= min(k, |y_i|)
* `PSP@k`    = sum_i (sum over hits of 1 / p_l) / sum_i (the largest such sum
  that any k labels reach), p_l the propensity of label l
* `PSnDCG@k` = the same ratio of sums for DCG_i@k / ideal_i@k with every hit
  weighted by 1 / p_l
* `Recall@k` = mean over points with a label of |top k of r_i in y_i| / |y_i|
* `Coverage@k` = share of the distinct labels of the test points that are
  predicted correctly at least once within the top k
* `MacroF1@k` = mean over those labels of 2 tp / (2 tp + fp + fn)

Those of recommendation are fractions, as in its literature: `Recall@k` and
`nDCG@k` as above, and

* `HR@k` = share of the points with a label that have a hit within the top k
* `MRR@k` = mean over those points of 1 / rank of the first hit within the top
  k, 0 without
* `CatalogCoverage@k` = share of the L labels that are within the top k of any
  point, right or wrong
* `ARP@k`, the average recommendation popularity = mean over points of the mean
  number of training points of the top k; a count, no fraction

A point without labels counts as a miss in P and nDCG and adds nothing to PSP
and PSnDCG (all rows stay in the mean, as in the evaluation code of the Extreme
Classification Repository); Recall, HR and MRR leave it out, having nothing to
find.

Sources: Jain, Prabhu, Varma, "Extreme Multi-label Loss Functions for
Recommendation, Tagging, Ranking & Other Missing Label Applications", KDD 2016
(propensity-scored metrics); Bhatia et al., "The Extreme Classification
Repository" and its pyxclib for normalisation and for the ideal of PSnDCG, which
runs to min(k, |y_i|) there and to k in the paper. Ge, Delgado-Battenfeld,
Jannach, "Beyond Accuracy: Evaluating Recommender Systems by Coverage and
Serendipity", RecSys 2010 (catalog coverage); Abdollahpouri, Burke, Mobasher,
"Managing Popularity Bias in Recommender Systems with Personalized Re-ranking",
FLAIRS 2019 (ARP).

Shapes: N points, K predictions, L labels, nnz true (point, label) pairs.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from xlj.config import training
from xlj.evaluation import pairs
from xlj.evaluation import ratios

# Metrics that are a sum over points divided by another, in the order of tables:
# what a batch adds to both.
RATIOS: dict[str, ratios.Ratio] = {
  "P": ratios.precision,
  "nDCG": ratios.ndcg,
  "PSP": ratios.psp,
  "PSnDCG": ratios.psndcg,
  "Recall": ratios.recall,
  "HR": ratios.hit_rate,
  "MRR": ratios.mrr,
  "ARP": ratios.popularity,
}
_OF_LABELS = ("Coverage", "MacroF1", "CatalogCoverage")
_PROPENSITY_SCORED = ("PSP", "PSnDCG")
_COUNTS = ("ARP",)  # of training points, whatever the others are in


class Ranking:
  """Adds up the metrics of this module over batches.

  Args:
    num_labels: L.
    ks: the cut-offs, e.g. (1, 3, 5).
    propensities: p_l, float [L] in (0, 1]; None leaves out PSP and PSnDCG.
    deciles: label-frequency decile of each label, integers [L] in 1..10, 1
      the most frequent; None leaves out `deciles()`.
    label_counts: training points of each label, integers [L], for ARP and to
      describe the deciles; None leaves out ARP.
    per_label: keep three counts per label and cut-off. False saves 4 L (1 + 2
      len(ks)) bytes and leaves out Coverage, MacroF1, CatalogCoverage and
      `deciles()`.
    figures: which metrics, as `eval.figures` says.

  Raises:
    ValueError: a length is not L, a decile is not in 1..10, or `ks` are not
      positive.

  Example:
    >>> ranking = Ranking(num_labels=4, ks=(1, 2))
    >>> truth = pairs.LabelRows(np.array([0, 2, 3]), np.array([0, 1, 3]))
    >>> ranking.update(np.array([[0, 2], [2, 3]]), truth)
    >>> ranking.compute()["P@1"], ranking.compute()["Recall@2"]
    (50.0, 75.0)
  """

  def __init__(
    self,
    num_labels: int,
    *,
    ks: Sequence[int] = (1, 3, 5),
    propensities: np.ndarray | None = None,
    deciles: np.ndarray | None = None,
    label_counts: np.ndarray | None = None,
    per_label: bool = True,
    figures: str = "classification",
  ):
    """Starts from nothing seen; see the class."""
    whole = np.asarray(ks).dtype.kind in "iu" and len(ks)
    if not whole or min(ks) < 1:
      raise ValueError(
        f"the cut-offs are {tuple(ks)}, expected whole numbers k >= 1"
      )
    self.num_labels = num_labels
    self.ks = np.unique(np.asarray(ks, np.int64))
    self._propensities = _of_length(num_labels, "propensities", propensities)
    if propensities is not None:
      p = np.asarray(propensities)
      if not ((p > 0) & (p <= 1)).all():
        bad = int(np.argmin((p > 0) & (p <= 1)))
        raise ValueError(
          f"the propensity of label {bad} is {p[bad]}, expected in (0, 1]"
        )
    self._deciles = _of_length(num_labels, "deciles", deciles)
    if deciles is not None and not np.isin(deciles, np.arange(1, 11)).all():
      raise ValueError(
        f"deciles run from {np.min(deciles)} to {np.max(deciles)}, expected"
        " 1 to 10"
      )
    self._label_counts = _of_length(num_labels, "label_counts", label_counts)
    missing = () if propensities is not None else _PROPENSITY_SCORED
    missing += () if label_counts is not None else _COUNTS
    every = {name for names in training.FIGURES.values() for name in names}
    missing = {*missing, *every.difference(training.FIGURES[figures])}
    names = *RATIOS, *(_OF_LABELS if per_label else ())
    self._names = [name for name in names if name not in missing]
    self._ratios = [name for name in self._names if name in RATIOS]
    self._scale = 100 if figures == "classification" else 1
    self._sums = self._zeros(num_labels if per_label else 0)
    self._per_label = per_label

  @property
  def width(self) -> int:
    """Predictions per point that `update` needs: the largest cut-off."""
    return int(self.ks[-1])

  @property
  def num_points(self) -> int:
    """Points added so far."""
    return int(self._sums["points"])

  @property
  def state(self) -> dict[str, np.ndarray]:
    """The sums, to be added to those of another process (`add_state`)."""
    return dict(self._sums)

  def update(
    self,
    topk_ids: np.ndarray,
    labels: pairs.SparseRows,
    weights: np.ndarray | None = None,
  ) -> None:
    """Adds a batch.

    Args:
      topk_ids: integers [N, K], best first, distinct within a row. K is at
        least `width`, or L; an id outside [0, L), such as padding by -1, is a
        miss.
      labels: the true labels of the N points, all of them.
      weights: [N]; a point of weight 0 is padding and left out, every other
        counts as one. None: no padding.

    Raises:
      ValueError: shapes disagree, `labels` is not sorted CSR within [0, L), or
        a row predicts a label twice.
    """
    given = np.asarray(topk_ids)
    if given.ndim != 2 or (given.size and given.dtype.kind not in "iu"):
      raise ValueError(
        f"the predictions are {given.dtype} {given.shape}, expected label ids"
        " [N, K], best first"
      )
    ids = given[:, : self.width].astype(np.int64)
    missing = self.width - ids.shape[1]
    if missing > 0 and ids.shape[1] < self.num_labels:
      raise ValueError(
        f"{ids.shape[1]} predictions per point, expected {self.width} (pad"
        " with -1 where there are fewer)"
      )
    ids = np.pad(ids, ((0, 0), (0, max(missing, 0))), constant_values=-1)
    pairs.check(labels, len(ids), self.num_labels)
    if weights is not None and np.shape(weights) != (len(ids),):
      raise ValueError(
        f"the weights have shape {np.shape(weights)}, expected ({len(ids)},)"
      )
    if weights is not None:
      keep = np.asarray(weights) != 0
      ids, labels = ids[keep], pairs.take(labels, keep)
    _check_distinct(ids, self.num_labels)
    hits = pairs.contains(labels, ids, self.num_labels)  # [N, width]
    about = self._propensities, self._label_counts
    batch = ratios.Batch(self.ks, ids, hits, labels, *about)
    self._sums["points"] += len(hits)
    for name in self._ratios:
      top, bottom = RATIOS[name](batch)
      self._sums[name][0] += top
      self._sums[name][1] += bottom
    if self._per_label:
      self._count_labels(hits, ids, labels)

  def merge(self, other: "Ranking") -> None:
    """Adds what another `Ranking` has seen.

    Raises:
      ValueError: it has other cut-offs or another number of labels.
    """
    if not np.array_equal(self.ks, other.ks):
      raise ValueError(f"cut-offs differ: {self.ks} and {other.ks}")
    self.add_state(other.state)

  def add_state(self, state: Mapping[str, np.ndarray]) -> None:
    """Adds the `state` of another `Ranking`, e.g. of another process.

    Raises:
      ValueError: its shapes differ from this one's.
    """
    for name, total in self._sums.items():
      if np.shape(state[name]) != total.shape:
        raise ValueError(
          f"{name} has shape {np.shape(state[name])}, expected {total.shape}:"
          " other labels or cut-offs"
        )
    for name, total in self._sums.items():
      total += state[name]

  def compute(self) -> dict[str, float]:
    """The metrics by names such as `P@1`, in percent or as fractions.

    Raises:
      ValueError: no point has been added.
    """
    if not self.num_points:
      raise ValueError("no point was added: there is nothing to average")
    figures = {name: ratios.divide(*self._sums[name]) for name in self._ratios}
    if self._per_label:
      tested = np.flatnonzero(self._sums["true"])
      figures |= self._macro(tested, ("Coverage", "MacroF1"))
      shown = self._sums["predicted"].cumsum(axis=0) > 0  # [len(ks), L]
      figures["CatalogCoverage"] = shown.mean(axis=1)
    return {
      f"{name}@{k}": (1 if name in _COUNTS else self._scale) * float(value)
      for name in self._names
      for k, value in zip(self.ks, figures[name])
    }

  def deciles(self) -> list[dict[str, float]]:
    """Figures by label-frequency decile, for deciles that hold labels.

    Returns:
      One dict per decile: `decile` (1, the most frequent labels, to 10),
      `labels` (how many it has), `test_labels` and `test_instances` (those
      among the points added),
      `min_count` and `max_count` (training points of its labels, where label
      counts were given); `P@k`, the part of the overall P@k that hits on this
      decile's labels make up, so that the deciles add up to P@k; and, averaged
      over its test labels, `MacroPrecision@k` (0 for a label never predicted),
      `MacroRecall@k`, `MacroF1@k` and `Coverage@k`. Percent.

    Raises:
      ValueError: made without deciles or without counts per label.
    """
    if self._deciles is None or not self._per_label:
      raise ValueError("needs deciles and per_label=True")
    members = (np.flatnonzero(self._deciles == d) for d in range(1, 11))
    return [
      self._decile(d, ids) for d, ids in enumerate(members, 1) if ids.size
    ]

  def _decile(self, decile: int, ids: np.ndarray) -> dict[str, float]:
    true = self._sums["true"][ids]
    row: dict[str, float] = {
      "decile": decile,
      "labels": len(ids),
      "test_labels": int(np.count_nonzero(true)),
      "test_instances": int(true.sum()),
    }
    if self._label_counts is not None:
      row["min_count"] = int(self._label_counts[ids].min())
      row["max_count"] = int(self._label_counts[ids].max())
    hits = self._sums["hit"][:, ids].sum(axis=1, dtype=np.int64).cumsum()
    figures = {"P": hits / (self.ks * max(self.num_points, 1))}
    names = ("MacroPrecision", "MacroRecall", "MacroF1", "Coverage")
    figures |= self._macro(ids[true > 0], names)
    for name, values in figures.items():
      row |= {f"{name}@{k}": 100 * float(v) for k, v in zip(self.ks, values)}
    return row

  def _macro(
    self, ids: np.ndarray, names: Sequence[str]
  ) -> dict[str, np.ndarray]:
    """Means over labels `ids`, all with true instances, [len(ks)] each."""
    true = self._sums["true"][ids]  # [l]
    hit = self._sums["hit"][:, ids].cumsum(axis=0)  # [len(ks), l]
    predicted = self._sums["predicted"][:, ids].cumsum(axis=0)
    values = {
      "MacroPrecision": hit / np.maximum(predicted, 1),
      "MacroRecall": hit / true,
      "MacroF1": 2 * hit / (predicted + true),
      "Coverage": hit > 0,
    }
    # An empty set of labels has no mean; zero keeps the figures valid JSON.
    return {n: values[n].sum(axis=1) / max(len(ids), 1) for n in names}

  def _zeros(self, num_labels: int) -> dict[str, np.ndarray]:
    num_ks = len(self.ks)
    sums: dict[str, np.ndarray] = {"points": np.zeros((), np.int64)}
    sums |= {name: np.zeros((2, num_ks)) for name in self._ratios}
    sums["true"] = np.zeros(num_labels, np.int32)
    for name in ("predicted", "hit"):
      sums[name] = np.zeros((num_ks, num_labels), np.int32)
    return sums

  def _count_labels(
    self, hits: np.ndarray, ids: np.ndarray, labels: pairs.SparseRows
  ) -> None:
    # Ranks between two cut-offs share a row, so that a running sum over rows
    # gives the counts at each cut-off.
    row = np.searchsorted(self.ks, np.arange(1, self.width + 1))  # [width]
    row = np.broadcast_to(row, ids.shape)
    real = (ids >= 0) & (ids < self.num_labels)
    np.add.at(self._sums["true"], np.asarray(labels.indices), 1)
    np.add.at(self._sums["predicted"], (row[real], ids[real]), 1)
    np.add.at(self._sums["hit"], (row[hits], ids[hits]), 1)


def _check_distinct(ids: np.ndarray, num_labels: int) -> None:
  ordered = np.sort(ids, axis=1)
  twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
  twice &= ordered[:, 1:] < num_labels
  if twice.any():
    row, column = np.argwhere(twice)[0]
    raise ValueError(
      f"row {row} predicts label {ordered[row, column + 1]} twice"
    )


def _of_length(
  num_labels: int, name: str, values: np.ndarray | None
) -> np.ndarray | None:
  if values is not None and np.shape(values) != (num_labels,):
    raise ValueError(
      f"{name} has shape {np.shape(values)}, expected ({num_labels},)"
    )
  return values
