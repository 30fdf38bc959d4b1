"""Values of weighted features, against formulas and scikit-learn."""

import pickle

import numpy as np
import pytest
from sklearn.feature_extraction import text

from xlj.data import csr as csr_lib
from xlj.data import statistics as statistics_lib
from xlj.data import weighting


def _block(values=True):
  return csr_lib.Csr.from_rows(
    [[0, 2], [], [1, 2, 3], [3]],
    5,
    [[1.0, 4.0], [], [2.0, 1.0, 7.0], [3.0]] if values else None,
  )


def _statistics(kind="counts", block=None):
  block = block or _block()
  return statistics_lib.Statistics(
    num_rows=block.num_rows,
    label_counts=np.ones(3, np.int64),
    document_frequency=statistics_lib.column_counts(block),
    feature_kind=kind,
  )


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("kind", weighting.KINDS)
@pytest.mark.parametrize("values", [False, True])
def test_formulas(kind, l2, values):
  block = _block(values)
  got = weighting.fit(kind, _statistics(), l2=l2)(block)
  dense = block.to_scipy().toarray()
  if kind.startswith("log"):
    dense = np.log1p(dense)
  if kind.endswith("tfidf"):
    frequency = np.maximum((_block().to_scipy().toarray() > 0).sum(axis=0), 1)
    dense = dense * np.log(4 / frequency)
  if l2:
    dense = dense / np.maximum(np.linalg.norm(dense, axis=1), 1e-9)[:, None]
  np.testing.assert_allclose(got.to_scipy().toarray(), dense, rtol=1e-5)
  assert got.values is not None and got.values.dtype == np.float32


def test_smooth_tfidf_is_that_of_scikit_learn():
  rng = np.random.default_rng(0)
  dense = rng.poisson(0.4, (50, 30)) + np.eye(50, 30)
  block = csr_lib.Csr.from_scipy(dense_to_csr(dense))
  got = weighting.fit("tfidf", _statistics(block=block), smooth=True)(block)
  expected = text.TfidfTransformer().fit_transform(dense_to_csr(dense))
  np.testing.assert_allclose(
    got.to_scipy().toarray(), expected.toarray(), rtol=1e-5
  )


def dense_to_csr(dense):
  from scipy import sparse

  return sparse.csr_array(dense)


def test_rows_of_zeros_stay_zero():
  block = csr_lib.Csr.from_rows([[0, 1], [], [2]], 3, [[0.0, 0.0], [], [5.0]])
  got = weighting.Weighting("log", True)(block)
  np.testing.assert_allclose(got.values, [0, 0, 1], rtol=1e-6)


def test_a_feature_that_all_rows_have_gives_zero_and_no_nan():
  block = csr_lib.Csr.from_rows([[0], [0]], 1, [[2.0], [3.0]])
  got = weighting.fit("log_tfidf", _statistics(block=block))(block)
  np.testing.assert_array_equal(got.values, [0, 0])


def test_negative_values_keep_their_sign():
  block = csr_lib.Csr.from_rows([[0, 1]], 2, [[-3.0, 3.0]])
  got = weighting.Weighting("log", False)(block)
  np.testing.assert_allclose(got.values, [-np.log(4), np.log(4)], rtol=1e-6)


def test_the_block_is_left_unchanged():
  block = _block()
  before = block.values.copy()
  weighting.fit("log_tfidf", _statistics())(block)
  np.testing.assert_array_equal(block.values, before)


@pytest.mark.parametrize(
  "feature_kind, expected",
  [
    ("counts", ("log_tfidf", True)),
    ("binary", ("tfidf", True)),
    ("weighted", ("none", False)),
    ("normalised", ("none", False)),
    ("dense", ("none", False)),
  ],
)
def test_auto(feature_kind, expected):
  got = weighting.fit("auto", _statistics(feature_kind))
  assert (got.kind, got.l2) == expected


def test_l2_defaults_and_overrides():
  statistics = _statistics("weighted")
  assert not weighting.fit("none", statistics).l2
  assert weighting.fit("none", statistics, l2=True).l2
  assert weighting.fit("log", statistics).l2
  assert weighting.fit("auto", statistics, l2=True).l2


def test_survives_pickling_and_a_dictionary():
  fitted = weighting.fit("tfidf", _statistics())
  copies = (
    pickle.loads(pickle.dumps(fitted)),
    weighting.Weighting(**fitted.to_dict(), idf=fitted.idf),
  )
  for copy in copies:
    np.testing.assert_array_equal(
      copy(_block()).values, fitted(_block()).values
    )


def test_refusals():
  with pytest.raises(ValueError, match="Unknown weighting 'idf'; one of"):
    weighting.fit("idf", _statistics())
  with pytest.raises(ValueError, match="needs idf"):
    weighting.Weighting("tfidf", True)
  with pytest.raises(ValueError, match="for sparse features"):
    weighting.fit("none", _statistics("dense"), l2=True)
  wide = csr_lib.Csr.from_rows([[6]], 7, [[1.0]])
  with pytest.raises(ValueError, match="7 features, .* fitted on 5"):
    weighting.fit("tfidf", _statistics())(wide)
