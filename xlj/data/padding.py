"""How ragged rows become rectangles: padded widths, caps and what they cut.

Legend: N rows, n rows of a block.
"""

from collections.abc import Sequence
import dataclasses

from absl import logging
import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import store

# Widths are rounded up to these multiples, so that data sets that differ by a
# few entries share their shapes and vector units are filled.
FEATURE_MULTIPLE = 8
LABEL_MULTIPLE = 4
# The default widths hold the longest row of this share of all batches, besides
# the width that holds the longest row of all: two widths for each of features
# and labels, so at most four compiled programs.
_SHARES = (0.9,)
_SHARES_ALIKE = (0.25, 0.5, 0.75, 0.9)  # of rows, if batches are alike
_CHUNK = 2**20


@dataclasses.dataclass(frozen=True)
class Axis:
  """The widths that one kind of entry (features or labels) is padded to.

  Attributes:
    sizes: ascending widths to choose from.
    cap: most entries that a row keeps; 0 for all.
    multiple: a batch beyond the last size is padded to a multiple of this.
  """

  sizes: tuple[int, ...]
  cap: int = 0
  multiple: int = 1

  def of(self, csr: csr_lib.Csr, rows: np.ndarray) -> int:
    """Returns the width for a global batch; nothing but the cap cuts.

    Args:
      csr: the matrix that the rows belong to.
      rows: int [n], the rows of the global batch, without padding.

    Returns:
      The smallest size that holds the longest of the rows after the cap.
    """
    lengths = csr.indptr[rows + 1] - csr.indptr[rows]  # [n]
    longest = int(lengths.max(initial=0))
    if self.cap:
      longest = min(longest, self.cap)
    for size in self.sizes:
      if size >= longest:
        return size
    return _round_up(longest, self.multiple)


@dataclasses.dataclass(frozen=True)
class Widths:
  """Padded widths of a batch.

  Attributes:
    features: widths of sparse features; unused by dense ones.
    labels: widths of label lists.
  """

  features: Axis
  labels: Axis


def plan(
  split: store.Split,
  *,
  batch_size: int,
  rows: np.ndarray | None = None,
  max_features: int = 0,
  max_labels: int = 0,
  feature_sizes: Sequence[int] = (),
  label_sizes: Sequence[int] = (),
  apart: float = 1.0,
  alike: bool = False,
) -> Widths:
  """Chooses the widths for batches of a split, and logs what caps cut.

  The longest of B rows drawn at random is at most w with probability F(w)^B,
  where F is the distribution of row lengths; so the width that holds a share
  q of the batches is the quantile q^(1/B) of the lengths.

  Args:
    split: the data set; reads its row lengths, and nothing else.
    batch_size: examples of the *global* batch.
    rows: int [n], the rows that batches are made of; by default all.
    max_features: most features that a row keeps; 0 for all. A row that has
      more keeps those of the largest absolute weighted value.
    max_labels: most labels that a row keeps; 0 for all. A row that has more
      keeps those with the smallest ids.
    feature_sizes: replaces the widths chosen here.
    label_sizes: replaces the widths chosen here.
    apart: the smaller width is left out unless the longest row is more than so
      many times as long: a step that costs what the rows have, and not what
      they are padded to, is not worth two compiled programs.
    alike: whether the rows of a batch are of about the same length; the widths
      then are quantiles of the lengths themselves.

  Returns:
    The widths. A batch longer than all of them gets a width of its own.

  Raises:
    ValueError: when a cap or size is negative.
  """
  if min((max_features, max_labels, *feature_sizes, *label_sizes)) < 0:
    raise ValueError(
      f"Caps and widths must not be negative, got max_features "
      f"{max_features}, max_labels {max_labels}, feature_sizes "
      f"{tuple(feature_sizes)}, label_sizes {tuple(label_sizes)}."
    )
  if max_features or max_labels:
    cuts(split, rows=rows, max_features=max_features, max_labels=max_labels)

  def axis(matrix, cap: int, sizes: Sequence[int], multiple: int) -> Axis:
    if not sizes and isinstance(matrix, csr_lib.Csr):
      counts = _length_counts(matrix, rows)
      if alike and matrix is split.features:
        sizes = _sizes(counts, _SHARES_ALIKE, cap, multiple)
      else:
        shares = [share ** (1 / batch_size) for share in _SHARES]
        sizes = _sizes(counts, shares, cap, multiple)
      sizes = [s for s in sizes if s == sizes[-1] or s * apart < sizes[-1]]
    return Axis(tuple(sorted(sizes)), cap, multiple)

  return Widths(
    axis(split.features, max_features, feature_sizes, FEATURE_MULTIPLE),
    axis(split.labels, max_labels, label_sizes, LABEL_MULTIPLE),
  )


def cuts(
  split: store.Split,
  *,
  rows: np.ndarray | None = None,
  max_features: int = 0,
  max_labels: int = 0,
) -> dict[str, int]:
  """Counts, and logs, what caps on the row lengths remove from a split.

  Args:
    split: the data set.
    rows: int [n], the rows that count; by default all.
    max_features: most features that a row keeps; 0 for all.
    max_labels: most labels that a row keeps; 0 for all.

  Returns:
    For `kind` in features and labels: `{kind}_total` entries, `{kind}_cut` of
    them removed, from `{kind}_rows_cut` rows. Dense features are left out.
  """
  out = {}
  kinds = (
    ("features", split.features, max_features),
    ("labels", split.labels, max_labels),
  )
  for kind, matrix, cap in kinds:
    if not isinstance(matrix, csr_lib.Csr):
      continue
    counts = _length_counts(matrix, rows)
    lengths = np.arange(len(counts))
    over = np.maximum(lengths - cap, 0) if cap else np.zeros_like(lengths)
    out[f"{kind}_total"] = int(counts @ lengths)
    out[f"{kind}_cut"] = int(counts @ over)
    out[f"{kind}_rows_cut"] = int(counts @ (over > 0))
    if out[f"{kind}_cut"]:
      logging.warning(
        "max_%s=%d cuts %d of %d %s, from %d rows.",
        kind,
        cap,
        out[f"{kind}_cut"],
        out[f"{kind}_total"],
        kind,
        out[f"{kind}_rows_cut"],
      )
  return out


def shorten(csr: csr_lib.Csr, width: int) -> csr_lib.Csr:
  """Cuts the rows that are longer than `width`.

  Args:
    csr: a block of rows, in memory.
    width: most entries that a row keeps.

  Returns:
    The block with, of each longer row, the entries of largest absolute value
    (of equal ones the first, which have the smallest columns); `csr` itself
    when none is.
  """
  lengths = np.diff(csr.indptr)
  if lengths.max(initial=0) <= width:
    return csr
  row = np.repeat(np.arange(len(lengths)), lengths)  # [nnz]
  if csr.values is None:
    order = np.arange(len(row))
  else:
    order = np.lexsort((-np.abs(csr.values), row))  # else as they stand
  rank = np.arange(len(row)) - np.repeat(csr.indptr[:-1], lengths)
  keep = np.zeros(len(row), bool)
  keep[order] = rank < width
  indptr = np.zeros_like(csr.indptr)
  np.cumsum(np.minimum(lengths, width), out=indptr[1:])
  values = None if csr.values is None else csr.values[keep]
  return csr_lib.Csr(indptr, csr.indices[keep], values, csr.num_columns)


def _sizes(
  counts: np.ndarray, shares: Sequence[float], cap: int, multiple: int
) -> list[int]:
  """Widths that hold shares of the rows, from a histogram of their lengths."""
  below = np.cumsum(counts) / max(1, counts.sum())  # F
  sizes = [int(np.searchsorted(below, share)) for share in (*shares, 1.0)]
  sizes = [
    _round_up(min(size, cap) if cap else size, multiple) for size in sizes
  ]
  return sorted(set(sizes))


def _round_up(size: int, multiple: int) -> int:
  return max(1, -(-size // multiple)) * multiple


def _length_counts(csr: csr_lib.Csr, rows: np.ndarray | None) -> np.ndarray:
  """How many rows have each length; int64 [longest + 1], read in chunks."""
  total = csr.num_rows if rows is None else len(rows)
  counts = np.zeros(1, np.int64)
  for start in range(0, total, _CHUNK):
    stop = min(start + _CHUNK, total)
    if rows is None:
      lengths = np.diff(csr.indptr[start : stop + 1])
    else:
      some = rows[start:stop]
      lengths = csr.indptr[some + 1] - csr.indptr[some]
    chunk = np.bincount(lengths)
    long, short = sorted((counts, chunk), key=len, reverse=True)
    counts = long.astype(np.int64)
    counts[: len(short)] += short
  return counts
