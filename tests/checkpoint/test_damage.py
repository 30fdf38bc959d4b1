"""Damaged checkpoints: told by name, and passed over for an older one."""

import os
import shutil

import jax
import numpy as np
import pytest

from tests import cases
from tests import meshes
from tests.checkpoint import states
from xlj.checkpoint import checkpointer
from xlj.checkpoint import errors


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  """A directory with the checkpoints of steps 1 and 2."""
  directory = tmp_path_factory.mktemp("original")
  with meshes.mesh((2, 4)) as mesh:
    with checkpointer.Checkpointer(directory) as keeper:
      states.save_steps(keeper, mesh, [10.0, 20.0])
  return directory


@pytest.fixture
def directory(original, tmp_path):
  """A copy to damage."""
  return shutil.copytree(original, tmp_path / "run")


def files(directory):
  return sorted(path for path in directory.rglob("*") if path.is_file())


def flip(position):
  def damage(path, data):
    if len(data) > abs(position):
      changed = bytearray(data)
      changed[int(position * len(data)) if position < 1 else -1] ^= 0x10
      path.write_bytes(bytes(changed))

  return damage


def truncate(share):
  return lambda path, data: path.write_bytes(data[: int(share * len(data))])


DAMAGES = {
  "removed": lambda path, _: path.unlink(),
  "empty": truncate(0),
  "halved": truncate(0.5),
  "last byte gone": lambda path, data: path.write_bytes(data[:-1]),
  "first bits": flip(0),
  "bits at a third": flip(0.33),
  "bits in the middle": flip(0.5),
  "bits at nine tenths": flip(0.9),
  "last bits": flip(1),
}


@pytest.mark.parametrize(
  "what", cases.some(DAMAGES, {"halved", "bits in the middle"})
)
def test_nothing_but_good_numbers_comes_back(what, directory, caplog):
  """Of every file of the newest checkpoint, one at a time."""
  used = set()
  with meshes.mesh((2, 4)) as mesh:
    for path in files(directory / "2"):
      data = path.read_bytes()
      if not data:
        continue
      DAMAGES[what](path, data)
      caplog.clear()
      with checkpointer.Checkpointer(directory, read_only=True) as keeper:
        assert keeper.best_step() in (1, 2), path
        step, trees = states.restore(keeper, mesh)
      path.write_bytes(data)
      states.assert_same_bits(trees, states.make_trees(step))
      used.add(step)
      if step == 1:
        assert "The checkpoint of step 2" in caplog.text, path
      if data in path.read_bytes() and path.parent.name == "meta":
        assert step == 1 or "commit" in path.name, path
  assert used == {1, 2}  # some files are not needed


def biggest(directory):
  """The file that holds the numbers of the rows."""
  return max(files(directory / "2" / "model"), key=lambda p: p.stat().st_size)


def test_a_flipped_bit_of_the_numbers_names_the_array(directory, caplog):
  rows = np.ascontiguousarray(states.make_trees(2)[0]["table"])
  found = [
    p for p in files(directory / "2") if rows.tobytes() in p.read_bytes()
  ]
  assert found
  for path in found:
    data = path.read_bytes()
    changed = bytearray(data)
    changed[data.index(rows.tobytes()) + 5] ^= 1
    path.write_bytes(bytes(changed))
  with meshes.mesh((1, 1)) as mesh:
    with checkpointer.Checkpointer(directory) as keeper:
      step, trees = states.restore(keeper, mesh)
  assert step == 1
  states.assert_same_bits(trees, states.make_trees(1))
  assert "array table" in caplog.text


def test_checkpoints_of_another_model_are_passed_over(directory, caplog):
  with meshes.mesh((2, 4)) as mesh:
    with checkpointer.Checkpointer(directory) as keeper:
      model, training = states.place(mesh, states.make_trees(3))
      keeper.save(3, {**model, "rows": training["count"]}, training, {})
      keeper.save(4, {**model, "more": training["count"]}, training, {})
      del model["wide"]
      keeper.save(5, model, training, {})
      keeper.wait()
      # Two are kept, and the best; none of these belongs to this run.
      assert states.steps_kept(directory) == [2, 4, 5]
      step, _ = states.restore(keeper, mesh)
  assert step == 2
  assert "array wide is not there" in caplog.text
  assert "array more is not one of this run" in caplog.text


def test_other_shapes_and_types_are_told(directory, caplog):
  with meshes.mesh((2, 4)) as mesh:
    model, training = states.abstract(mesh, states.make_trees())
    rows = model["rows"]
    model["rows"] = jax.ShapeDtypeStruct(
      (32, 3), rows.dtype, sharding=rows.sharding
    )
    with checkpointer.Checkpointer(directory) as keeper:
      with pytest.raises(errors.CheckpointError) as caught:
        keeper.restore_newest(model, training)
  message = str(caught.value)
  assert "step 2: array rows is float32[16, 3] there, and float32[32, 3]" in (
    message
  )
  assert "step 1: array rows" in message and "start afresh" in message


def test_if_none_is_good_all_are_named_and_nothing_starts_afresh(directory):
  for step in ("1", "2"):
    (directory / step / "meta" / "metadata").write_text("{")
  with meshes.mesh((1, 1)) as mesh:
    with checkpointer.Checkpointer(directory) as keeper:
      assert keeper.latest_step() == keeper.best_step() == 2
      with pytest.raises(errors.CheckpointError, match="step 2: .*; step 1: "):
        states.restore(keeper, mesh)
      wanted = states.abstract(mesh, states.make_trees())[0]
      with pytest.raises(errors.CheckpointError, match="start afresh"):
        keeper.restore_model(wanted)


def test_prediction_falls_back_from_a_damaged_best(directory, caplog):
  (directory / "2" / "meta" / "metadata").write_text("[]")
  with meshes.mesh((1, 1)) as mesh:
    wanted = states.abstract(mesh, states.make_trees())[0]
    with checkpointer.Checkpointer(directory, read_only=True) as keeper:
      step, model = keeper.restore_model(wanted)
  assert step == 1
  states.assert_same_bits(model, states.make_trees(1)[0])


def test_a_run_goes_on_from_the_one_before_and_replaces_it(directory):
  """A damaged one does not count as one of the newest, nor stop a save."""
  for path in files(directory / "2" / "model"):
    path.unlink()
  with meshes.mesh((1, 1)) as mesh:
    with checkpointer.Checkpointer(directory) as keeper:
      states.save_steps(keeper, mesh, [])
      assert states.restore(keeper, mesh)[0] == 1
      trees = states.make_trees(7)
      keeper.save(2, *states.place(mesh, trees), {}, {"P@1": 1.0})
      step, restored = states.restore(keeper, mesh)
    assert step == 2 and states.steps_kept(directory) == [1, 2]
    states.assert_same_bits(restored, trees)
    with checkpointer.Checkpointer(directory) as keeper:
      assert keeper.best_step() == 1


def test_damaged_ones_do_not_push_good_ones_out(directory):
  """With two kept, the last good one stays while newer ones are damaged."""
  for damaged in ("8", "9"):
    shutil.copytree(directory / "2", directory / damaged)
    (directory / damaged / "meta" / "metadata").unlink()
  with meshes.mesh((1, 1)) as mesh:
    with checkpointer.Checkpointer(directory) as keeper:
      assert states.restore(keeper, mesh)[0] == 2
      keeper.save(3, *states.place(mesh, states.make_trees(3)), {}, {})
      keeper.wait()
      assert states.steps_kept(directory) == [2, 3, 8, 9]
      assert states.restore(keeper, mesh)[0] == 3


def test_foreign_names_are_left_alone(directory):
  (directory / "notes").mkdir()
  (directory / "7").write_text("not a directory")
  (directory / "5").mkdir()
  with meshes.mesh((1, 1)) as mesh:
    with checkpointer.Checkpointer(directory) as keeper:
      assert states.restore(keeper, mesh)[0] == 2
      keeper.save(3, *states.place(mesh, states.make_trees(3)), {}, {})
  left = set(os.listdir(directory))
  assert {"notes", "7", "5", "2", "3"} <= left
