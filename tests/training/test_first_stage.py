"""A run that begins with what another one has trained."""

import json

import numpy as np
import pytest

from tests import runs
from tests.encoders import references
from tests.text import test_vectors
import xlj
from xlj import config as config_lib
from xlj.training import train


def write_texts(path):
  """Texts of letters, labelled by their first and last ones."""
  path.mkdir()
  rng = np.random.default_rng(0)
  for split, count in (("train", 200), ("test", 30)):
    words = [
      rng.choice(list("abcdefgh"), n) for n in rng.integers(1, 12, count)
    ]
    with (path / f"{split}.jsonl").open("w") as file:
      for word in words:
        labels = sorted({word[0], word[-1]})
        row = {"text": " ".join(word), "labels": labels}
        file.write(json.dumps(row) + "\n")
  return path


@pytest.mark.slow
def test_a_frozen_encoder_is_trained_from_where_its_rows_are(tmp_path):
  data = write_texts(tmp_path / "data")
  encoder = tmp_path / "encoder"
  encoder.mkdir()
  references.write_directory(encoder, "bert")
  test_vectors.write_tokenizer(encoder)

  def config_of(arg, **fields):
    config = runs.config_file("text").get_config(arg)
    config.update_from_flattened_dict(
      {
        "data.dir": str(data),
        "text.pretrained": str(encoder),
        "text.max_length": 16,
        "train.batch_size": 32,
        **fields,
      }
    )
    return config

  first, second = tmp_path / "first", tmp_path / "second"
  train.train(
    config_of("", **{"data.text": "vectors", "fusion.with_words": False}), first
  )
  start = {"train.start_from": str(first), "train.epochs": 0.0}
  train.train(config_of("tune", **start), second)
  texts = ["a b c", "h", "d e f a b", ""]
  (scores, ids), (own, own_ids) = (
    xlj.load(run).topk(texts, k=8) for run in (first, second)
  )
  np.testing.assert_array_equal(own_ids[:3], ids[:3])
  np.testing.assert_allclose(own[:3], scores[:3], rtol=2e-4, atol=2e-4)
  tuned = tmp_path / "tuned"
  train.train(config_of("tune", **start | {"train.epochs": 2.0}), tuned)
  losses = runs.losses(tuned)
  assert losses[-1] < losses[0]
  for fields, message in (
    ({"encoder.projection": False}, "set encoder.projection=True"),
    ({"data.validation": 0.5}, "labels are in another order|data.validation"),
  ):
    with pytest.raises(config_lib.ConfigError, match=message):
      train.train(config_of("tune", **start | fields), tmp_path / "other")
