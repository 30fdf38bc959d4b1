"""Readers and writers: round trips, and the fast parser against the strict."""

import gzip
import io
import sys

from hypothesis import example
from hypothesis import given
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
import scipy.sparse
from sklearn import datasets

from xlj.data import arrays
from xlj.data import checks
from xlj.data import csr as csr_lib
from xlj.data import formats
from xlj.data import lines
from xlj.data import npy
from xlj.data import parse
from xlj.data import strict
from xlj.data import text
from xlj.data import writers

FEATURES, LABELS = 50, 30
# Files are written to one directory over and over: that is fine.
per_example = settings(
  suppress_health_check=[HealthCheck.function_scoped_fixture],
  deadline=None,
  max_examples=50,
)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def sparse(num_rows, num_columns, values=True):
  def build(rows):
    rows = [sorted(row.items()) for row in rows]
    ids = [[column for column, _ in row] for row in rows]
    entries = [[value for _, value in row] for row in rows] if values else None
    return csr_lib.Csr.from_rows(ids, num_columns, entries)

  row = st.dictionaries(st.integers(0, num_columns - 1), finite, max_size=6)
  return st.lists(row, min_size=num_rows, max_size=num_rows).map(build)


@st.composite
def data_sets(draw):
  num_rows = draw(st.integers(1, 12))
  features = draw(sparse(num_rows, FEATURES))
  return features, draw(sparse(num_rows, LABELS, values=False))


def assert_equal(a, b):
  assert a.num_columns == b.num_columns
  np.testing.assert_array_equal(a.indptr, b.indptr)
  np.testing.assert_array_equal(a.indices, b.indices)
  assert (a.values is None) == (b.values is None)
  if a.values is not None:
    np.testing.assert_array_equal(a.values, b.values)
  a.validate()


def read(path, **options):
  blocks = list(formats.stream_rows(path, **options))
  if not isinstance(blocks[0].features, csr_lib.Csr):
    return np.concatenate([block.features for block in blocks]), None
  features = csr_lib.concatenate([block.features for block in blocks])
  if blocks[0].labels is None:
    return features, None
  return features, csr_lib.concatenate([block.labels for block in blocks])


def write(path, content):
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  return path


@per_example
@given(data_sets(), st.sampled_from(["a.txt", "a.txt.gz"]))
def test_one_file_round_trip(tmp_path, data, name):
  features, labels = data
  writers.write_one_file(tmp_path / name, features, labels)
  back = read(tmp_path / name)
  assert_equal(back[0], features)
  assert_equal(back[1], labels)


@per_example
@given(data_sets(), st.sampled_from(["a.txt", "a.txt.gz"]))
def test_split_form_round_trip(tmp_path, data, name):
  features, labels = data
  writers.write_matrix(tmp_path / f"X_{name}", features)
  writers.write_matrix(tmp_path / f"Y_{name}", labels)
  back, none = read(tmp_path / f"X_{name}")
  assert none is None
  assert_equal(back, features)
  blocks = list(formats.stream_labels(tmp_path / f"Y_{name}"))
  assert_equal(csr_lib.concatenate(blocks), labels)


@per_example
@given(data_sets())
def test_svmlight_round_trip(tmp_path, data):
  features, labels = data
  writers.write_svmlight(tmp_path / "a.svm", features, labels)
  back = read(tmp_path / "a.svm", num_features=FEATURES, num_labels=LABELS)
  assert_equal(back[0], features)
  assert_equal(back[1], labels)


@per_example
@given(data_sets(), st.integers(1, 9))
def test_npz_round_trip(tmp_path, data, block_entries):
  features, labels = data
  writers.write_npz(tmp_path / "x.npz", features)
  writers.write_npz(tmp_path / "y.npz", labels)
  columns = checks.Columns("feature")
  blocks = arrays.stream_npz(tmp_path / "x.npz", columns, block_entries)
  assert_equal(csr_lib.concatenate(list(blocks)), features)
  blocks = formats.stream_labels(tmp_path / "y.npz")
  assert_equal(csr_lib.concatenate(list(blocks)), labels)


@per_example
@given(data_sets())
def test_pairs_round_trip(tmp_path, data):
  _, labels = data
  writers.write_pairs(tmp_path / "f.txt", labels)
  back = formats.read_pairs(tmp_path / "f.txt", labels.num_rows, LABELS)
  assert_equal(back, labels)


@per_example
@given(data_sets(), st.integers(1, 40))
def test_blocks_do_not_matter(tmp_path, data, block_bytes):
  features, labels = data
  writers.write_one_file(tmp_path / "a.txt", features, labels)
  columns = checks.Columns("feature"), checks.Columns("label")
  blocks = list(
    text.stream(tmp_path / "a.txt", *columns, block_bytes=block_bytes)
  )
  assert_equal(csr_lib.concatenate([b.features for b in blocks]), features)
  assert_equal(csr_lib.concatenate([b.labels for b in blocks]), labels)


_TOKENS = st.one_of(
  st.integers(0, 10**20).map(str),
  st.floats(allow_nan=True).map(repr),
  finite.map(repr),
  st.sampled_from(["", "1", "0.5", ".5", "5.", "-.5", "+3", "1e-3", "-2E+4"]),
  st.sampled_from(["-", ".", "e", "1e", "1e5e", "--1", "1.2.3", "+-1", "1_0"]),
  st.sampled_from(
    ["0" * 25 + "1", "12345678", "123456789", "9007199254740993"]
  ),
)
_NOISE = st.sampled_from([" ", "  ", ":", ",", "\n", " 3:", " 12:", "1,2 7:"])


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.one_of(_TOKENS, _NOISE), max_size=12).map("".join))
def test_fast_parser_agrees_with_the_strict_one(content):
  block = (content + "\n").encode()
  fast = parse.rows(block)
  if fast is None:
    return  # the strict parser decides
  try:
    expected = strict.rows(block, "a", 1)
  except formats.DataError:
    # What the fast parser lets through is checked after it: range and size.
    too_large = np.concatenate([fast.ids, fast.labels, [0]]).max() > 2**31 - 2
    with np.errstate(over="ignore"):
      infinite = ~np.isfinite(fast.values.astype(np.float32))
    assert too_large or infinite.any()
    return
  for one, other in zip(fast, expected):
    np.testing.assert_array_equal(one, other)


@given(
  st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-100, 100).map("{:.4f}".format),
    st.integers(-(10**25), 10**25).map(str),
    finite.map("{:e}".format),
  )
)
@example("0.09876543210987654")
@example("123456789012345.6")
def test_values_are_those_of_python(number):
  parsed = parse.rows(f"0 1:{number} 2:0\n".encode())
  assert parsed is not None
  assert parsed.values[0] == float(number)


def test_the_usual_lines_take_the_fast_path():
  block = b"1,2 3:0.5 4:1\n 5:-1\n7\n7 \n\n3:1e-3 9:.5\n1 2:3  4:5 \n"
  assert parse.rows(block) is not None
  assert parse.pairs(b"1 2\n3 4\n") is not None


def test_what_may_vary_in_a_row(tmp_path):
  content = (
    "\ufeff7 50 30\r\n"
    "3,1\t9:1e-3 2:-0.5\r\n"  # no order, scientific, negative, tab
    " 4:.5 5:+2.\r\n"  # no labels
    "7:0\r\n"  # no labels and no space; an explicit zero
    "5\r\n"  # no features
    "\r\n"  # nothing
    " \r\n"
    "8  1:3 \r\n"  # spaces
    "\r\n\r\n"  # ignored
  )
  features, labels = read(write(tmp_path / "a.txt", content))
  np.testing.assert_array_equal(features.row_lengths, [2, 2, 1, 0, 0, 0, 1])
  np.testing.assert_array_equal(features.indices, [2, 9, 4, 5, 7, 1])
  values = np.array([-0.5, 1e-3, 0.5, 2, 0, 3], np.float32)
  np.testing.assert_array_equal(features.values, values)
  np.testing.assert_array_equal(labels.row_lengths, [2, 0, 0, 1, 0, 0, 1])
  np.testing.assert_array_equal(labels.indices, [1, 3, 5, 8])
  assert features.num_columns == 50
  assert labels.num_columns == 30


def test_last_line_needs_no_newline(tmp_path):
  features, _ = read(write(tmp_path / "a.txt", "2 5 5\n1 2:3\n0 4:1"))
  np.testing.assert_array_equal(features.indices, [2, 4])


def test_svmlight_comments_and_sizes_from_the_data(tmp_path):
  content = "# made by a tool\n1,4 2:1 # a row\n \n 7:2\n\n\n"
  features, labels = read(write(tmp_path / "a.svm", content))
  assert features.shape == (3, 8)
  assert labels.shape == (3, 5)
  np.testing.assert_array_equal(labels.row_lengths, [2, 0, 0])


def test_svmlight_counted_from_one(tmp_path):
  path = write(tmp_path / "a.svm", "0,3 1:5 8:6\n")
  features, labels = read(path, zero_based=False)
  np.testing.assert_array_equal(features.indices, [0, 7])
  np.testing.assert_array_equal(labels.indices, [0, 3])
  assert features.num_columns == 8


def test_scikit_learn_writes_what_is_read(tmp_path):
  rng = np.random.default_rng(0)
  x = scipy.sparse.random_array((40, FEATURES), density=0.1, rng=rng).tocsr()
  y = scipy.sparse.random_array((40, LABELS), density=0.1, rng=rng).tocsr()
  y.data[:] = 1
  path = str(tmp_path / "a.svm")
  datasets.dump_svmlight_file(x, y, path, multilabel=True, comment="about")
  features, labels = read(path, num_features=FEATURES, num_labels=LABELS)
  np.testing.assert_allclose(features.to_scipy().todense(), x.todense(), 1e-6)
  np.testing.assert_array_equal(labels.to_scipy().todense(), y.todense())


def test_unlabelled_rows_stream_without_a_header(tmp_path):
  path = write(tmp_path / "a.txt", "1:1 2:1\n3:1\n")
  features, labels = read(path, num_features=9, num_labels=4)
  np.testing.assert_array_equal(features.row_lengths, [2, 1])
  assert labels.shape == (2, 4)
  assert labels.nnz == 0


def test_a_file_to_predict_from_may_state_no_labels(tmp_path):
  path = write(tmp_path / "a.txt", "1 9 0\n 1:1\n")
  _, labels = read(path, num_features=9, num_labels=4)
  assert labels.shape == (1, 4)


@pytest.mark.parametrize("compress", [lambda data: data, gzip.compress])
def test_standard_input(monkeypatch, compress):
  data = compress(b"1:1 2:1\n3:1\n")
  stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(data)))
  monkeypatch.setattr(sys, "stdin", stdin)
  features, _ = read("-", num_features=9)
  np.testing.assert_array_equal(features.indices, [1, 2, 3])


def test_standard_input_gives_rows_before_its_end(monkeypatch):
  class Slow(io.RawIOBase):
    chunks = [b"1:1\n", b"2:1\n"]

    def readable(self):
      return True

    def readinto(self, buffer):
      if not self.chunks:
        raise AssertionError("read to the end")
      chunk = self.chunks.pop(0)
      buffer[: len(chunk)] = chunk
      return len(chunk)

  stdin = io.TextIOWrapper(io.BufferedReader(Slow()))
  monkeypatch.setattr(sys, "stdin", stdin)
  first = next(formats.stream_rows("-", num_features=9))
  np.testing.assert_array_equal(first.features.indices, [1])


def test_gzip_is_told_by_content(tmp_path):
  path = write(tmp_path / "a.txt", gzip.compress(b"1 5 5\n1 2:3\n"))
  assert read(path)[0].nnz == 1


def test_a_label_of_value_zero_is_no_label(tmp_path):
  path = write(tmp_path / "trn_X_Y.txt", "2 9\n3:1 5:0\n4:1.0\n")
  (labels,) = formats.stream_labels(path)
  np.testing.assert_array_equal(labels.indices, [3, 4])
  np.testing.assert_array_equal(labels.indptr, [0, 1, 2])
  assert labels.values is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_dense_features(tmp_path, dtype):
  array = np.arange(12).reshape(4, 3).astype(dtype)
  np.save(tmp_path / "x.npy", array)
  blocks = list(npy.stream_features(tmp_path / "x.npy", block_entries=7))
  assert [len(block) for block in blocks] == [2, 2]
  out = np.concatenate(blocks)
  assert out.dtype == np.float32
  np.testing.assert_array_equal(out, array)


def test_npz_with_unsorted_rows_is_sorted(tmp_path):
  matrix = scipy.sparse.csr_array(
    (np.array([1.0, 2.0]), np.array([2, 0]), np.array([0, 2])), shape=(1, 3)
  )
  scipy.sparse.save_npz(tmp_path / "x.npz", matrix)
  features, _ = read(tmp_path / "x.npz")
  np.testing.assert_array_equal(features.indices, [0, 2])
  np.testing.assert_array_equal(features.values, [2, 1])


def test_filter_pairs_in_any_order(tmp_path):
  path = write(tmp_path / "f.txt", "2 1\n0 3\n2 0\n2 1\n\n")
  pairs = formats.read_pairs(path, 3, 4)
  np.testing.assert_array_equal(pairs.indptr, [0, 1, 1, 3])
  np.testing.assert_array_equal(pairs.indices, [3, 0, 1])
  assert formats.read_pairs(write(path, ""), 3, 4).nnz == 0


def test_blocks_are_whole_lines_with_their_numbers(tmp_path):
  path = write(tmp_path / "a", "ab\nc\n" + "d" * 20 + "\ne")
  blocks = list(lines.blocks(path, block_bytes=7))
  assert b"".join(b.text for b in blocks) == path.read_bytes() + b"\n"
  for block in blocks:
    before = path.read_bytes().index(block.text[:1])
    assert block.first_line == 1 + path.read_bytes()[:before].count(b"\n")


@pytest.mark.parametrize(
  "matrix,message",
  [
    (np.eye(2), "is a ndarray; give a Csr"),
    (
      csr_lib.Csr(np.array([0, 1]), np.array([0]), np.array([np.nan]), 2),
      "Row 0 has a value that is not finite",
    ),
  ],
)
def test_what_readers_would_refuse_is_not_written(matrix, message, tmp_path):
  for write in (writers.write_matrix, writers.write_pairs, writers.write_npz):
    with pytest.raises(ValueError, match=message):
      write(tmp_path / "x", matrix)
  with pytest.raises(ValueError, match=message):
    writers.write_svmlight(tmp_path / "x", matrix, matrix)
