"""Forms in which data come, and what is said about those that are almost so."""

import numpy as np
import pytest

from xlj.data import formats
from xlj.data import store


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
  with pytest.raises(formats.DataError, match="--config.data.zero_based=False"):
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
