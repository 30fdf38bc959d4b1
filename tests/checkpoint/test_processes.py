"""Real processes: killed while they save, failing alone, other numbers."""

import pathlib
import random
import re
import signal
import time

import pytest

from tests import processes
from tests import runs
from tests.checkpoint import states

SAVER = pathlib.Path(__file__).with_name("saver.py")


def numbers(word, output):
  return [int(found) for found in re.findall(rf"{word} (\d+)", output)]


@pytest.mark.slow
def test_killed_at_random_points_nothing_finished_is_lost(tmp_path):
  """Each continues from where the one before was killed."""
  rng = random.Random(0)
  finished = 0
  for ending in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
    process = runs.launch(SAVER, f"--directory={tmp_path}", "--steps=10000")
    output = ""
    while "saving" not in output:
      output += process.stdout.readline()
    time.sleep(0.3 + rng.random())
    process.send_signal(ending)
    rest, err = process.communicate()
    output += rest
    assert "Error" not in err, err
    if finished:
      assert numbers("restored", output)[0] in (finished, finished + 1), err
    finished = numbers("saving", output)[-1] - 1  # it may be one more
  status, out, err = runs.finish(
    runs.launch(SAVER, f"--directory={tmp_path}", "--steps=0", devices=8)
  )
  assert status == 0, err
  assert numbers("restored", out)[0] in (finished, finished + 1)
  assert "Restored the checkpoint of step" in err
  kept = states.steps_kept(tmp_path)
  assert len(list(tmp_path.iterdir())) == len(kept), "remains are removed"


@pytest.mark.slow
def test_a_failing_process_does_not_hold_up_the_other(tmp_path):
  start = time.monotonic()
  job = processes.launch(SAVER, 2, f"--directory={tmp_path}", "--fail=1:2")
  statuses, _, errors = processes.finish(job)
  assert statuses == (0, 0), "\n".join(errors)
  assert time.monotonic() - start < 50  # shorter than the timeout of a save
  assert re.search(
    r"step 2 is not saved in .*: process 1 \(.*\): the disk is gone", errors[0]
  )
  assert "Saved the checkpoint of step 3" in errors[0]
  assert states.steps_kept(tmp_path) == [1, 3]


@pytest.mark.slow
def test_saved_by_four_and_restored_by_others(tmp_path):
  processes.succeed(
    processes.launch(SAVER, 4, f"--directory={tmp_path}", "--steps=2")
  )
  for count, devices in ((1, 1), (2, 1), (1, 8)):
    for out in processes.succeed(
      processes.launch(
        SAVER,
        count,
        f"--directory={tmp_path}",
        "--steps=0",
        devices=devices,
      )
    ):
      assert numbers("restored", out) == [2]


@pytest.mark.slow
def test_a_directory_that_is_not_shared_is_refused(tmp_path):
  address = f"127.0.0.1:{processes.free_port()}"
  job = [
    runs.launch(
      SAVER,
      f"--directory={tmp_path / str(process)}",
      f"--coordinator_address={address}",
      "--num_processes=2",
      f"--process_id={process}",
      "--peer_timeout=5",
    )
    for process in range(2)
  ]
  statuses, _, errors = processes.finish(job)
  assert 0 not in statuses
  last = errors[0].strip().splitlines()[-1]
  assert re.match(r"error: process 1 \(.*\) does not see .*/0 as", last), last
