"""Data sets made worse on purpose: missing, wrong and long-tailed labels.

What a method gains can be measured where the complete, right labels are known.
Each function takes the labels of a training split and a seed, and returns those
that a method gets to see.

Legend: N rows, L labels, p the share of what is changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xlj.data import csr as csr_lib

_BLOCK = 4096  # labels compared with all others at a time
_FEATURES = 32
_FEW = 200


def single_positive(labels: csr_lib.Csr, seed: int) -> csr_lib.Csr:
  """Keeps one label of each row that has any, each with equal probability.

  Source: Cole et al. 2021, "Multi-label learning from single positive labels",
  section 5.

  Args:
    labels: [N, L].
    seed: of the choice.

  Returns:
    [N, L] with at most one label a row.
  """
  rng = np.random.default_rng(seed)
  lengths = labels.row_lengths
  chosen = labels.indptr[:-1] + rng.integers(0, np.maximum(lengths, 1))
  keep = np.zeros(labels.nnz, bool)
  keep[chosen[lengths > 0]] = True
  return _entries(labels, keep)


def missing(labels: csr_lib.Csr, share: float, seed: int) -> csr_lib.Csr:
  """Forgets each label of each row with probability `share`, independently.

  Args:
    labels: [N, L].
    share: p, in [0, 1].
    seed: of the choice.

  Returns:
    [N, L]; some rows may be left without a label.
  """
  _check_share(share)
  rng = np.random.default_rng(seed)
  return _entries(labels, rng.random(labels.nnz) >= share)


def symmetric_noise(
  labels: csr_lib.Csr, share: float, seed: int
) -> csr_lib.Csr:
  """Replaces each label by another one, drawn uniformly, with probability p.

  Args:
    labels: [N, L]; L is at least 2.
    share: p, in [0, 1].
    seed: of the choice.

  Returns:
    [N, L]; a row loses a label where the new one is among its others.
  """
  _check_share(share)
  _check_labels(labels)
  rng = np.random.default_rng(seed)
  wrong = rng.random(labels.nnz) < share
  # A step of 1 to L - 1 never comes back to where it started.
  step = rng.integers(1, labels.num_columns, labels.nnz)
  new = (labels.indices + step) % labels.num_columns
  return _replaced(labels, np.where(wrong, new, labels.indices))


def asymmetric_noise(
  labels: csr_lib.Csr, partner: np.ndarray, share: float, seed: int
) -> csr_lib.Csr:
  """Replaces each label by its partner with probability p.

  Args:
    labels: [N, L].
    partner: int [L], which label each one is mistaken for; see `partners`.
    share: p, in [0, 1].
    seed: of the choice.

  Returns:
    [N, L]; a row loses a label where the new one is among its others.
  """
  _check_share(share)
  wrong = np.random.default_rng(seed).random(labels.nnz) < share
  indices = np.asarray(labels.indices)
  return _replaced(labels, np.where(wrong, partner[indices], indices))


def partners(
  features: csr_lib.Csr | np.ndarray, labels: csr_lib.Csr
) -> np.ndarray:
  """The label that each one is most easily mistaken for.

  It is the one whose examples' mean features have the largest cosine with its
  own, as far as features go that at most 200 labels have, and of these the 32
  strongest of each. Labels without examples, or without anything
  in common with another, are mistaken for the next one.

  Args:
    features: [N, F].
    labels: [N, L]; L is at least 2.

  Returns:
    int32 [L], never the label itself.
  """
  import scipy.sparse

  _check_labels(labels)
  if isinstance(features, csr_lib.Csr):
    matrix = features.to_scipy()
  else:
    matrix = scipy.sparse.csr_array(np.asarray(features, np.float32))
  sums = labels.to_scipy().T.tocsr() @ matrix
  rare = np.asarray((sums != 0).sum(0)).reshape(-1) <= _FEW
  profiles = _strongest((sums @ scipy.sparse.diags_array(rare * 1.0)).tocsr())
  every = np.arange(labels.num_columns)
  out = (every + 1) % labels.num_columns
  for start in range(0, labels.num_columns, _BLOCK):
    block = every[start : start + _BLOCK]
    cosine = (profiles[block] @ profiles.T).tocoo()
    row, column = cosine.coords
    other = block[row] != column
    row, column, value = row[other], column[other], cosine.data[other]
    # Ascending, so that the best of each row is written last.
    order = np.lexsort((-column, value))
    order = order[value[order] > 0]
    out[block[row[order]]] = column[order]
  return out.astype(np.int32)


def long_tail(labels: csr_lib.Csr, imbalance: float, seed: int) -> np.ndarray:
  """Chooses rows so that the labels' counts fall exponentially.

  The r-th most frequent of the labels that occur is to have `n imbalance^(-r /
  (m - 1))` rows, with n those of the first one and m labels, but at least one
  (Cui et al. 2019, "Class-balanced loss based on effective number of samples",
  section 5.1). A row counts for the rarest of its labels, and is left out if
  that one has enough.

  Args:
    labels: [N, L].
    imbalance: How many times as many rows the first label is to have as the
      last one; at least 1. Labels that have fewer keep what they have.
    seed: of the choice among rows.

  Returns:
    int64 [n], the rows to keep, ascending.

  Raises:
    ValueError: when the imbalance is below 1.
  """
  if imbalance < 1:
    raise ValueError(f"the imbalance is {imbalance}; it must be at least 1")
  counts = np.bincount(labels.indices, minlength=labels.num_columns)
  order = np.argsort(-counts, kind="stable")
  num_labels = int((counts > 0).sum())
  rank = np.empty(labels.num_columns, np.int64)
  rank[order] = np.arange(labels.num_columns)
  share = np.minimum(rank / max(num_labels - 1, 1), 1)
  wanted = np.maximum(1, np.round(counts.max() * imbalance**-share))
  rows = np.flatnonzero(labels.row_lengths > 0)
  # Of each row, the label of the last rank.
  last = np.maximum.reduceat(rank[labels.indices], labels.indptr[:-1][rows])
  shuffled = np.random.default_rng(seed).permutation(len(rows))
  by_label = shuffled[np.argsort(last[shuffled], kind="stable")]
  ranks = last[by_label]
  # How many rows of the same label come before.
  place = np.arange(len(rows)) - np.searchsorted(ranks, ranks)
  return np.sort(rows[by_label[place < wanted[order[ranks]]]])


def _entries(labels: csr_lib.Csr, keep: np.ndarray) -> csr_lib.Csr:
  """The entries where `keep` [nnz] is True."""
  before = np.zeros(labels.nnz + 1, np.int64)
  np.cumsum(keep, out=before[1:])
  indices = np.asarray(labels.indices)[keep]
  return csr_lib.Csr(before[labels.indptr], indices, None, labels.num_columns)


def _strongest(matrix: Any) -> Any:
  """A sparse matrix's largest entries of each row, as rows of length 1."""
  import scipy.sparse

  rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
  order = np.lexsort((-np.abs(matrix.data), rows))
  order = order[matrix.data[order] != 0]
  starts = np.searchsorted(rows[order], rows[order])
  keep = order[np.arange(len(order)) - starts < _FEATURES]
  entries = matrix.data[keep], (rows[keep], matrix.indices[keep])
  out = scipy.sparse.csr_array(entries, shape=matrix.shape)
  norms = np.sqrt(np.asarray(out.multiply(out).sum(1)).reshape(-1))
  return scipy.sparse.diags_array(1 / np.where(norms > 0, norms, 1)) @ out


def _replaced(labels: csr_lib.Csr, indices: np.ndarray) -> csr_lib.Csr:
  """The rows with other labels, sorted, each once."""
  rows = np.repeat(np.arange(labels.num_rows), labels.row_lengths)
  pairs = np.unique(rows * labels.num_columns + indices)
  rows, indices = np.divmod(pairs, labels.num_columns)
  indptr = np.searchsorted(rows, np.arange(labels.num_rows + 1))
  return csr_lib.Csr(
    indptr.astype(np.int64), indices.astype(np.int32), None, labels.num_columns
  )


def _check_share(share: float) -> None:
  if not 0 <= share <= 1:
    raise ValueError(f"the share is {share}; it must be in [0, 1]")


def _check_labels(labels: csr_lib.Csr) -> None:
  if labels.num_columns < 2:
    raise ValueError("there is one label; no other can be taken for it")
