"""Renumbering of labels by frequency and back."""

import hypothesis
from hypothesis import strategies as st
import numpy as np

from xlj import label_order

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
