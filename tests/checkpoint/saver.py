"""Saves again and again, or restores, as one of several processes; for tests.

Prints a line for each step that was asked for, and what was restored.
"""

import time

from absl import flags
from absl import logging
import jax
import numpy as np

from tests.checkpoint import states
from xlj import mesh as mesh_lib
from xlj.checkpoint import checkpointer
from xlj.checkpoint import probe
from xlj.commands import processes

_DIRECTORY = flags.DEFINE_string("directory", None, "Of the checkpoints.")
_STEPS = flags.DEFINE_integer("steps", 3, "Steps to save; 0 to restore.")
_FAIL = flags.DEFINE_string("fail", "", "PROCESS:STEP whose writing fails.")


def make_trees(step):
  """Larger than those of `states`, so that saving takes a while."""
  model, training = states.make_trees(step)
  rng = np.random.default_rng(step)
  model["rows"] = rng.normal(size=(1 << 14, 32)).astype(np.float32)
  return model, training


def place(mesh, trees):
  specs = (states.MODEL_SPECS, states.TRAINING_SPECS)
  return tuple(
    jax.tree.map(
      lambda a, spec: jax.make_array_from_callback(
        np.shape(a), jax.NamedSharding(mesh, spec), lambda i: np.asarray(a)[i]
      ),
      tree,
      spec_tree,
    )
    for tree, spec_tree in zip(trees, specs)
  )


def main() -> None:
  logging.set_verbosity(logging.INFO)
  mesh = mesh_lib.make_mesh()
  probe.probe(_DIRECTORY.value)
  with jax.set_mesh(mesh):
    with checkpointer.Checkpointer(_DIRECTORY.value, timeout=60) as keeper:
      restored = keeper.restore_newest(*states.abstract(mesh, make_trees(0)))
      first = 0
      if restored is not None:
        first = check(*restored)
        print(f"restored {first}", flush=True)
      for step in range(first + 1, first + 1 + _STEPS.value):
        fail_at = f"{jax.process_index()}:{step}" == _FAIL.value
        if fail_at:
          break_writing()
        print(f"saving {step} at {time.monotonic()}", flush=True)
        keeper.save(step, *place(mesh, make_trees(step)), {"step": step})
        keeper.wait()
        if fail_at:
          mend_writing()


def check(step, model, training, facts):
  """Compares what was restored with what was saved; returns the step."""
  assert facts == {"step": step}, facts
  expected = make_trees(step)
  for got, want in zip(
    jax.tree.leaves((model, training)), jax.tree.leaves(expected)
  ):
    for shard in got.addressable_shards:
      part = np.asarray(want)[shard.index]
      assert np.asarray(shard.data).tobytes() == part.tobytes()
  return step


def break_writing():
  """Lets Orbax fail to write arrays, as where a disk is gone."""
  from orbax.checkpoint._src.serialization import jax_array_handlers

  def fail(*_, **__):
    raise OSError("the disk is gone")

  jax_array_handlers.kept = jax_array_handlers._async_serialize_replica_slices
  jax_array_handlers._async_serialize_replica_slices = fail


def mend_writing():
  from orbax.checkpoint._src.serialization import jax_array_handlers

  jax_array_handlers._async_serialize_replica_slices = jax_array_handlers.kept


if __name__ == "__main__":
  processes.run_distributed(main)
