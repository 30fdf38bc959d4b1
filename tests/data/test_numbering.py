"""Ids that are large, but few, are numbered."""

import numpy as np
import pytest

from xlj.data import errors
from xlj.data import numbering
from xlj.data import store

LARGE = 9_000_000_000
ROWS = f"{LARGE},5 0:1 {LARGE}:0.5\n5 77:2\n3 7:1 77:1\n"


def open_train(directory, text=ROWS, name="train.svm", **options):
  (directory / name).write_text(text)
  return store.open_split(directory, renumber=True, **options)


def open_test(directory, train):
  """The test split, as a model of the training split scores it."""
  return store.open_split(
    directory,
    "test",
    num_features=4,
    num_labels=3,
    beyond=True,
    renumber=True,
    numbering=train.numbering,
  )


def test_numbers_are_those_of_ids_in_order(tmp_path):
  split = open_train(tmp_path)
  found = split.numbering
  np.testing.assert_array_equal(found.features, [0, 7, 77, LARGE])
  np.testing.assert_array_equal(found.labels, [3, 5, LARGE])
  np.testing.assert_array_equal(split.features.indices, [0, 3, 2, 1, 2])
  np.testing.assert_array_equal(split.features.values, [1, 0.5, 2, 1, 1])
  np.testing.assert_array_equal(split.labels.indices, [1, 2, 1, 0])
  assert (split.num_features, split.num_labels) == (4, 3)
  again = store.open_split(tmp_path, renumber=True)  # from the cache
  assert again.numbering.fingerprint() == found.fingerprint()


def test_dense_ids_stay_as_they_are(tmp_path):
  text = "3 4 3\n0,2 0:1 1:1\n1 2:1\n0 3:1\n"
  split = open_train(tmp_path, text, "train.txt")
  plain = store.open_split(tmp_path)
  for a, b in (split.features, plain.features), (split.labels, plain.labels):
    np.testing.assert_array_equal(a.indices, b.indices)
    assert a.shape == b.shape


def test_a_header_may_state_any_width(tmp_path):
  split = open_train(tmp_path, f"3 {10**12} {10**12}\n{ROWS}", "train.txt")
  assert (split.num_features, split.num_labels) == (4, 3)
  with pytest.raises(errors.DataError, match="data.renumber=True numbers"):
    store.open_split(tmp_path)


def test_ids_that_training_has_not(tmp_path):
  train = open_train(tmp_path)
  (tmp_path / "test.svm").write_text(
    f"8,{LARGE} 1:1 77:1 {LARGE + 1}:3\n9 7:1\n4,8 0:1\n"
  )
  (tmp_path / "filter_labels_test.txt").write_text(f"0 5\n1 {LARGE}\n2 6\n")
  test = open_test(tmp_path, train)
  np.testing.assert_array_equal(test.features.indices, [2, 1, 0])
  assert test.num_features == 4
  rows = np.split(test.labels.indices, test.labels.indptr[1:-1])
  assert 2 in rows[0] and (rows[1] >= 3).all() and (rows[2] >= 3).all()
  assert len(np.unique(test.labels.indices)) == 4 and test.num_labels == 6
  np.testing.assert_array_equal(test.filter.indices, [1, 2])
  assert "2 entries of 2 features" in test.notes[0]
  assert "4 entries of 3 labels" in test.notes[1]


def test_errors_name_ids_as_written(tmp_path):
  with pytest.raises(errors.DataError, match=f"{LARGE} twice in a row"):
    open_train(tmp_path, f"0 {LARGE}:1 {LARGE}:1\n")


def test_large_ids_are_refused_with_a_hint(tmp_path):
  (tmp_path / "train.svm").write_text(ROWS)
  with pytest.raises(errors.DataError) as caught:
    store.open_split(tmp_path)
  assert "train.svm:1" in str(caught.value) and str(LARGE) in str(caught.value)
  assert "--config.data.renumber=True" in str(caught.value)


def test_a_damaged_file_of_ids_is_refused(tmp_path):
  with pytest.raises(errors.DataError, match="no ids"):
    numbering.Numbering.load(tmp_path)
  (tmp_path / numbering.FILE).write_bytes(b"PK\3\4")
  with pytest.raises(errors.DataError, match="no ids"):
    numbering.Numbering.load(tmp_path)


def test_rows_of_other_splits_number_nothing(tmp_path):
  text = f"4 {LARGE + 2} {LARGE + 2}\n{ROWS}4 {LARGE + 1}:1\n"
  (tmp_path / "set_data.txt").write_text(text)
  (tmp_path / "set_trSplit.txt").write_text("1\n2\n3\n")
  (tmp_path / "set_tstSplit.txt").write_text("4\n")
  train = store.open_split(tmp_path, renumber=True)
  np.testing.assert_array_equal(train.numbering.labels, [3, 5, LARGE])
  assert train.features.shape == (3, 4) and train.labels.shape == (3, 3)
  test = open_test(tmp_path, train)
  assert not test.features.nnz and (test.labels.indices >= 3).all()
