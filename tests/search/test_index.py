"""Lists of similar rows: which are looked at, and what is found."""

import dataclasses

import numpy as np
import pytest

from xlj.search import exact
from xlj.search import index as index_lib

L, D = 3001, 16


@pytest.fixture(scope="module")
def made():
  generator = np.random.default_rng(0)
  centres = generator.normal(size=(40, D))
  near = [
    centres[generator.integers(40, size=n)] + generator.normal(size=(n, D)) / 2
    for n in (L, 200)
  ]
  rows, x = (a.astype(np.float32) for a in near)
  return exact.stored(rows, "bfloat16", generator.normal(size=L)), x


@pytest.fixture(scope="module")
def index(made):
  return index_lib.build(made[0], 50)


def test_each_row_is_in_one_list_of_like_ones(made, index):
  rows, _ = made
  np.testing.assert_array_equal(np.sort(index.names), np.arange(L))
  assert index.starts[0] == 0 and index.starts[-1] == L
  assert (np.diff(index.starts) >= 0).all()
  wide = rows.widened()
  for c in range(50):
    own = index.names[index.starts[c] : index.starts[c + 1]]
    if len(own):
      mean = wide[own].mean(0)
      np.testing.assert_allclose(index.centres.values[c], mean, atol=1e-5)
  unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
  means = np.stack(
    [
      unit[index.names[a:b]].sum(0)
      for a, b in zip(index.starts, index.starts[1:])
    ]
  )
  # The centres of the mixture themselves have 0.88.
  assert np.linalg.norm(means, axis=1).sum() / L > 0.8
  again = index_lib.build(rows, 50)
  np.testing.assert_array_equal(again.names, index.names)


def test_all_lists_give_the_exact_answer_and_its_scores(made, index):
  rows, x = made
  exclude = [
    exact.topk(x[n : n + 1], rows, n % 5 + 1)[1][0] for n in range(200)
  ]
  for options in ({}, {"exclude": exclude, "threshold": 4.0}):
    true = exact.topk(x, rows, 10, **options)
    found = index.topk(x, 10, probes=50, rescore=200, **options)
    np.testing.assert_array_equal(found[1], true[1])
    np.testing.assert_allclose(found[0], true[0], rtol=1e-5)
  among = [3, 2000, 77]
  found = index.topk(x, 10, among=among)
  np.testing.assert_array_equal(
    found[1], exact.topk(x, rows, 10, among=among)[1]
  )


@pytest.mark.parametrize("rescore", [None, 0])
def test_one_example_has_the_answer_that_it_has_among_others(index, rescore):
  x = np.random.default_rng(5).normal(size=(9, index.rows.dim))
  settings = {"probes": 3, "rescore": rescore, "exclude": [2, 5, 70]}
  scores, ids = index.topk(x, 6, **settings, threshold=-9.0)
  for n in range(9):
    own = index.topk(x[n : n + 1], 6, **settings, threshold=-9.0)
    np.testing.assert_array_equal(own[1][0], ids[n])
    np.testing.assert_allclose(own[0][0], scores[n], rtol=1e-5)


def test_codes_alone_have_scores_close_to_those_of_rows(made, index):
  rows, x = made
  scores, ids = index.topk(x, 3, probes=50, rescore=0)
  true = exact.topk(x, rows, 3)
  np.testing.assert_allclose(scores, true[0], rtol=0.02)
  assert exact.recall(ids, true[1]) > 0.9


def test_tuned_for_a_recall_which_others_have_too(made, index):
  rows, x = made
  probes = []
  for share in (0.5, 0.9, 0.99):
    tuned = index.tune(x[:100], share, k=5)
    assert tuned.recall >= share and tuned.k == 5
    true = exact.topk(x[100:], rows, 5)[1]
    assert exact.recall(tuned.topk(x[100:], 5)[1], true) > share - 0.05
    if tuned.probes > 1:
      fewer = tuned.topk(x[:100], 5, probes=tuned.probes - 1)[1]
      of_sample = exact.topk(x[:100], rows, 5)[1]
      assert exact.recall(fewer, of_sample) < share
    probes.append(tuned.probes)
  assert probes == sorted(probes) and 1 <= probes[0] < probes[-1] < 50


def test_lists_may_be_empty_and_answers_short():
  rows = np.repeat(np.eye(4, dtype=np.float32)[:3], 5, 0)
  index = index_lib.build(exact.Rows(rows), 8)
  scores, ids = index.topk(np.eye(4, dtype=np.float32), 7, probes=8)
  assert ids[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
  scores, ids = index.topk(np.eye(4, dtype=np.float32), 15, probes=1)
  assert (ids[0] == -1).sum() >= 10 and scores[0, 0] == 1


def test_saved_and_mapped_again(made, index, tmp_path):
  rows, x = made
  tuned = dataclasses.replace(index, probes=4, recall=0.9, k=10)
  tuned.save(tmp_path / "index")
  loaded = index_lib.load(tmp_path / "index", rows)
  assert (loaded.probes, loaded.recall, loaded.k) == (4, 0.9, 10)
  for ours, theirs in zip(loaded.topk(x, 10), tuned.topk(x, 10)):
    np.testing.assert_array_equal(ours, theirs)
  other = exact.Rows(rows.values[::-1], None, rows.bias)
  with pytest.raises(ValueError, match=r"of other rows \(3001 of width 16\)"):
    index_lib.load(tmp_path / "index", other)
  for name, wrong, message in (
    ("starts", index.starts[::-1], "starts.npy does not ascend from 0 to 3001"),
    ("names", index.names + 1, "names.npy is not of rows 0 to 3000"),
    ("codes", index.codes.values[1:], r"codes.npy is \(3000, 16\), not"),
  ):
    path = tmp_path / "index" / f"{name}.npy"
    whole = path.read_bytes()
    np.save(path, wrong)  # which the loops would follow beyond the arrays
    with pytest.raises(ValueError, match=message):
      index_lib.load(tmp_path / "index", rows)
    path.write_bytes(whole)
  (tmp_path / "index" / "codes.npy").write_bytes(b"")
  with pytest.raises(ValueError, match="index: no index can be read: "):
    index_lib.load(tmp_path / "index", rows)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"probes": 51}, r"probes is 51; it must be a whole number in \[1, 50\]"),
    ({"rescore": -1}, "rescore is -1; it must be a whole number from 0 on"),
    ({"k": 0}, "k is 0"),
  ],
)
def test_what_does_not_fit_is_refused(made, index, change, message):
  with pytest.raises(ValueError, match=message):
    index.topk(made[1], **({"k": 3} | change))
  with pytest.raises(ValueError, match="num_lists is 9; it must be"):
    index_lib.build(exact.Rows(np.zeros((3, 2), np.float32)), 9)
  with pytest.raises(ValueError, match="recall is 95; give a share"):
    index.tune(made[1], 95)
