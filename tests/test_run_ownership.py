"""One process alone writes into a run's directory."""

import concurrent.futures
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from xlj import config as config_lib
from xlj import files
from xlj.runs import ownership
from xlj.training import train


def write_owner(workdir, **facts):
  """Leaves the file of an owner, by default of this process's parent."""
  pid = facts.setdefault("pid", os.getppid())
  facts.setdefault("start", files.start_of(pid))
  facts = {"host": "node7", "machine": files.machine(), "token": "t", **facts}
  path = workdir / "owner-3.json"
  path.write_text(json.dumps({"since": "noon", **facts}))
  return path


def owners(workdir):
  return [path.name for path in workdir.glob("owner*")]


def take(workdir):
  with ownership.owning(workdir):
    return owners(workdir)


def test_a_run_with_a_living_owner_is_refused(tmp_path):
  path = write_owner(tmp_path)
  (tmp_path / "metrics.jsonl").write_text("{}\n")
  with pytest.raises(config_lib.ConfigError) as caught:
    train.train(config_lib.base(), tmp_path)
  assert str(caught.value) == (
    f"{tmp_path} is being written by another process: process {os.getppid()} on"
    " node7, since noon; wait for its end, stop it, or use another directory"
  )
  assert path.exists() and (tmp_path / "metrics.jsonl").read_text() == "{}\n"


def test_checkpoints_that_lie_elsewhere_have_one_owner(tmp_path):
  place = tmp_path / "checkpoints"
  place.mkdir()
  write_owner(place)
  config = config_lib.base()
  config.checkpoint.dir = str(place)
  with pytest.raises(config_lib.ConfigError, match=f"{place} is being written"):
    train.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_checkpoints_in_the_run_itself_by_another_name_are_its_own(tmp_path):
  run, link = tmp_path / "run", tmp_path / "link"
  run.mkdir()
  link.symlink_to(run)
  config = config_lib.base()
  config.checkpoint.dir = str(link)
  with pytest.raises(config_lib.ConfigError, match="data.dir is not given"):
    train.train(config, run)


def test_a_process_owns_a_run_once(tmp_path):
  with (
    ownership.owning(tmp_path),
    pytest.raises(config_lib.ConfigError, match=f"process {os.getpid()} on"),
  ):
    take(tmp_path)
  assert not owners(tmp_path)


@pytest.mark.parametrize("how", ["gone", "zombie", "another with its number"])
def test_the_run_of_a_dead_process_is_taken_over_at_once(how, tmp_path):
  child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1)
  start = files.start_of(child.pid)
  child.kill()
  if how == "zombie":
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
  else:
    child.wait()
  if how == "another with its number":
    write_owner(tmp_path, start=start)
  else:
    write_owner(tmp_path, pid=child.pid, start=start)
  assert take(tmp_path) == ["owner-4.json"]
  assert not owners(tmp_path)
  child.wait()


def test_a_silent_owner_on_another_machine_is_dead(tmp_path, monkeypatch):
  monkeypatch.setattr(ownership, "_STALE", 0.3)
  write_owner(tmp_path, machine="there")
  assert take(tmp_path) == ["owner-4.json"]


def test_an_owner_on_another_machine_gives_signs_of_life(tmp_path, monkeypatch):
  monkeypatch.setattr(ownership, "_STALE", 5)
  path = write_owner(tmp_path, machine="there")
  ended = threading.Event()

  def live():
    while not ended.wait(0.1):
      os.utime(path, (0, time.monotonic()))  # by a clock of its own

  thread = threading.Thread(target=live)
  thread.start()
  with pytest.raises(config_lib.ConfigError, match="on node7, since noon"):
    take(tmp_path)
  ended.set()
  thread.join()


def test_a_file_without_an_owner_is_taken_over(tmp_path, monkeypatch):
  monkeypatch.setattr(ownership, "_STALE", 0.3)
  monkeypatch.setattr(ownership, "_WRITTEN", 0.1)
  (tmp_path / "owner-0.json").write_text('{"pid": ')  # killed while it wrote
  assert take(tmp_path) == ["owner-1.json"]


def test_one_of_many_takes_over(tmp_path):
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for turn in range(20):
      workdir = tmp_path / str(turn)
      workdir.mkdir()
      if turn % 2:
        write_owner(workdir, start="earlier")
      found = [pool.submit(ownership._take, workdir, str(i)) for i in range(8)]
      errors = [future.exception() for future in found]
      assert errors.count(None) == 1 and len(owners(workdir)) == 1
      winner = found[errors.index(None)].result()
      assert json.loads(winner.read_text())["token"] == str(errors.index(None))


def test_the_file_is_renewed_and_goes_whatever_happens(tmp_path, monkeypatch):
  monkeypatch.setattr(ownership, "_RENEW", 0.05)
  for error in (KeyboardInterrupt, ValueError, SystemExit):
    workdir = tmp_path / "a" / error.__name__
    with pytest.raises(error), ownership.owning(workdir) as owner:
      path = workdir / "owner-0.json"
      os.utime(path, (0, 0))
      while not path.stat().st_mtime:
        time.sleep(0.01)
      owner.check()
      raise error
    assert not (tmp_path / "a").exists()  # nor what was made for it


@pytest.mark.parametrize("how", ["taken", "removed"])
def test_who_has_lost_a_run_is_told(how, tmp_path, monkeypatch):
  monkeypatch.setattr(ownership, "_RENEW", 0.05)
  with ownership.owning(tmp_path) as owner:
    path = tmp_path / "owner-0.json"
    path.unlink()
    if how == "taken":
      path = write_owner(tmp_path).rename(path)
    with pytest.raises(config_lib.ConfigError, match="has another owner now"):
      while True:
        owner.check()
        time.sleep(0.01)
  assert path.exists() == (how == "taken")


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="file"):
    take(tmp_path / "file")
