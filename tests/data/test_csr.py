"""Compressed sparse rows against dense NumPy and SciPy."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
import scipy.sparse

from xlj.data import csr as csr_lib

COLUMNS = 9


@st.composite
def matrices(draw, with_values=None):
  rows = draw(
    st.lists(st.sets(st.integers(0, COLUMNS - 1)).map(sorted), max_size=8)
  )
  values = None
  if draw(st.booleans()) if with_values is None else with_values:
    number = st.floats(-9, 9, width=32).filter(bool)
    values = [
      draw(st.lists(number, min_size=len(r), max_size=len(r))) for r in rows
    ]
  return csr_lib.Csr.from_rows(rows, COLUMNS, values)


def dense(matrix):
  out = np.zeros(matrix.shape, np.float32)
  for row in range(matrix.num_rows):
    start, stop = matrix.indptr[row : row + 2]
    values = 1 if matrix.values is None else matrix.values[start:stop]
    out[row, matrix.indices[start:stop]] = values
  return out


@given(matrices(), st.data())
def test_take_equals_dense_indexing(matrix, data):
  rows = []
  if matrix.num_rows:
    rows = data.draw(st.lists(st.integers(0, matrix.num_rows - 1)))
  taken = matrix.take(rows)
  taken.validate()
  assert taken.num_rows == len(rows)
  np.testing.assert_array_equal(dense(taken), dense(matrix)[rows])


@given(matrices(), st.integers(0, 9), st.integers(0, 9))
def test_slice_equals_dense_slice(matrix, start, stop):
  part = matrix.slice_rows(start, stop)
  part.validate()
  np.testing.assert_array_equal(dense(part), dense(matrix)[start:stop])


@given(matrices(), st.integers(0, 10))
def test_pad_keeps_the_first_entries_and_counts_the_rest(matrix, width):
  ids, values, cut = matrix.pad(width)
  assert ids.shape == values.shape == (matrix.num_rows, width)
  assert ids.dtype == np.int32
  assert values.dtype == np.float32
  full = dense(matrix)
  total = 0
  for row in range(matrix.num_rows):
    columns = np.flatnonzero(full[row])
    kept = columns[:width]
    total += len(columns) - len(kept)
    np.testing.assert_array_equal(ids[row, : len(kept)], kept)
    np.testing.assert_array_equal(values[row, : len(kept)], full[row, kept])
    assert (ids[row, len(kept) :] == -1).all()
    assert (values[row, len(kept) :] == 0).all()
  assert cut == total


@given(matrices(with_values=True))
def test_scipy_round_trip(matrix):
  back = csr_lib.Csr.from_scipy(matrix.to_scipy())
  np.testing.assert_array_equal(dense(back), dense(matrix))
  assert back.indptr.dtype == np.int64
  assert back.indices.dtype == np.int32


@given(st.lists(matrices(with_values=True), min_size=1, max_size=4))
def test_concatenate_stacks(blocks):
  stacked = csr_lib.concatenate(blocks)
  stacked.validate()
  expected = np.concatenate([dense(block) for block in blocks])
  np.testing.assert_array_equal(dense(stacked), expected)


def test_take_works_on_memory_maps(tmp_path):
  matrix = csr_lib.Csr.from_rows([[1], [0, 2], []], 3, [[1.0], [2.0, 3.0], []])
  arrays = []
  for name in ("indptr", "indices", "values"):
    np.save(tmp_path / name, getattr(matrix, name))
    arrays.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
  taken = csr_lib.Csr(*arrays, num_columns=3).take([1, 1, 2])
  assert type(taken.indices) is np.ndarray
  np.testing.assert_array_equal(taken.row_lengths, [2, 2, 0])
  np.testing.assert_array_equal(taken.indices, [0, 2, 0, 2])
  np.testing.assert_array_equal(taken.values, [2, 3, 2, 3])


@pytest.mark.parametrize("rows", [[2], [-1]])
def test_take_refuses_rows_out_of_range(rows):
  matrix = csr_lib.Csr.from_rows([[0], [1]], 2)
  with pytest.raises(IndexError, match="asked for of 2"):
    matrix.take(rows)


def test_from_scipy_sorts_and_leaves_its_argument_alone():
  unsorted = scipy.sparse.csr_array(
    (np.array([1.0, 2.0]), np.array([2, 0]), np.array([0, 2])), shape=(1, 3)
  )
  matrix = csr_lib.Csr.from_scipy(unsorted)
  np.testing.assert_array_equal(matrix.indices, [0, 2])
  np.testing.assert_array_equal(matrix.values, [2, 1])
  np.testing.assert_array_equal(unsorted.indices, [2, 0])
  assert csr_lib.Csr.from_scipy(unsorted, values=False).values is None


@pytest.mark.parametrize(
  ("indptr", "indices", "values", "message"),
  [
    ([1, 1], [], None, "must start with 0"),
    ([0, 1, 0], [0], None, "descends at row 1"),
    ([0, 2], [0], None, "ends with 2, but there are 1"),
    ([0, 1], [0], [1, 2], "2 values for 1"),
    ([0, 0, 1], [3], None, r"Row 1 has a column outside \[0, 3\): 3"),
    ([0, 1], [-1], None, "Row 0 has a column outside"),
    ([0, 1, 3], [0, 2, 1], None, "Row 1 has columns that repeat or do not"),
    ([0, 2], [1, 1], None, "Row 0 has columns that repeat"),
    ([0, 1], [1], [np.nan], "Row 0 has a value that is not finite"),
  ],
)
def test_validate_names_what_is_broken(indptr, indices, values, message):
  if values is not None:
    values = np.array(values, np.float32)
  matrix = csr_lib.Csr(np.array(indptr), np.array(indices, np.int32), values, 3)
  with pytest.raises(ValueError, match=message):
    matrix.validate()


@pytest.mark.parametrize("matrix", [np.ones(3), np.ones((2, 3), complex)])
def test_matrices_of_others_are_real_and_have_two_dimensions(matrix):
  with pytest.raises(ValueError, match=r"give real numbers \[N, columns\]"):
    csr_lib.Csr.from_scipy(scipy.sparse.coo_array(matrix))


def test_columns_of_a_sequence_as_label_ids():
  indptr, ids = np.array([0, 4, 4, 5]), np.array([7, 2, 7, 0], np.int32)
  rows = csr_lib.Csr(indptr, np.append(ids, np.int32(5)), np.ones(5, "f4"), 9)
  found = rows.as_labels(7)
  found.validate()
  assert found.values is None and found.shape == (3, 7)
  assert found.indices.tolist() == [0, 2, 5]
  assert rows.as_labels(8).row_lengths.tolist() == [3, 0, 1]
