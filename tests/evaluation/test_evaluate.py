"""Evaluating runs on data that is not a directory of rows."""

import json
import shutil

import numpy as np
import pytest

from tests import runs
from xlj import config as config_lib
from xlj.config import splits
from xlj.evaluation import calibrate
from xlj.evaluation import evaluate
from xlj.evaluation import pairs
from xlj.heads.dense import head as dense
from xlj.inference import calibration as calibration_lib
from xlj.inference import label_files
from xlj.inference import predictor
from xlj.report import progress
from xlj.training import train

CHANCE = 100 / 24


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
  """A run on generated rows, without any file."""
  workdir = tmp_path_factory.mktemp("generated")
  config = runs.make_config(
    "",
    data__generator__rows=2000,
    data__generator__test_rows=300,
    data__generator__factors=(6, 4),
    data__generator__features=16,
    data__generator__noise=0.5,
    head__wide=False,
    encoder__embedding_dropout=0.0,
  )
  train.train(config, workdir)
  return workdir


@pytest.mark.slow
def test_held_out_generated_rows_are_scored(generated, capsys):
  found = evaluate.evaluate(generated)
  assert found["P@1"] > 5 * CHANCE
  last = capsys.readouterr().out.strip().splitlines()[-1]
  assert json.loads(last)["P@1"] == pytest.approx(found["P@1"], abs=1e-3)
  stored = json.loads((generated / "evaluation.json").read_text())
  assert stored["baselines"].keys() == {"popularity"}
  assert len(stored["deciles"]) > 1


def test_figures_are_printed_where_none_can_be_written(
  generated, tmp_path, capsys, caplog
):
  workdir = tmp_path / "run"
  shutil.copytree(generated, workdir)
  (workdir / "evaluation.json").unlink(missing_ok=True)
  (workdir / "evaluation.json").mkdir()  # as read-only, also for root
  found = evaluate.evaluate(workdir)
  last = capsys.readouterr().out.strip().splitlines()[-1]
  assert json.loads(last)["P@1"] == pytest.approx(found["P@1"], abs=1e-3)
  assert "the report was not renewed: " in caplog.text
  assert f"{workdir / 'evaluation.json'} is a directory" in caplog.text


@pytest.mark.slow
def test_figures_of_recommendation_are_fractions(tmp_path, capsys):
  config = runs.make_config(
    "",
    data__generator__rows=1000,
    data__generator__test_rows=200,
    data__generator__factors=(6, 4),
    data__generator__features=16,
    data__validation=0.2,
    head__wide=False,
    eval__figures="recommendation",
    eval__ks=(2, 10),
    eval__metric="Recall@2",
  )
  train.train(config, tmp_path)
  found = evaluate.evaluate(tmp_path)
  lines = capsys.readouterr().out.strip().splitlines()
  told = json.loads(lines[-1])
  assert list(told) == list(found)
  for name in ("Recall", "nDCG", "HR", "MRR", "CatalogCoverage"):
    assert 0 < told[f"{name}@2"] <= told[f"{name}@10"] <= 1
    assert told[f"{name}@2"] == pytest.approx(found[f"{name}@2"], abs=1e-6)
  assert told["Recall@2"] == told["HR@2"]  # one label a row
  assert told["ARP@2"] > 1
  assert any(line.endswith(" s, fractions") for line in lines)
  records = progress.read_metrics(tmp_path / progress.METRICS_FILE)
  scores = {r["step"]: r["Recall@2"] for r in records if r["kind"] == "eval"}
  assert 0 < max(scores.values()) <= 1
  run = predictor.load(tmp_path)
  assert scores[run.step] == max(scores.values())
  report = (tmp_path / "report.html").read_text()
  assert "Metrics, fractions (test split" in report
  assert f"{found['nDCG@10']:.4f}" in report
  assert "validation, fractions" in report


@pytest.fixture(scope="module")
def calibrated(generated, tmp_path_factory):
  """The run with a calibration on the rows that it has held out."""
  workdir = tmp_path_factory.mktemp("calibrated") / "run"
  shutil.copytree(generated, workdir)
  return workdir, calibrate.calibrate(workdir, precision=0.5)


@pytest.mark.slow
def test_figures_of_probabilities_are_those_of_answers(calibrated, capsys):
  workdir, _ = calibrated
  found = evaluate.evaluate(workdir, ks=(1, 3))
  last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
  run = predictor.load(workdir)
  data = splits.open_split(run.config, "test")
  scores, ids = run.topk(data.features[np.arange(data.num_rows)], 3)
  p = run.calibration.probabilities(scores, ids)
  hits = pairs.contains(data.labels, ids, data.num_labels)
  given = p >= run.calibration.threshold(0.5)
  expected = {
    "ECE": calibration_lib.ece(p.ravel(), hits.ravel()),
    "min_probability": run.calibration.threshold(0.5),
    "precision": 100 * hits[given].mean(),
    "answered": 100 * given.any(1).mean(),
  }
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, abs=1e-3)
    assert last[name] == pytest.approx(value, abs=1e-3)
  few = workdir.parent / "few.txt"
  few.write_text("0\n7\n11\n")
  asked = label_files.Asked(among=str(few))
  assert "ECE" not in evaluate.evaluate(workdir, asked=asked)


@pytest.mark.slow
def test_counts_say_nothing_of_rows_that_were_held_out(calibrated):
  workdir, found = calibrated
  config = predictor.load(workdir).config
  data, chosen = splits.held_out(config, workdir)
  trained = np.setdiff1d(np.arange(data.num_rows), chosen)
  counts = np.bincount(data.labels.take(trained).indices, minlength=24)
  np.testing.assert_allclose(found.counts, counts * 2000 / len(trained))
  assert found.about["rows"] == len(chosen) == 100


@pytest.mark.slow
def test_a_run_without_held_out_rows_is_calibrated_on_others(
  generated, tmp_path, capsys
):
  shutil.copytree(generated, tmp_path / "run")
  path = tmp_path / "run" / config_lib.FILE
  fields = json.loads(path.read_text())
  fields["data"]["validation"] = 0.0
  path.write_text(json.dumps(fields))
  with pytest.raises(config_lib.ConfigError, match="all rows .*--rows=test"):
    calibrate.calibrate(path.parent)
  assert not (path.parent / calibration_lib.FILE).exists()
  found = calibrate.calibrate(path.parent, rows="test", precision=0.9999)
  assert (found.about["split"], found.about["rows"]) == ("test", 300)
  assert "target" not in found.about  # which no rows bear out
  out = capsys.readouterr().out.splitlines()
  assert json.loads(out[-1])["ECE"] == found.about["ECE"]
  with pytest.raises(ValueError, match="give a share"):
    calibrate.calibrate(path.parent, rows="test", precision=90)


@pytest.mark.slow
def test_labels_to_choose_among_are_the_only_ones(generated, tmp_path):
  evaluate.evaluate(generated)
  before = (generated / "evaluation.json").read_text()
  few = tmp_path / "few.txt"
  few.write_text("0\n7\n11\n")
  asked = label_files.Asked(among=str(few))
  found = evaluate.evaluate(generated, asked=asked, ks=(1, 3))
  # One label a row: where it is among them, it is one of three.
  assert 0 < found["P@1"] <= 3 * found["P@3"] < 100
  assert found["Recall@3"] == 100
  assert (generated / "evaluation.json").read_text() == before


@pytest.mark.slow
def test_without_counts_nothing_by_label_is_told(generated, monkeypatch):
  monkeypatch.setattr(predictor.Predictor, "label_counts", lambda self: None)
  found = evaluate.evaluate(generated)
  assert {name.split("@")[0] for name in found if "@" in name} == {
    "P", "nDCG", "Recall",
  }  # fmt: skip
  stored = json.loads((generated / "evaluation.json").read_text())
  assert stored["baselines"] == {} and stored["deciles"] == []
  assert f"{found['P@1']:.2f}" in (generated / "report.html").read_text()


def test_a_directory_does_not_go_with_generated_rows(generated):
  with pytest.raises(config_lib.ConfigError, match="needs no directory"):
    evaluate.evaluate(generated, data_dir="somewhere")


@pytest.mark.slow
def test_a_next_word_run_has_a_perplexity(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(dense.DenseHead, "is_likelihood", True, raising=False)
  data = tmp_path / "data"
  data.mkdir()
  for split, size in (("train", 400), ("test", 40)):
    text = "one two three four\nfive six seven\n" * size
    (data / f"toy.{split}.txt").write_text(text)
  config = runs.make_config(
    data, data__context=2, head__wide=False, train__epochs=1.0
  )
  config.data.weighting = "none"
  config.optim.encoder.learning_rate = config.optim.head.learning_rate = 0.05
  train.train(config, tmp_path / "run")
  found = evaluate.evaluate(tmp_path / "run")
  # Two tokens tell the next one, but for the very first of the file.
  assert 1 < found["perplexity"] < 2
  assert found["P@1"] > 90
  out = capsys.readouterr().out
  assert json.loads(out.strip().splitlines()[-1])["perplexity"] > 1
  assert "perplexity: 1." in out
