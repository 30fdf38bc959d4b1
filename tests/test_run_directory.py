"""A run's directory: what is written is read, and what is another's refused."""

import dataclasses
import os

import jax
import numpy as np
import pytest

from tests import runs
from xlj import config as config_lib
from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.averaging import soups
from xlj.config import splits
from xlj.data import label_order
from xlj.model import model as model_lib
from xlj.runs import directory

L, F, IDS = 11, 6, 13
FACTS = dataclasses.replace(
  runs.FACTS, num_labels=L, num_features=F, num_rows=99
)


def make_run(workdir):
  """A linear run of labels of which two have been merged, and one deleted."""
  config = runs.resolved(FACTS, family="linear", head__blocks=8)
  config.data.num_ids, config.head.order = IDS, directory.ORDER_FILE
  data_ids = np.r_[0:5, 6:12].astype(np.int32)
  head_ids = np.full(IDS, -1, np.int32)
  head_ids[data_ids] = np.arange(L)
  head_ids[5] = head_ids[6]
  counts = np.arange(1, L + 1, dtype=np.int32)
  with jax.set_mesh(mesh_lib.make_mesh()):
    model = model_lib.Model(config)
    state = model.init(
      sharding.replicate(jax.random.key(0)),
      model.by_row(data_ids, -1),
      model.by_row(counts, 0),
      sharding.replicate(np.ones(F, np.float32)),
    )
    return directory.Run(
      workdir,
      config,
      jax.sharding.get_mesh(),
      7,
      {"model": state.model, "training": state.training},
      label_order.LabelOrder(data_ids, head_ids),
      {"skipped": [3]},
      [f"label {i}" for i in range(IDS)],
    )


def test_what_is_written_is_read(tmp_path):
  run = make_run(tmp_path / "first")
  run.corrections.add(5, np.array([1, 2]), np.array([4, 4]))
  directory.write(run, tmp_path / "out", {"P@1": 10.0})
  names = {path.name for path in (tmp_path / "out").iterdir()}
  assert names == {
    "checkpoints",
    "config.json",
    "label_flips.npz",
    "label_order.txt",
    "labels.txt",
    "machine.json",
  }
  found = directory.load(tmp_path / "out", which="last", training=True)
  assert (found.step, found.facts) == (7, {"skipped": [3]})
  assert found.num_labels == L and found.num_ids == IDS
  np.testing.assert_array_equal(found.data_ids, run.data_ids)
  np.testing.assert_array_equal(found.head_ids, run.head_ids)
  np.testing.assert_array_equal(found.counts(), np.arange(1, L + 1))
  jax.tree.map(np.testing.assert_array_equal, found.trees, run.trees)
  assert directory.load(tmp_path / "out").trees.keys() == {"model"}


def test_a_directory_is_claimed_once(tmp_path):
  run = make_run(tmp_path)
  config = run.config
  with directory.making(tmp_path / "run"):
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["owner-0.json"]
  assert not (tmp_path / "run").exists()
  own = run.order, run.names
  directory.claim(tmp_path / "run", config, *own)
  directory.claim(tmp_path / "run", config, *own)
  assert directory.load_config(tmp_path / "run").data.num_ids == IDS
  config.seed += 1
  with pytest.raises(config_lib.ConfigError, match="seed"):
    directory.claim(tmp_path / "run", config, *own)
  with (
    pytest.raises(config_lib.ConfigError, match="is not empty"),
    directory.making(tmp_path / "run"),
  ):
    pass
  with pytest.raises(config_lib.ConfigError, match="no finished checkpoint"):
    directory.load(tmp_path / "run")


def test_other_processes_may_find_that_the_first_one_has_begun(
  tmp_path, monkeypatch
):
  (tmp_path / "checkpoints").mkdir()
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  with directory.making(tmp_path):
    pass


def test_an_average_of_edited_runs_knows_their_labels(tmp_path):
  run = make_run(tmp_path)
  paths = [tmp_path / "a", tmp_path / "b"]
  for path in paths:
    directory.write(run, path)
  soups.make_soup(paths, tmp_path / "out")
  found = directory.load(tmp_path / "out")
  np.testing.assert_array_equal(found.head_ids, run.head_ids)
  assert splits.label_names(found.config, found.workdir) == run.names


def test_a_directory_whose_name_is_no_text_is_refused():
  with pytest.raises(config_lib.ConfigError, match=r"workdir is b'/d\\xe9'"):
    directory.resolve(os.fsdecode(b"/d\xe9"))
