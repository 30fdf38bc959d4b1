"""A run on vectors that a run on words and training rows help to answer."""

import json
import shutil

import numpy as np
import pytest
from safetensors import numpy as safetensors

from tests import runs
from tests.training import test_texts
import xlj
from xlj.data import errors
from xlj.evaluation import calibrate
from xlj.evaluation import evaluate
from xlj.inference import fusion
from xlj.inference import predict
from xlj.model import neighbours
from xlj.text import tokens
from xlj.training import fusing


def write_encoder(path):
  """A pretrained encoder: a table of vectors at random."""
  path.mkdir()
  texts = [" ".join(test_texts.WORDS), *(f"w{i}" for i in range(50))] * 3
  made = tokens.Tokens.train(texts, size=400, max_length=32)
  made.save(path)
  rng = np.random.default_rng(0)
  table = rng.standard_normal((made.num_features, 32)).astype(np.float32)
  safetensors.save_file({"embedding.weight": table}, path / "model.safetensors")
  return path


def config_of(data, encoder):
  config = runs.config_file("text").get_config()
  config.data.dir, config.text.pretrained = str(data), str(encoder)
  config.fusion.candidates = 4
  config.train.batch_size = config.eval.batch_size = 64
  return config


def test_weights_are_the_likeliest():
  rng = np.random.default_rng(0)
  texts = np.repeat(np.arange(3000), 4)
  features = rng.standard_normal((len(texts), 2))
  z = (features @ [2.0, -1.0]).reshape(-1, 4)
  chosen = (z + rng.gumbel(size=z.shape)).argmax(1)
  positive = (np.arange(4) == chosen[:, None]).ravel()
  found = fusing.fit(features, positive, texts)
  np.testing.assert_allclose(found, [2, -1], atol=0.15)


def test_shares_of_near_rows():
  cosines = np.array([[0.9, 0.8], [0.0, -0.1]])
  found = neighbours.shares(cosines, 0.1)
  np.testing.assert_allclose(found[0], np.exp([0, -1]) / (1 + np.exp(-1)))
  np.testing.assert_array_equal(found[1], 0)


@pytest.mark.slow
def test_all_help_and_whatever_was_stopped_goes_on(
  tmp_path, monkeypatch, capsys, use_mesh
):
  use_mesh((1, 2))
  data = test_texts.write_data(tmp_path / "data")
  encoder = write_encoder(tmp_path / "encoder")
  config, workdir = config_of(data, encoder), tmp_path / "run"
  with monkeypatch.context() as patch:
    patch.setattr(fusing, "fit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # as if it was killed there
      fusing.train_all(config, workdir)
  assert not (workdir / fusion.FILE).exists()
  assert fusing.train_all(config, workdir)
  saved = json.loads((workdir / fusion.FILE).read_text())
  assert saved["held_out_scores"]["all"]["P@1"] > 90
  shutil.rmtree(encoder)  # The run is complete without it.
  run = xlj.load(workdir)
  run.warm_up(examples=2)
  alone = run.answers_alone(["dog w1"], 2)[1]
  texts = ["dog w1 river", "tree cat"]
  _, ids = run.topk(texts, 2)
  assert [sorted(row) for row in run.names(ids)] == [
    ["ä dog", "ä river"],
    ["ä cat", "ä tree"],
  ]
  assert alone.shape == (1, 2)
  # The run on words says why, and the training rows are those of vectors.
  words = run.fusion.words.feature_names
  reasons = run.why("dog w1 river", ids[0].tolist(), 2)
  for label, (most, *_) in zip(run.names(ids[0]), reasons):
    assert words[most[0]].strip("~ ") in label
  near = run.near_rows("dog w1 river", 3)
  assert len(near) == 3 and set(near[0].labels) & set(ids[0].tolist())
  _, none = run.topk(texts, 2, exclude=ids.ravel())
  assert not set(none.ravel()) & set(ids.ravel())
  assert (run.topk(texts, 2, threshold=1e9)[1] == -1).all()
  scores = evaluate.evaluate(workdir)
  assert 90 < scores["P@1"] < 100
  out = tmp_path / "out.jsonl"
  found = calibrate.calibrate(workdir, precision=0.5)
  assert found.about["rows"] == saved["held_out_rows"]
  assert found.about["ECE"][1] < 5
  assert 0 < evaluate.evaluate(workdir)["ECE"] < 15
  predict.predict(workdir, str(data / "test.jsonl"), str(out), k=2)
  assert "probabilities" in out.read_text()
  (workdir / fusion.HELD_OUT_FILE).unlink()
  with pytest.raises(errors.DataError, match="by --rows=test or"):
    calibrate.calibrate(workdir)
  found = calibrate.calibrate(workdir, rows="test")
  assert found.about["rows"] == 61
  assert len(out.read_text().splitlines()) == 61
  capsys.readouterr()


@pytest.mark.slow
def test_without_a_step_what_is_said_of_labels_answers(tmp_path, use_mesh):
  use_mesh((1, 2))
  data = test_texts.write_data(tmp_path / "data")
  config = config_of(data, write_encoder(tmp_path / "encoder"))
  config.head.init, config.train.epochs = "label_text", 0.0
  assert fusing.train_all(config, tmp_path / "run")
  run = xlj.load(tmp_path / "run")
  _, ids = run.topk(["dog w1 w2", "w3 stone"], 1)
  assert run.names(ids) == [["ä dog"], ["ä stone"]]
  assert not run.fusion.neighbours  # No label of a training row counts.
