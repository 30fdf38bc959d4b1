"""Labels made worse: how much, and what stays as it was."""

import json

import numpy as np
import pytest
import scipy.sparse

from tests import runs
from xlj.data import csr as csr_lib
from xlj.data import store
from xlj.synthetic import corrupt


@pytest.fixture(scope="module")
def labels():
  rng = np.random.default_rng(0)
  rows = [
    sorted(rng.choice(50, rng.integers(0, 8), replace=False).tolist())
    for _ in range(4000)
  ]
  return csr_lib.Csr.from_rows(rows, 50)


def pairs(labels):
  rows = np.repeat(np.arange(labels.num_rows), labels.row_lengths)
  return set(zip(rows.tolist(), labels.indices.tolist()))


def test_single_positive_keeps_one_of_each_row_evenly(labels):
  found = corrupt.single_positive(labels, 1)
  found.validate()
  np.testing.assert_array_equal(
    found.row_lengths, np.minimum(labels.row_lengths, 1)
  )
  assert pairs(found) <= pairs(labels)
  # The first of two labels is as likely as the second.
  two = csr_lib.Csr.from_rows([[3, 7]] * 4000, 50)
  share = (corrupt.single_positive(two, 1).indices == 3).mean()
  assert abs(share - 0.5) < 0.03


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_missing_forgets_the_share(labels, share):
  found = corrupt.missing(labels, share, 1)
  found.validate()
  assert pairs(found) <= pairs(labels)
  assert abs(1 - found.nnz / labels.nnz - share) < 0.02
  again = corrupt.missing(labels, share, 1)
  np.testing.assert_array_equal(again.indices, found.indices)
  if 0 < share < 1:
    assert pairs(corrupt.missing(labels, share, 2)) != pairs(found)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_symmetric_noise_replaces_the_share_by_any_other(share):
  single = csr_lib.Csr.from_rows([[3]] * 6000, 50)
  found = corrupt.symmetric_noise(single, share, 1)
  found.validate()
  assert (found.row_lengths == 1).all()
  wrong = found.indices != 3
  assert abs(wrong.mean() - share) < 0.02
  if share:
    counts = np.bincount(found.indices[wrong], minlength=50)
    expected = wrong.sum() / 49
    assert counts[3] == 0
    assert np.abs(np.delete(counts, 3) - expected).max() < 6 * expected**0.5


def test_noise_on_several_labels_keeps_rows_distinct(labels):
  found = corrupt.symmetric_noise(labels, 0.9, 1)
  found.validate()
  assert (found.row_lengths <= labels.row_lengths).all()
  assert ((found.row_lengths > 0) == (labels.row_lengths > 0)).all()


def test_asymmetric_noise_takes_the_most_similar_label():
  # Labels 0 and 1 share a feature, 2 and 3 another one; 4 has no example.
  features = csr_lib.Csr.from_rows([[0, 2], [0, 3], [1, 4], [1, 5]], 6)
  labels = csr_lib.Csr.from_rows([[0], [1], [2], [3]], 5)
  partner = corrupt.partners(features, labels)
  assert partner.tolist() == [1, 0, 3, 2, 0]
  dense = features.to_scipy().toarray()
  np.testing.assert_array_equal(corrupt.partners(dense, labels), partner)
  found = corrupt.asymmetric_noise(labels, partner, 1.0, 0)
  assert found.indices.tolist() == [1, 0, 3, 2]
  many = csr_lib.Csr.from_rows([[0]] * 4000, 5)
  wrong = corrupt.asymmetric_noise(many, partner, 0.3, 0).indices
  assert set(wrong.tolist()) == {0, 1} and abs(wrong.mean() - 0.3) < 0.03


def test_long_tail_has_the_counts_that_were_asked_for():
  single = csr_lib.Csr.from_rows([[i % 21] for i in range(21 * 200)], 21)
  rows = corrupt.long_tail(single, 100, 1)
  counts = np.bincount(single.take(rows).indices)
  expected = np.round(200 * 100.0 ** -(np.arange(21) / 20))
  np.testing.assert_array_equal(counts, expected)
  assert (np.diff(rows) > 0).all()
  assert corrupt.long_tail(single, 100, 2).tolist() != rows.tolist()
  assert len(corrupt.long_tail(single, 1, 1)) == 21 * 200


def test_long_tail_of_several_labels_loses_none(labels):
  kept = labels.take(corrupt.long_tail(labels, 20, 1))
  counts = np.bincount(kept.indices, minlength=50)
  assert counts.min() > 0 and (kept.row_lengths > 0).all()
  assert kept.num_rows < labels.num_rows
  # Steeper than it was.
  before = np.bincount(labels.indices, minlength=50)
  assert counts.max() / counts.min() > 2 * before.max() / before.min()


@pytest.mark.parametrize(
  "call",
  [
    lambda labels: corrupt.missing(labels, 1.5, 0),
    lambda labels: corrupt.symmetric_noise(labels, -0.1, 0),
    lambda labels: corrupt.long_tail(labels, 0.5, 0),
    lambda _: corrupt.symmetric_noise(csr_lib.Csr.from_rows([[0]], 1), 0.5, 0),
  ],
)
def test_what_makes_no_sense_is_refused(labels, call):
  with pytest.raises(ValueError, match="the share is|imbalance is|one label"):
    call(labels)


def test_the_launcher_writes_a_set_with_the_same_test_split(tmp_path):
  source = runs.make_data(tmp_path / "source")
  output = tmp_path / "new" / "noisy"
  arguments = (
    f"--data_dir={source}",
    f"--output_dir={output}",
    "--mode=noise",
    "--share=0.4",
    "--asymmetric",
    "--seed=3",
  )
  status, _, err = runs.launch_to_end("corrupt", *arguments)
  assert status == 0, err
  old, new = store.open_split(source), store.open_split(output)
  for name in ("indptr", "indices", "values"):
    np.testing.assert_array_equal(
      getattr(new.features, name), getattr(old.features, name)
    )
  assert pairs(new.labels) != pairs(old.labels)
  for name in ("test.txt", "labels.txt"):
    assert (output / name).read_bytes() == (source / name).read_bytes()
  facts = json.loads((output / "corruption.json").read_text())
  assert facts["share"] == 0.4 and facts["seed"] == 3
  with np.load(output / "corruption.npz") as clean:
    np.testing.assert_array_equal(clean["indices"], old.labels.indices)
  status, _, err = runs.launch_to_end("corrupt", *arguments)
  assert status == 2 and "exists" in err.splitlines()[-1]
  assert [path.name for path in output.parent.iterdir()] == ["noisy"]


def test_the_launcher_keeps_dense_features(tmp_path):
  source, output = tmp_path / "source", tmp_path / "tail"
  source.mkdir()
  rng = np.random.default_rng(0)
  rows = [[i % 10] for i in range(300)]
  features = rng.normal(size=(300, 4)).astype(np.float32)
  for split in ("trn", "tst"):
    np.save(source / f"X.{split}.npy", features)
    matrix = csr_lib.Csr.from_rows(rows, 10).to_scipy()
    scipy.sparse.save_npz(source / f"Y.{split}.npz", matrix)
  status, _, err = runs.finish(
    runs.launch(
      "corrupt",
      f"--data_dir={source}",
      f"--output_dir={output}",
      "--mode=long_tail",
      "--imbalance=10",
    )
  )
  assert status == 0, err
  new = store.open_split(output)
  with np.load(output / "corruption.npz") as kept:
    np.testing.assert_array_equal(new.features, features[kept["rows"]])
  counts = np.bincount(new.labels.indices)
  assert counts[0] == 30 and counts[-1] == 3
  assert store.open_split(output, "test").num_rows == 300
