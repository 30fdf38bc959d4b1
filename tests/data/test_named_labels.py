"""Labels that are written as names, beside features."""

import numpy as np
import pytest
import scipy.sparse

from xlj.data import errors
from xlj.data import formats
from xlj.data import numbering
from xlj.data import store

FEATURES = scipy.sparse.csr_array(np.eye(4, 3, dtype=np.float32))
NAMES = ["red", "C#", "über,all"]
ROWS = {
  "train.txt": "4 3 9\nred,C# 0:1\n 1:1\nC# 2:1\nred \n",
  "train.svm": "red,C# 0:1\n1:1\nC#::0.5 2:1 # a comment\nred \n",
}
LINES = {
  "Y.trn.txt": "red, C#\n\nC#::2\nred\n",
  "trn_X_Y.txt": "red,C#\r\n\r\nC#\r\nred",
}
IDS = [[0, 1], [], [1], [0]]


def rows_of(labels):
  ends = labels.indptr.tolist()
  return [labels.indices[a:b].tolist() for a, b in zip(ends, ends[1:])]


def write(directory, name, text, split="trn"):
  name = name.replace("train", {"trn": "train", "tst": "test"}[split])
  (directory / name.replace("trn", split)).write_text(text)
  if name.startswith(("Y", "trn")):
    count = len(text.rstrip("\n").split("\n"))
    scipy.sparse.save_npz(directory / f"X.{split}.npz", FEATURES[:count])


@pytest.mark.parametrize("name, text", [*ROWS.items(), *LINES.items()])
def test_names_in_text(tmp_path, name, text):
  write(tmp_path, name, text)
  for _ in range(2):  # read, then mapped
    split = store.open_split(tmp_path)
    assert split.label_names == ["red", "C#"]
    assert rows_of(split.labels) == IDS
    assert split.num_labels == 2


@pytest.mark.parametrize("dtype", ["U", "S"])
def test_names_in_arrays(tmp_path, dtype):
  one = np.array(["b", "a", "", "b"], dtype)
  two = np.array([["b", ""], ["a", "b"], ["", ""], ["c", ""]], dtype)
  scipy.sparse.save_npz(tmp_path / "X.trn.npz", FEATURES)
  for labels, ids in (
    (one, [[0], [1], [], [0]]),
    (two, [[0], [0, 1], [], [2]]),
  ):
    np.save(tmp_path / "Y.trn.npy", labels)
    split = store.open_split(tmp_path)
    assert rows_of(split.labels) == ids
    assert split.label_names == ["b", "a", "c"][: split.num_labels]


@pytest.mark.parametrize("name, text", [*ROWS.items(), *LINES.items()])
def test_a_test_split_has_the_ids_of_training(tmp_path, name, text):
  write(tmp_path, name, text)
  other = text.replace("red", "2012").replace("4 3 9", "4 3 1")
  write(tmp_path, name, other, "tst")
  test = store.open_split(tmp_path, "test", num_labels=2, beyond=True)
  assert test.label_names == ["red", "C#"]
  assert rows_of(test.labels) == [[1, 2], [], [1], [2]]
  (note,) = test.notes
  assert note.endswith("that training has not; they count as missed: '2012'")
  of_run = ["C#", "new", "2012"]  # whose labels have come and gone
  test = store.open_split(
    tmp_path, "test", num_labels=3, beyond=True, named=True, label_names=of_run
  )
  assert rows_of(test.labels) == [[0, 2], [], [0], [2]] and not test.notes
  own = store.open_split(tmp_path)
  again = store.open_split(tmp_path, label_names=own.label_names)
  assert again.fingerprint == own.fingerprint
  edited = store.open_split(tmp_path, named=True, label_names=of_run)
  assert edited.label_names == [*of_run, "red"]


def test_a_file_of_names_says_their_order(tmp_path):
  write(tmp_path, "train.txt", ROWS["train.txt"])
  (tmp_path / "labels.txt").write_text("none\nC#\n")
  split = store.open_split(tmp_path)
  assert split.label_names == ["none", "C#", "red"]
  assert rows_of(split.labels) == [[1, 2], [], [1], [2]]
  (note,) = split.notes
  assert note.endswith("1 labels that the file of names has not: 'red'")


def test_names_that_are_numbers_are_asked_for(tmp_path):
  text = "1 0:1\nsport 1:1\n"
  write(tmp_path, "train.txt", text)
  with pytest.raises(errors.DataError, match="data.named_labels=True") as error:
    store.open_split(tmp_path)
  assert "train.txt:2: found label 'sport'" in str(error.value)
  split = store.open_split(tmp_path, named=True)
  assert split.label_names == ["1", "sport"]


@pytest.mark.parametrize(
  "name, text, message",
  [
    ("train.txt", "red,,b 0:1\n", ":1: found no label id"),
    ("train.txt", "red 0:1\ndark blue 0:1\n", ":2: found 'blue', expected fea"),
    ("train.txt", "red 0:1\nb,red,b 0:1\n", ":2: found label 'b' twice in a r"),
    ("train.txt", "red 0:1\nb\udcff 0:1\n", ":2: found byte 0xff, expected t"),
    (
      "train.txt",
      "red 0:1\ntwice 0:1\n",
      ":2: found label 'twice', the name",
    ),
    ("train.txt", "1 3 4\nred 3:1\n", ":2: found feature 3"),
    ("Y.trn.txt", "red\nred,\n", ":2: found no label id"),
  ],
)
def test_what_is_no_name_is_refused(tmp_path, name, text, message):
  (tmp_path / "labels.txt").write_text("red\ntwice\ntwice\n")
  path = tmp_path / name
  path.write_bytes(text.encode(errors="surrogateescape"))
  scipy.sparse.save_npz(tmp_path / "X.trn.npz", FEATURES[:2])
  if name == "train.txt":
    (tmp_path / "X.trn.npz").unlink()
  with pytest.raises(errors.DataError) as error:
    store.open_split(tmp_path)
  assert f"{name}{message}" in str(error.value)


@pytest.mark.parametrize("form", ["npz", "txt"])
def test_matrices_have_ids(tmp_path, form):
  scipy.sparse.save_npz(tmp_path / "X.trn.npz", FEATURES)
  if form == "npz":
    scipy.sparse.save_npz(tmp_path / "Y.trn.npz", FEATURES)
  else:
    (tmp_path / "Y.trn.txt").write_text("4 3\n0:1\n1:1\n\n\n")
  with pytest.raises(errors.DataError, match="a matrix, whose labels are ids"):
    store.open_split(tmp_path, named=True)
  assert store.open_split(tmp_path).label_names is None


def test_names_do_not_go_with_renumber(tmp_path):
  write(tmp_path, "train.txt", ROWS["train.txt"])
  with pytest.raises(errors.DataError, match="data.renumber"):
    store.open_split(tmp_path, named=True, renumber=True)


@pytest.mark.parametrize(
  "text, named",
  [
    ("red 0:1\n", True),
    ("2 3 4\nred 0:1\n", True),
    (" 0:1\n0:1\nred 0:1\n", True),
    ("dc:title, x\n", True),
    ("日本 0:1\n", True),
    ("12 0:1\n", False),
    ("-1 0:1\n", False),
    ("1e5 0:1\n", False),
    ("nan 0:1\n", False),
    ("0:1\n1:2\n", False),
    ("2 4\n0:1\n", False),
    ("# comment\n3 0:1\n", False),
    ("\n", False),
  ],
)
def test_the_first_label_tells(tmp_path, text, named):
  (tmp_path / "x.txt").write_text(text)
  assert formats.has_names(tmp_path / "x.txt") == named


def test_rows_to_predict_from_may_have_names(tmp_path):
  path = tmp_path / "new.txt"
  path.write_text("2 3 1\nred,new 0:1\nC# 1:1\n")
  names = numbering.Names(["red", "C#"])
  (rows,) = formats.stream_rows(path, numbers={"label": names})
  assert rows_of(rows.labels) == [[0, 2], [1]]
