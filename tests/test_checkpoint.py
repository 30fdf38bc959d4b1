"""Checkpoints: bit for bit on any mesh, the right ones kept."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests import meshes
from xlj import checkpoint
from xlj import sharding

MODEL_SPECS = {
  "rows": sharding.LABELS,
  "wide": sharding.LABELS_LAST,
  "table": sharding.REPLICATED,
}
TRAINING_SPECS = {"mu": sharding.LABELS, "count": sharding.REPLICATED}
META = {"config": {"seed": 3, "hidden": [4, 5]}, "examples": 2**40}


def make_trees(seed=0):
  """Numpy trees of awkward numbers."""
  rng = np.random.default_rng(seed)
  rows = rng.normal(size=(16, 3)).astype(np.float32)
  rows[0] = [np.nan, -0.0, 1e-42]
  model = {
    "rows": rows,
    "wide": rng.normal(size=(5, 16)).astype(ml_dtypes.bfloat16),
    "table": rng.integers(0, 2**31 - 1, (7,)).astype(np.int32),
  }
  training = {
    "mu": rng.normal(size=(16, 3)).astype(np.float32),
    "count": np.int32(seed),
  }
  return model, training


def place(mesh, trees):
  return tuple(
    jax.device_put(tree, sharding.named(mesh, specs))
    for tree, specs in zip(trees, (MODEL_SPECS, TRAINING_SPECS))
  )


def abstract(mesh, trees):
  return tuple(
    jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
      tree,
      sharding.named(mesh, specs),
    )
    for tree, specs in zip(trees, (MODEL_SPECS, TRAINING_SPECS))
  )


def assert_same_bits(got, expected):
  def check(got, expected):
    assert got.dtype == expected.dtype
    assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()

  jax.tree.map(check, got, expected)


@pytest.mark.parametrize("saved_on", meshes.SHAPES)
def test_restored_bit_for_bit_on_every_mesh(saved_on, tmp_path):
  trees = make_trees()
  with checkpoint.Checkpointer(tmp_path) as keeper:
    with meshes.mesh(saved_on) as mesh:
      keeper.save(3, *place(mesh, trees), META)
      keeper.wait()
    for shape in meshes.SHAPES:
      with meshes.mesh(shape) as mesh:
        wanted = abstract(mesh, trees)
        restored = keeper.restore(3, *wanted)
        assert_same_bits(restored, trees)
        for leaf, want in zip(
          jax.tree.leaves(restored), jax.tree.leaves(wanted)
        ):
          assert leaf.sharding == want.sharding


def test_prediction_reads_the_model_alone(tmp_path):
  trees = make_trees()
  with meshes.mesh((2, 4)) as mesh:
    with checkpoint.Checkpointer(tmp_path) as keeper:
      keeper.save(1, *place(mesh, trees), META)
    for path in (tmp_path / checkpoint.DIRECTORY / "1" / "training").rglob("*"):
      if path.is_file():
        path.unlink()
    with checkpoint.Checkpointer(tmp_path, read_only=True) as keeper:
      model = keeper.restore_model(1, abstract(mesh, trees)[0])
  assert_same_bits(model, trees[0])


def test_what_was_saved_is_kept_when_the_arrays_are_donated(tmp_path):
  trees = make_trees()
  with meshes.mesh((8, 1)) as mesh:
    model, training = place(mesh, trees)
    with checkpoint.Checkpointer(tmp_path) as keeper:
      keeper.save(1, model, training, META)
      overwrite = jax.jit(
        lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0
      )
      overwrite((model, training))
      keeper.wait()
      restored = keeper.restore(1, *abstract(mesh, trees))
  assert_same_bits(restored, trees)


def save_steps(keeper, mesh, scores):
  """Saves step 1, 2, ... with these scores; None is a save without metrics."""
  for step, score in enumerate(scores, start=1):
    metrics = None if score is None else {"P@1": score, "P@3": -score}
    keeper.save(step, *place(mesh, make_trees(step)), {"step": step}, metrics)
    keeper.wait()


def steps_kept(workdir):
  directory = workdir / checkpoint.DIRECTORY
  return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


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
    with checkpoint.Checkpointer(tmp_path, keep=keep) as keeper:
      save_steps(keeper, mesh, scores)
    assert steps_kept(tmp_path) == kept
    with checkpoint.Checkpointer(tmp_path, read_only=True) as keeper:
      assert keeper.best_step() == best
      assert keeper.latest_step() == len(scores)
      model = keeper.restore_model(best, abstract(mesh, make_trees())[0])
      assert keeper.meta(best) == {"step": best}
  assert_same_bits(model, make_trees(best)[0])


def test_a_continued_run_keeps_its_best(tmp_path):
  with meshes.mesh((1, 1)) as mesh:
    with checkpoint.Checkpointer(tmp_path) as keeper:
      save_steps(keeper, mesh, [10.0, 30.0, 20.0])
    with checkpoint.Checkpointer(tmp_path) as keeper:
      for step, score in ((4, 25.0), (5, 5.0)):
        keeper.save(step, *place(mesh, make_trees(step)), META, {"P@1": score})
        keeper.wait()
      assert keeper.best_step() == 2
  assert steps_kept(tmp_path) == [2, 5]


def test_the_best_is_chosen_by_the_metric_asked_for(tmp_path):
  with meshes.mesh((1, 1)) as mesh:
    with checkpoint.Checkpointer(tmp_path, best_metric="P@3") as keeper:
      save_steps(keeper, mesh, [10.0, 30.0, 20.0])
      assert keeper.best_step() == 1
  assert steps_kept(tmp_path) == [1, 3]


def test_meta_comes_back_as_it_went(tmp_path):
  with meshes.mesh((1, 1)) as mesh:
    with checkpoint.Checkpointer(tmp_path) as keeper:
      keeper.save(1, *place(mesh, make_trees()), META)
      keeper.wait()
      assert keeper.meta(1) == META


def test_an_unfinished_save_is_ignored(tmp_path):
  with meshes.mesh((1, 1)) as mesh:
    with checkpoint.Checkpointer(tmp_path) as keeper:
      save_steps(keeper, mesh, [10.0])
    directory = tmp_path / checkpoint.DIRECTORY
    # What a process leaves that died between the first byte and the rename.
    died = directory / "7.orbax-checkpoint-tmp"
    (died / "model.orbax-checkpoint-tmp").mkdir(parents=True)
    (died / "model.orbax-checkpoint-tmp" / "rows").write_bytes(b"half")
    with checkpoint.Checkpointer(tmp_path, read_only=True) as keeper:
      assert keeper.latest_step() == keeper.best_step() == 1
    assert died.exists()  # a reader may meet the save of a running trainer
    with checkpoint.Checkpointer(tmp_path) as keeper:
      assert keeper.latest_step() == 1
      keeper.save(7, *place(mesh, make_trees(7)), META)
      keeper.wait()
      restored = keeper.restore(7, *abstract(mesh, make_trees()))
  assert not died.exists()
  assert_same_bits(restored, make_trees(7))


def test_an_empty_directory_has_no_step(tmp_path):
  with checkpoint.Checkpointer(tmp_path) as keeper:
    assert keeper.latest_step() is None
    assert keeper.best_step() is None


def test_a_relative_directory_is_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with meshes.mesh((1, 1)) as mesh:
    with checkpoint.Checkpointer("run") as keeper:
      save_steps(keeper, mesh, [1.0])
  assert steps_kept(tmp_path / "run") == [1]
