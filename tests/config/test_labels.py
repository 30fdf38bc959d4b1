"""Whole runs with missing, wrong and rare labels: methods, logs, restarts."""

import dataclasses

import numpy as np
import pytest

from tests import runs
from xlj import config as config_lib
from xlj.config import remedies
from xlj.data import csr as csr_lib
from xlj.data import store
from xlj.data import writers
from xlj.runs import label_corrections
from xlj.synthetic import corrupt
from xlj.training import noisy_labels
from xlj.training import train

METHODS = {
  "wan": {"missing__method": "wan", "head__loss": "bce"},
  "lsan": {"missing__method": "lsan", "head__loss": "bce"},
  "iu": {"missing__method": "iu", "head__loss": "bce"},
  "ll_r": {"missing__method": "ll_r", "head__loss": "bce"},
  "ll_ct": {
    "missing__method": "ll_ct",
    "missing__threshold": 2.0,
    "head__loss": "bce",
  },
  "ll_cp": {
    "missing__method": "ll_cp",
    "missing__per_example": 0.5,
    "head__loss": "bce",
  },
  "role": {
    "missing__method": "role",
    "missing__positives": 4.0,
    "missing__remembered": 20,
    "head__loss": "bce",
  },
  "elr": {"noisy__method": "elr"},
  "ps_kd": {"noisy__method": "ps_kd"},
  "class_aware": {"tail__sampler": "class_aware"},
  "square_root": {"tail__sampler": "square_root"},
  "propensity": {"tail__weights": "propensity", "head__loss": "bce"},
  "class_balanced": {"tail__weights": "class_balanced", "head__loss": "bce"},
  "adjustment": {"tail__adjustment": 1.0},
  # Linear weights take a step by the batch then.
  "linear wan": runs.LINEAR | {"missing__method": "wan"},
  "linear ll_r": runs.LINEAR | {"missing__method": "ll_r"},
  "linear propensity": runs.LINEAR | {"tail__weights": "propensity"},
}


STATEFUL = ("ll_cp", "role", "class_aware")
LEARN = ("ll_ct", "iu", "elr", "adjustment", "square_root")
LEARN += ("class_balanced", "linear wan", "linear propensity")


@pytest.mark.slow
@pytest.mark.parametrize("method", LEARN)
def test_a_run_learns(method, data_dir, tmp_path, use_mesh):
  use_mesh((2, 4))
  options = METHODS[method] | {"train__epochs": 1.5}
  train.train(runs.make_config(data_dir, **options), tmp_path)
  found = runs.losses(tmp_path)
  assert np.isfinite(found).all() and np.mean(found[-3:]) < found[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", STATEFUL)
def test_an_interrupted_run_goes_on_elsewhere_as_it_was(
  method, data_dir, tmp_path, use_mesh
):
  options = METHODS[method] | {
    "checkpoint__every": 9,
    "train__epochs": 2.5,
    "encoder__embedding_dropout": 0.0,
  }
  config = runs.make_config(data_dir, **options)
  use_mesh((2, 4))
  train.train(config, tmp_path / "whole")
  runs.stop_after(20, config, tmp_path / "parts")
  use_mesh((8, 1))
  train.train(config, tmp_path / "parts")
  whole, parts = (
    runs.losses(tmp_path / "whole"),
    runs.losses(tmp_path / "parts"),
  )
  assert np.isfinite(whole).all() and len(whole) == len(parts)
  np.testing.assert_allclose(parts, whole, rtol=2e-4)
  if method == "ll_cp":
    check_corrections(tmp_path / "whole", data_dir)
    logs = [
      label_corrections.LabelCorrections.load(tmp_path / name, 10**9)._log
      for name in ("whole", "parts")
    ]
    assert logs[0] == logs[1] and len(logs[0]) > 20
    assert (tmp_path / "whole" / label_corrections.FILE).exists()


def check_corrections(workdir, data_dir):
  """They are labels that the data does not have."""
  corrections = label_corrections.LabelCorrections.load(workdir, 10**9)
  config = config_lib.load(workdir / config_lib.FILE)
  split = store.open_split(data_dir)
  # The first epoch is left alone; a batch corrects at most k - 1 labels.
  steps = [step for step, _, _ in corrections._log]
  batch = config.train.batch_size
  assert min(steps) > round(855 / batch)
  most = np.bincount(steps).max()
  assert 0 < most <= batch * 0.5 - 1
  counts = np.bincount(split.labels.indices, minlength=split.num_labels)
  to_data = np.argsort(-counts, kind="stable")
  for _, row, label in corrections._log[:200]:
    assert to_data[label] not in split.labels.take([row]).indices


def test_a_log_of_corrections(tmp_path):
  corrections = label_corrections.LabelCorrections()
  labels = np.asarray([[3, -1], [5, 7]], np.int32)
  assert corrections.apply(labels, np.asarray([10, 11])) is labels
  corrections.add(4, np.asarray([10, -1, 11, 10]), np.asarray([8, -1, 5, 8]))
  corrections.add(6, np.asarray([10] * 5), np.asarray([1, 2, 4, 6, 8]))
  assert len(corrections) == 6  # each once
  found = corrections.apply(labels, np.asarray([10, 11]))
  # 11 has 5 already; there is room for 8.
  assert found.tolist() == [
    [3, -1, 8, 1, 2, 4, 6, -1, -1, -1],
    [5, 7] + [-1] * 8,
  ]
  corrections.save(tmp_path)
  earlier = label_corrections.LabelCorrections.load(tmp_path, 5)
  assert len(earlier) == 2
  assert earlier.apply(labels, np.asarray([9, 10])).tolist() == [
    [3, -1, -1, -1, -1, -1],
    [5, 7, 8, -1, -1, -1],
  ]
  assert (
    len(label_corrections.LabelCorrections.load(tmp_path / "elsewhere", 5)) == 0
  )
  (tmp_path / label_corrections.FILE).write_bytes(b"PK\3\4 not a log")
  with pytest.raises(ValueError, match="is damaged"):
    label_corrections.LabelCorrections.load(tmp_path, 5)


@pytest.mark.slow
def test_suspects_are_mostly_examples_with_wrong_labels(
  data_dir, tmp_path, use_mesh
):
  """One clear label for each example, a fifth of them replaced."""
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 40, 1500)
  words = [
    sorted({*(40 + 5 * t + rng.integers(0, 5, 3)).tolist(), int(t)})
    for t in truth
  ]
  features = csr_lib.Csr.from_rows(words, 240)
  labels = csr_lib.Csr.from_rows([[int(t)] for t in truth], 40)
  noisy = corrupt.symmetric_noise(labels, 0.2, 1)
  source = tmp_path / "data"
  source.mkdir()
  writers.write_one_file(source / "train.txt", features, noisy)
  use_mesh((2, 4))
  config = runs.make_config(source, noisy__method="elr", train__epochs=8.0)
  train.train(config, tmp_path / "run")
  header, *lines = (
    (tmp_path / "run" / noisy_labels.FILE).read_text().splitlines()
  )
  assert header.split("\t") == ["row", "labels", "believed", "probability"]
  rows = np.asarray([int(line.split("\t")[0]) for line in lines])
  believed = np.asarray([int(line.split("\t")[2]) for line in lines])
  wrong = noisy.indices != truth
  trained = 0.95 * wrong.sum()
  assert wrong[rows].mean() > 0.8  # precision
  assert wrong[rows].sum() > 0.8 * trained  # recall
  assert (believed == truth[rows]).mean() > 0.8


BY_EXAMPLE = runs.LINEAR | {"head__by_example": True}
REFUSALS = {
  "missing, by example": (
    BY_EXAMPLE | {"missing__method": "ll_r"},
    "head.by_example .* missing.method 'll_r'; set head.by_example=False",
  ),
  "weights, by example": (
    BY_EXAMPLE | {"tail__weights": "propensity"},
    "head.by_example .* tail.weights 'propensity'; set",
  ),
  "loss, by example": (
    BY_EXAMPLE | {"head__loss": "squared_hinge"},
    "head.by_example .* head.loss 'squared_hinge'; set",
  ),
  "not bce": ({"missing__method": "ll_r"}, "set head.loss=bce"),
  "not softmax": (
    {"noisy__method": "elr", "head__loss": "bce"},
    "set head.loss=softmax",
  ),
  "two": (
    {
      "missing__method": "wan",
      "tail__weights": "propensity",
      "head__loss": "bce",
    },
    "do not go together",
  ),
  "unknown": ({"missing__method": "x"}, "missing.method is 'x'"),
  "both ways": (
    {
      "missing__method": "ll_r",
      "head__loss": "bce",
      "missing__share": 0.1,
      "missing__threshold": 1.0,
    },
    "set one of them",
  ),
  "cp": (
    {
      "missing__method": "ll_cp",
      "head__loss": "bce",
      "missing__threshold": 1.0,
    },
    "missing.threshold is 1.0, which missing.method='ll_cp' does not read",
  ),
  "cascade": (
    {
      "missing__method": "ll_r",
      "head__loss": "bce",
      "head__wide": False,
      "head__type": "mhc",
    },
    "set missing.threshold",
  ),
  "cascade with memory": (
    {"noisy__method": "elr", "head__wide": False, "head__type": "mhc"},
    "needs head.type=dense",
  ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_go_together_is_refused(case, data_dir, tmp_path):
  options, message = REFUSALS[case]
  config = runs.make_config(data_dir, **options)
  with pytest.raises(config_lib.ConfigError, match=message):
    train.train(config, tmp_path)


@pytest.mark.slow
def test_a_cascade_takes_large_losses_by_a_threshold(
  data_dir, tmp_path, use_mesh
):
  use_mesh((2, 4))
  config = runs.make_config(
    data_dir,
    head__type="mhc",
    head__wide=False,
    head__loss="bce",
    missing__method="ll_r",
    missing__threshold=1.0,
  )
  train.train(config, tmp_path)
  assert np.isfinite(runs.losses(tmp_path)).all()


@pytest.mark.parametrize(
  "num_labels,asked,found", [(900, None, 5), (900, 64, 64), (30, 64, 30)]
)
def test_estimates_are_kept_of_as_many_labels_as_expected(
  num_labels, asked, found
):
  facts = dataclasses.replace(runs.FACTS, num_labels=num_labels)
  config = runs.resolved(
    facts,
    head__loss="bce",
    missing__method="role",
    missing__positives=4.2,
    missing__remembered=asked,
  )
  assert remedies.num_remembered(config) == found


def test_remedies_are_named_after_the_set():
  get_config = runs.config_file("xmc").get_config
  config = get_config("bibtex,missing=ll_r")
  assert config.missing.method == "ll_r" and config.head.loss == "bce"
  assert config.family is None  # as the data decide: a network
  config = get_config("citeulike_tags,noisy=elr")
  assert config.noisy.method == "elr" and config.head.loss == "softmax"
  assert config.family == "embedding" and config.head.bias is None
  assert get_config("bibtex").missing.method == "an"
