"""Sequences of items, compared with the lines of the file."""

import gzip

import numpy as np
import pytest

from xlj.data import errors
from xlj.data import store

TEXT = "1 4 2 7 3\nb 5 2\n3 2 9 2 4 1\n7 6 6 8\n"
SEQUENCES = [[4, 2, 7, 3], [5, 2], [2, 9, 2, 4, 1], [6, 6, 8]]


def opened(directory, split, text=TEXT, **options):
  (directory / "Some.txt").write_text(text)
  return store.open_split(directory, split, sequences="Some", **options)


def rows(matrix):
  return [part.tolist() for part in np.split(matrix.indices, matrix.indptr)][
    1:-1
  ]


@pytest.mark.parametrize(
  ("split", "from_end"), [("train", 3), ("validation", 2), ("test", 1)]
)
def test_the_label_is_the_item_after_the_features(tmp_path, split, from_end):
  found = opened(tmp_path, split)
  long = [s for s in SEQUENCES if len(s) > from_end]
  assert rows(found.features) == [s[:-from_end] for s in long]
  assert rows(found.labels) == [[s[-from_end]] for s in long]
  assert found.sequential
  assert (found.num_features, found.num_labels) == (10, 10)
  places = [p for s in long for p in range(1, len(s) - from_end + 1)]
  np.testing.assert_array_equal(found.features.values, places)
  if split == "train":
    assert found.filter is None
  else:
    assert rows(found.filter) == [sorted({*s[:-from_end]}) for s in long]
    found.filter.validate()


def test_packed_and_as_wide_as_asked(tmp_path):
  (tmp_path / "S.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
  found = store.open_split(tmp_path, "test", sequences="S", num_labels=12)
  assert (found.num_features, found.num_labels) == (12, 12)
  assert found.num_rows == 4


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("1 2 3\n2 4 x5\n", ":2: found 'x5', expected a user, and items that are"),
    ("1 2 3\n2 4 -5\n", ":2: found '-5', expected a user"),
    ("1,2,3,4\n", ":1: found '1,2,3,4', expected a user, and items"),
    ("1 2 3\n\n3 1 2\n", ":2: found '', expected a user"),
    ("1 2 3.0\n", ":1: found '3.0', expected a user"),
    ("1 2 3000000000\n", ":1: found item 3000000000, expected items below"),
    ("1 2 3\n4 5 6\n1 7 8\n", ":3: found user 1 again, expected each user on"),
    ("1 2 3\n2 4 +5\n", ":2: found '+5', expected a user"),
    ("1 2 3\n2 4 1e3\n", ":2: found '1e3', expected a user"),
    ("1 2 3\n2 4 \u0663\n", ":2: found '\u0663', expected a user"),
    ("1 2 3\n2 4\0 5\n", ":2: found a NUL byte, expected text"),
    ("1 2 3\n2\n", ":2: found '2', expected a user"),
    ("1 2 3\n2 4 5  # new\n", ":2: found '#', expected a user"),
    ("1 2 3\n", ": found no user with 4 items, expected some, for the split"),
    ("", ": found no user with 4 items"),
  ],
)
def test_refused(tmp_path, text, message):
  with pytest.raises(errors.DataError) as raised:
    opened(tmp_path, "train", text)
  assert f"Some.txt{message}" in str(raised.value)


def test_items_that_a_model_lacks_are_refused(tmp_path):
  with pytest.raises(errors.DataError, match=":3: found item 9, .* below 8"):
    opened(tmp_path, "test", num_features=8, num_labels=8)


def test_no_such_file(tmp_path):
  with pytest.raises(errors.DataError, match="no Other.txt"):
    store.open_split(tmp_path, "test", sequences="Other")
