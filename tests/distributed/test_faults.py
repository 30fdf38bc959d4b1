"""Processes that raise, die, freeze or hang: the others end, and say who."""

import re
import signal
import subprocess

import pytest

from tests import cases
from tests import processes
from tests import runs
from xlj.distributed import exit_status

COUNT = 3
STEPS = 10**6  # for ever


def work(*args, count=COUNT, peer_timeout=5.0):
  return processes.launch(
    runs.ROOT / "tests/distributed/worker.py",
    count,
    *args,
    peer_timeout=peer_timeout,
  )


def last_lines(errors):
  """The last line of each process that is from us."""
  found = []
  for text in errors:
    lines = [x for x in text.splitlines() if x.startswith("error: ")]
    found.append(lines[-1] if lines else "")
  return found


def test_without_trouble_all_end_well():
  outputs = processes.succeed(work(count=2))
  assert outputs[0].splitlines()[-1] == "step 6: 2.0"


# A process that is gone is noticed by its broken connections, one that is there
# but silent by the time that passes.
@pytest.mark.parametrize(
  "what,who",
  cases.first(
    2,
    [
      ("kill", 0),
      ("refuse", 1),
      ("raise", 1),
      ("freeze", 0),
      ("sleep", 2),
      ("kill", 1),
      ("freeze", 1),
    ],
  ),
)
def test_the_others_end_by_the_name_of_the_lost_process(what, who):
  job = work(
    f"--what={what}", f"--who={who}", f"--steps={STEPS}", "--stall_timeout=8"
  )
  others = [i for i in range(COUNT) if i != who]
  try:
    ended = {i: runs.finish(job[i], timeout=90) for i in others}
  except subprocess.TimeoutExpired:
    pytest.fail("a process hangs")
  finally:
    for process in job:
      process.kill()
  status, _, err = runs.finish(job[who])
  for i in others:
    assert ended[i][0] == exit_status.LOST, ended[i]
    (line,) = last_lines([ended[i][2]])
    name = rf"process {who} \(.*, pid {job[who].pid}\)"
    assert re.search(name, line), ended[i][2]
    if what == "raise":
      assert "no more sums" in line
    if what == "sleep":
      assert "stuck for" in line and "taking step 4" in line
  if what == "raise":
    assert status == 1 and "error" in err.lower()
  elif what == "refuse":
    assert status == 2 and "Traceback" not in err
    assert last_lines([err]) == [
      "error: /data/collective_connection does not exist"
    ]
  elif what == "sleep":
    assert status == exit_status.LOST  # it is told, too
  else:
    assert status == -signal.SIGKILL


@pytest.mark.slow
def test_without_the_coordinator_nobody_waits_for_the_peer_timeout():
  job = work("--what=kill", "--who=0", count=2, peer_timeout=1000)
  statuses, _, errors = processes.finish(job, timeout=90)
  assert statuses == (-signal.SIGKILL, exit_status.LOST)
  (line,) = last_lines(errors[1:])
  assert f"pid {job[0].pid})" in line and "nothing answers there" in line


@pytest.mark.slow
def test_an_abort_ends_a_process_in_which_no_python_can_run():
  job = work("--what=abort", "--who=1", count=2)
  statuses, _, _ = processes.finish(job, timeout=90)
  assert statuses == (exit_status.LOST, -signal.SIGABRT)
