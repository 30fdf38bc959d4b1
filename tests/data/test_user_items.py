"""Sets of items, held out of one file of interactions."""

import numpy as np
import pytest

from xlj.data import errors
from xlj.data import store
from xlj.data import user_items

# Of u1: a twice, and c and b at one time. u3 comes late.
TIMES = """user,item,time
u1,b,30
u1,a,10
u2,a,20
u1,d,5
u1,c,30
u2,e,25
u1,a,50
u3,f,60
u3,a,70
"""


def opened(directory, text=TIMES, name="interactions.csv", **how):
  (directory / name).write_text(text)
  how = user_items.How(**how)
  return {
    split: store.open_split(directory, split, interactions=how)
    for split in ("train", "test", *["validation"] * (how.validation > 0))
  }


def named(split, part):
  """The items of each row."""
  matrix = getattr(split, part)
  rows = np.split(matrix.indices, matrix.indptr[1:-1])
  return [{split.label_names[i] for i in row} for row in rows]


def test_last(tmp_path):
  found = opened(tmp_path, by="last", validation=0.5)
  # c stands after b in the file; users keep an item.
  assert named(found["train"], "labels") == [{"a", "d"}, {"a"}, {"f"}]
  assert named(found["train"], "features") == [{"a", "d"}, {"a"}, {"f"}]
  assert found["train"].filter is None
  assert named(found["validation"], "features") == [{"a", "d"}]
  assert named(found["validation"], "labels") == [{"b"}]
  assert named(found["test"], "labels") == [{"c"}, {"e"}, {"a"}]
  assert named(found["test"], "features") == [{"a", "b", "d"}, {"a"}, {"f"}]
  assert named(found["test"], "filter") == named(found["test"], "features")
  assert found["test"].num_labels == found["test"].num_features == 6


def test_two_files_of_lists(tmp_path):
  """What is held out for the test is what the second file says."""
  (tmp_path / "test.txt").write_text("0 7 3 9\n2\n5 1\n1 2\n")
  train = "0 1 2 3 \n1 1 4\n2 8\n"
  found = opened(
    tmp_path, train, "train.txt", lists=True, by="last", validation=0.5
  )
  assert named(found["train"], "labels") == [{"1", "2"}, {"1"}, {"8"}]
  assert named(found["validation"], "labels") == [{"3"}, {"4"}]
  # 3 is no answer for user 0, and user 5 has nothing to go by.
  assert named(found["test"], "labels") == [{"7", "9"}, {"2"}]
  assert named(found["test"], "features") == [{"1", "2", "3"}, {"1", "4"}]
  assert found["test"].num_labels == found["train"].num_labels == 7


def test_time(tmp_path):
  found = opened(tmp_path, by="time", test=3 / 8)
  # The newest three of eight, where the order of the file decides: c, f, a.
  assert named(found["train"], "labels") == [{"a", "b", "d"}, {"a", "e"}]
  assert named(found["test"], "features") == [{"a", "b", "d"}]
  assert named(found["test"], "labels") == [{"c"}]
  assert found["test"].notes == (
    "interactions.csv: 1 users who have no item before those held out are left"
    " out",
  )


def test_ratio(tmp_path):
  lines = (f"{user} {item}\n" for user in range(9) for item in range(user + 1))
  text = "".join(lines)
  how = {"name": "interactions.txt", "test": 0.25, "validation": 0.5}
  found = opened(tmp_path, text, **how)
  sizes = zip(
    map(len, named(found["test"], "features")),
    map(len, named(found["test"], "labels")),
  )
  # Of 3 to 9 items each, a quarter, rounded.
  assert [*sizes] == [(2, 1), (3, 1), (4, 1), (4, 2), (5, 2), (6, 2), (7, 2)]
  train = named(found["train"], "labels")
  for row, validation in zip(
    named(found["validation"], "features"),
    named(found["validation"], "labels"),
  ):
    assert row in train and not row & validation
  again = opened(tmp_path / ".", text, **how)
  assert again["test"].fingerprint == found["test"].fingerprint


def test_a_line_for_each_user(tmp_path):
  text = "7 3 1 2\n8 1\n9\n5 2 3\n"
  found = opened(tmp_path, text, name="interactions.txt", by="last", lists=True)
  assert named(found["train"], "labels") == [{"3", "1"}, {"1"}, {"2"}]
  assert named(found["test"], "labels") == [{"2"}, {"3"}]


def test_items_of_a_model_come_first(tmp_path):
  opened(tmp_path)
  found = store.open_split(
    *(tmp_path, "test"),
    num_features=3,
    num_labels=3,
    label_names=["f", "a", "z"],
    interactions=user_items.How("last"),
  )
  assert found.label_names[:4] == ["f", "a", "z", "b"]
  # What it does not know is no feature, and a label that none can find.
  assert named(found, "features") == [{"a"}, {"a"}, {"f"}]
  assert found.num_features == 3 and found.num_labels == 7


def test_refused(tmp_path):
  with pytest.raises(errors.DataError, match="no user with items for the spl"):
    opened(tmp_path, test=0.0)
  (tmp_path / "train.csv").write_text("label,x\n1,2\n")
  with pytest.raises(errors.DataError, match="several candidates for the tra"):
    opened(tmp_path)
