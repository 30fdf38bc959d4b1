"""Who had to do with what, from files as they are published."""

import gzip

import pyarrow as pa
from pyarrow import parquet
import pytest

import xlj
from xlj.data import errors
from xlj.data import interactions
from xlj.data import store

FORMS = {
  "pairs": "u2 i1\nu1 i1\nu2 i3\n",
  "tabs": "u2\ti1\t5\t30\nu1\ti1\t3\t10\nu2\ti3\t4.5\t20\n",
  "commas": "u2,i1,5,30\r\n\r\nu1,i1,3,10\r\nu2,i3,4.5,20",
  "movielens": "u2::i1::5::30\nu1::i1::3::10\nu2::i3::4.5::20\n",
  "a header": "userId,movieId,rating,timestamp\nu2,i1,5,30\nu1,i1,3,10\n"
  "u2,i3,4.5,20\n",
  "recbole": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
  "u2\ti1\t5\t30\nu1\ti1\t3\t10\nu2\ti3\t4.5\t20\n",
  "another order": 'x,timestamp,"item",user\n'
  "1,30,i1,u2\n2,10,i1,u1\n3,20,i3,u2\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form):
  path = tmp_path / "ratings"
  path.write_text(FORMS[form])
  found = interactions.read(path)
  assert found.users.tolist() == [0, 1, 0]
  assert found.items.tolist() == [0, 0, 1]
  assert found.user_names == ["u2", "u1"]
  assert found.item_names == ["i1", "i3"]
  if form == "pairs":
    assert found.ratings is None and found.times is None
  else:
    assert found.times.tolist() == [30, 10, 20]
    if form != "another order":
      assert found.ratings.tolist() == [5, 3, 4.5]


def test_a_table(tmp_path):
  columns = {"item_id": [7, 5], "user_id": ["b", "a"], "x": [0, 1]}
  path = tmp_path / "i.parquet"
  parquet.write_table(pa.table(columns), path)
  found = interactions.read(path)
  assert (found.user_names, found.item_names) == (["b", "a"], ["7", "5"])
  columns["user_id"] = ["b", None]
  parquet.write_table(pa.table(columns), path)
  with pytest.raises(errors.DataError, match=r"in row 1 \(from 0\) no user"):
    interactions.read(path)


def test_a_user_on_each_line(tmp_path):
  path = tmp_path / "train.txt"
  path.write_text("0 5 7\n\n1\n2 7 8 9 1 2 3\n")
  found = interactions.read(path, lists=True)
  assert found.user_names == ["0", "1", "2"]
  assert found.users.tolist() == [0, 0, 2, 2, 2, 2, 2, 2]
  assert found.item_names == ["5", "7", "8", "9", "1", "2", "3"]
  for text, message in (
    ("0 5\n1 3\n0 7\n", ":3: found user 0 again, expected each user on one"),
    ("0\n1\n", ":1: found no interactions, expected lines 'user item item'"),
    ("0 \udcff\n", ":1: found byte 0xff, expected text in UTF-8"),
  ):
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(errors.DataError) as error:
      interactions.read(path, lists=True)
    assert f"train.txt{message}" in str(error.value)


def test_numbers_are_names_and_a_data_set_is_made(tmp_path):
  path = tmp_path / "ratings.gz"
  path.write_bytes(
    gzip.compress(b"196 242 3\n186 302 3\n196 302 1\n196 242 5\n")
  )
  found = interactions.read(path)
  assert found.item_names == ["242", "302"]
  matrix = found.matrix()
  xlj.data.write(tmp_path / "D", matrix, matrix, label_names=found.item_names)
  split = store.open_split(tmp_path / "D")
  assert split.labels.to_scipy().toarray().tolist() == [[1, 1], [0, 1]]
  assert store.label_names(tmp_path / "D", 2) == ["242", "302"]


@pytest.mark.parametrize(
  "text, message",
  [
    ("", ":1: found an empty file, expected 'user item'"),
    ("\n\n", ":1: found an empty file, expected 'user item'"),
    ("user,item\n", ":1: found no interactions"),
    ("a\nb\n", ":1: found a, expected 'user item'"),
    ("user,rating\na,1\n", ":1: found user rating, expected 'user item'"),
    ("1 2 3 4 5\n", ":1: found 1 2 3 4 5, expected 'user item'"),
    ("a b\n\nc\n", ":3: found 1 columns, expected 2, as in line 1"),
    ("a,b,3\nc,d,x\n", ":2: found 'x' as a rating, expected a number"),
    ("a,b,3\nc,d,\n", ":2: found '' as a rating, expected a number"),
    ("a,b,3,2020-01-01\n", ":1: found '2020-01-01' as a time, expected a num"),
    ("a,b,inf\n", ":1: found 'inf' as a rating"),
    ("a,b\n,c\n", ":2: found no user, expected a user"),
    ("a,b\nc,\n", ":2: found no item, expected a item"),
    ("a,b\nc\udcff,d\n", ":2: found byte 0xff, expected text in UTF-8"),
    ('a,b\nc,"d\n', ":2: found no row of cells"),
    ("a\tb\tc\td\nuser\titem\n", ":1: found 'c' as a rating"),
  ],
)
def test_what_is_no_interaction_is_refused(tmp_path, text, message):
  path = tmp_path / "ratings.csv"
  path.write_bytes(text.encode(errors="surrogateescape"))
  with pytest.raises(errors.DataError) as error:
    interactions.read(path)
  assert f"ratings.csv{message}" in str(error.value)
