"""A run that the machine cannot hold is refused before it takes anything."""

import logging

import numpy as np
import pytest

from tests import runs
from xlj import config as config_lib
from xlj.model import model as model_lib
from xlj.planning import memory
from xlj.training import preparation
from xlj.training import room

ROWS = ["0,1 0:1 3:0.5", "1 1:1", "2 2:1 3:1", "0 4:1"]


def refusal(directory, rows, *, name="train.svm", labels="", **fields):
  """The message about a data set of these rows; nothing is left behind."""
  (directory / name).write_text("\n".join(rows) + "\n")
  if labels:
    (directory / "trn_X_Y.txt").write_text(labels)
  config = config_lib.base()
  config.data.dir = str(directory)
  config.data.validation = 0.0
  fields = {key.replace("__", "."): value for key, value in fields.items()}
  config.update_from_flattened_dict(fields)
  with pytest.raises(config_lib.ConfigError) as caught:
    preparation.prepare(config, directory / "run")
  assert not (directory / "run").exists()
  sizes = [p.stat().st_size for p in directory.rglob("*") if p.is_file()]
  assert sum(sizes) < 2**16  # the cache is as small as the data
  return " ".join(str(caught.value).split())


def test_one_large_feature_id_is_named_with_its_line(tmp_path):
  text = refusal(tmp_path, [*ROWS, "1 5:0.5 1900000000:1 1900000001:7", *ROWS])
  assert "data.num_features is 1,900,000,002" in text
  where = f"the largest feature id is 1900000001 ({tmp_path}/train.svm:5)"
  assert where in text and "and 8 ids occur" in text
  assert "of memory, and there are" in text


def test_a_product_id_as_a_label_is_named_with_its_line(tmp_path):
  rows = ["0,2000000000 0:1", *ROWS[1:]]
  text = refusal(tmp_path, [*ROWS, *rows], family="embedding")
  assert "data.num_labels is 2,000,000,001" in text
  assert f"label id is 2000000000 ({tmp_path}/train.svm:5)" in text


def test_a_width_of_a_header_is_told_from_ids(tmp_path):
  text = refusal(tmp_path, ["4 1999999999 3", *ROWS])
  assert "data.num_features is 1,999,999,999" in text
  assert f"largest feature id is 4 ({tmp_path}/train.svm:5)" in text


def test_labels_of_a_file_of_their_own(tmp_path):
  text = refusal(
    tmp_path,
    ["2 5", "0:1 3:1", "1:1"],
    name="trn_X_Xf.txt",
    labels="2 2000000000\n3:1 7:1\n1999999999:1\n",
    family="embedding",
  )
  assert f"label id is 1999999999 ({tmp_path}/trn_X_Y.txt:3)" in text


def test_more_label_rows_than_an_int32_numbers(tmp_path):
  text = refusal(tmp_path, [*ROWS, "2147483646 0:1"], train__check_room=False)
  assert "2,147,483,648 label rows are more than an int32 can number" in text
  assert f"({tmp_path}/train.svm:5)" in text and "check_room" not in text


def test_what_is_proposed_fits(tmp_path, monkeypatch):
  # A network of 8 features takes 224 kB a feature and label, linear weights 4.
  monkeypatch.setattr(memory, "of_host", lambda: 100_000)
  text = refusal(tmp_path, ROWS)
  assert "give --config.family=linear, or --config.encoder.dim=64" in text


def test_a_run_that_goes_on_is_not_told_to_be_another(
  data_dir, tmp_path, monkeypatch
):
  wide = runs.make_config(data_dir, encoder__dim=128)
  config, _ = preparation.prepare(wide)
  (tmp_path / config_lib.FILE).write_text(config_lib.to_json(config))
  monkeypatch.setattr(memory, "of_host", lambda: 4 * 10**6)
  with pytest.raises(config_lib.ConfigError) as caught:
    preparation.prepare(wide, tmp_path)
  assert "or give --config.train.check_room=False to" in str(caught.value)


def test_checkpoints_that_the_disk_cannot_hold(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(memory, "of_disk", lambda d: asked.append(d) or 100_000)
  text = refusal(tmp_path, ROWS, train__num_steps=50)
  assert asked[0] == tmp_path / "run/checkpoints"
  assert "for each of 3 checkpoints, and there are 100.0 kB" in text
  assert "--config.checkpoint.keep=1" not in text  # not enough either


def test_checkpoints_there_are_count(data_dir):
  config = runs.make_config(data_dir, train__num_steps=10, checkpoint__every=2)
  config.checkpoint.keep = 2
  assert room._at_once(config, []) == 3
  assert room._at_once(config, [2]) == 2
  assert room._at_once(config, [4, 6, 8]) == 1
  assert room._at_once(config, [8, 10]) == 0


def test_the_size_of_a_checkpoint_is_said(data_dir, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  config = runs.make_config(data_dir, train__num_steps=10, checkpoint__every=2)
  arrays = np.zeros(10**6, np.float32)
  state = model_lib.State({"a": arrays}, {"b": arrays}, np.zeros(1))
  room.check_disk(config, tmp_path, state)
  assert "A checkpoint takes 8.0 MB; 3 or more are in " in caplog.text


def test_the_check_can_be_switched_off(data_dir, tmp_path, monkeypatch):
  monkeypatch.setattr(memory, "of_host", lambda: 1)
  config = runs.make_config(data_dir)
  with pytest.raises(config_lib.ConfigError, match="train.check_room=False"):
    preparation.prepare(config, tmp_path)
  config.train.check_room = False
  preparation.prepare(config, tmp_path)
