"""Saves that fail: the run goes on, the last good checkpoint stays."""

import contextlib
import os
import shutil
import subprocess

import jax
import numpy as np
import pytest

from tests import meshes
from tests.checkpoint import states
from xlj import sharding
from xlj.checkpoint import checkpointer
from xlj.checkpoint import errors
from xlj.checkpoint import probe

MEGABYTE = 1 << 20


@pytest.fixture
def disk(tmp_path):
  """A file system of 8 MB."""
  path = tmp_path / "disk"
  path.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(path)]
  if not shutil.which("mount") or subprocess.run(mount).returncode:
    pytest.skip("mounting is not permitted here")
  yield path
  subprocess.run(["umount", str(path)], check=True)


@contextlib.contextmanager
def read_only(disk):
  subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
  yield
  subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def make(mesh, step):
  """A state of one megabyte."""
  rows = np.random.default_rng(step).bytes(MEGABYTE)
  rows = np.frombuffer(rows, np.uint8).reshape(1024, 1024)
  target = jax.NamedSharding(mesh, sharding.LABELS)
  return {"rows": jax.device_put(rows, target)}, {
    "mu": jax.device_put(rows[:8], target)
  }


def newest(keeper, mesh):
  """Step of the newest good checkpoint, whose numbers have to be right."""
  trees = make(mesh, 0)
  abstract = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), trees
  )
  step, *restored, _ = keeper.restore_newest(*abstract)
  states.assert_same_bits(tuple(restored), make(mesh, step))
  return step


def fill(disk, left=MEGABYTE // 4):
  """Leaves less room than a checkpoint takes."""
  status = os.statvfs(disk)
  size = status.f_bavail * status.f_frsize - left
  (disk / "filler").write_bytes(bytes(size))


@pytest.mark.parametrize("left", [0, MEGABYTE // 64, MEGABYTE // 2])
def test_a_full_disk_is_a_warning_and_the_next_save_tries_again(
  left, disk, caplog
):
  with meshes.mesh((2, 4)) as mesh:
    with checkpointer.Checkpointer(disk / "run") as keeper:
      keeper.save(1, *make(mesh, 1), {})
      keeper.wait()
      fill(disk, left)
      for step in (2, 3):
        caplog.clear()
        keeper.save(step, *make(mesh, step), {})
        keeper.wait()
        assert f"step {step} is not saved in {disk}/run: " in caplog.text
        assert "No space left on device. Training" in caplog.text or not left
        assert os.listdir(disk / "run") == ["1"]
        assert newest(keeper, mesh) == 1
      (disk / "filler").unlink()
      keeper.save(4, *make(mesh, 4), {})
      assert newest(keeper, mesh) == 4
  assert states.steps_kept(disk / "run") == [1, 4]


def test_the_end_says_that_the_last_state_is_not_saved(disk):
  with meshes.mesh((1, 1)) as mesh:
    keeper = checkpointer.Checkpointer(disk / "run")
    keeper.save(1, *make(mesh, 1), {})
    keeper.wait()
    fill(disk)
    keeper.save(2, *make(mesh, 2), {})
    with pytest.raises(errors.CheckpointError) as caught:
      keeper.close()
    # An error that ends the run is not hidden by this one.
    with pytest.raises(FloatingPointError):
      with checkpointer.Checkpointer(disk / "run") as keeper:
        keeper.save(2, *make(mesh, 2), {})
        raise FloatingPointError
  message = str(caught.value)
  assert "step 2 could not be saved" in message
  assert "o space left" in message and "that of step 1" in message


def test_a_file_system_that_turns_read_only_is_a_warning(disk, caplog):
  with meshes.mesh((2, 4)) as mesh:
    with checkpointer.Checkpointer(disk / "run") as keeper:
      keeper.save(1, *make(mesh, 1), {})
      keeper.wait()
      with read_only(disk):
        keeper.save(2, *make(mesh, 2), {})
        keeper.wait()
        assert "step 2 is not saved" in caplog.text
        assert "ead-only file system" in caplog.text
        assert newest(keeper, mesh) == 1
      keeper.save(3, *make(mesh, 3), {})
      assert newest(keeper, mesh) == 3


def test_a_directory_that_was_removed_is_made_again(tmp_path):
  with meshes.mesh((1, 1)) as mesh:
    with checkpointer.Checkpointer(tmp_path / "run") as keeper:
      keeper.save(1, *make(mesh, 1), {})
      keeper.wait()
      shutil.rmtree(tmp_path / "run")
      keeper.save(2, *make(mesh, 2), {})
      assert newest(keeper, mesh) == 2


def test_a_directory_that_cannot_be_made_is_a_warning(tmp_path, caplog):
  with meshes.mesh((1, 1)) as mesh:
    with checkpointer.Checkpointer(tmp_path / "run") as keeper:
      (tmp_path / "run").rmdir()
      (tmp_path / "run").write_text("in the way")
      keeper.save(1, *make(mesh, 1), {})
      assert "step 1 is not saved" in caplog.text
      (tmp_path / "run").unlink()
      keeper.save(2, *make(mesh, 2), {})
      assert newest(keeper, mesh) == 2


def test_what_another_process_cannot_write_is_not_kept(tmp_path, monkeypatch):
  """As in a job of which one process reports that it cannot."""
  monkeypatch.setattr(
    checkpointer.exchange, "gather", lambda name, text: [text, "disk gone"]
  )
  with meshes.mesh((1, 1)) as mesh:
    keeper = checkpointer.Checkpointer(tmp_path)
    keeper.save(1, *make(mesh, 1), {})
    with pytest.raises(errors.CheckpointError, match="process 1: disk gone"):
      keeper.close()


def test_the_last_save_that_fails_has_its_cause(tmp_path, monkeypatch):
  lost = jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")

  def lose():
    raise lost

  with meshes.mesh((1, 1)) as mesh:
    keeper = checkpointer.Checkpointer(tmp_path)
    monkeypatch.setattr(keeper._orbax, "wait_until_finished", lose)
    keeper.save(1, *make(mesh, 1), {})
    keeper.wait()
    monkeypatch.undo()
    with pytest.raises(errors.CheckpointError, match="UNAVAILABLE") as caught:
      keeper.close()
  assert caught.value.__cause__ is lost


def test_the_probe_leaves_nothing_behind(tmp_path):
  probe.probe(tmp_path / "new")
  assert not os.listdir(tmp_path / "new")


def test_the_probe_refuses_what_cannot_be_written(tmp_path, disk):
  with read_only(disk):
    with pytest.raises(OSError, match="cannot write to .*ead-only file system"):
      probe.probe(disk / "run")
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="cannot write to"):
    probe.probe(tmp_path / "file")


def test_the_probe_names_who_sees_another_directory(tmp_path):
  def gather(name, text):
    other = text.replace(".probe", ".other")
    return [text, other] if name == "probe" else [text, ""]

  with pytest.raises(OSError, match=r"process 1 \(.*\) does not see .*/run as"):
    probe.probe(tmp_path / "run", gather)
  assert not os.listdir(tmp_path / "run")
