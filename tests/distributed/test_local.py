"""launch/local.py: several processes on this machine that appear as one."""

import fcntl
import os
from pathlib import Path
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from tests import runs
from tests.launch import test_launch

# What the processes run: RANK is theirs, and PORT that of the coordinator.
PRELUDE = """
import os, signal, sys, time
from pathlib import Path
PORT, COUNT, RANK = (int(re.rsplit("=")[-1].rsplit(":")[-1])
                     for re in sys.argv[-3:])
def say(text):
  print(text, file=sys.stderr, flush=True)
def on_stop(status, text="saved"):
  def stop(*_):
    say(text)
    os._exit(status)
  signal.signal(signal.SIGTERM, stop)
"""


def start(*args, code, count=2, **kwargs):
  """Starts the launcher with processes that run some code."""
  return runs.launch(
    "local",
    f"--processes={count}",
    *args,
    "--",
    *(sys.executable, "-S", "-c", PRELUDE + code),
    **kwargs,
  )


def run(*args, code, count=2):
  return runs.finish(start(*args, code=code, count=count), timeout=60)


def last(text):
  return text.strip().splitlines()[-1]


def wait_for_lines(stream, count):
  return [stream.readline() for _ in range(count)]


def is_alive(pid):
  try:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != (
      "Z"
    )
  except FileNotFoundError:
    return False


def check_gone(pids, seconds=5):
  deadline = time.monotonic() + seconds
  while left := [pid for pid in pids if is_alive(pid)]:
    assert time.monotonic() < deadline, f"{left} of {pids} are left"
    time.sleep(0.05)


# --- when all goes well ------------------------------------------------------


def test_processes_meet_and_are_told_apart():
  code = """
print(RANK, COUNT, PORT)
say("no end of the line" if RANK == 2 else "hello")
"""
  status, out, err = run(code=code, count=3)
  assert status == 0
  by_rank = {line.split(" ")[-3]: line for line in out.splitlines()}
  assert set(by_rank) == {"0", "1", "2"}
  (port,) = {line.split(" ")[-1] for line in by_rank.values()}
  assert 0 < int(port) < 2**16
  assert by_rank["0"] == f"0 3 {port}"
  assert by_rank["2"] == f"[2] 2 3 {port}"
  assert sorted(err.splitlines()) == [
    "[1] hello", "[2] no end of the line", "hello"
  ]  # fmt: skip


def test_process_0_prints_as_if_alone():
  code = """
if RANK == 0:
  os.write(2, b"10%\\r20%\\r")
  for part in (b"\\xff\\x00 by", b"tes\\n", b"no end"):
    os.write(1, part)
    time.sleep(0.2)
else:
  time.sleep(0.1)
  print("between")
  os.write(2, b"a" * 200000)
"""
  command = (sys.executable, "-S", "-c", PRELUDE + code)
  done = subprocess.run(
    [sys.executable, "launch/local.py", "--processes=2", "--", *command],
    cwd=runs.ROOT,
    check=True,
    capture_output=True,
    timeout=60,
  )
  assert done.stdout in (
    b"[1] between\n\xff\x00 bytes\nno end",
    b"\xff\x00 bytes\n[1] between\nno end",
  )
  assert b"10%\r20%\r" in done.stderr
  assert b"[1] " + b"a" * 200000 + b"\n" in done.stderr


def test_only_process_0_reads_our_input(tmp_path):
  path = tmp_path / "input"
  path.write_text("given")
  with path.open() as stdin:
    process = start(code="print(repr(sys.stdin.read()))", stdin=stdin)
  assert sorted(process.stdout.read().splitlines()) == ["'given'", "[1] ''"]
  assert process.wait() == 0


@pytest.mark.parametrize("size", [1, 100_000])
def test_the_job_goes_on_when_nobody_reads_our_messages(tmp_path, size):
  code = f"""
time.sleep(0.3)
say("x" * {size})
Path({str(tmp_path)!r}, str(RANK)).touch()
"""
  process = start(code=code)
  process.stderr.close()
  assert process.wait(30) == 0
  assert len(list(tmp_path.iterdir())) == 2


# --- failures ----------------------------------------------------------------

FAILURES = {
  "refusal": (
    "say('error: no field x'); say('chatter of a library'); sys.exit(2)",
    2,
    "error: process 1 exited with status 2: error: no field x",
  ),
  "bug": (
    "raise KeyError('x')",
    1,
    "error: process 1 exited with status 1: KeyError: 'x'",
  ),
  "killed": (
    "say('\\x1b[31mstep 3\\x1b[0m'); os.kill(os.getpid(), 9)",
    137,
    "error: process 1 was killed by signal 9 (SIGKILL); its last line: step 3",
  ),
  "killed in silence": (
    "os.kill(os.getpid(), 35)",
    163,
    "error: process 1 was killed by signal 35",
  ),
  "silence": (
    "sys.exit(3)",
    3,
    "error: process 1 exited with status 3, without a word",
  ),
  "by itself": (
    "time.sleep(0.4); sys.exit(5)",
    5,
    "error: process 1 exited with status 5, without a word",
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FAILURES)
def test_the_process_that_failed_is_named_with_its_last_line(case):
  what, expected, message = FAILURES[case]
  code = f"""
if RANK == 1:
  {what}
elif RANK == 0:
  say("error: process 1 is lost")
  sys.exit(75)
on_stop(7, "error: told to stop")
say("ready")
time.sleep(60)
"""
  status, _, err = run(code=code, count=3)
  assert (status, last(err)) == (expected, message), err


def test_a_lost_peer_is_the_reason_if_there_is_no_other():
  code = """
if RANK == 1:
  say("error: host 3 is lost")
  sys.exit(75)
time.sleep(60)
"""
  status, _, err = run(code=code)
  assert status == 75
  assert last(err).endswith("exited with status 75: error: host 3 is lost")


@pytest.mark.slow
@pytest.mark.parametrize("stubborn", ["deaf", "frozen"])
def test_those_who_do_not_end_are_killed_after_the_grace_time(
  stubborn, tmp_path
):
  what = {
    "deaf": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "frozen": "on_stop(1, 'woken'); os.kill(os.getpid(), signal.SIGSTOP)",
  }[stubborn]
  code = f"""
path = Path({str(tmp_path)!r}, str(RANK))
path.write_text(str(os.getpid()))
if RANK == 1:
  {what}
if RANK == 2:
  while not all((path.parent / str(i)).exists() for i in range(3)):
    time.sleep(0.01)
  time.sleep(0.2)
  sys.exit(4)
time.sleep(60)
"""
  status, _, err = run("--grace=1", code=code, count=3)
  assert status == 4 and "process 2 exited" in last(err), err
  # A frozen process is woken, so that it can end.
  assert ("[1] woken" in err) == (stubborn == "frozen")
  check_gone([int(path.read_text()) for path in tmp_path.iterdir()])


def test_what_processes_started_ends_with_them():
  code = """
import subprocess
child = subprocess.Popen(["sleep", "60"])
print("child", child.pid, flush=True)
sys.exit(RANK)
"""
  status, out, _ = run(code=code)
  assert status == 1
  pids = [int(pid) for pid in re.findall(r"child (\d+)", out)]
  assert len(pids) == 2
  check_gone(pids)


# --- told to stop ------------------------------------------------------------

WAITING = """
on_stop(143)
print("pid", os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_all_save_and_nothing_starts_again(number):
  if signal.getsignal(number) == signal.SIG_IGN:
    pytest.skip("ignored here, as under nohup")
  process = start("--restarts=3", code=WAITING, count=3)
  wait_for_lines(process.stdout, 3)
  process.send_signal(number)
  status, out, err = runs.finish(process, timeout=30)
  assert status == 143 and not out
  assert err.count("saved") == 3
  assert last(err) == f"stopped by {signal.Signals(number).name}"


def test_a_second_signal_leaves_no_grace():
  code = WAITING.replace("on_stop(143)", "on_stop = signal.signal(15, say)")
  code = code.replace("say)", "lambda *_: say('not yet'))").replace(
    "time.sleep(60)", "while True: time.sleep(1)"
  )
  process = start(code=code)
  wait_for_lines(process.stdout, 2)
  process.send_signal(signal.SIGTERM)
  wait_for_lines(process.stderr, 2)  # Each process has said it.
  process.send_signal(signal.SIGTERM)
  status, _, err = runs.finish(process, timeout=30)
  assert status == 143
  assert re.search(r"process 0 was killed by signal 9.*not yet", last(err)), err


def test_told_at_the_end_a_job_that_is_complete_is_complete():
  process = start(code=WAITING.replace("143", "0"))
  wait_for_lines(process.stdout, 2)
  process.send_signal(signal.SIGTERM)
  assert runs.finish(process, timeout=30)[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_no_process_outlives_a_killed_launcher():
  code = WAITING.replace("on_stop(143)", "signal.signal(15, signal.SIG_IGN)")
  process = start(code=code, count=3)
  lines = wait_for_lines(process.stdout, 3)
  process.kill()
  process.communicate(timeout=10)
  check_gone([int(line.split()[-1]) for line in lines])


# --- restarts ----------------------------------------------------------------

# Fails until there are three files.
ATTEMPTS = """
done = Path(os.environ["XLJ_ATTEMPTS"])
if RANK == COUNT - 1:
  Path(done, f"{len(list(done.iterdir()))}-{COUNT}-{PORT}").touch()
  if len(list(done.iterdir())) < 3:
    sys.exit(int(os.environ["XLJ_STATUS"]))
else:
  time.sleep(0.5)
"""


@pytest.mark.parametrize(
  "status,restarts,expected,counts",
  [
    (1, 5, 0, "311"),
    (75, 1, 75, "31"),  # no restarts left
    (2, 5, 2, "3"),  # it would be refused again
  ],
)
def test_a_failed_job_starts_again_as_often_as_allowed(
  status, restarts, expected, counts, tmp_path, monkeypatch
):
  monkeypatch.setenv("XLJ_ATTEMPTS", str(tmp_path))
  monkeypatch.setenv("XLJ_STATUS", str(status))
  found, _, err = run(
    f"--restarts={restarts}", "--restart_processes=1", code=ATTEMPTS, count=3
  )
  assert found == expected, err
  names = sorted(path.name.split("-") for path in tmp_path.iterdir())
  assert "".join(count for _, count, _ in names) == counts
  assert len({port for _, _, port in names}) == len(names)
  if len(counts) > 1:
    assert (
      f"restart 1 of {restarts}, as 1 process: process 2 exited with"
      f" status {status}" in err
    )
  assert last(err).startswith("error: ") == (expected != 0)


# --- devices and refusals ----------------------------------------------------

SHOW = "print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ['XLA_FLAGS'])"
FORCED = "--xla_force_host_platform_device_count="


@pytest.mark.parametrize(
  "visible,args,first,second",
  [
    ("0,1,2,3", (), "0,1", "2,3"),
    ("GPU-a, GPU-b", (), "GPU-a", "GPU-b"),
    ("", (), "", ""),
    ("0,1,2", ("--devices=3",), f"0,1,2 {FORCED}3", f"0,1,2 {FORCED}3"),
    (None, (), "0,1", "2,3"),  # those that nvidia-smi lists
  ],
)
def test_each_process_gets_its_share_of_the_devices(
  visible, args, first, second, tmp_path, monkeypatch
):
  monkeypatch.delenv("JAX_PLATFORMS")
  if visible is None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor i in 0 1 2 3; do echo GPU $i: H; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  else:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
  status, out, err = run(*args, code=SHOW)
  assert status == 0, err
  lines = sorted(out.splitlines(), key=lambda line: line.startswith("[1] "))
  assert lines[0].startswith(first)
  assert lines[1].startswith(f"[1] {second}")


REFUSALS = {
  "no command": (("--processes=2",), "there is no command"),
  "nothing after --": (("--processes=2", "--"), "there is no command"),
  "no --": (("--processes=2", "python", "x.py"), "the command follows --"),
  "no processes": (("--processes=0", "--", "true"), "--processes=0"),
  "how many": (("--", "true"), "Give --processes"),
  "unknown flag": (("--procs=2", "--", "true"), "procs"),
  "no program": (("--processes=2", "--", "./x"), "cannot run ./x"),
  "GPUs": (
    ("--processes=2", "--", "true"),
    "3 GPUs (0, 1, 2) cannot be shared out equally to 2 processes",
  ),
  "GPUs of a restart": (
    ("--processes=3", "--restarts=1", "--restart_processes=2", "--", "true"),
    "equally to 2 processes",
  ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_usage_is_refused_with_one_line(case, monkeypatch):
  args, message = REFUSALS[case]
  if "GPUs" in case:
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
  status, out, err = runs.finish(runs.launch("local", *args))
  assert status == 2 and not out
  (line,) = err.splitlines()
  assert line.startswith("error: ") and message in line


# --- on a terminal -----------------------------------------------------------


def set_size(terminal, rows, columns):
  size = struct.pack("HHHH", rows, columns, 0, 0)
  fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)


def read_until(terminal, text, seconds=20):
  found, deadline = b"", time.monotonic() + seconds
  while text not in found:
    assert time.monotonic() < deadline, found
    if select.select([terminal], [], [], 0.1)[0]:
      found += os.read(terminal, 4096)
  return found


def test_process_0_has_a_terminal_of_the_size_of_ours():
  code = """
if RANK == 0:
  size = tuple(os.get_terminal_size(2))
  os.write(2, b"bar %d x %d" % size)
  while tuple(os.get_terminal_size(2)) == size:
    time.sleep(0.01)
  os.write(2, b"\\rnow %d x %d\\n" % tuple(os.get_terminal_size(2)))
else:
  time.sleep(0.5)
  say(f"others have one: {sys.stderr.isatty()}")
"""
  ours, theirs = pty.openpty()
  set_size(theirs, 30, 90)
  command = (sys.executable, "-S", "-c", PRELUDE + code)
  process = subprocess.Popen(
    [sys.executable, "launch/local.py", "--processes=2", "--", *command],
    cwd=runs.ROOT,
    stdout=theirs,
    stderr=theirs,
  )
  os.close(theirs)
  found = read_until(ours, b"one: False")
  # On a line of its own, which the bar had.
  assert b"bar 90 x 30\r\x1b[K[1] others have one: False" in found
  set_size(ours, 40, 100)
  assert b"now 100 x 40\r\n" in read_until(ours, b"40\r\n")
  assert process.wait(10) == 0
  os.close(ours)


# --- real runs ---------------------------------------------------------------


@pytest.mark.slow
def test_training_goes_on_with_fewer_processes_after_a_kill(tmp_path):
  data = runs.make_data(tmp_path / "data")
  workdir = tmp_path / "run"
  process = runs.launch(
    "local",
    *("--processes=2", "--devices=1", "--grace=5"),
    *("--restarts=1", "--restart_processes=1", "--"),
    *(sys.executable, str(runs.ROOT / "launch/train.py")),
    *test_launch.train_arguments(data, workdir, *test_launch.SMALL),
    "--peer_timeout=5",
  )
  test_launch.wait_for_step(workdir, 12, process)
  os.kill(child_of(process.pid, "--process_id=1"), signal.SIGKILL)
  status, _, err = runs.finish(process)
  assert status == 0, err
  assert "restart 1 of 1, as 1 process: process 1 was killed by" in err
  assert "Continuing from the checkpoint of step" in err
  steps = [row["step"] for row in runs.records(workdir, "train")]
  assert steps == list(range(1, 41))


def child_of(pid, argument):
  children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
  (found,) = [
    int(child)
    for child in children
    if argument.encode()
    in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
  ]
  return found
