"""Evaluating runs on data that is not a directory of rows."""

import json
import shutil

import pytest

from tests import runs
from xlj import config as config_lib
from xlj.evaluation import evaluate
from xlj.heads.dense import head as dense
from xlj.inference import label_files
from xlj.inference import predictor
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
