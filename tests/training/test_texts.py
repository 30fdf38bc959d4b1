"""Runs on texts: from rows of text and labels to names of labels."""

import json
import shutil

import numpy as np
import pytest

from tests import runs
import xlj
from xlj.evaluation import evaluate
from xlj.inference import predict
from xlj.labels import append
from xlj.labels import runs as label_runs
from xlj.runs import directory
from xlj.text import features
from xlj.training import closing
from xlj.training import successor
from xlj.training import train

WORDS = ["dog", "cat", "tree", "stone", "river", "cloud"]


def write(path, rows):
  text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  path.write_text(text, encoding="utf-8")


def rows(seed, count):
  """Texts that name their labels, among other words."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    named = rng.choice(WORDS, 2, replace=False).tolist()
    others = [f"w{i}" for i in rng.integers(0, 50, 5)]
    yield {
      "text": " ".join(named + others),
      "labels": [f"ä {n}" for n in named],
    }


def write_data(path):
  path.mkdir()
  write(path / "train.jsonl", rows(0, 300))
  write(path / "test.jsonl", [*rows(1, 60), {"text": "x", "labels": ["new"]}])
  write(path / "labels.jsonl", [{"label": f"ä {n}", "text": n} for n in WORDS])
  return path


def config_of(data, **fields):
  return runs.make_config(
    data,
    **runs.LINEAR,
    data__text="words",
    data__validation=0.0,
    train__epochs=4.0,
    **fields,
  )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  root = tmp_path_factory.mktemp("texts")
  train.train(config_of(write_data(root / "data")), root / "run")
  return root / "run"


def test_a_run_answers_with_names(run, capsys):
  loaded = xlj.load(run)
  _, ids = loaded.topk(["w1 dog river w2", {"text": "cat", "title": "tree"}], 2)
  names = [sorted(row) for row in loaded.names(ids)]
  assert names == [["ä dog", "ä river"], ["ä cat", "ä tree"]]
  assert "dog" in loaded.feature_names
  scores = evaluate.evaluate(run)
  assert scores["P@1"] > 95  # of 61 rows one has a label that training has not
  assert scores["P@1"] < 100
  capsys.readouterr()


def test_rows_of_a_file_are_answered_one_by_one(run, tmp_path, caplog):
  write(tmp_path / "in.jsonl", [{"text": "stone"}, {"txt": 1}, {"text": ""}])
  out = tmp_path / "out.jsonl"
  predict.predict(run, str(tmp_path / "in.jsonl"), str(out), on_error="skip")
  found = [json.loads(line) for line in out.read_text().splitlines()]
  assert found[0]["names"][0] == "ä stone"
  assert found[1]["labels"] == [] and len(found[2]["labels"]) == 5
  assert "in.jsonl:2: " in caplog.text


def test_texts_and_numbers_are_told_apart(run):
  loaded = xlj.load(run)
  for texts, why in (
    ("one text", r"give a list of them: \[text\]"),
    (["a", 3], "row 1 of the features is 3; give texts, as row 0 is"),
  ):
    with pytest.raises(ValueError, match=why):
      loaded.topk(texts)
  counts = loaded.run.encoding.featurizer(["dog river"])
  _, ids = loaded.topk(counts, 2)
  assert ids.tolist() == loaded.topk(["dog river"], 2)[1].tolist()


@pytest.mark.slow
def test_a_run_needs_no_data_and_reads_other_data_as_its_own(run, tmp_path):
  shutil.copytree(run, tmp_path / "run")
  data = write_data(tmp_path / "data")
  shutil.copytree(data, tmp_path / "more")
  write(tmp_path / "more" / "train.jsonl", rows(7, 200))
  config = config_of(tmp_path / "more")
  config = successor.begin(config, tmp_path / "run", tmp_path / "new")
  train.train(config, tmp_path / "new")
  shutil.rmtree(data)
  first, second = xlj.load(tmp_path / "run"), xlj.load(tmp_path / "new")
  same = first.run.encoding, second.run.encoding
  assert same[0].featurizer.fingerprint() == same[1].featurizer.fingerprint()
  texts = ["dog w1", "unheard of"]
  assert first.names(first.topk(texts, 1)[1])[0] == ["ä dog"]
  assert second.names(second.topk(texts, 1)[1])[0] == ["ä dog"]


def test_the_end_says_which_file_to_score_and_to_predict_for(run):
  config = directory.load_config(run)
  found = closing.text(run, config, runs.FACTS, config.train.num_steps)
  assert f"xlj evaluate --workdir={run}" in found
  assert "data/test.jsonl --output=" in found
  assert f"{run}/predictions.jsonl" in found


@pytest.mark.slow
def test_labels_are_appended_by_what_is_said_of_them(run, tmp_path):
  write(tmp_path / "labels.jsonl", [{"label": "new", "text": "w1 w2 w3"}])
  before = label_runs.load(run)
  data = features.read_file(tmp_path / "labels.jsonl", before.encoding)
  after = append.append(before, data, method="features")
  label_runs.save(after, tmp_path / "run")
  loaded = xlj.load(tmp_path / "run")
  _, ids = loaded.topk(["w1 w2 w3", "dog river"], 2)
  assert loaded.names(ids)[0][0] == "new"
  assert sorted(loaded.names(ids)[1]) == ["ä dog", "ä river"]


def test_without_a_step_labels_are_found_by_what_is_said_of_them(tmp_path):
  config = runs.make_config(
    write_data(tmp_path / "data"),
    family="embedding",
    encoder__dim=512,
    data__text="words",
    data__validation=0.0,
    head__init="label_text",
    head__wide=False,
    train__epochs=0.0,
  )
  assert train.train(config, tmp_path / "run")
  loaded = xlj.load(tmp_path / "run")
  assert loaded.step == 0
  _, ids = loaded.topk(["w1 river", "stone"], 1)
  assert loaded.names(ids) == [["ä river"], ["ä stone"]]
  assert train.train(config, tmp_path / "run")  # complete already
