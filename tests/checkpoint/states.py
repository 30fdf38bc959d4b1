"""States to save, of awkward numbers, for tests."""

import jax
import ml_dtypes
import numpy as np

from xlj import sharding

MODEL_SPECS = {
  "rows": sharding.LABELS,
  "wide": sharding.P(None, sharding.AXES),
  "table": sharding.REPLICATED,
}
TRAINING_SPECS = {"mu": sharding.LABELS, "count": sharding.REPLICATED}
META = {"config": {"seed": 3, "hidden": [4, 5]}, "examples": 2**40}


def make_trees(seed=0):
  """Numpy trees: what to predict with, and what to train on with."""
  rng = np.random.default_rng(seed)
  rows = rng.normal(size=(16, 3)).astype(np.float32)
  rows[0] = [np.nan, -0.0, 1e-42]
  model = {
    "rows": rows,
    "wide": rng.normal(size=(5, 16)).astype(ml_dtypes.bfloat16),
    "table": rng.integers(0, 2**31 - 1, (700,)).astype(np.int32),
  }
  training = {
    "mu": rng.normal(size=(16, 3)).astype(np.float32),
    "count": np.int32(seed),
  }
  return model, training


def place(mesh, trees):
  """The trees on the devices of a mesh."""
  return tuple(
    jax.device_put(tree, sharding.named(mesh, specs))
    for tree, specs in zip(trees, (MODEL_SPECS, TRAINING_SPECS))
  )


def abstract(mesh, trees):
  """What to restore them to."""
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


def restore(keeper, mesh):
  """Step and trees of the newest good checkpoint."""
  step, *trees, _ = keeper.restore_newest(*abstract(mesh, make_trees()))
  return step, tuple(trees)


def save_steps(keeper, mesh, scores):
  """Saves step 1, 2, ... with these scores; None is a save without metrics."""
  for step, score in enumerate(scores, start=1):
    metrics = None if score is None else {"P@1": score, "P@3": -score}
    keeper.save(step, *place(mesh, make_trees(step)), {"step": step}, metrics)
    keeper.wait()


def steps_kept(directory):
  return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())
