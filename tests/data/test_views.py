"""Views of texts: complementary, and with words that belong together."""

import itertools

import numpy as np
import pytest

from xlj.data import csr as csr_lib
from xlj.data import views

LABELS = np.arange(40, dtype=np.int32)


def make_texts():
  """Each of four words of two topics; words 0 to 3 and 4 to 7 meet."""
  rng = np.random.default_rng(0)
  ids = np.stack(
    [
      np.append(rng.permutation(4)[:2], 4 + rng.permutation(4)[:2])
      if i % 2
      else rng.permutation(4) + 4 * (i % 4 // 2)
      for i in range(len(LABELS))
    ]
  )
  ids = np.sort(ids, 1).astype(np.int32)
  starts = np.arange(len(ids) + 1) * 4
  values = np.ones(ids.size, np.float32)
  texts = csr_lib.Csr(starts, ids.ravel(), values, 8)
  padded = np.pad(ids, ((0, 0), (0, 2)))
  return texts, padded, np.pad(np.ones(ids.shape, "f"), ((0, 0), (0, 2)))


@pytest.mark.parametrize("masks", ["random", "correlated"])
def test_views_have_all_features_between_them(masks):
  texts, ids, values = make_texts()
  make = views.Views(texts, masks, 0.0, 7)
  first, second = make(3, LABELS, ids, values)
  np.testing.assert_array_equal(first + second, values)
  assert first.dtype == values.dtype and (first.sum(1) > 0).any()
  again = make(3, LABELS[5:9], ids[5:9], values[5:9])
  np.testing.assert_array_equal(again[0], first[5:9])  # whoever reads them
  other, _ = make(4, LABELS, ids, values)
  assert (other != first).any()
  if masks == "correlated":
    assert (first.sum(1) == 2).all()


def test_words_of_a_topic_are_in_the_same_view():
  texts, ids, values = make_texts()
  first, _ = views.Views(texts, "correlated", 0.0, 7)(1, LABELS, ids, values)
  for chosen, words in zip(first[1::2] > 0, ids[1::2]):  # of both topics
    assert len(set(words[chosen] // 4)) == 1


def test_views_lose_further_features():
  texts, ids, values = make_texts()
  first, second = views.Views(texts, "random", 0.5, 7)(1, LABELS, ids, values)
  assert not (first * second).any()
  assert 0.3 < (first + second).sum() / values.sum() < 0.7


def test_information_is_that_of_two_events():
  rng = np.random.default_rng(1)
  a, b = rng.random((2, 50)) < 0.4
  b |= a & (rng.random(50) < 0.5)
  expected = 0
  for one, two in itertools.product((False, True), repeat=2):
    both = np.mean((a == one) & (b == two))
    expected += both * np.log(both / np.mean(a == one) / np.mean(b == two))
  counts = np.array([(a & b).sum()]), np.array([a.sum()]), np.array([b.sum()])
  np.testing.assert_allclose(views.information(*counts, 50), expected)
