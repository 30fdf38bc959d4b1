"""Checkpoints: bit for bit on any mesh, the right ones kept."""

import jax
import jax.numpy as jnp
import pytest

from tests import meshes
from tests.checkpoint import states
from xlj.checkpoint import checkpointer
from xlj.checkpoint import errors
from xlj.checkpoint import steps


@pytest.mark.parametrize("saved_on", meshes.SHAPES)
def test_restored_bit_for_bit_on_every_mesh(saved_on, tmp_path):
  trees = states.make_trees()
  with checkpointer.Checkpointer(tmp_path) as keeper:
    with meshes.mesh(saved_on) as mesh:
      keeper.save(3, *states.place(mesh, trees), states.META)
    for shape in meshes.SHAPES:
      with meshes.mesh(shape) as mesh:
        wanted = states.abstract(mesh, trees)
        step, *restored, facts = keeper.restore_newest(*wanted)
        assert step == 3 and facts == states.META
        states.assert_same_bits(tuple(restored), trees)
        for leaf, want in zip(
          jax.tree.leaves(restored), jax.tree.leaves(list(wanted))
        ):
          assert leaf.sharding == want.sharding


def test_prediction_reads_the_model_alone(tmp_path):
  trees = states.make_trees()
  with meshes.mesh((2, 4)) as mesh:
    with checkpointer.Checkpointer(tmp_path) as keeper:
      keeper.save(1, *states.place(mesh, trees), states.META)
    for path in (tmp_path / "1" / "training").rglob("*"):
      if path.is_file():
        path.unlink()
    with checkpointer.Checkpointer(tmp_path, read_only=True) as keeper:
      step, model = keeper.restore_model(states.abstract(mesh, trees)[0])
  assert step == 1
  states.assert_same_bits(model, trees[0])


def test_what_was_saved_is_kept_when_the_arrays_are_donated(tmp_path):
  trees = states.make_trees()
  with meshes.mesh((8, 1)) as mesh:
    model, training = states.place(mesh, trees)
    with checkpointer.Checkpointer(tmp_path) as keeper:
      keeper.save(1, model, training, states.META)
      overwrite = jax.jit(
        lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0
      )
      overwrite((model, training))
      _, restored = states.restore(keeper, mesh)
  states.assert_same_bits(restored, trees)


@pytest.mark.parametrize(
  ("keep", "scores", "kept", "best"),
  [
    (1, [10.0, 30.0, 20.0, None], [2, 4], 2),
    (2, [30.0, 10.0, 20.0, 5.0], [1, 3, 4], 1),
    (1, [10.0, 20.0, 30.0], [3], 3),
    (1, [None, None, None], [3], 3),
  ],
)
def test_the_best_and_the_last_are_kept(keep, scores, kept, best, tmp_path):
  with meshes.mesh((1, 1)) as mesh:
    with checkpointer.Checkpointer(tmp_path, keep=keep) as keeper:
      states.save_steps(keeper, mesh, scores)
    assert states.steps_kept(tmp_path) == kept
    with checkpointer.Checkpointer(tmp_path, read_only=True) as keeper:
      assert keeper.best_step() == best
      assert keeper.latest_step() == len(scores)
      wanted = states.abstract(mesh, states.make_trees())[0]
      for is_best, step in ((True, best), (False, len(scores))):
        found, model = keeper.restore_model(wanted, best=is_best)
        assert found == step
        states.assert_same_bits(model, states.make_trees(step)[0])


def test_every_so_many_steps_are_kept_for_ever():
  scores = {step: float(step == 3) for step in range(1, 10)}
  assert steps.superfluous(scores, keep=1, keep_every=4) == [1, 2, 5, 6, 7]
  assert steps.superfluous(scores, keep=2, keep_every=0) == [1, 2, 4, 5, 6, 7]


def test_a_continued_run_keeps_its_best(tmp_path):
  with meshes.mesh((1, 1)) as mesh:
    with checkpointer.Checkpointer(tmp_path, keep=1) as keeper:
      states.save_steps(keeper, mesh, [10.0, 30.0, 20.0])
    with checkpointer.Checkpointer(tmp_path, keep=1) as keeper:
      for step, score in ((4, 25.0), (5, 5.0)):
        trees = states.place(mesh, states.make_trees(step))
        keeper.save(step, *trees, states.META, {"P@1": score})
      keeper.wait()
      assert keeper.best_step() == 2
  assert states.steps_kept(tmp_path) == [2, 5]


def test_the_best_is_chosen_by_the_metric_asked_for(tmp_path):
  with meshes.mesh((1, 1)) as mesh:
    with checkpointer.Checkpointer(
      tmp_path, keep=1, best_metric="P@3"
    ) as keeper:
      states.save_steps(keeper, mesh, [10.0, 30.0, 20.0])
      assert keeper.best_step() == 1
  assert states.steps_kept(tmp_path) == [1, 3]


def test_it_is_said_where_nothing_was_scored(tmp_path, caplog):
  with meshes.mesh((1, 1)) as mesh, caplog.at_level("INFO", logger="absl"):
    with checkpointer.Checkpointer(tmp_path) as keeper:
      for step in (1, 2):
        trees = states.place(mesh, states.make_trees(step))
        keeper.save(step, *trees, states.META)
      keeper.wait()
      assert keeper.best_step() == 2
      assert "the newest, of step 2, is taken for the best" in caplog.text
      caplog.clear()
      trees = states.place(mesh, states.make_trees(3))
      keeper.save(3, *trees, states.META, {"P@1": 1.0})
      keeper.save(4, *trees, states.META)
      keeper.wait()
      assert keeper.best_step() == 3
      assert "for the best" not in caplog.text


def test_an_unfinished_save_is_ignored(tmp_path):
  with meshes.mesh((1, 1)) as mesh:
    with checkpointer.Checkpointer(tmp_path) as keeper:
      states.save_steps(keeper, mesh, [10.0])
    # What a process leaves that died between the first byte and the rename.
    died = tmp_path / "7.orbax-checkpoint-tmp"
    (died / "model.orbax-checkpoint-tmp").mkdir(parents=True)
    (died / "model.orbax-checkpoint-tmp" / "rows").write_bytes(b"half")
    with checkpointer.Checkpointer(tmp_path, read_only=True) as keeper:
      assert keeper.latest_step() == keeper.best_step() == 1
    assert died.exists()  # a reader may meet the save of a running trainer
    with checkpointer.Checkpointer(tmp_path) as keeper:
      assert not died.exists()
      assert keeper.latest_step() == 1
      trees = states.make_trees(7)
      keeper.save(7, *states.place(mesh, trees), states.META)
      step, restored = states.restore(keeper, mesh)
  assert step == 7
  states.assert_same_bits(restored, trees)


def test_an_empty_directory_has_no_step(tmp_path):
  with meshes.mesh((1, 1)) as mesh:
    wanted = states.abstract(mesh, states.make_trees())
    for directory in (tmp_path, tmp_path / "missing"):
      with checkpointer.Checkpointer(directory, read_only=True) as keeper:
        assert keeper.latest_step() is None
        assert keeper.best_step() is None
        assert keeper.restore_newest(*wanted) is None
        assert keeper.restore_model(wanted[0]) is None


def test_a_relative_directory_is_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with meshes.mesh((1, 1)) as mesh:
    with checkpointer.Checkpointer("run") as keeper:
      states.save_steps(keeper, mesh, [1.0])
  assert states.steps_kept(tmp_path / "run") == [1]


def test_urls_of_buckets_stay_as_they_are():
  for url in ("gs://bucket/run", "s3://bucket/a/run"):
    assert str(steps.resolve(f"{url}/")) == url
  with pytest.raises(errors.CheckpointError, match="unknown kind"):
    steps.resolve("ftp://host/run")
