"""How raw feature values become the inputs of a model.

Legend: F features, nnz entries of a block of rows.
"""

import dataclasses
from typing import Any

import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import statistics as statistics_lib

KINDS = ("none", "log", "tfidf", "log_tfidf")

# What "auto" does with each kind of features: (kind, l2). Values that somebody
# has weighted already are left as they are.
_AUTO = {
  "binary": ("tfidf", True),
  "counts": ("log_tfidf", True),
  "weighted": ("none", False),
  "normalised": ("none", False),
  "dense": ("none", False),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Weighting:
  """A weighting of sparse features, applied block by block; picklable.

  Attributes:
    kind: "none" keeps the values; "log" takes sign(v) log(1 + |v|); "tfidf"
      multiplies by idf; "log_tfidf" does both.
    l2: whether rows are then scaled to an L2 norm of 1. A row of zeros stays
      one.
    idf: float32 [F], inverse document frequencies of the training split; None
      for kinds that need none.

  Example:
    weighting = weighting_lib.fit("auto", statistics)
    batches = pipeline.train_batches(split, weighting, batch_size=256, seed=0)
  """

  kind: str
  l2: bool
  idf: np.ndarray | None = None

  def __post_init__(self) -> None:
    """Checks the fields against each other.

    Raises:
      ValueError: on an unknown kind, or one without the idf that it needs.
    """
    if self.kind not in KINDS:
      raise ValueError(f"Unknown weighting {self.kind!r}; one of {KINDS}.")
    if _needs_idf(self.kind) and self.idf is None:
      raise ValueError(f"Weighting {self.kind!r} needs idf, got None.")

  def __call__(self, csr: csr_lib.Csr) -> csr_lib.Csr:
    """Weights a block of rows.

    Args:
      csr: raw features, in memory; left unchanged.

    Returns:
      The same entries with weighted values.

    Raises:
      ValueError: when the block has more features than idf has entries.
    """
    values = csr.values
    if values is None:
      values = np.ones(csr.nnz, np.float32)
    if self.kind.startswith("log"):
      values = np.copysign(np.log1p(np.abs(values)), values)
    if _needs_idf(self.kind):
      values = values * self._idf_of(csr)
    out = dataclasses.replace(csr, values=values.astype(np.float32))
    return _normalise(out) if self.l2 else out

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields that fit in JSON; the caller keeps `idf` as an array.

    Returns:
      `{"kind": ..., "l2": ...}`, so that `Weighting(**d, idf=idf)` is this.
    """
    return {"kind": self.kind, "l2": self.l2}

  def _idf_of(self, csr: csr_lib.Csr) -> np.ndarray:
    assert self.idf is not None
    if csr.num_columns > len(self.idf):
      raise ValueError(
        f"Rows of {csr.num_columns} features, but the weighting was fitted on "
        f"{len(self.idf)}."
      )
    return self.idf[csr.indices]  # [nnz]


def fit(
  kind: str,
  statistics: statistics_lib.Statistics,
  *,
  l2: bool | None = None,
  smooth: bool = False,
) -> Weighting:
  """Chooses a weighting for a training split.

  Args:
    kind: one of `KINDS`, or "auto": log_tfidf and L2 for counts, tfidf and L2
      for binary features, and nothing for weighted, normalised and dense ones.
    statistics: of the training split.
    l2: whether rows are scaled to norm 1; by default what "auto" says, and for
      other kinds yes unless the kind is "none".
    smooth: which idf, see `statistics.inverse_document_frequency`.

  Returns:
    The weighting.

  Raises:
    ValueError: on an unknown kind, or when dense features are to be weighted.
  """
  if kind not in (*KINDS, "auto"):
    raise ValueError(f"Unknown weighting {kind!r}; one of {(*KINDS, 'auto')}.")
  default_l2 = kind != "none"
  if kind == "auto":
    kind, default_l2 = _AUTO[statistics.feature_kind]
  l2 = default_l2 if l2 is None else l2
  dense = statistics.feature_kind == "dense"
  if dense and (l2 or kind != "none"):
    raise ValueError(
      f"Weighting {kind!r} with l2={l2} is for sparse features; dense features "
      "take 'none' without l2."
    )
  idf = None
  if _needs_idf(kind):
    assert statistics.document_frequency is not None
    idf = statistics_lib.inverse_document_frequency(
      statistics.document_frequency, statistics.num_rows, smooth=smooth
    )
  return Weighting(kind, l2, idf)


def _needs_idf(kind: str) -> bool:
  return kind.endswith("tfidf")


def _normalise(csr: csr_lib.Csr) -> csr_lib.Csr:
  assert csr.values is not None
  norms = statistics_lib.row_norms(csr)  # [n]
  scale = np.divide(1, norms, out=np.ones_like(norms), where=norms > 0)
  values = csr.values * np.repeat(scale, np.diff(csr.indptr))
  return dataclasses.replace(csr, values=values)
