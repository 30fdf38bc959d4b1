"""Processes killed at random points: each run ends with the same loss."""

import os
from pathlib import Path
import random
import signal
import sys
import time

import jax
import numpy as np
import pytest

from tests import runs
from tests.launch import test_launch
from xlj.runs import directory

pytestmark = pytest.mark.slow

STEPS = 40
KILLS = 3


def start(data_dir, workdir, count, *options, more=()):
  arguments = test_launch.train_arguments(
    data_dir,
    workdir,
    *test_launch.SMALL,
    f"--config.train.num_steps={STEPS}",
    "--peer_timeout=20",
    *more,
  )
  return runs.launch(
    "local",
    f"--processes={count}",
    *options,
    *("--", sys.executable, str(runs.ROOT / "launch/train.py")),
    *arguments,
  )


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
  """The losses of a run that nobody disturbs, by number of processes."""
  found = {}
  for count in (2, 4):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    status, _, err = runs.finish(start(data_dir, workdir, count))
    assert status == 0, err
    found[count] = runs.losses(workdir)
  return found


def children(process):
  """The process numbers of a job's processes, in order of their start."""
  path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
  try:
    return sorted(map(int, path.read_text().split()))
  except FileNotFoundError:
    return []


def kill_one(job, workdir, count, rng):
  """Kills a random process at a random point; returns which, and when."""
  deadline = time.monotonic() + 120
  step = rng.randrange(-1, STEPS)  # -1: while it starts
  if step < 0:
    time.sleep(rng.uniform(0.2, 3.0))
  else:
    test_launch.wait_for_step(workdir, step, job)
    time.sleep(rng.uniform(0, 0.1))
  while len(found := children(job)) < count and job.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  if len(found) < count:
    return None  # it was faster
  process = rng.randrange(count)
  try:
    os.kill(found[process], signal.SIGKILL)
  except ProcessLookupError:
    return None
  return process, step


def test_kills_one_after_the_other(data_dir, undisturbed, tmp_path):
  seed = random.randrange(2**32)
  print(f"seed {seed}")
  rng = random.Random(seed)
  killed = 0
  for i in range(KILLS):
    count = 4 if i == KILLS - 1 else 2
    workdir = tmp_path / str(i)
    job = start(data_dir, workdir, count, "--restarts=1")
    what = kill_one(job, workdir, count, rng)
    status, _, err = runs.finish(job, timeout=300)
    print(f"run {i}: {count} processes, killed (process, step) {what}")
    assert status == 0, err
    if what is not None:
      assert "restart 1 of 1" in err, err
      killed += 1
    assert runs.losses(workdir) == undisturbed[count], err
  assert killed


def test_saved_at_four_processes_and_continued_elsewhere(
  data_dir, undisturbed, tmp_path
):
  workdir = tmp_path / "run"
  job = start(data_dir, workdir, 4)
  test_launch.wait_for_step(workdir, 20, job)
  for process in children(job):
    os.kill(process, signal.SIGKILL)
  status, _, err = runs.finish(job)
  assert status != 0, err
  arguments = test_launch.train_arguments(
    data_dir,
    workdir,
    *test_launch.SMALL,
    f"--config.train.num_steps={STEPS}",
  )
  status, _, err = runs.finish(runs.launch("train", *arguments, devices=8))
  assert status == 0, err
  assert "Continuing from the checkpoint of step" in err
  np.testing.assert_allclose(runs.losses(workdir), undisturbed[4], rtol=1e-5)


def test_continued_by_fewer_processes(data_dir, undisturbed, tmp_path):
  workdir = tmp_path / "run"
  job = start(data_dir, workdir, 4, "--restarts=1", "--restart_processes=2")
  test_launch.wait_for_step(workdir, 20, job)
  os.kill(children(job)[2], signal.SIGKILL)
  status, _, err = runs.finish(job)
  assert status == 0, err
  assert "restart 1 of 1, as 2 processes: process 2 was killed" in err
  np.testing.assert_allclose(runs.losses(workdir), undisturbed[4], rtol=1e-5)


def test_linear_weights_after_a_kill(data_dir, tmp_path):
  """Two processes, one of which is killed, end with the same weights."""
  linear = (
    *("--config.family=linear", "--config.encoder.dim=0"),
    "--config.train.batch_size=8",  # or the last step is soon there
  )
  found = {}
  for name, options in (("whole", ()), ("killed", ("--restarts=1",))):
    workdir = tmp_path / name
    job = start(data_dir, workdir, 2, *options, more=linear)
    if name == "killed":
      test_launch.wait_for_step(workdir, 12, job)
      os.kill(children(job)[1], signal.SIGKILL)
    status, _, err = runs.finish(job, timeout=300)
    assert status == 0, err
    assert ("restart 1 of 1" in err) == (name == "killed"), err
    run = directory.load(workdir, which="last")
    found[name] = jax.tree.map(np.asarray, run.trees["model"])
  assert np.abs(found["whole"]["head"]["wide"]).max() > 0
  jax.tree.map(np.testing.assert_array_equal, found["whole"], found["killed"])
