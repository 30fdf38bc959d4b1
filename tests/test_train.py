"""Whole runs: on every mesh, interrupted, restored elsewhere."""

import numpy as np
import pytest

from tests import meshes
from tests import runs
from xlj import mesh as mesh_lib
from xlj import train


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def use_mesh(monkeypatch):
  """Lets `train` build its mesh over the first devices only."""

  def use(shape):
    monkeypatch.setattr(
      mesh_lib, "make_mesh", lambda _=None: meshes.make(shape)
    )

  return use


def losses(workdir):
  return [row["loss"] for row in runs.records(workdir, "train")]


def test_losses_are_equal_on_all_meshes(data_dir, tmp_path, use_mesh):
  found = {}
  for shape in meshes.SHAPES:
    use_mesh(shape)
    workdir = tmp_path / f"{shape[0]}x{shape[1]}"
    train.train(runs.make_config(data_dir), workdir)
    found[shape] = losses(workdir)
  assert len(found[1, 1]) > 20
  assert found[1, 1][-1] < 0.9 * found[1, 1][0]
  for shape in meshes.SHAPES:
    np.testing.assert_allclose(found[shape], found[1, 1], rtol=1e-5)


def test_a_run_continues_on_another_mesh(data_dir, tmp_path, use_mesh):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  config = runs.make_config(data_dir, checkpoint__every=5)
  use_mesh((2, 4))
  train.train(config, whole)
  runs.stop_after(steps=12, config=config, workdir=parts)
  use_mesh((8, 1))
  train.train(config, parts)
  np.testing.assert_allclose(losses(parts), losses(whole), rtol=1e-5)
  use_mesh((1, 1))
  train.train(config, parts)  # complete: restores, runs no step, reports


def test_an_interrupted_run_repeats_bit_for_bit(data_dir, tmp_path, use_mesh):
  use_mesh((1, 1))
  config = runs.make_config(data_dir, checkpoint__every=7)
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  train.train(config, whole)
  runs.stop_after(steps=10, config=config, workdir=parts)
  train.train(config, parts)
  assert losses(parts) == losses(whole)
  assert runs.records(parts, "eval") == runs.records(whole, "eval")
