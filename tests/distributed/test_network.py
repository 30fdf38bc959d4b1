"""Hosts with a network between them, that can be cut."""

import os
import re
import subprocess
import sys
import time

import pytest

from tests import cases
from tests import runs
from xlj.distributed import exit_status

SCRIPT = runs.ROOT / "tests/distributed/hosts.sh"
WORKER = runs.ROOT / "tests/distributed/worker.py"
PREFIX = f"xlj{os.getpid() % 10000}h"  # interfaces have short names
COUNT = 3
PEER_TIMEOUT = 6.0


def hosts(action, *args):
  return subprocess.run(
    [SCRIPT, action, PREFIX, *map(str, args)],
    check=True,
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope="module", autouse=True)
def network():
  """Skips where namespaces may not be made."""
  try:
    hosts("up", COUNT)
    hosts("run", 0, "true")
    yield
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f"no network namespaces: {getattr(error, 'stderr', error)}")
  finally:
    hosts("down", COUNT)  # also what was made by half


def start(process_id, *args):
  return subprocess.Popen(
    [
      *(SCRIPT, "run", PREFIX, str(process_id), sys.executable, WORKER),
      f"--coordinator_address={PREFIX}0:4321",
      f"--num_processes={COUNT}",
      f"--process_id={process_id}",
      f"--peer_timeout={PEER_TIMEOUT}",
      *args,
    ],
    env={**os.environ, "PYTHONPATH": str(runs.ROOT), "XLA_FLAGS": ""},
    cwd=runs.ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def wait_for_step(process, step):
  for line in process.stdout:
    if line.startswith(f"step {step}:"):
      return
  pytest.fail(process.stderr.read())


@pytest.mark.slow
@pytest.mark.parametrize("cut", cases.some([0, 2], [0]))
def test_a_cut_link_ends_the_job_with_the_name_of_the_peer(cut):
  job = [start(i, "--steps=1000000") for i in range(COUNT)]
  try:
    for process in job:
      wait_for_step(process, 3)
    hosts("cut", cut)
    began = time.monotonic()
    ended = [runs.finish(process, timeout=60) for process in job]
    seconds = time.monotonic() - began
  finally:
    hosts("mend", cut)
    for process in job:
      process.kill()
  lines = []
  for status, _, err in ended:
    assert status == exit_status.LOST, err
    found = [x for x in err.splitlines() if x.startswith("error: ")]
    lines.append(found[-1])
  for i, line in enumerate(lines):
    # Cut off, a host cannot know who else is left.
    lost = f"process {cut}" if i != cut else r"process \d"
    assert re.search(rf"{lost} \({PREFIX}\d, pid \d+\)", line), lines
    assert i == cut or f"{PREFIX}{cut}" in line
  # Noticed after the timeout, told and ended after a few more signs of life.
  assert seconds < 30 + 3 * PEER_TIMEOUT, lines


@pytest.mark.slow
def test_a_coordinator_that_cannot_be_reached_is_named():
  hosts("cut", 0)
  try:
    job = [start(i, "--initialization_timeout=4") for i in (0, 1)]
    ended = [runs.finish(process, timeout=60) for process in job]
  finally:
    hosts("mend", 0)
  (status0, _, err0), (status1, _, err1) = ended
  assert status0 == status1 == exit_status.LOST
  assert "processes 1 and 2 of 3 did not come" in err0.splitlines()[-1]
  assert "process 0, the coordinator, is not at" in err1.splitlines()[-1]
