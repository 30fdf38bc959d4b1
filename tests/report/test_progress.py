"""The progress display, and metrics files that survive kills and resumes."""

import contextlib
import fcntl
import io
import json
import math
import os
import pathlib
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from unittest import mock

from absl import logging
from absl.testing import absltest
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.summary.writer import event_file_writer

from xlj.report import progress

_WRITE_FOREVER = """
import itertools, sys
from xlj.report import progress
writer = progress.MetricWriter(sys.argv[1])
for step in itertools.count(1):
  writer.write(step, "train", {"loss": 1 / step})
"""


class Clock:
  """Seconds that pass only when told to."""

  def __init__(self):
    self.now = 100.0

  def __call__(self) -> float:
    return self.now


class Unreadable:
  """Stands for an array on a device that is not to be waited for."""

  def __float__(self) -> float:
    raise AssertionError("read although nothing was to be shown")


class ProgressTest(absltest.TestCase):
  def test_lines_where_there_is_no_terminal(self):
    clock, stream = Clock(), io.StringIO()
    with progress.Progress(
      100,
      initial_step=20,
      examples_per_step=64,
      interval=10,
      goodput=lambda: 0.934,
      stream=stream,
      clock=clock,
    ) as shown:
      clock.now += 9
      shown.update(21, {"loss": Unreadable()})
      clock.now += 1
      shown.update(40, {"loss": np.float32(0.25)})
      clock.now += 5
      shown.update(50, {"loss": 0.125})
    lines = stream.getvalue().splitlines()
    # 20 steps in 10 s, so 60 more take 30 s.
    self.assertEqual(
      lines[0],
      "train 40/100 (40%): loss 0.25, examples/s 128, goodput 93%, 0:30 left",
    )
    self.assertStartsWith(lines[1], "train 50/100 (50%): loss 0.125")
    self.assertLen(lines, 2)

  def test_a_failure_shows_nothing_more(self):
    stream = io.StringIO()
    with self.assertRaises(KeyError):
      with progress.Progress(10, stream=stream) as shown:
        shown.update(1, {"loss": Unreadable()})
        raise KeyError
    self.assertEmpty(stream.getvalue())

  def test_disabled_is_silent(self):
    stream = io.StringIO()
    with progress.Progress(10, enabled=False, stream=stream) as shown:
      shown.update(10, {"loss": Unreadable()})
    self.assertEmpty(stream.getvalue())

  def test_bar_on_a_terminal(self):
    reader, writer = pty.openpty()
    self.addCleanup(os.close, reader)
    os.set_blocking(reader, False)
    with os.fdopen(writer, "w") as stream:
      size = struct.pack("HHHH", 40, 100, 0, 0)
      fcntl.ioctl(writer, termios.TIOCSWINSZ, size)
      handler = logging.get_absl_handler().python_handler
      before = handler.stream
      clock = Clock()
      with progress.Progress(100, stream=stream, clock=clock) as shown:
        clock.now += 1
        shown.update(50, {"loss": 0.5})
        handler.stream.write("a message\n")
      self.assertIs(handler.stream, before)
      text = os.read(reader, 100_000).decode()
    self.assertIn("50/100, loss 0.5, examples/s 50, 0:01 left", text)
    # The message has a line of its own, not the end of the bar's.
    lines = [part.rstrip() for part in text.replace("\n", "\r").split("\r")]
    self.assertIn("a message", lines)


class MetricWriterTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(folder) / "run"
    self.path = self.workdir / "metrics.jsonl"

  def records(self) -> list[dict]:
    return [json.loads(line) for line in self.path.read_text().splitlines()]

  def test_lines(self):
    loss = np.float32(1 / 3)
    before = time.time()
    with progress.MetricWriter(self.workdir) as writer:
      writer.write(10, "train", {"loss": loss})
      self.assertLen(self.records(), 1)  # before any flush or close
      writer.write(10, "eval", {"P@1": 50, "loss": math.nan})
    first, second = self.records()
    self.assertBetween(first.pop("time"), before - 1, time.time() + 1)
    self.assertEqual(first, {"step": 10, "kind": "train", "loss": float(loss)})
    self.assertEqual(second["kind"], "eval")
    self.assertEqual(second["P@1"], 50)
    self.assertIsNone(second["loss"])

  def test_resuming_removes_later_steps_and_a_torn_line(self):
    with progress.MetricWriter(self.workdir) as writer:
      for step in (10, 20, 30):
        writer.write(step, "train", {"loss": step})
        writer.write(step, "eval", {"P@1": step})
    with self.path.open("a") as file:
      file.write('{"step": 2, "time": 1, "ki')
    with progress.MetricWriter(self.workdir, resume_step=20) as writer:
      writer.write(20, "eval", {"P@1": -1})  # the resumed step, once more
      writer.write(30, "train", {"loss": 31})
    found = [(r["step"], r["kind"], r.get("loss")) for r in self.records()]
    self.assertEqual(
      found,
      [
        (10, "train", 10),
        (10, "eval", None),
        (20, "train", 20),
        (20, "eval", None),
        (30, "train", 31),
      ],
    )
    self.assertEqual(self.records()[3]["P@1"], 20)

  def test_a_new_run_starts_afresh(self):
    for _ in range(2):
      with progress.MetricWriter(self.workdir) as writer:
        writer.write(0, "eval", {"P@1": 1})
        writer.write(5, "train", {"loss": 2})
    self.assertEqual([r["step"] for r in self.records()], [0, 5])

  def test_kill_loses_no_whole_line(self):
    command = [sys.executable, "-c", _WRITE_FOREVER, str(self.workdir)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not self.path.exists() or self.path.stat().st_size < 2000:
      self.assertLess(time.monotonic(), deadline)
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = [r["step"] for r in progress.read_metrics(self.path)]
    self.assertEqual(steps, list(range(1, len(steps) + 1)))
    resume = len(steps) // 2
    with progress.MetricWriter(self.workdir, resume_step=resume) as writer:
      writer.write(resume + 1, "train", {"loss": 0})
    self.assertEqual(
      [r["step"] for r in self.records()], list(range(1, resume + 2))
    )

  def test_tensorboard_shows_each_step_once(self):
    # Names go 9 before 10, readers by letters: other tests must not count here.
    counter = event_file_writer.AtomicCounter(0)
    self.enterContext(
      mock.patch.object(event_file_writer, "_global_uid", counter)
    )
    with progress.MetricWriter(self.workdir) as writer:
      writer.write(1, "train", {"loss": 0.5})
      writer.write(2, "train", {"loss": 9.0})
    # Event files of one second are told apart by the process and a count.
    with progress.MetricWriter(self.workdir, resume_step=1) as writer:
      writer.write(2, "train", {"loss": 0.25})
    events = event_accumulator.EventAccumulator(
      str(self.workdir / "tensorboard")
    ).Reload()
    found = [(e.step, e.value) for e in events.Scalars("train/loss")]
    self.assertEqual(found, [(1, 0.5), (2, 0.25)])

  def test_disabled_writes_nothing(self):
    with progress.MetricWriter(self.workdir, enabled=False) as writer:
      writer.write(1, "train", {"loss": 1})
    self.assertFalse(self.workdir.exists())

  def test_reserved_names_are_refused(self):
    with progress.MetricWriter(self.workdir) as writer:
      with self.assertRaisesRegex(ValueError, "time"):
        writer.write(1, "train", {"time": 1})

  def test_a_missing_file_has_no_records(self):
    self.assertEqual(progress.read_metrics(self.path), [])


@pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
def test_a_full_disk_loses_lines_and_nothing_else(tmp_path):
  if subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]
  ).returncode:
    pytest.skip("needs the right to mount")
  try:
    with progress.MetricWriter(tmp_path / "run") as writer:
      for step in range(1, 10):
        writer.write(step, "train", {"loss": step})
      filler = tmp_path / "filler"
      with contextlib.suppress(OSError), filler.open("wb", 0) as file:
        while file.write(b"0" * 512):
          pass
      for step in range(10, 200):
        writer.write(step, "train", {"loss": step})
      filler.unlink()
      for step in range(200, 210):
        writer.write(step, "train", {"loss": step})
    rows = progress.read_metrics(tmp_path / "run" / progress.METRICS_FILE)
  finally:
    subprocess.run(["umount", tmp_path], check=True)
  steps = [row["step"] for row in rows]
  assert steps[:9] == list(range(1, 10))
  assert steps[-10:] == list(range(200, 210))
  assert len(steps) < 209


if __name__ == "__main__":
  absltest.main()
