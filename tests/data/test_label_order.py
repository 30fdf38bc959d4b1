"""Renumbering of labels and back."""

import re

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from xlj.data import errors
from xlj.data import label_order

counts_lists = st.lists(st.integers(0, 5), min_size=1, max_size=50)


@hypothesis.given(counts_lists)
def test_frequent_labels_come_first_and_ties_keep_their_order(counts):
  counts = np.array(counts)
  order = label_order.LabelOrder.by_frequency(counts)
  expected = sorted(range(len(counts)), key=lambda i: (-counts[i], i))
  np.testing.assert_array_equal(order.data_ids, expected)
  assert order.data_ids.dtype == order.head_ids.dtype == np.int32


@hypothesis.given(
  st.integers(1, 50).flatmap(lambda n: st.permutations(range(n)))
)
def test_there_and_back_is_the_identity(data_ids):
  order = label_order.LabelOrder.of(np.array(data_ids))
  ids = np.arange(-1, len(data_ids)).reshape(1, -1)
  np.testing.assert_array_equal(order.to_data(order.to_head(ids)), ids)
  np.testing.assert_array_equal(order.to_head(order.to_data(ids)), ids)
  np.testing.assert_array_equal(order.to_data(ids)[0, 1:], data_ids)


def test_padding_stays():
  order = label_order.LabelOrder.by_frequency(np.array([1, 5, 3]))
  ids = np.array([[1, -1], [0, 2]], np.int32)
  np.testing.assert_array_equal(order.to_head(ids), [[0, -1], [2, 1]])
  np.testing.assert_array_equal(order.to_data(ids), [[2, -1], [1, 0]])
  assert order.to_head(ids).dtype == np.int32
  assert order.to_head(np.zeros((0, 3), np.int32)).shape == (0, 3)


def test_the_order_of_one_run_is_rebuilt_from_its_data_ids():
  first = label_order.LabelOrder.by_frequency(np.array([2, 9, 0, 9]))
  again = label_order.LabelOrder.of(first.data_ids)
  np.testing.assert_array_equal(again.head_ids, first.head_ids)


def test_the_identity_keeps_no_arrays():
  order = label_order.LabelOrder.identity()
  ids = np.array([[3, -1], [2**31 - 1, 0]], np.int32)
  assert order.to_head(ids) is ids
  assert order.to_data(ids) is ids
  assert order.by_head_id(ids) is ids
  assert order.by_data_id(ids) is ids


def test_values_by_label_are_renumbered():
  order = label_order.LabelOrder.by_frequency(np.array([2, 9, 0, 7]))
  names = np.array(["a", "b", "c", "d"])
  np.testing.assert_array_equal(order.by_head_id(names), ["b", "d", "a", "c"])
  np.testing.assert_array_equal(
    order.by_data_id(order.by_head_id(names)), names
  )


@hypothesis.given(
  st.integers(1, 60).flatmap(
    lambda n: st.tuples(st.permutations(range(n)), st.integers(1, n))
  )
)
def test_groups_get_the_ids_of_their_block(case):
  shuffled, num_groups = case
  groups = np.array(shuffled) % num_groups  # sizes as they have to be
  counts = np.random.default_rng(len(groups)).integers(0, 4, len(groups))
  order = label_order.LabelOrder.by_groups(groups, num_groups, counts)
  for group in range(num_groups):
    members = np.flatnonzero(groups == group)
    ranked = sorted(members, key=lambda i: (-counts[i], i))
    expected = [place * num_groups + group for place in range(len(ranked))]
    np.testing.assert_array_equal(order.to_head(np.array(ranked)), expected)


def test_groups_of_other_sizes_are_refused():
  counts = np.ones(5, np.int64)
  for groups in ([0, 0, 0, 0, 1], [0, 0, 1, 1, 1], [0, 0, 0, 1, 2]):
    with pytest.raises(ValueError, match="2 of equal size"):
      label_order.LabelOrder.by_groups(np.array(groups), 2, counts)


@pytest.mark.parametrize("ending", ["\n", ""])
def test_an_order_is_read_from_a_file(tmp_path, ending):
  path = tmp_path / "order.txt"
  data_ids = np.random.default_rng(0).permutation(500)
  path.write_text("\n".join(map(str, data_ids)) + ending)
  order = label_order.LabelOrder.from_file(path, 500)
  np.testing.assert_array_equal(order.data_ids, data_ids)


@pytest.mark.parametrize(
  ("text", "line", "message"),
  [
    ("2\n0\nx\n", 3, "'x', expected a label id in .0, 2."),
    ("2\n\n1\n0\n", 2, "''"),
    ("2\n0 1\n", 2, "'0 1'"),
    ("2\n3\n0\n", 2, "'3'"),
    ("2\n-1\n0\n", 2, "'-1'"),
    ("0\n2\n1\n2\n", 4, "label 2 again, expected each label once; line 2"),
    ("2\n0\n", 2, "2 labels, and not 1, expected all 3"),
    ("", 1, "0 labels, and not 0"),
  ],
)
def test_a_wrong_file_is_refused_by_name_and_line(
  tmp_path, text, line, message
):
  path = tmp_path / "order.txt"
  path.write_text(text)
  where = f"{re.escape(str(path))}:{line}: found .*"
  with pytest.raises(errors.DataError, match=where + message):
    label_order.LabelOrder.from_file(path, 3)
