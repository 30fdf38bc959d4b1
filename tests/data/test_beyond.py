"""Rows that a model is to score, with ids that it does not know."""

import numpy as np
import pytest

from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import store
from xlj.data import writers

F, L = 4, 3  # of the model
X = csr_lib.Csr.from_rows(
  [[0, 4], [], [1, 3, 6], [4]], 7, [[1, 2], [], [3, 4, 5], [6]]
)
Y = csr_lib.Csr.from_rows([[0], [1, 2], [3, 5], [5]], 6)
FORBIDDEN = csr_lib.Csr.from_rows([[1, 4], [], [], [0]], 6)
NOTES = {
  "feature": "3 entries of 2 features that training has not; they count for"
  " nothing",
  "label": "3 entries of 2 labels that training has not; they count as missed",
}
STATED = {
  "feature": "it states 7 features, and training has 4",
  "label": "it states 6 labels, and training has 3",
}


def write(path, form):
  """Returns the file of the features and that of the labels."""
  if form == "one file":
    writers.write_one_file(path / "test.txt", X, Y)
    return "test.txt", "test.txt"
  if form == "svmlight":
    writers.write_svmlight(path / "test.svm.gz", X, Y)
    return "test.svm.gz", "test.svm.gz"
  if form == "split form":
    writers.write_matrix(path / "tst_X_Xf.txt", X)
    writers.write_matrix(path / "tst_X_Y.txt", Y)
    return "tst_X_Xf.txt", "tst_X_Y.txt"
  writers.write_npz(path / "X.tst.npz", X)
  writers.write_npz(path / "Y.tst.npz", Y)
  return "X.tst.npz", "Y.tst.npz"


@pytest.mark.parametrize(
  "form", ["one file", "svmlight", "split form", "scipy"]
)
def test_features_are_left_out_labels_stay_and_both_are_counted(form, tmp_path):
  names = write(tmp_path, form)
  writers.write_pairs(tmp_path / "filter_labels_test.txt", FORBIDDEN)
  options = {"num_features": F, "num_labels": L, "beyond": True}
  for _ in range(2):  # the second one comes from the cache
    split = store.open_split(tmp_path, "test", **options)
    dense = X.to_scipy().toarray()[:, :F]
    np.testing.assert_array_equal(split.features.to_scipy().toarray(), dense)
    split.features.validate()
    np.testing.assert_array_equal(
      split.labels.to_scipy().toarray(), Y.to_scipy().toarray()
    )
    expected = []
    for name, what in zip(names, ("feature", "label")):
      expected.append(f"{name}: {NOTES[what]}")
      if form != "svmlight":  # which states nothing
        expected.append(f"{name}: {STATED[what]}")
    assert list(split.notes) == expected
  options["beyond"] = False
  with pytest.raises(errors.DataError):
    store.open_split(tmp_path, "test", **options)


def test_narrower_files_are_as_wide_as_the_model(tmp_path):
  writers.write_one_file(tmp_path / "test.txt", X, Y)
  split = store.open_split(
    tmp_path, "test", num_features=9, num_labels=8, beyond=True
  )
  assert (split.num_features, split.num_labels) == (9, 8)
  assert split.notes == (
    "test.txt: it states 7 features, and training has 9",
    "test.txt: it states 6 labels, and training has 8",
  )


def test_one_label_in_an_array_may_be_unknown(tmp_path):
  np.save(tmp_path / "X.tst.npy", np.ones((3, F), np.float32))
  np.save(tmp_path / "Y.tst.npy", np.array([0, L + 2, -1]))
  split = store.open_split(
    tmp_path, "test", num_features=F, num_labels=L, beyond=True
  )
  assert split.num_labels == L + 3
  np.testing.assert_array_equal(split.labels.indices, [0, L + 2])
  assert split.notes == (
    "Y.tst.npy: 1 entries of 1 labels that training has not; they count as"
    " missed",
  )


@pytest.mark.parametrize("width", [F - 1, F + 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_without_ids_have_to_be_those_of_the_model(
  width, dtype, tmp_path
):
  np.save(tmp_path / "X.tst.npy", np.ones((3, width), dtype))
  np.save(tmp_path / "Y.tst.npy", np.array([0, 1, 2]))
  with pytest.raises(errors.DataError, match=f"found {width} features"):
    store.open_split(
      tmp_path, "test", num_features=F, num_labels=L, beyond=True
    )


def test_a_file_that_lies_about_its_width_is_refused(tmp_path):
  (tmp_path / "test.txt").write_text("2 6 5\n0 1:1\n1 6:1\n")
  with pytest.raises(errors.DataError, match="test.txt:3: found feature 6"):
    store.open_split(
      tmp_path, "test", num_features=F, num_labels=L, beyond=True
    )


@pytest.mark.parametrize("width", [0, 3, 4, 7, 9])
def test_columns_below(width):
  found = X.below(width)
  found.validate()
  dense = X.to_scipy().toarray()[:, :width]
  np.testing.assert_array_equal(
    found.to_scipy().toarray()[:, : X.num_columns], dense
  )
