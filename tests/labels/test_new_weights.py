"""Weights of appended labels, against what their documentation says."""

import dataclasses

import numpy as np
import pytest

from tests import runs as test_runs
from xlj import config as config_lib
from xlj.data import csr
from xlj.data import store
from xlj.inference import predictor
from xlj.labels import append
from xlj.labels import arrays
from xlj.labels import edit
from xlj.labels import runs
from xlj.training import train

L, NEW = 700, 5


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
  """A run of features against labels with binary cross-entropy."""
  root = tmp_path_factory.mktemp("linear")
  config = test_runs.make_config(
    test_runs.make_data(root / "data"),
    family="linear",
    encoder__dim=0,
    encoder__embedding_dropout=None,
    head__loss="bce",
    train__epochs=1.0,
    data__validation=0.0,
    predict__propensity_power=0.0,
  )
  train.train(config, root / "run")
  return root


def examples(split, count):
  """The first rows, as examples of the new labels in turn."""
  labels = csr.Csr.from_rows([[L + i % NEW] for i in range(count)], L + NEW)
  features = split.features.take(np.arange(count))
  return dataclasses.replace(split, features=features, labels=labels)


@pytest.mark.slow
def test_logits_are_like_those_of_labels_with_as_many_examples(
  linear, tmp_path
):
  before, split = runs.load(linear / "run"), store.open_split(linear / "data")
  run = append.append(before, examples(split, 20))
  weighting = runs.as_predictor(run).weighting
  assert weighting is not None
  x = weighting(split.features).to_scipy().toarray()
  # Of labels with 2 to 8 examples; new ones have 4.
  known = np.flatnonzero((before.counts() >= 2) & (before.counts() <= 8))
  old = arrays.values(before, known)
  z = x @ old["wide"].T + old["bias"]
  means = np.stack([x[i:20:NEW].mean(0) for i in range(NEW)])
  # Of the features that a label meets alone.
  direction = np.where(means > 0, means - x.mean(0), 0)
  wanted = x @ direction.T
  wanted -= wanted.mean(0)
  wanted *= z.std(0).mean() / wanted.std(0)
  wanted += z.mean()
  runs.save(run, tmp_path / "out")
  scores, ids = predictor.load(tmp_path / "out").topk(split.features, L + NEW)
  place = np.argsort(ids, 1)[:, L:]
  got = np.take_along_axis(scores, place, 1)
  np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.slow
def test_a_deleted_label_comes_back_by_its_name(linear):
  run, split = runs.load(linear / "run"), store.open_split(linear / "data")
  run = edit.delete(edit.rename(run, {3: "three"}), [3])
  labels = csr.Csr.from_rows([[3], [3]], L)
  features = split.features.take(np.arange(2))
  new = dataclasses.replace(split, features=features, labels=labels)
  found = append.append(run, new)
  assert list(edit.listed(found))[3] == edit.Label(3, "three", 2, "")


@pytest.mark.slow
def test_features_of_a_label_are_no_example(linear):
  run = runs.load(linear / "run")
  split = store.open_split(linear / "data")
  found = append.append(run, examples(split, NEW), method="features")
  assert not found.counts()[runs.heads_of(found, np.arange(L, L + NEW))].any()


def test_what_cannot_be_appended_to_is_named(linear):
  run, split = runs.load(linear / "run"), store.open_split(linear / "data")
  with pytest.raises(config_lib.ConfigError, match="no encoder"):
    append.append(run, examples(split, NEW), method="teen")


def test_merged_labels_are_means_by_their_examples(linear):
  run = runs.load(linear / "run")
  counts = run.order.by_data_id(run.counts())
  members = np.argsort(-counts)[:3]
  before = arrays.values(run, runs.heads_of(run, members))
  share = counts[members] / counts[members].sum()
  kept, *gone = members.tolist()
  found = edit.merge(run, dict.fromkeys(gone, kept))
  after = arrays.values(found, runs.heads_of(found, [kept]))
  wide = (share[:, None] * before["wide"]).sum(0)
  np.testing.assert_allclose(after["wide"][0], wide, atol=1e-6)
  bias = (share * (before["bias"] - np.log(share))).sum()
  np.testing.assert_allclose(after["bias"][0], bias, rtol=1e-5)
  listed = list(edit.listed(edit.rename(found, {kept: "the one"})))
  assert listed[kept][1:] == ("the one", counts[members].sum(), "")
  assert listed[gone[0]].state == f"merged into {kept}"
