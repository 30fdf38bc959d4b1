"""Forms in which data come, and what is said about those that are almost so."""

import functools
import logging
import types

import numpy as np
import pytest
import scipy.sparse

from xlj import config as config_lib
from xlj.data import arrays
from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import formats
from xlj.data import store
from xlj.inference import predict


def write(directory, **files):
  for name, content in files.items():
    (directory / name.replace("_DOT_", ".")).write_text(content)


def opened(directory, text, name="train.txt", **options):
  (directory / name).write_text(text)
  return store.open_split(directory, **options)


def dense(matrix):
  return matrix.to_scipy().toarray().tolist()


def test_features_counted_from_1(tmp_path):
  text = "2 3 4\n0,3 1:1 3:2\n1 2:5\n"
  with pytest.raises(
    formats.DataError, match="train with --config.data.zero_b"
  ):
    opened(tmp_path, text)
  split = opened(tmp_path, text, zero_based=False)
  assert dense(split.features) == [[1, 0, 2], [0, 5, 0]]
  assert dense(split.labels) == [[1, 0, 0, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize(
  "duplicates, first", [("sum", [0, 2, 0.75]), ("first", [0, 2, 0.25])]
)
def test_ids_twice_in_a_row(tmp_path, duplicates, first):
  text = "3 3 4\n3,1,3 2:0.25 1:2 2:0.5\n2 0:1\n0,0 1:1 1:1 1:1\n"
  with pytest.raises(formats.DataError, match="--config.data.duplicates=sum"):
    opened(tmp_path, text)
  split = opened(tmp_path, text, duplicates=duplicates)
  last = [0, 3 if duplicates == "sum" else 1, 0]
  assert dense(split.features) == [first, [1, 0, 0], last]
  assert dense(split.labels) == [[0, 1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]]


def test_labels_counted_from_1(tmp_path):
  text = "2 3 3\n1,3 1:1\n2 2:5\n"
  with pytest.raises(formats.DataError, match="--config.data.renumber=True"):
    opened(tmp_path, text)
  assert opened(tmp_path, text, renumber=True).num_labels == 3


def test_sums_out_of_range_are_refused(tmp_path):
  text = "1 2 2\n1 0:3e38 0:3e38\n"
  with pytest.raises(formats.DataError, match=r"train.txt:2: .*value 6e\+38"):
    opened(tmp_path, text, duplicates="sum")


# name -> (text, line, what is said)
HEADERS = {
  "an empty line": (
    "2 3 4\n1 0:1\n\n2 1:1\n",
    3,
    "an empty line, which counts as a row, expected 2 rows as in the header"
    " (line 4 is one more); remove it",
  ),
  "an empty first line": (
    "\n2 3 4\n1 0:1\n2 1:1\n",
    2,
    "a header further down",
  ),
  "a comment": ("2 3 4 # N F L\n1 0:1\n", 1, "header with a comment"),
  "a comment before": ("# N F L\n2 3 4\n1 0:1\n", 2, "remove the lines before"),
  "commas": ("2,3,4\n1 0:1\n2 1:1\n", 1, "'2,3,4', expected rows 'l1,l2"),
  "commas and spaces": (
    "2, 3, 4\n1 0:1\n",
    1,
    "a header has spaces, not commas",
  ),
  "carriage returns": ("2 3 4\r1 0:1\r2 1:1\r", 1, "'\\r' alone, expected"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_odd_headers(tmp_path, name):
  text, line, message = HEADERS[name]
  (tmp_path / "train.txt").write_bytes(text.encode())
  with pytest.raises(formats.DataError) as caught:
    store.open_split(tmp_path)
  assert message in str(caught.value)
  assert caught.value.line == line


def test_rows_that_are_no_headers(tmp_path):
  text = "1,2,0 \n# nothing\n1,2 # no features\n3 0:1\n"
  split = opened(tmp_path, text)
  np.testing.assert_array_equal(np.diff(split.labels.indptr), [3, 2, 1])
  split = opened(tmp_path, " \n1,2 \n3 0:1\n")
  np.testing.assert_array_equal(np.diff(split.labels.indptr), [0, 2, 1])
  (tmp_path / "train.txt").write_bytes(b"2 3 4\r\n1 0:1\r\n2 1:1\r\n")
  assert store.open_split(tmp_path).num_rows == 2


def test_fingerprints_stay_what_they_were(tmp_path):
  # Runs compare them when they go on; options that came later do not count.
  split = opened(tmp_path, "2 3 4\n1 0:1\n2 1:1\n")
  assert split.fingerprint == "290425abb410c734164aeb5eb5bb58bd"
  split = opened(tmp_path, "a b\n", context=2)
  assert split.fingerprint == "4f1a3d94d5e1ad7bcca733004b4b2eab"


# One set of labels in many forms: row 2 has none.
LABELS = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]])
FORMS = {
  "commas": "0,3\n1\n\n2,3\n",
  "blanks": "0 3\n1 \n\n 3  2",
  "both": "0, 3\r\n1\r\n \r\n2 ,3\r\n",
  "relevances": "0,3::0.5\n1::2.0,0::0\n\n2::1e-3,3\n",
  "split form": "4 4\n0:1 3:0.5\n1:1\n\n2:1 3:2\n",
  "indicator": LABELS,
  "bools": LABELS.astype(bool),
  "floats": np.asfortranarray(LABELS.astype(np.float16)),
  "padded": np.array([[3, 0], [1, -1], [-1, -1], [2, 3]]),
  "csr": scipy.sparse.csr_array(LABELS * 0.25),
  "csc": scipy.sparse.csc_array(LABELS),
  "coo": scipy.sparse.coo_array(LABELS.astype(np.float32)),
}


def write_labels(directory, form, stem="Y.trn"):
  if isinstance(form, str):
    (directory / f"{stem}.txt").write_bytes(form.encode())
  elif isinstance(form, np.ndarray):
    np.save(directory / f"{stem}.npy", form)
  else:
    scipy.sparse.save_npz(directory / f"{stem}.npz", form)


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_labels(tmp_path, name, caplog):
  caplog.set_level(logging.INFO, "absl")
  np.save(tmp_path / "X.trn.npy", np.eye(4, dtype=np.float32))
  write_labels(tmp_path, FORMS[name])
  split = store.open_split(tmp_path)
  assert dense(split.labels) == LABELS.tolist()
  told = [m for m in caplog.messages if "labels have a relevance" in m]
  assert len(told) == (name in ("relevances", "split form", "csr"))


@pytest.mark.parametrize("form", ["csc", "coo"])
def test_features_by_columns(tmp_path, form):
  x = scipy.sparse.random_array(
    (7, 5), density=0.4, rng=np.random.default_rng(0)
  )
  scipy.sparse.save_npz(tmp_path / "X.trn.npz", x.asformat(form))
  columns = checks.Columns("feature")
  blocks = list(arrays.stream_npz(tmp_path / "X.trn.npz", columns, 2))
  found = csr_lib.concatenate(blocks).to_scipy().toarray()
  np.testing.assert_array_equal(found, x.toarray().astype(np.float32))


def test_rows_of_a_type_that_does_not_hold_how_many_there_are(tmp_path):
  path = tmp_path / "X.trn.npz"
  rows = np.array([0, 200, 5], np.uint8)
  about = {"row": rows, "col": np.array([1, 2, 3]), "data": np.ones(3)}
  np.savez(path, format=b"coo", shape=np.array([300, 4]), **about)
  (found,) = formats.stream_rows(path)
  entries = found.features.to_scipy().tocoo()
  assert entries.row.tolist() == [0, 5, 200]
  assert entries.col.tolist() == [1, 3, 2]


def test_pointers_without_a_sign_that_descend(tmp_path):
  path = tmp_path / "X.trn.npz"
  pointers = np.array([0, 2, 1, 3], np.uint32)
  about = {"indices": np.arange(3), "indptr": pointers, "data": np.ones(3)}
  np.savez(path, format=b"csc", shape=np.array([3, 3]), **about)
  with pytest.raises(formats.DataError, match="row pointers that descend"):
    list(formats.stream_rows(path))


@pytest.mark.parametrize(
  "array, hint",
  [
    (np.array([[3, 1], [2, 2]]), "for ids, add a column of -1; for counts "),
    (np.array([[1, -1], [-1, -1]]), "for yes and no, save labels > 0"),
    (np.array([[0], [1]]), "for the id of each row, save labels.rav"),
    (np.array([[0.5, 1.0]]), "for yes and no, save labels > 0"),
    (np.array([[np.nan, 1.0]]), "numbers from nan to nan"),
    (np.array([[-1, 2], [1, -1]]), "in row 0 (from 0) an id after -1"),
    (np.array([[2, 2], [1, -1]]), "in row 0 (from 0) label 2 twice in a row"),
  ],
)
def test_labels_that_may_be_either_are_refused(tmp_path, array, hint):
  np.save(tmp_path / "Y.trn.npy", array)
  with pytest.raises(formats.DataError) as caught:
    list(formats.stream_labels(tmp_path / "Y.trn.npy"))
  assert hint in str(caught.value)


def test_one_column_of_ids(tmp_path):
  np.save(tmp_path / "Y.tst.npy", np.array([[0], [1]]))
  (labels,) = formats.stream_labels(tmp_path / "Y.tst.npy", num_labels=4)
  assert dense(labels) == [[1, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize(
  "label", ["3::0.5", "3::.5,1::0", "3::1.50", "3::2e-1", "1::0,3::12"]
)
def test_relevances_count_as_1(tmp_path, label, caplog):
  caplog.set_level(logging.INFO, "absl")
  split = opened(tmp_path, f"2 3 4\n{label} 0:1\n2::1,0 1:1\n")
  assert dense(split.labels) == [[0, 0, 0, 1], [1, 0, 1, 0]]
  assert "above 0 counts as 1, without weights" in caplog.text


@pytest.mark.parametrize(
  "label, message",
  [
    ("3::-1", "value -1 of label 3, expected a relevance, 0 (absent) or above"),
    ("3::", "no value after the colon"),
    ("3::x", "value 'x'"),
    ("3::nan", "value 'nan'"),
    ("::1", "no label id"),
  ],
)
def test_bad_relevances(tmp_path, label, message):
  with pytest.raises(formats.DataError) as caught:
    opened(tmp_path, f"1 3 4\n{label} 0:1\n")
  assert "train.txt:2: " in str(caught.value)
  assert message in str(caught.value)


@pytest.mark.parametrize(
  "text, message",
  [
    ("0,3\n1\na b\n", "Y.trn.txt:3: found label 'a'"),
    ("0,3\n1\n\n2\n1\n", "Y.trn.txt: found 5 rows, expected 4, as many as"),
  ],
)
def test_bad_label_lists(tmp_path, text, message):
  np.save(tmp_path / "X.trn.npy", np.eye(4, dtype=np.float32))
  write_labels(tmp_path, text)
  with pytest.raises(formats.DataError) as caught:
    store.open_split(tmp_path)
  assert message in str(caught.value)


def write_rows(directory, **files):
  """One file of 5 rows, row i with label and feature i, and split files."""
  rows = "".join(f"{i} {i}:{i + 1}\n" for i in range(5))
  (directory / "Set_data.txt").write_text(f"5 5 5\n{rows}")
  for name, text in files.items():
    (directory / f"set_{name}.txt").write_text(text)


def test_splits_by_row_numbers(tmp_path):
  write_rows(tmp_path, trSplit="3 1\n1 2\n5 4\n", tstSplit="2\t5\n4\t3\n")
  for column, train, test in ((1, [2, 0, 4], [1, 3]), (2, [0, 1, 3], [4, 2])):
    for split, rows in (("train", train), ("test", test)):
      found = store.open_split(tmp_path, split, column=column)
      assert found.labels.indices.tolist() == rows
      assert found.features.values.tolist() == [row + 1 for row in rows]
      assert (found.num_features, found.num_labels) == (5, 5)
  assert not discover.has_split(tmp_path, "validation")


@pytest.mark.parametrize(
  "rows, column, message",
  [
    ("1 2\n3\n", 2, "set_trSplit.txt:2: found 1 columns, expected at least 2"),
    ("1\n0\n", 1, "set_trSplit.txt:2: found '0', expected a row from 1"),
    ("1\nx\n", 1, "set_trSplit.txt:2: found 'x', expected a row from 1"),
    ("1\n6\n", 1, "set_trSplit.txt: found row 6, expected a row in [1, 5]"),
    ("1\n3 4\n", 1, "set_trSplit.txt:2: found 2 columns, expected 1 as in"),
    ("4\n4\n", 1, "set_trSplit.txt: found row 4 twice in column 1"),
    ("\n", 1, "set_trSplit.txt: found an empty file, expected numbers of rows"),
  ],
)
def test_bad_row_numbers(tmp_path, rows, column, message):
  write_rows(tmp_path, trSplit=rows)
  with pytest.raises(formats.DataError) as caught:
    store.open_split(tmp_path, column=column)
  assert message in str(caught.value)


def test_a_column_where_there_are_none(tmp_path):
  with pytest.raises(formats.DataError, match="leave --config.data.split out"):
    opened(tmp_path, "2 3 4\n1 0:1\n2 1:1\n", column=3)


def test_directories_as_pecos_has_them(tmp_path):
  eye = functools.partial(scipy.sparse.eye, format="csr")
  features = tmp_path / "tfidf-attnxml"
  features.mkdir()
  for split in ("trn", "tst"):
    scipy.sparse.save_npz(features / f"X.{split}.npz", eye(3, 4))
    scipy.sparse.save_npz(tmp_path / f"Y.{split}.npz", eye(3))
    (tmp_path / f"X.{split}.txt").write_text("some words\nothers\nand more\n")
  (tmp_path / "output-items.txt").write_text("a\nb\nc\n")
  for place in (tmp_path, features):
    for split in ("train", "test"):
      found = store.open_split(place, split)
      assert (found.num_features, found.num_labels) == (4, 3)
    assert store.label_names(place) == ["a", "b", "c"]
  other = tmp_path / "other"
  other.mkdir()
  scipy.sparse.save_npz(other / "X.trn.npz", eye(3, 5))
  with pytest.raises(formats.DataError) as caught:
    store.open_split(tmp_path)
  assert "other/X.trn.npz, tfidf-attnxml/X.trn.npz, exp" in str(caught.value)
  assert f"--config.data.dir={tmp_path}/..." in str(caught.value)
  assert store.open_split(other).num_features == 5


@pytest.mark.parametrize(
  "name", ["trn.json.gz", "train.jsonl", "X.trn.txt", "train_raw_texts.txt"]
)
def test_text_of_documents_is_told_from_rows(tmp_path, name):
  (tmp_path / name).write_text("words")
  with pytest.raises(formats.DataError) as caught:
    store.open_split(tmp_path)
  assert f"{name}: found text of documents, expected" in str(caught.value)


def test_a_folder_of_images_is_told_how_to_become_a_data_set(tmp_path):
  (tmp_path / "cat").mkdir()
  (tmp_path / "cat" / "x.png").write_bytes(b"")
  with pytest.raises(formats.DataError, match="by xlj images"):
    store.open_split(tmp_path)


def test_what_is_predicted_from_is_read_as_the_run_reads(tmp_path):
  config = config_lib.base()
  config.data.zero_based, config.data.duplicates = False, "first"
  run = types.SimpleNamespace(
    config=config,
    input="sparse",
    num_features=3,
    numbering=None,
  )
  (tmp_path / "new.txt").write_text(" 1:5 3:1 1:2\n")
  beyond = checks.Beyond({"feature": 3})
  (rows,) = predict._blocks(run, str(tmp_path / "new.txt"), beyond)
  assert dense(rows.features) == [[5, 0, 1]]
  with pytest.raises(formats.DataError, match="found a directory, expected"):
    predict._blocks(run, str(tmp_path), beyond)
