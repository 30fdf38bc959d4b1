"""Counts, propensities, groups, and how they are kept."""

import dataclasses
import os
import pathlib

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from tests import runs
from xlj.data import csr as csr_lib
from xlj.data import statistics
from xlj.data import store
from xlj.model import label_values


def _split(values=((2.0, 1.0), (), (3.0,), (1.0, 5.0)), fingerprint="abc"):
  columns = ((0, 3), (), (3,), (1, 3))
  return store.Split(
    features=csr_lib.Csr.from_rows(
      [list(c) for c in columns], 5, [list(v) for v in values]
    ),
    labels=csr_lib.Csr.from_rows([[0], [0, 2], [], [0]], 4),
    filter=None,
    name="made",
    fingerprint=fingerprint,
  )


def _features(values):
  rows = [list(range(len(row))) for row in values]
  return csr_lib.Csr.from_rows(rows, 8, [list(row) for row in values])


def test_counts():
  got = statistics.compute(_split())
  assert got.num_rows == 4
  np.testing.assert_array_equal(got.label_counts, [3, 0, 1, 0])
  np.testing.assert_array_equal(got.document_frequency, [1, 1, 0, 3, 0])
  assert got.feature_kind == "counts"
  assert got.label_counts.dtype == np.int64


def test_counts_in_chunks(monkeypatch):
  monkeypatch.setattr(statistics, "_CHUNK", 7)
  indices = np.arange(1000, dtype=np.int32) % 3
  csr = csr_lib.Csr(np.arange(1001), indices, None, 4)
  np.testing.assert_array_equal(
    statistics.column_counts(csr), [334, 333, 333, 0]
  )


def test_propensities_by_hand():
  # N = 1000, N_l = 10: C = (ln 1000 - 1) * 2.5 ** 0.55 = 9.7788...
  c = (6.907755278982137 - 1) * 2.5**0.55
  expected = 1 / (1 + c * np.exp(-0.55 * np.log(11.5)))
  got = statistics.propensities(np.array([10, 0, 1000]), 1000)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got[0], expected, rtol=1e-6)
  other = statistics.propensities(np.array([10]), 1000, a=0.5, b=0.4)
  c = (6.907755278982137 - 1) * 1.4**0.5
  np.testing.assert_allclose(other[0], 1 / (1 + c / 10.4**0.5), rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
  st.lists(st.integers(0, 10**6), min_size=1, max_size=50),
  st.integers(3, 10**9),
)
def test_propensities_are_probabilities_and_ascend(counts, num_rows):
  got = statistics.propensities(np.sort(np.array(counts)), num_rows)
  assert ((got > 0) & (got <= 1)).all()
  assert (np.diff(got) >= 0).all()


def test_propensities_refuse():
  with pytest.raises(ValueError, match="got"):
    statistics.propensities(np.ones(2), 100, b=0.0)


@pytest.mark.parametrize("num_rows", [1, 2])
def test_one_row_or_two_do_not_tell_rare_labels(num_rows):
  got = statistics.propensities(np.arange(num_rows + 1), num_rows)
  np.testing.assert_array_equal(got, 1)
  config = runs.resolved(predict__propensity_power=0.5)
  config.data.num_rows = num_rows
  counts = jnp.arange(num_rows + 1)
  offset = label_values.offset(config, counts)
  np.testing.assert_array_equal(offset, 0)


def test_inverse_document_frequency():
  frequency = np.array([100, 10, 1, 0])
  plain = statistics.inverse_document_frequency(frequency, 100)
  np.testing.assert_allclose(plain, [0, np.log(10), np.log(100), 0], rtol=1e-6)
  smooth = statistics.inverse_document_frequency(frequency, 100, smooth=True)
  expected = [1, np.log(101 / 11) + 1, np.log(101 / 2) + 1, 0]
  np.testing.assert_allclose(smooth, expected, rtol=1e-6)


@pytest.mark.parametrize(
  "expected, values",
  [
    ("binary", [[1, 1], [], [1]]),
    ("binary", [[], []]),
    ("counts", [[1, 2], [0, 3]]),
    ("weighted", [[-1, 2], [1]]),
    ("weighted", [[0.5, 2], [1]]),
    ("normalised", [[0.6, 0.8], [], [0.7071, 0.7071]]),
    ("weighted", [[0.6, 0.8], [0.5]]),
  ],
)
def test_feature_kinds(expected, values):
  assert statistics.feature_kind(_features(values)) == expected


def test_feature_kinds_without_values():
  assert statistics.feature_kind(_split().labels) == "binary"
  assert statistics.feature_kind(np.zeros((3, 2), np.float32)) == "dense"


def test_feature_kind_reads_a_bounded_sample():
  lengths = []

  class Watched(csr_lib.Csr):
    def take(self, rows):
      lengths.append(len(rows))
      return super().take(rows)

  n = 10**6
  csr = Watched(
    np.arange(n + 1), np.zeros(n, np.int32), np.full(n, 2, np.float32), 1
  )
  assert statistics.feature_kind(csr) == "counts"
  assert sum(lengths) <= 4096


def test_groups_hold_equal_shares_of_instances():
  counts = np.random.default_rng(0).zipf(1.6, 20000).clip(max=2000)
  groups = statistics.label_groups(counts)
  shares = np.bincount(groups.group, weights=counts) / counts.sum()
  np.testing.assert_allclose(shares, 0.1, atol=0.01)
  assert groups.sizes[-1] > groups.sizes[5] > groups.sizes[0]
  np.testing.assert_array_equal(groups.sizes, np.bincount(groups.group))
  for index in range(10):
    members = counts[groups.group == index]
    assert members.min() == groups.lowest[index]
    assert members.max() == groups.highest[index]
  assert (groups.lowest[:-1] >= groups.highest[1:]).all()


def test_groups_of_odd_counts():
  groups = statistics.label_groups(np.array([0, 90, 5, 0, 5]))
  np.testing.assert_array_equal(groups.group, [9, 0, 9, 9, 9])
  np.testing.assert_array_equal(groups.sizes, [1] + [0] * 8 + [4])
  np.testing.assert_array_equal(groups.lowest, [90] + [0] * 9)
  np.testing.assert_array_equal(groups.highest, [90] + [0] * 8 + [5])
  assert (statistics.label_groups(np.zeros(3, int)).group == 0).all()


def test_statistics_are_computed_once(tmp_path, monkeypatch):
  first = statistics.load_or_compute(_split(), tmp_path)
  monkeypatch.setattr(statistics, "compute", None)
  again = statistics.load_or_compute(_split(), tmp_path)
  for name in ("label_counts", "document_frequency"):
    np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
  assert (again.num_rows, again.feature_kind) == (4, "counts")
  assert os.listdir(tmp_path) == ["statistics.npz"]


def test_the_file_is_as_small_as_the_data(tmp_path):
  split = _split()
  features = dataclasses.replace(split.features, num_columns=10**7)
  split = dataclasses.replace(split, features=features)
  first = statistics.load_or_compute(split, tmp_path).document_frequency
  assert (tmp_path / "statistics.npz").stat().st_size < 10_000
  again = statistics.load_or_compute(split, tmp_path).document_frequency
  np.testing.assert_array_equal(again, first)


def test_labels_need_not_be_counted(tmp_path, monkeypatch):
  first = statistics.load_or_compute(_split(), tmp_path, by_label=False)
  full = statistics.load_or_compute(_split(), tmp_path)
  monkeypatch.setattr(statistics, "compute", None)
  again = statistics.load_or_compute(_split(), tmp_path, by_label=False)
  assert first.label_counts is None and again.label_counts is None
  for found in (first, again):
    np.testing.assert_array_equal(
      found.document_frequency, full.document_frequency
    )
  again = statistics.load_or_compute(_split(), tmp_path)
  np.testing.assert_array_equal(again.label_counts, full.label_counts)


def test_statistics_of_another_source_are_not_used(tmp_path):
  statistics.load_or_compute(_split(), tmp_path)
  other = _split(values=((1, 1), (), (1,), (1, 1)), fingerprint="def")
  assert statistics.load_or_compute(other, tmp_path).feature_kind == "binary"


@pytest.mark.parametrize("keep", [0, 1, 50, 200])
def test_damaged_statistics_are_computed_again(tmp_path, keep):
  statistics.load_or_compute(_split(), tmp_path)
  path = tmp_path / "statistics.npz"
  whole = path.read_bytes()
  path.write_bytes(whole[:keep])
  assert statistics.load_or_compute(_split(), tmp_path).num_rows == 4
  assert len(path.read_bytes()) == len(whole)


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path):
  blocked = tmp_path / "file"
  blocked.write_text("not a directory")
  assert statistics.load_or_compute(_split(), blocked).num_rows == 4
  assert statistics.load_or_compute(_split(), None).num_rows == 4


def test_dense_statistics_survive_the_file(tmp_path):
  split = store.Split(
    features=np.zeros((4, 3), np.float32),
    labels=_split().labels,
    filter=None,
    name="made",
    fingerprint="abc",
  )
  for _ in range(2):
    got = statistics.load_or_compute(split, pathlib.Path(tmp_path))
    assert got.document_frequency is None and got.feature_kind == "dense"
