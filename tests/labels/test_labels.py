"""Edits of labels by the launcher, on eight devices: what a user would do."""

import dataclasses

import numpy as np
import pytest

from tests import runs as test_runs
from xlj import config as config_lib
from xlj.data import csr
from xlj.data import errors
from xlj.data import pipeline
from xlj.data import store
from xlj.data import writers
from xlj.evaluation import evaluate
from xlj.inference import predictor
from xlj.labels import append
from xlj.labels import arrays
from xlj.labels import edit
from xlj.labels import files
from xlj.labels import runs
from xlj.training import train

L, NEW = 700, 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  root = tmp_path_factory.mktemp("labels")
  data = test_runs.make_data(root / "data")
  config = test_runs.make_config(data, train__epochs=1.0, data__validation=0.0)
  train.train(config, root / "run")
  return root


def csr_rows(split, count):
  return split.features.take(np.arange(count))


def counts_of(workdir):
  counts = predictor.load(workdir, which="last").label_counts()
  assert counts is not None
  return counts


def scores(workdir, rows, width):
  run = predictor.load(workdir, which="last")
  values, ids = run.topk(rows, run.num_labels)
  full = np.full((len(values), width), -np.inf, np.float32)
  np.put_along_axis(full, ids, values, 1)
  return full


@pytest.mark.slow  # five launchers
def test_append_delete_merge_rename_and_train_on(trained, tmp_path):
  data, run = trained / "data", trained / "run"
  rows = csr_rows(store.open_split(data, "test"), 16)
  before = scores(run, rows, L + NEW)

  def edited(source, name, *flags):
    out = tmp_path / name
    job = test_runs.launch(
      "labels", f"--workdir={source}", f"--output={out}", *flags, devices=2
    )
    code, _, err = test_runs.finish(job)
    assert code == 0, err
    return out

  # New labels have the ids that follow; others' scores stay.
  split = store.open_split(data)
  labels = csr.Csr.from_rows([[L + i % NEW] for i in range(40)], L + NEW)
  new = tmp_path / "new.txt"
  writers.write_one_file(new, csr_rows(split, 40), labels)
  more = edited(run, "more", f"--append={new}", "--method=teen")
  with_new = scores(more, rows, L + NEW)
  np.testing.assert_allclose(with_new[:, :L], before[:, :L], atol=1e-6)
  assert np.isfinite(with_new[:, L:]).all()
  found = counts_of(more)
  np.testing.assert_array_equal(found[L:], [8] * NEW)

  gone = [3, 10, 699, L + 1]
  ids = tmp_path / "ids.txt"
  ids.write_text("".join(f"{label}\n" for label in gone))
  less = edited(more, "less", f"--delete={ids}")
  after = scores(less, rows, L + NEW)
  assert np.isneginf(after[:, gone]).all()
  kept = np.setdiff1d(np.arange(L + NEW), gone)
  np.testing.assert_allclose(after[:, kept], with_new[:, kept], atol=1e-6)
  counts = counts_of(less)
  np.testing.assert_array_equal(counts[gone], 0)
  np.testing.assert_array_equal(counts[kept], found[kept])

  merge, rename = tmp_path / "merge.tsv", tmp_path / "rename.tsv"
  merge.write_text("5\t6\n7\t6\n")
  rename.write_text("6\tthe one\n")
  one = edited(less, "one", f"--merge={merge}")
  last = edited(one, "last", f"--rename={rename}", "--steps=2")
  listed = list(edit.listed(runs.load(last)))
  assert (listed[6].name, listed[6].count) == ("the one", counts[5:8].sum())
  assert [listed[i].state for i in (5, 6, 3)] == [
    "merged into 6",
    "",
    "deleted",
  ]
  step = runs.load(last).step
  job = test_runs.launch("train", f"--workdir={last}", devices=2)
  code, _, err = test_runs.finish(job)
  assert code == 0, err
  assert runs.load(last).step == step + 2
  assert np.isneginf(scores(last, rows, L + NEW)[:, [5, 7, *gone]]).all()
  assert evaluate.evaluate(last)["P@1"] >= 0


@pytest.mark.slow
def test_deleted_labels_are_gone_and_others_as_before(trained, tmp_path):
  rows = csr_rows(store.open_split(trained / "data", "test"), 16)
  before = scores(trained / "run", rows, L)
  gone = np.arange(0, L, 7)
  run = edit.delete(runs.load(trained / "run"), gone)
  # A deleted label comes back by new examples, under its id.
  split = store.open_split(trained / "data")
  labels = csr.Csr.from_rows([[14], [14], [L]], L + 1)
  new = dataclasses.replace(split, features=csr_rows(split, 3), labels=labels)
  run = append.append(run, new, method="naive_bayes")
  runs.save(run, tmp_path / "out")
  after = scores(tmp_path / "out", rows, L + 1)
  back = [14, L]
  assert np.isfinite(after[:, back]).all()
  assert np.isneginf(after[:, np.setdiff1d(gone, back)]).all()
  kept = np.setdiff1d(np.arange(L), gone)
  np.testing.assert_allclose(after[:, kept], before[:, kept], atol=1e-6)
  np.testing.assert_array_equal(counts_of(tmp_path / "out")[back], [2, 1])


@pytest.mark.slow
def test_near_rows_name_a_label_by_the_id_that_it_has_now(trained, tmp_path):
  runs.save(edit.merge(runs.load(trained / "run"), {5: 6, 7: 6}), tmp_path)
  first, now = map(predictor.load, (trained / "run", tmp_path))
  assert first.neighbours and now.neighbours
  before = first.neighbours.labels.to_scipy().toarray()
  after = now.neighbours.labels.to_scipy().toarray()
  assert before[:, [5, 7]].any() and not after[:, [5, 7]].any()
  assert (after[:, 6] == before[:, 5:8].any(1)).all()


@pytest.mark.slow
def test_calibration_that_takes_no_share_of_known_labels_changes_nothing(
  trained,
):
  run, split = runs.load(trained / "run"), store.open_split(trained / "data")
  labels = csr.Csr.from_rows([[L], [L + 1], [L]], L + 2)
  new = dataclasses.replace(split, features=csr_rows(split, 3), labels=labels)
  found = [
    append.append(run, new, method=method, share=share)
    for method, share in (("prototype", 0), ("teen", 0), ("teen", 0.5))
  ]
  heads = runs.heads_of(found[0], [L, L + 1])
  plain, same, other = (arrays.values(run, heads) for run in found)
  for name, a in plain.items():
    np.testing.assert_allclose(same[name], a, atol=1e-5)
  assert np.abs(other["rows"] - plain["rows"]).max() > 1e-3


@pytest.mark.slow
def test_other_data_are_weighted_as_the_first_were(
  trained, tmp_path, monkeypatch
):
  split = store.open_split(trained / "data")
  (tmp_path / "data").mkdir()
  few = np.arange(0, split.num_rows, 3)
  writers.write_one_file(
    tmp_path / "data" / "train.txt",
    split.features.take(few),
    split.labels.take(few),
  )
  before = runs.load(trained / "run")
  runs.save(before, tmp_path / "out", train_dir=tmp_path / "data", steps=2)
  used = []

  def train_batches(data, weighting, **kwargs):
    used.append((data.num_rows, weighting.idf))
    return pipeline_batches(data, weighting, **kwargs)

  pipeline_batches = pipeline.train_batches
  monkeypatch.setattr(pipeline, "train_batches", train_batches)
  train.train(
    config_lib.load(tmp_path / "out" / "config.json"), tmp_path / "out"
  )
  ((num_rows, idf),) = used
  assert num_rows == len(few)
  weighting = runs.as_predictor(before).weighting
  assert weighting is not None
  np.testing.assert_array_equal(idf, weighting.idf)
  assert runs.load(tmp_path / "out").step == before.step + 2


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("3\n700\n", ":2: found label 700: there are ids 0 to 699"),
    ("3\n\n3\n", ":3: found label 3 again"),
    ("3\nno such name\n", ":2: found 'no such name', no label's name"),
    ("\n", "found no line with text"),
    ("3\t4\n", ":1: found '3\\\\t4', expected one label"),
  ],
)
def test_bad_lines_are_named(trained, tmp_path, text, wanted):
  path = tmp_path / "ids.txt"
  path.write_text(text)
  with pytest.raises(errors.DataError, match=wanted):
    files.read_ids(path, runs.load(trained / "run"))


def test_one_edit_at_a_time(trained, tmp_path):
  job = test_runs.launch("labels", f"--workdir={trained / 'run'}")
  code, _, err = test_runs.finish(job)
  assert code and "--append, --delete" in err
