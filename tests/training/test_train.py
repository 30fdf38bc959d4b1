"""Whole runs: on every mesh, interrupted, restored elsewhere."""

import json

import jax
import numpy as np
import pytest

from tests import meshes
from tests import runs
from xlj.checkpoint import checkpointer
from xlj.data import order
from xlj.evaluation import metrics
from xlj.inference import predictor
from xlj.model import batches
from xlj.model import model as model_lib
from xlj.report import recorded
from xlj.runs import directory
from xlj.training import not_finite
from xlj.training import preparation
from xlj.training import train

ROWS = [{3: 1.0, 17: 2.0}, {5: 1.0}, {60: 3.0, 1: 1.0, 2: 1.0}]
FAMILIES = {"network": {}, "linear": runs.LINEAR}


@pytest.fixture(scope="module", params=FAMILIES)
def config(request, data_dir):
  return runs.make_config(
    data_dir, checkpoint__every=5, **FAMILIES[request.param]
  )


@pytest.fixture(scope="module")
def workdirs(config, tmp_path_factory):
  """Those of whole runs of the config, by mesh."""
  del config
  return {}, tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(config, workdirs, use_mesh):
  """Gives the directory of a whole run on a mesh, which stays in use."""
  found, directory = workdirs

  def run(shape):
    use_mesh(shape)
    if shape not in found:
      workdir = directory / f"{shape[0]}x{shape[1]}"
      train.train(config, workdir)
      found[shape] = workdir
    return found[shape]

  return run


def test_losses_are_equal_on_all_meshes(whole):
  found = {shape: runs.losses(whole(shape)) for shape in meshes.SHAPES}
  assert len(found[1, 1]) > 20
  assert found[1, 1][-1] < 0.9 * found[1, 1][0]
  for shape in meshes.SHAPES:
    np.testing.assert_allclose(found[shape], found[1, 1], rtol=1e-5)


@pytest.mark.slow
def test_a_run_continues_on_another_mesh(config, whole, tmp_path, use_mesh):
  parts, expected = tmp_path / "parts", runs.losses(whole((2, 4)))
  whole_topk = predictor.load(whole((2, 4)), which="last").topk(ROWS, 5)
  runs.stop_after(steps=12, config=config, workdir=parts)
  use_mesh((8, 1))
  train.train(config, parts)
  np.testing.assert_allclose(runs.losses(parts), expected, rtol=1e-5)
  use_mesh((1, 1))
  train.train(config, parts)  # complete: restores, runs no step, reports
  restored = predictor.load(parts, which="last").topk(ROWS, 5)
  for found, wanted in zip(restored, whole_topk, strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_an_interrupted_run_repeats_bit_for_bit(config, whole, tmp_path):
  parts, expected = tmp_path / "parts", whole((1, 1))
  runs.stop_after(steps=9, config=config, workdir=parts)
  first = recorded.read(parts).seconds
  train.train(config, parts)
  both = recorded.read(parts).seconds
  for phase in ("steps", "start", "checkpoints"):
    assert 0 < first[phase] < both[phase]
  assert not both["lost"]
  assert runs.losses(parts) == runs.losses(expected)
  assert runs.records(parts, "eval") == runs.records(expected, "eval")
  states = [
    directory.load(workdir, which="last", training=True).trees
    for workdir in (parts, expected)
  ]
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_the_best_is_saved_though_no_save_is_due(
  data_dir, tmp_path, use_mesh, monkeypatch
):
  use_mesh((1, 1))
  config = runs.make_config(
    data_dir, train__num_steps=7, eval__every=2, checkpoint__every=3
  )
  scores = iter([10.0, 30.0, 20.0, 5.0])  # of the steps 2, 4, 6 and 7
  compute = metrics.Ranking.compute
  monkeypatch.setattr(
    metrics.Ranking,
    "compute",
    lambda self: compute(self) | {"P@1": next(scores)},
  )
  train.train(config, tmp_path)
  saved = sorted(
    int(path.name) for path in (tmp_path / "checkpoints").iterdir()
  )
  assert saved == [4, 6, 7]
  assert predictor.load(tmp_path).step == 4
  evaluated = {
    row["step"]: row["P@1"] for row in runs.records(tmp_path, "eval")
  }
  assert evaluated == {2: 10.0, 4: 30.0, 6: 20.0, 7: 5.0}


def test_what_is_known_of_labels_starts_split(
  data_dir, tmp_path, use_mesh, monkeypatch
):
  """No device is given a number for each label of all devices."""
  use_mesh((2, 4))
  config = runs.make_config(data_dir, head__order="frequency")
  config, data = preparation.prepare(config, tmp_path)
  given, init = [], model_lib.Model.init

  def noting(self, key, *arrays):
    given.extend(arrays[:2])
    return init(self, key, *arrays)

  monkeypatch.setattr(model_lib.Model, "init", noting)
  with (
    jax.set_mesh(meshes.make((2, 4))),
    checkpointer.Checkpointer(tmp_path / "checkpoints") as keeper,
  ):
    model = model_lib.Model(config)
    state, _ = train._start(model, keeper, config, data)
  buffers, layout = state.model["buffers"], model.layout
  rows = layout.row_of_label(np.arange(layout.num_labels))
  counts = data.stats.label_counts[data.order.data_ids]
  for name, array, wanted, fill in (
    ("label_ids", given[0], data.order.data_ids, -1),
    ("label_counts", given[1], counts, 0),
  ):
    for a in (array, buffers[name]):
      assert a.dtype == np.int32 and a.shape == (layout.num_rows,)
      assert {s.data.shape[0] for s in a.addressable_shards} == {
        layout.num_rows // 8
      }
      np.testing.assert_array_equal(np.asarray(a)[rows], wanted)
      assert (np.delete(np.asarray(a), rows) == fill).all()


@pytest.fixture
def poison(monkeypatch):
  """Gives some rows of the training split features that are not finite."""

  def use(rows):
    to_inputs = batches.to_inputs

    def poisoned(batch, order, **options):
      inputs = to_inputs(batch, order, **options)
      bad = np.isin(batch.rows, rows)[:, None]
      values = np.where(bad, np.inf, inputs.feature_values)
      return inputs._replace(feature_values=values.astype(np.float32))

    monkeypatch.setattr(batches, "to_inputs", poisoned)

  return use


def first_step_with(row, data_dir):
  """The first step of the run that sees a row of the training split."""
  config = runs.make_config(data_dir)
  config, data = preparation.prepare(config)
  batches = order.ShuffledBatches(
    order.Order(len(data.rows), config.seed), config.train.batch_size, data.rows
  )
  return next(s for s in range(1, 100) if row in batches[s - 1])


def test_a_loss_that_is_not_finite_ends_the_run_by_name(
  data_dir, tmp_path, use_mesh, poison
):
  use_mesh((2, 4))
  row = 137
  step = first_step_with(row, data_dir)
  poison([row])
  config = runs.make_config(data_dir, checkpoint__every=2, train__log_every=3)
  with pytest.raises(FloatingPointError) as caught:
    train.train(config, tmp_path)
  message = str(caught.value)
  assert f"at step {step};" in message and "skip_nonfinite" in message
  saved = (step - 1) // 2 * 2
  assert (f"step {saved} is saved" if saved else "no checkpoint") in message
  (found,) = map(
    json.loads, (tmp_path / not_finite.FILE).read_text().splitlines()
  )
  assert found["step"] == step and row in found["rows"]
  assert len(found["rows"]) == config.train.batch_size


@pytest.mark.slow
@pytest.mark.parametrize("config", ["network"], indirect=True)
def test_batches_that_are_not_finite_are_skipped_under_a_budget(
  data_dir, whole, tmp_path, poison
):
  clean = runs.losses(whole((8, 1)))
  row = 137
  step = first_step_with(row, data_dir)
  config = runs.make_config(data_dir, checkpoint__every=5)
  poison([row])
  config.train.skip_nonfinite = 2  # the row comes twice in two epochs
  train.train(config, tmp_path / "skipping")
  skipping = runs.losses(tmp_path / "skipping")
  assert len(skipping) == len(clean) - 2 and np.isfinite(skipping).all()
  np.testing.assert_allclose(skipping[: step - 1], clean[: step - 1], rtol=1e-5)
  found = (tmp_path / "skipping" / not_finite.FILE).read_text()
  assert len(found.splitlines()) == 2
  # Learning rates and Adam's corrections are those of the step.
  found = directory.load(tmp_path / "skipping", which="last", training=True)
  counts = [a for a in jax.tree.leaves(found.trees["training"]) if not a.shape]
  assert len(counts) > 1 and all(count == found.step for count in counts)
  # Twice back to a checkpoint.
  assert recorded.read(tmp_path / "skipping").seconds["lost"] > 0
  # A continued run knows what was skipped.
  train.train(config, tmp_path / "skipping")
  config.train.skip_nonfinite = 1
  with pytest.raises(FloatingPointError, match="1 were skipped"):
    train.train(config, tmp_path / "too many")
