"""Which labels may be answers, in all forms in which it is said."""

import numpy as np
import pytest
import scipy.sparse

from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.model import label_choice

L, N = 10, 4
LISTS = [[1, 2], [], [9], [0, 3, 9]]
PADDED = np.array([[1, 2, -1], [-1, -1, -1], [9, -1, -1], [0, 3, 9]])
FORMS = {
  "lists": LISTS,
  "padded": PADDED,
  "csr": label_choice.rows_of(LISTS, L),
  "coo": scipy.sparse.coo_array(label_choice.rows_of(LISTS, L)),
  "Csr": csr_lib.Csr.from_rows(LISTS, L),
}
ORDER = label_order.LabelOrder.of(np.random.default_rng(0).permutation(L))


def named(choice, rows, **how):
  """Sets of data ids that are named for rows, and whether they alone may be."""
  width = choice.most_named(**how)
  made = choice.of_rows(np.asarray(rows), ORDER, width, **how)
  if made.ids is None:
    return None, False
  return [set(ORDER.data_ids[r[r >= 0]].tolist()) for r in made.ids], made.only


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["exclude", "among"])
def test_labels_of_each_row(form, name):
  choice = label_choice.choose(L, **{name: FORMS[form]})
  found, only = named(choice, [3, 0, -1, 1])
  assert found == [{0, 3, 9}, {1, 2}, set(), set()]
  assert only == (name == "among")
  with pytest.raises(ValueError, match="of 4 examples, and there are 5"):
    choice.check_rows(5)


def test_both_and_a_filter():
  among = [[1, 2, 3]] * N
  choice = label_choice.choose(L, exclude=LISTS, among=among)
  assert named(choice, range(N)) == ([{3}, {1, 2, 3}, {1, 2, 3}, {1, 2}], True)
  more = choice.without(csr_lib.Csr.from_rows([[3], [1], [], []], L))
  assert named(more, [0, 1]) == ([set(), {2, 3}], True)


def test_a_matrix_is_left_as_it_was():
  """That of a filter file is a memory map, which cannot be written to."""
  given = scipy.sparse.csr_array(
    (np.array([0.0, 1, 1]), np.array([5, 3, 9]), np.array([0, 1, 3, 3, 3])),
    shape=(N, L),
  )
  for values in (given.data, given.indices, given.indptr):
    values.flags.writeable = False
  choice = label_choice.choose(L, exclude=given)
  assert named(choice, range(N))[0] == [set(), {3, 9}, set(), set()]
  rows = csr_lib.Csr(given.indptr, given.indices, None, L)
  more = label_choice.ALL.without(rows)
  assert named(more, range(N))[0] == [{5}, {3, 9}, set(), set()]


@pytest.mark.parametrize("few", [[4, 7], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_labels_of_all_rows_as_each_is_told(few):
  """As heads without rows have to be; only what is shorter is named."""
  choice = label_choice.choose(L, among=few, exclude=[7])
  allowed = set(few) - {7}
  found, only = named(choice, [0, 2], each=True)
  for row in found:
    assert (row if only else set(range(L)) - row) == allowed
  assert choice.most_named(True) == max(map(len, found)) <= L // 2
  both = label_choice.choose(L, among=few, exclude=LISTS)
  found, only = named(both, [0, 2], each=True)
  for row, own in zip(found, (LISTS[0], LISTS[2])):
    assert (row if only else set(range(L)) - row) == set(few) - set(own)


def test_processes_name_as_many_labels_whatever_their_rows_have():
  choice = label_choice.choose(L, exclude=LISTS)
  most = choice.most_named(rows=slice(0, 4))
  shapes = {
    choice.of_rows(np.array(rows), ORDER, most).ids.shape
    for rows in ([0, 1], [2, 3], [-1, -1])
  }
  assert shapes == {(2, 3)}
  assert choice.most_named(rows=slice(0, 3)) == 2


# Ids 0 to 4: 3 was merged into 1, and 2 was deleted.
EDITED = label_order.LabelOrder(np.array([1, 4, 0]), np.array([2, 0, -1, 0, 1]))


@pytest.mark.parametrize(
  "asked, kept",
  [
    ({"exclude": [3]}, {0, 4}),
    ({"exclude": {3, 2}}, {0, 4}),
    ({"exclude": [[3]]}, {0, 4}),
    ({"among": [3, 2]}, {1}),
    ({"among": [[3, 1]]}, {1}),
    ({"among": [1, 0], "exclude": [3]}, {0}),
    ({"among": [1, 0], "exclude": [[3]]}, {0}),
    ({"among": [[1, 4]], "exclude": [[3]]}, {4}),
    ({"exclude": [2]}, {0, 1, 4}),
  ],
)
def test_ids_that_were_merged_are_one_label(asked, kept):
  choice = label_choice.choose(5, **asked, order=EDITED)
  made = choice.of_rows(np.array([0]), EDITED, choice.most_named())
  found = set(range(3))
  if choice.allowed is not None:
    found = set(EDITED.to_head(np.flatnonzero(choice.allowed)).tolist())
  if made.ids is not None:
    ids = made.ids[0][made.ids[0] >= 0].tolist()
    assert len(ids) == len(set(ids))
    found = found & set(ids) if made.only else found - set(ids)
  assert set(EDITED.data_ids[[*(found - {-1})]].tolist()) == kept
  true = EDITED.known(csr_lib.Csr.from_rows([[0, 1, 2, 3, 4]], 5))
  left = choice.kept(true, np.array([0]))
  assert set(left.indices.tolist()) == kept


def test_true_labels_that_may_be_answers():
  true = csr_lib.Csr.from_rows([[1, 5, 8], [2], [9], [9]], L)
  choice = label_choice.choose(L, exclude=LISTS, among=[1, 5, 9])
  kept = choice.kept(true.take([0, 3]), np.array([0, 3]))
  assert kept.to_scipy().toarray().nonzero()[1].tolist() == [5]
  free = label_choice.choose(L)
  assert free.kept(true, np.arange(N)) is true


@pytest.mark.parametrize(
  "given, message",
  [
    ([10], "exclude has the label id 10; the model has ids 0 to 9"),
    ([[0], [-2]], r"exclude\[1\] has the label id -2"),
    ([0.5], "exclude is not a list of label ids; give ids for all examples"),
    (["a"], "exclude is not a list of label ids"),
    (3, "exclude is not a list of label ids"),
    (np.array(3), "exclude is not a list of label ids"),
    ({3: 1.0}, "exclude is not a list of label ids"),
    (iter([3]), "exclude is not a list of label ids"),
    (scipy.sparse.eye_array(4), "exclude has 4 columns; give one for each of"),
  ],
)
def test_what_is_no_label_is_refused(given, message):
  with pytest.raises(ValueError, match=message):
    label_choice.choose(L, exclude=given)
