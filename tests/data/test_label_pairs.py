"""Pairs that meet, against counting them one by one."""

import collections

import numpy as np
import pytest
import scipy.sparse

from xlj.data import csr as csr_lib
from xlj.data import label_pairs
from xlj.ops.pairs import label_pairs as ops_label_pairs

ROWS, FEATURES, LABELS, SHAPE = 40, 9, 11, (4, 3)
LABEL_ROWS = np.array([0, 3, 6, 9, 1, 4, 7, 10, 2, 5, -1])  # the last has none


def problem():
  rng = np.random.default_rng(0)
  x = rng.random((ROWS, FEATURES)) * (rng.random((ROWS, FEATURES)) < 0.3)
  y = rng.random((ROWS, LABELS)) < 0.2
  features, labels = (
    csr_lib.Csr.from_rows(
      [np.flatnonzero(row) for row in a],
      a.shape[1],
      [row[row != 0] for row in a] if a is x else None,
    )
    for a in (x, y)
  )
  return features, labels, x, y


def evidence(x, y, rows):
  found = collections.Counter()
  for i in rows:
    for f in np.flatnonzero(x[i]):
      for label in np.flatnonzero(y[i]):
        if LABEL_ROWS[label] >= 0:
          found[int(f), int(LABEL_ROWS[label])] += (2 * x[i, f]) ** 2
  return found


def listed(pairs):
  """Feature and label row of each pair, by block, feature and row."""
  found = []
  for b, starts in enumerate(pairs.starts):
    for f in range(FEATURES):
      part = pairs.columns[b, starts[f] : starts[f + 1]].astype(int)
      assert (np.diff(part) > 0).all()
      found += [(f, b * SHAPE[1] + row) for row in part.tolist()]
  assert len(set(found)) == len(found) == pairs.kept
  return set(found)


def find(features, labels, rows, **limits):
  def twice(block):
    return csr_lib.Csr(
      block.indptr, block.indices, 2 * block.values, block.num_columns
    )

  return label_pairs.find(
    *(features, labels, LABEL_ROWS, SHAPE),
    rows=rows,
    weighting=twice,
    limits=label_pairs.Limits(**limits),
  )


@pytest.mark.parametrize("entries", [1, 30, 2**22])
@pytest.mark.parametrize("least", [0, 1.5])
def test_finds_what_meets_in_the_rows_however_they_are_read(
  monkeypatch, entries, least
):
  monkeypatch.setattr(label_pairs, "_ENTRIES", entries)
  features, labels, x, y = problem()
  rows = np.arange(3, ROWS)
  found = find(features, labels, rows, evidence=least)
  expected = evidence(x, y, rows)
  assert listed(found) == {p for p, e in expected.items() if e >= least}
  assert found.found == len(expected)


@pytest.mark.parametrize("side", [0, 1])
def test_keeps_the_pairs_with_most_evidence(side):
  features, labels, x, y = problem()
  rows = np.arange(ROWS)
  name = ("per_feature", "per_label")[side]
  found = listed(find(features, labels, rows, **{name: 2}))
  expected = evidence(x, y, rows)
  for owner in {p[side] for p in expected}:
    own = [p for p in expected if p[side] == owner]
    best = sorted(own, key=expected.get)[-2:]
    assert {p for p in found if p[side] == owner} == set(best)


def test_all_are_kept_as_long_as_a_pass_visits_few():
  features, labels, x, y = problem()
  rows = np.arange(ROWS)
  expected = evidence(x, y, rows)
  own = collections.Counter(f for f, _ in expected)
  work = sum(own[f] for i in rows for f in np.flatnonzero(x[i]).tolist())
  assert listed(find(features, labels, rows, evidence=1.5, work=work)) == set(
    expected
  )
  fewer = listed(find(features, labels, rows, evidence=1.5, work=work - 1))
  assert fewer == {p for p, e in expected.items() if e >= 1.5} < set(expected)


def test_no_rows_have_no_pairs():
  features, labels, _, _ = problem()
  found = find(features, labels, np.arange(0))
  assert found.kept == 0 and found.columns.shape == (SHAPE[0], 1)


@pytest.mark.parametrize("rows_per_block", [2**16, 2**16 + 1])
def test_columns_are_as_wide_as_the_head_takes_them(rows_per_block):
  none = scipy.sparse.csr_array((1, rows_per_block))
  _, columns, _ = label_pairs.by_block(none, (1, rows_per_block))
  assert columns.dtype == ops_label_pairs.column_dtype(rows_per_block)
