"""Data sets from what Python has in memory."""

import logging

import numpy as np
import pandas
import polars
import pyarrow
import pytest
import scipy.sparse

import xlj
from xlj.data import store
from xlj.documents import store as documents

NAMES = [["b", "a"], [], ["c"], ["a"]]
IDS = [[0, 1], [], [2], [1]]  # as they appear
MATRIX = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]])
DENSE = np.arange(8, dtype=np.float32).reshape(4, 2)
TEXTS = ["one", "two\nlines", "", "vier 🎉"]
SINGLE = ["b", "a", "b", "c"]


def rows_of(labels):
  ends = labels.indptr.tolist()
  return [labels.indices[a:b].tolist() for a, b in zip(ends, ends[1:])]


@pytest.mark.parametrize(
  "given",
  [
    NAMES,
    IDS,
    [np.array(row, np.int64) for row in IDS],
    [{*row} for row in IDS],
    MATRIX,
    MATRIX.astype(bool),
    scipy.sparse.coo_matrix(MATRIX * 0.5),
    np.array([*map(tuple, IDS), None], object)[:-1],
    pandas.Series(NAMES),
    polars.Series(NAMES),
    pyarrow.array(NAMES),
  ],
)
def test_labels_in_any_form(tmp_path, given):
  xlj.data.write(tmp_path, DENSE, given)
  split = store.open_split(tmp_path)
  assert rows_of(split.labels) == IDS
  assert np.array_equal(split.features, DENSE)
  named = "b" in str(given)
  names = ["b", "a", "c"] if named else None
  assert store.label_names(tmp_path, 3) == names


@pytest.mark.parametrize(
  "given, names",
  [
    (SINGLE, ["b", "a", "c"]),
    (np.array(SINGLE), ["b", "a", "c"]),
    (pandas.Series(SINGLE, dtype="category"), ["b", "a", "c"]),
    ([0, 1, 0, 2], None),
    (np.array([0, 1, 0, 2], np.uint8), None),
  ],
)
def test_one_label_of_each_row(tmp_path, given, names):
  xlj.data.write(tmp_path, DENSE, given)
  split = store.open_split(tmp_path)
  assert rows_of(split.labels) == [[0], [1], [0], [2]]
  assert store.label_names(tmp_path, 3) == names


@pytest.mark.parametrize(
  "given",
  [
    DENSE,
    DENSE.tolist(),
    DENSE.astype(np.int16),
    scipy.sparse.csc_array(DENSE),
    [{0: 0, 1: 1}, {0: 2, 1: 3}, {1: 5.0, 0: 4}, {np.int64(0): 6, 1: 7}],
    pandas.DataFrame(DENSE, columns=["x", "y"]),
  ],
)
def test_features_in_any_form(tmp_path, given):
  xlj.data.write(tmp_path, given, SINGLE)
  found = store.open_split(tmp_path).features
  if not isinstance(found, np.ndarray):
    found = found.to_scipy().toarray()
  assert found.dtype == np.float32
  assert np.array_equal(found, DENSE)


def test_images(tmp_path):
  images = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3)
  xlj.data.write(tmp_path, images, SINGLE)
  assert store.open_split(tmp_path).image == (2, 2, 3)


def test_names_of_features(tmp_path, caplog):
  xlj.data.write(tmp_path, [{"x": 1, "y": 2}, {"y": 3}], ["a", "b"])
  with caplog.at_level(logging.WARNING):
    xlj.data.write(tmp_path, [{"z": 9, "y": 4}], ["a"], "test")
  assert "1 features that training has not, such as 'z'" in caplog.text
  test = store.open_split(tmp_path, "test", num_features=2)
  assert test.features.to_scipy().toarray().tolist() == [[0, 4]]
  assert (tmp_path / "feature_names.txt").read_text() == "x\ny\n"


def test_names_of_ids(tmp_path):
  names = np.array(["a", "b", "c", "d"])
  xlj.data.write(tmp_path, DENSE, MATRIX, label_names=names)
  assert store.label_names(tmp_path, 4) == names.tolist()
  assert store.open_split(tmp_path).num_labels == 4


@pytest.mark.parametrize("texts", [TEXTS, pandas.Series(TEXTS)])
@pytest.mark.parametrize("given", [NAMES, IDS, MATRIX])
def test_texts(tmp_path, texts, given):
  xlj.data.write(tmp_path, texts, given)
  found = documents.open_documents(tmp_path)
  assert list(found.texts) == TEXTS
  assert rows_of(found.labels) == [sorted(row) for row in IDS]
  assert found.label_names == (["b", "a", "c"] if given is NAMES else None)


FRAME = {"text": TEXTS, "tags": NAMES, "x": [1, 2, 3, 4], "y": [0.5] * 4}
VECTORS = {"v": DENSE.tolist(), "tags": NAMES}


@pytest.mark.parametrize(
  "make", [pandas.DataFrame, polars.DataFrame, pyarrow.table]
)
def test_tables(tmp_path, make):
  xlj.data.write(tmp_path / "text", make(FRAME), labels="tags")
  found = documents.open_documents(tmp_path / "text")
  assert list(found.texts) == TEXTS and rows_of(found.labels) == IDS
  for features in ("x", ["y", "x"]):
    where = tmp_path / str(len(features))
    xlj.data.write(where, make(FRAME), labels="tags", features=features)
    split = store.open_split(where)
    assert split.features[:, -1].tolist() == [1, 2, 3, 4]
    assert split.num_features == len(features)
  for name in (None, "v"):
    where = tmp_path / str(name)
    xlj.data.write(where, make(VECTORS), labels="tags", features=name)
    assert np.array_equal(store.open_split(where).features, DENSE)
  frame = make({"text": TEXTS})
  xlj.data.write(tmp_path / "Y", frame, NAMES)
  assert len(documents.open_documents(tmp_path / "Y").texts) == 4


def test_columns_of_a_test_split_are_those_of_training(tmp_path):
  train = pandas.DataFrame({"x": [1, 2], "y": [3, 4], "label": ["a", "b"]})
  xlj.data.write(tmp_path, train, labels="label")
  test = train[["label", "y", "x"]].assign(z=0)
  xlj.data.write(tmp_path, test, labels="label", split="test")
  assert store.open_split(tmp_path, "test").features.tolist() == [
    [1, 3],
    [2, 4],
  ]
  with pytest.raises(ValueError, match="there is no column 'x'"):
    xlj.data.write(tmp_path, test[["y", "label"]], None, "test", labels="label")


def test_a_test_split_has_the_labels_of_training(tmp_path, caplog):
  xlj.data.write(tmp_path, DENSE, NAMES)
  with caplog.at_level(logging.WARNING):
    xlj.data.write(tmp_path, DENSE[:2], [["new", "a"], ["c"]], "test")
  assert "1 labels that training has not" in caplog.text
  assert "'new'" in caplog.text
  assert store.label_names(tmp_path, 3) == ["b", "a", "c"]
  test = store.open_split(tmp_path, "test", num_labels=3, beyond=True)
  assert rows_of(test.labels) == [[1, 3], [2]]
  assert "count as missed" in test.notes[0]


def test_what_is_written_twice_is_the_same(tmp_path):
  for name in "ab":
    xlj.data.write(tmp_path / name, scipy.sparse.csr_array(DENSE), NAMES)
  for path in (tmp_path / "a").iterdir():
    assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


FRAMES = pandas.DataFrame(FRAME)


@pytest.mark.parametrize(
  "given, options, message",
  [
    ((DENSE,), {}, "there are no labels; give Y"),
    ((DENSE, SINGLE, "tests"), {}, "split is 'tests', expected one of"),
    ((DENSE, SINGLE[:3]), {}, "4 rows of X, and 3 of labels"),
    (([], []), {}, "X is float64 [0]; give numbers"),
    ((DENSE, SINGLE), {"labels": "tags"}, "X is no table"),
    (("one", SINGLE), {}, "X is one text"),
    ((DENSE, "one"), {}, "Y is one label"),
    (([*TEXTS[:3], None], SINGLE), {}, "row 3 (from 0) of X is NoneType"),
    (([{}, "a"], SINGLE), {}, "row 1 (from 0) of X is str; give dicts"),
    (([[1, 2], [3]], ["a", "b"]), {}, "X is no matrix"),
    (([[1, np.nan]], ["a"]), {}, "row 0 (from 0) of X has a value that is not"),
    (([["x"]], ["a"]), {}, "give numbers [rows, features]"),
    (([{1: 1, "a": 2}], ["a"]), {}, "row 0 (from 0) of X has a feature 1"),
    (([{-1: 1}], ["a"]), {}, "has a feature -1"),
    ((["\ud800"], ["a"]), {}, "row 0 (from 0) has half a surrogate pair"),
    ((DENSE, [["a"], [1], [], []]), {}, "row 0 (from 0) of Y has a name, and"),
    ((DENSE, [["a", "a"], [], [], []]), {}, "of Y has label 'a' twice"),
    ((DENSE, [[-1], [], [], []]), {}, "row 0 (from 0) of Y has a label -1"),
    ((DENSE, [0, 1, None, 2]), {}, "row 2 (from 0) of Y has a label None"),
    ((DENSE, [0, 1.5, 1, 2]), {}, "row 1 (from 0) of Y has a label 1.5"),
    ((DENSE, ["a", "", "b", "b"]), {}, "row 1 (from 0) of Y has a label ''"),
    ((DENSE, ["a\tb"] * 4), {}, "'a\\tb' of labels is empty, or has a tab"),
    ((DENSE, MATRIX * 2), {}, "Y is int64 [4, 3]; give 0 and 1"),
    ((DENSE, scipy.sparse.csr_array(-MATRIX)), {}, "Y has entries below 0"),
    ((DENSE, IDS), {"label_names": ["a"]}, "has 1 names, and Y labels up to"),
    ((DENSE, NAMES), {"label_names": ["a"]}, "'b' of Y is not among label_n"),
    ((DENSE, IDS), {"label_names": ["a"] * 3}, "has a name twice"),
    ((DENSE, NAMES, "test"), {}, "write the training split first"),
    ((FRAMES,), {}, "the columns are text, tags, x, y"),
    ((FRAMES,), {"labels": "tag"}, "no column 'tag'; there are text, tags"),
    (
      (FRAMES,),
      {"labels": "tags", "text": "x"},
      "row 0 (from 0) of column 'x'",
    ),
    (
      (FRAMES,),
      {"labels": "x", "features": "tags"},
      "row 1 (from 0) of column",
    ),
    ((FRAMES,), {"labels": "x", "features": "text"}, "'text' has no numbers"),
    (
      (pandas.DataFrame({"x": [1, None], "l": [0, 1]}),),
      {"labels": "l"},
      "row 1 (from 0) of column 'x' is missing",
    ),
    (
      (pandas.DataFrame({"l": [0, 1]}),),
      {"labels": "l"},
      "no column has numbers",
    ),
  ],
)
def test_what_cannot_be_written_is_refused(tmp_path, given, options, message):
  with pytest.raises(ValueError) as error:
    xlj.data.write(tmp_path, *given, **options)
  assert message in str(error.value)
  assert not (tmp_path / "X.trn.npy").exists()


def test_another_form_of_the_same_split_is_refused(tmp_path):
  xlj.data.write(tmp_path, DENSE, SINGLE)
  xlj.data.write(tmp_path, DENSE + 1, SINGLE)
  with pytest.raises(ValueError, match=r"X.trn.npy is the train split already"):
    xlj.data.write(tmp_path, TEXTS, SINGLE)
