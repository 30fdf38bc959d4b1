"""What is counted once about a training split, and kept beside its cache.

Legend: N rows, F features, L labels, G groups of labels.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any, Literal

from absl import logging
import numpy as np

from xlj import files
from xlj.data import cache
from xlj.data import csr as csr_lib
from xlj.data import store

FeatureKind = Literal["binary", "counts", "weighted", "normalised", "dense"]

_VERSION = 2
_CHUNK = 2**22  # entries read at a time
_SAMPLE_ROWS = 4096
# Values are often written with 3 or 4 digits.
_NORM_TOLERANCE = 5e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
  """Counts over a training split.

  Attributes:
    num_rows: N.
    label_counts: int64 [L], rows that have each label, and of sequences how
      often it is in them; None if not counted.
    document_frequency: int64 [F], rows that have each feature; None for dense
      features.
    feature_kind: what the feature values look like, see `feature_kind`.
  """

  num_rows: int
  label_counts: np.ndarray | None
  document_frequency: np.ndarray | None
  feature_kind: FeatureKind


@dataclasses.dataclass(frozen=True, eq=False)
class LabelGroups:
  """Labels grouped by how often they occur, see `label_groups`.

  Attributes:
    group: int32 [L], group of each label; 0 holds the most frequent ones.
    sizes: int64 [G], labels in each group.
    lowest: int64 [G], smallest count in each group; 0 for an empty group.
    highest: int64 [G], largest count in each group; 0 for an empty group.
  """

  group: np.ndarray
  sizes: np.ndarray
  lowest: np.ndarray
  highest: np.ndarray


def load_or_compute(
  split: store.Split,
  directory: pathlib.Path | None,
  *,
  by_label: bool = True,
) -> Statistics:
  """Returns the statistics of a split, computed on the first call only.

  Args:
    split: the training data, read in one stream.
    directory: where `statistics.npz` is kept, usually the cache directory of
      the split; None keeps nothing. A directory that cannot be written is
      reported in the log and otherwise ignored.
    by_label: False counts no labels, of which there may be too many for an
      array.

  Returns:
    The statistics.
  """
  path = None
  if directory is not None:
    kept = "statistics.npz" if by_label else "feature_statistics.npz"
    path = directory / kept
  if path is not None:
    stored = _load(path, split)
    if stored is not None:
      return stored
  if path is None:
    return compute(split, by_label=by_label)
  with cache.alone(path):
    stored = _load(path, split)
    if stored is not None:
      return stored
    computed = compute(split, by_label=by_label)
    try:
      _save(path, split.fingerprint, computed)
    except OSError as error:
      logging.warning("Could not keep statistics in %s: %s", path, error)
  return computed


def compute(split: store.Split, *, by_label: bool = True) -> Statistics:
  """Counts in one stream over a split.

  Args:
    split: the training data.
    by_label: False counts no labels.

  Returns:
    The statistics.
  """
  features = split.features
  sparse = isinstance(features, csr_lib.Csr)
  frequency = column_counts(features) if sparse else None
  label_counts = column_counts(split.labels) if by_label else None
  if split.sequential and label_counts is not None:
    label_counts += frequency
  return Statistics(
    num_rows=split.num_rows,
    label_counts=label_counts,
    document_frequency=frequency,
    feature_kind=feature_kind(features),
  )


def column_counts(csr: csr_lib.Csr) -> np.ndarray:
  """Counts the entries of each column: label counts, document frequencies.

  Args:
    csr: a matrix of any size, read in chunks.

  Returns:
    int64 [csr.num_columns].
  """
  counts = np.zeros(csr.num_columns, np.int64)
  # A chunk at least as long as the counts, or adding them up dominates.
  chunk = max(_CHUNK, csr.num_columns)
  for start in range(0, csr.nnz, chunk):
    part = np.asarray(csr.indices[start : start + chunk])
    counts += np.bincount(part, minlength=csr.num_columns)
  return counts


def propensities(
  counts: np.ndarray, num_rows: int, a: float = 0.55, b: float = 1.5
) -> np.ndarray:
  r"""Returns the propensity of each label, Jain et al. 2016, equation 4.

  $$p_l = 1 / (1 + C e^{-A \ln(N_l + B)}), \quad C = (\ln N - 1)(B + 1)^A$$

  Where it is negative, with one row or two, C is taken as 0: they do not tell
  rare labels, and all propensities are 1.

  Source: Jain, Prabhu, Varma, "Extreme Multi-label Loss Functions for
  Recommendation, Tagging, Ranking & Other Missing Label Applications", KDD
  2016. The usual settings are A 0.55, B 1.5, and A 0.5, B 0.4 for Wikipedia
  and A 0.6, B 2.6 for Amazon sets.

  Args:
    counts: int [L], N_l, rows of the training split that have each label.
    num_rows: N, rows of the training split.
    a: A.
    b: B.

  Returns:
    float32 [L] in (0, 1], ascending in the counts.

  Raises:
    ValueError: when b is not positive.
  """
  if b <= 0:
    raise ValueError(f"Propensities need a positive b, got {b}.")
  c = max(np.log(num_rows) - 1, 0.0) * (b + 1) ** a
  inverse = 1 + c * (counts.astype(np.float64) + b) ** -a  # [L]
  return (1 / inverse).astype(np.float32)


def inverse_document_frequency(
  document_frequency: np.ndarray, num_rows: int, *, smooth: bool = False
) -> np.ndarray:
  """Returns log(N / df), or its smooth variant log((1 + N) / (1 + df)) + 1.

  The plain variant drops features that all rows have; the smooth one (that of
  scikit-learn) keeps them with weight 1. A feature that no training row has
  gets 0 in both: nothing can be known about it, and any other value would
  only add noise, and shrink the known features of a row under an L2 norm.

  Args:
    document_frequency: int [F], rows of the training split with each feature.
    num_rows: N, rows of the training split.
    smooth: selects the smooth variant.

  Returns:
    float32 [F], not negative.
  """
  frequency = document_frequency.astype(np.float64)
  if smooth:
    idf = np.log((1 + num_rows) / (1 + frequency)) + 1
  else:
    idf = np.log(num_rows / np.maximum(frequency, 1))
  return np.where(frequency > 0, idf, 0).astype(np.float32)


def feature_kind(
  features: csr_lib.Csr | np.ndarray | store.ComputedRows,
) -> FeatureKind:
  """Tells from a sample of evenly spaced rows what feature values are.

  Args:
    features: sparse or dense features; at most 4,096 rows are read.

  Returns:
    "dense" if they are. For sparse features "binary" when all values are 0 or
    1, "counts" when they are whole numbers not below 0, "normalised" when at
    least 99 % of the rows that are not empty have an L2 norm of 1, and
    "weighted" otherwise.
  """
  if not isinstance(features, csr_lib.Csr):
    return "dense"
  if features.values is None:
    return "binary"
  step = max(1, -(-features.num_rows // _SAMPLE_ROWS))
  sample = features.take(np.arange(0, features.num_rows, step))
  values = sample.values
  assert values is not None
  if np.isin(values, (0, 1)).all():
    return "binary"
  if (values >= 0).all() and (values == np.floor(values)).all():
    return "counts"
  norms = row_norms(sample)
  unit = np.abs(norms[norms > 0] - 1) <= _NORM_TOLERANCE
  return "normalised" if unit.mean() >= 0.99 else "weighted"


def row_norms(csr: csr_lib.Csr) -> np.ndarray:
  """Returns the L2 norm of each row.

  Args:
    csr: a block of N rows.

  Returns:
    float32 [N], 0 for rows without entries.
  """
  lengths = np.diff(csr.indptr)
  if csr.values is None:
    return np.sqrt(lengths).astype(np.float32)
  row = np.repeat(np.arange(csr.num_rows), lengths)  # [nnz]
  squares = np.square(csr.values, dtype=np.float64)
  total = np.bincount(row, weights=squares, minlength=csr.num_rows)  # [N]
  return np.sqrt(total).astype(np.float32)


def label_groups(counts: np.ndarray, num_groups: int = 10) -> LabelGroups:
  """Groups labels by frequency so that groups hold equally many instances.

  Labels are sorted by descending count (ties by id), and a label belongs to
  group `floor(G * before / total)`, where `before` counts the label instances
  of the labels ahead of it. So each of the default deciles holds about 10 % of
  all label instances: few labels in group 0, very many in the last one, where
  the labels without any instance are too. One label with more than a share of
  the instances leaves the groups it covers empty.

  Args:
    counts: int [L], rows of the training split that have each label.
    num_groups: G.

  Returns:
    The group of each label, and the sizes and count ranges of the groups.
  """
  order = np.argsort(-counts, kind="stable")
  ranked = counts[order].astype(np.int64)
  before = np.cumsum(ranked) - ranked  # [L]
  ranked_group = before * num_groups // max(1, ranked.sum())
  # Labels without instances come after all instances.
  ranked_group = np.minimum(ranked_group, num_groups - 1)
  group = np.empty(len(counts), np.int32)
  group[order] = ranked_group
  sizes = np.bincount(ranked_group, minlength=num_groups)
  stop = np.cumsum(sizes)
  padded = np.append(ranked, 0)  # an index past the end for empty groups
  filled = sizes > 0
  return LabelGroups(
    group=group,
    sizes=sizes,
    lowest=np.where(filled, padded[stop - 1], 0),
    highest=np.where(filled, padded[stop - sizes], 0),
  )


def _load(path: pathlib.Path, split: store.Split) -> Statistics | None:
  """Reads stored statistics; None when absent, stale or damaged."""
  try:
    with np.load(path, allow_pickle=False) as file:
      if (int(file["version"]), str(file["fingerprint"])) != (
        _VERSION,
        split.fingerprint,
      ):
        return None
      kind: FeatureKind = str(file["feature_kind"])  # pyrefly: ignore
      return Statistics(
        num_rows=int(file["num_rows"]),
        label_counts=_unpacked(file, "label_counts", split.num_labels),
        document_frequency=_unpacked(
          file, "document_frequency", split.num_features
        ),
        feature_kind=kind,
      )
  except Exception:  # whatever NumPy and zipfile say of damage
    return None


def _save(path: pathlib.Path, fingerprint: str, what: Statistics) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with (
    files.replacing(path) as partial,
    partial.open("wb") as file,
  ):
    np.savez(
      file,
      version=_VERSION,
      fingerprint=fingerprint,
      num_rows=what.num_rows,
      feature_kind=what.feature_kind,
      **_packed("label_counts", what.label_counts),
      **_packed("document_frequency", what.document_frequency),
    )


def _packed(name: str, counts: np.ndarray | None) -> dict[str, Any]:
  """Counts as arrays that are no longer than the data: without the zeros."""
  if counts is None:
    return {}
  ids = np.flatnonzero(counts)
  return {f"{name}.ids": ids.astype(np.int32), name: counts[ids]}


def _unpacked(
  file: Mapping[str, np.ndarray], name: str, width: int
) -> np.ndarray | None:
  """What `_packed` was given, of a split that may be wider since."""
  if name not in file:
    return None
  counts = np.zeros(width, np.int64)
  counts[file[f"{name}.ids"]] = file[name]
  return counts
