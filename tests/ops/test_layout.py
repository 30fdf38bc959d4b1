"""Every label has one row, whatever the numbers of labels and of blocks."""

import dataclasses

import hypothesis
from hypothesis import strategies as st
import numpy as np

from xlj.ops import layout as layout_lib

layouts = st.builds(
  layout_lib.Layout, st.integers(1, 3000), st.integers(1, 200)
)


def test_the_example_of_the_docstring():
  layout = layout_lib.Layout(5, 2)
  np.testing.assert_array_equal(
    layout.label_of_row(np.arange(6)), [0, 2, 4, 1, 3, 5]
  )
  np.testing.assert_array_equal(
    layout.row_of_label(np.arange(5)), [0, 3, 1, 4, 2]
  )


@hypothesis.given(layouts)
def test_labels_and_rows_are_one_to_one(layout):
  labels = np.arange(layout.num_labels)
  rows = layout.row_of_label(labels)
  assert len(np.unique(rows)) == layout.num_labels
  assert rows.min() >= 0 and rows.max() < layout.num_rows
  np.testing.assert_array_equal(layout.label_of_row(rows), labels)
  everything = np.arange(layout.num_rows)
  found = layout.label_of_row(everything)
  np.testing.assert_array_equal(layout.row_of_label(found), everything)
  padding = found >= layout.num_labels
  assert padding.sum() == layout.num_rows - layout.num_labels


@hypothesis.given(layouts)
def test_padding_is_less_than_one_row_per_block(layout):
  assert layout.num_rows % layout.blocks == 0
  assert 0 <= layout.num_rows - layout.num_labels < layout.blocks
  assert layout.rows_per_block * layout.blocks == layout.num_rows


@hypothesis.given(layouts, st.integers(1, 20))
def test_empty_blocks_are_behind_all_others_and_have_no_label(layout, devices):
  empty = -layout.blocks % devices
  filled = dataclasses.replace(layout, empty=empty)
  labels, rows = np.arange(layout.num_labels), np.arange(layout.num_rows)
  assert filled.num_rows % devices == 0
  np.testing.assert_array_equal(
    filled.row_of_label(labels), layout.row_of_label(labels)
  )
  np.testing.assert_array_equal(
    filled.label_of_row(rows), layout.label_of_row(rows)
  )
  behind = np.arange(layout.num_rows, filled.num_rows)
  assert (filled.label_of_row(behind) >= layout.num_labels).all()


@hypothesis.given(layouts, st.data())
def test_blocks_share_the_first_labels_evenly(layout, data):
  first = data.draw(st.integers(1, layout.num_labels))
  rows = layout.row_of_label(np.arange(first))
  counts = np.bincount(rows // layout.rows_per_block, minlength=layout.blocks)
  assert counts.max() - counts.min() <= 1


@hypothesis.given(layouts, st.data())
def test_the_first_labels_lie_first_in_their_block(layout, data):
  # What is kept of the first labels alone, as by head.kahan_labels, is laid out
  # by a smaller layout; it must be the first places of each block.
  first = data.draw(st.integers(1, layout.num_labels))
  small = layout_lib.Layout(first, layout.blocks)
  labels = np.arange(first)
  in_small, in_large = small.row_of_label(labels), layout.row_of_label(labels)
  np.testing.assert_array_equal(
    in_small // small.rows_per_block, in_large // layout.rows_per_block
  )
  np.testing.assert_array_equal(
    in_small % small.rows_per_block, in_large % layout.rows_per_block
  )


@hypothesis.given(st.integers(1, 2**31 - 1), st.sampled_from([1, 64, 512]))
def test_int32_ids_do_not_overflow(num_labels, blocks):
  layout = layout_lib.Layout(num_labels, blocks)
  hypothesis.assume(layout.num_rows < 2**31)
  labels = np.array([0, num_labels // 2, num_labels - 1], np.int32)
  rows = layout.row_of_label(labels)
  assert rows.dtype == np.int32
  assert (rows >= 0).all() and (rows < layout.num_rows).all()
  np.testing.assert_array_equal(layout.label_of_row(rows), labels)
