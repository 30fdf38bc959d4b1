"""Exact answers: the same as of all scores, sorted."""

import numpy as np
import pytest
import scipy.sparse

from xlj import processors
from xlj.search import exact

L, D = 1003, 19  # divisible by nothing


@pytest.fixture(autouse=True, params=["loops", "BLAS"])
def two_processors(request, monkeypatch):
  """Small searches too are shared out, and multiplied in both ways."""
  monkeypatch.setattr(exact, "_ALONE", 0)
  monkeypatch.setattr(processors, "usable", lambda: 2)
  if request.param == "BLAS":
    monkeypatch.setattr(exact, "_MANY", 1)
    monkeypatch.setattr(exact, "_PRODUCTS", 0)
    monkeypatch.setattr(exact, "_BLOCK", 70)


@pytest.fixture(scope="module")
def made():
  """Whole numbers, whose scores are exact in any order, with equal rows."""
  generator = np.random.default_rng(0)
  rows = generator.integers(-9, 10, (L, D)).astype(np.float32)
  rows[:, 0] = 127  # of which int8 has a scale of 1
  rows[[11, 500, 1002]] = rows[7]
  bias = generator.integers(-50, 50, L).astype(np.float32)
  bias[[11, 500, 1002]] = bias[7]
  x = generator.integers(-9, 10, (300, D)).astype(np.float32)
  x[0] = rows[7]
  return rows, bias, x


def expected(x, rows, bias, k, allowed=None, threshold=-np.inf):
  scores = x @ rows.T + bias
  scores[scores < threshold] = -np.inf
  if allowed is not None:
    scores = np.where(allowed, scores, -np.inf)
  ids = np.argsort(-scores, 1, kind="stable")[:, :k]
  scores = np.take_along_axis(scores, ids, 1)
  return scores, np.where(scores == -np.inf, -1, ids)


def check(found, wanted):
  np.testing.assert_array_equal(found[1], wanted[1])
  np.testing.assert_array_equal(found[0], wanted[0])


@pytest.mark.parametrize("dtype", exact.DTYPES)
def test_all_rows_of_a_type(made, dtype):
  rows, bias, x = made
  stored = exact.stored(rows, dtype, bias)
  np.testing.assert_array_equal(stored.widened(), rows)
  for n, k in ((1, 1), (3, 10), (4, 2), (18, L), (300, 10), (0, 5)):
    found = exact.topk(x[:n], stored, k)
    check(found, expected(x[:n], rows, bias, k))
    assert [a.dtype for a in found] == [np.float32, np.int64]


def test_of_many_examples_each_processor_has_some(made, monkeypatch):
  rows, bias, x = made
  monkeypatch.setattr(exact, "_EXAMPLES", 32)
  found = exact.topk(x, exact.stored(rows, bias=bias), 5)
  check(found, expected(x, rows, bias, 5))


def test_int8_and_bfloat16_are_rounded_to_the_nearest():
  rows = np.array([[1, -2.54, 0.013], [0, 0, 0]], np.float32)
  stored = exact.stored(rows, "int8")
  assert stored.values.tolist() == [[50, -127, 1], [0, 0, 0]]
  assert stored.scale[0] == pytest.approx(0.02)
  ml_dtypes = pytest.importorskip("ml_dtypes")
  rows = np.random.default_rng(0).normal(size=(99, 5)).astype(np.float32)
  half = rows.astype(ml_dtypes.bfloat16)
  stored = exact.stored(rows, "bfloat16")
  np.testing.assert_array_equal(stored.values, half.view(np.uint16))
  given = exact.Rows(half)
  np.testing.assert_array_equal(given.widened(), half.astype(np.float32))


def test_allowed_denied_and_a_threshold(made):
  rows, bias, x = made
  x = x[:6]
  stored = exact.stored(rows, bias=bias)
  generator = np.random.default_rng(1)
  _, best = expected(x, rows, bias, L)
  each = [best[n, : 50 * n].tolist() for n in range(6)]  # the best ones
  named = np.zeros((6, L), bool)
  for n, ids in enumerate(each):
    named[n, ids] = True
  few = [7, 1002, 500, 500, 3]
  of_few = np.isin(np.arange(L), few)
  half = generator.permutation(L)[: L // 2]
  of_half = np.isin(np.arange(L), half)
  padded = np.full((6, 251), -1)
  for n, ids in enumerate(each):
    padded[n, : len(ids)] = ids
  for forms, allowed in (
    ((each, padded, scipy.sparse.csr_array(named)), named),
    ((few, np.array(few), set(few)), of_few[None]),
    ((half,), of_half[None]),
  ):
    for form in forms:
      for k in (4, L):
        check(
          exact.topk(x, stored, k, exclude=form),
          expected(x, rows, bias, k, ~allowed),
        )
        check(
          exact.topk(x, stored, k, among=form),
          expected(x, rows, bias, k, allowed),
        )
  check(
    exact.topk(x, stored, 9, among=half, exclude=each, threshold=120.0),
    expected(x, rows, bias, 9, of_half & ~named, 120.0),
  )
  # A score may be equal to the threshold, and no float32 need be.
  top = expected(x, rows, bias, 1)[0][0, 0]
  for off, passes in ((0, True), (-1e-9, True), (1e-9, False)):
    scores, _ = exact.topk(x[:1], stored, 3, threshold=float(top) + off)
    assert (scores[0] == top).any() == passes


def test_rows_of_a_file_are_mapped(made, tmp_path):
  rows, bias, x = made
  np.save(tmp_path / "rows.npy", rows)
  mapped = exact.Rows(np.load(tmp_path / "rows.npy", mmap_mode="r"), None, bias)
  assert mapped.values.base is not None  # nothing was copied
  check(exact.topk(x, mapped, 10), expected(x, rows, bias, 10))


def test_scores_that_are_no_numbers_are_passed_over(made):
  rows, bias, x = made
  x = x[:2].copy()
  x[1, 3] = np.nan
  scores, ids = exact.topk(x, exact.stored(rows, bias=bias), 2)
  assert (ids[1] == -1).all() and (scores[1] == -np.inf).all()
  assert (ids[0] >= 0).all()


def test_recall_counts_what_is_found():
  found, true = np.array([[3, 1], [5, 6]]), np.array([[1, 2], [6, -1]])
  assert exact.recall(found, true) == 2 / 3


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"k": 0}, r"k is 0; it must be a whole number in \[1, 1003\]"),
    ({"k": L + 1}, "k is 1004"),
    ({"x": np.zeros((2, 3))}, r"x is \(2, 3\); give \[n, 19\]"),
    ({"threshold": np.nan}, "threshold is nan; give a score, or None"),
    ({"exclude": [L]}, "exclude has 1003; there are rows 0 to 1002"),
    ({"among": [[1]]}, "among is of 1 examples, and there are 2"),
  ],
)
def test_what_does_not_fit_is_refused(made, change, message):
  rows, _, x = made
  given = {"x": x[:2], "rows": exact.Rows(rows), "k": 3} | change
  with pytest.raises(ValueError, match=message):
    exact.topk(given.pop("x"), given.pop("rows"), given.pop("k"), **given)


def test_rows_that_are_none_are_refused():
  with pytest.raises(ValueError, match=r"rows are float64 \(2, 3\); give"):
    exact.Rows(np.zeros((2, 3)))
  with pytest.raises(ValueError, match=r"bias is \(3,\); give one of 2"):
    exact.Rows(np.zeros((2, 3), np.float32), bias=np.zeros(3))
  with pytest.raises(ValueError, match="dtype is 'int4'; give one of float32"):
    exact.stored(np.zeros((2, 3), np.float32), "int4")
