"""One cache for several processes: one writes, damage is found by all."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests import runs
from xlj.data import cache
from xlj.data import csr as csr_lib
from xlj.data import entries
from xlj.data import errors
from xlj.data import mapped
from xlj.data import statistics
from xlj.data import store
from xlj.data import verification
from xlj.data import writers
from xlj.training import train

OPEN = """
import sys, time
from absl import logging
logging.set_verbosity(logging.INFO)
from xlj.data import ingest, statistics, store
read, compute = ingest.ingest, statistics.compute
def slow(function, name):
  def run(*args, **kwargs):
    print(name, flush=True)
    time.sleep(float(sys.argv[2]))
    return function(*args, **kwargs)
  return run
ingest.ingest = slow(read, "ingest")
statistics.compute = slow(compute, "statistics")
print("ready", flush=True)
sys.stdin.readline()
split = store.open_split(sys.argv[1])
found = statistics.load_or_compute(split, split.cache_dir)
print("rows", split.num_rows, found.num_rows, flush=True)
"""


def make(directory):
  rng = np.random.default_rng(0)
  rows = [sorted(rng.choice(40, 3, replace=False).tolist()) for _ in range(50)]
  matrix = csr_lib.Csr.from_rows(rows, 40)
  writers.write_one_file(directory / "train.txt", matrix, matrix)


def start(directory, seconds):
  process = subprocess.Popen(
    [sys.executable, "-c", OPEN, str(directory), str(seconds)],
    env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  return process


@pytest.mark.slow
def test_one_of_four_processes_reads_the_source(tmp_path):
  make(tmp_path)
  processes = [start(tmp_path, 1.0) for _ in range(4)]
  for process in processes:
    process.stdin.write("\n")
    process.stdin.flush()
  ended = [process.communicate(timeout=60) for process in processes]
  out = "".join(out for out, _ in ended)
  assert out.count("ingest") == out.count("statistics") == 1, ended
  assert out.count("rows 50 50") == 4, ended
  waited = [err for _, err in ended if "Waiting for another process" in err]
  assert len(waited) >= 3, ended


def test_a_holder_that_dies_lets_the_next_one_in(tmp_path):
  make(tmp_path)
  first, second = start(tmp_path, 60.0), start(tmp_path, 0.0)
  first.stdin.write("\n")
  first.stdin.flush()
  assert first.stdout.readline() == "ingest\n"  # half way
  second.stdin.write("\n")
  second.stdin.flush()
  time.sleep(0.5)
  assert second.poll() is None
  first.send_signal(signal.SIGKILL)
  out, err = second.communicate(timeout=60)
  assert "rows 50 50" in out, err
  first.communicate()


def test_without_locks_nobody_waits(tmp_path, monkeypatch):
  make(tmp_path)
  monkeypatch.setattr(cache, "fcntl", None)
  split = store.open_split(tmp_path)
  assert statistics.load_or_compute(split, split.cache_dir).num_rows == 50


@pytest.fixture
def all_are_large(monkeypatch):
  monkeypatch.setattr(entries, "_CHECKED_BYTES", 0)


def test_damage_of_a_large_set_is_found_while_it_is_used(
  tmp_path, all_are_large
):
  make(tmp_path)
  split = store.open_split(tmp_path)
  split.verification.wait()
  split.check()
  path = split.cache_dir / "labels.indices.npy"
  with open(path, "r+b") as file:
    file.seek(200)
    byte = file.read(1)
    file.seek(200)
    file.write(bytes([byte[0] ^ 1]))
  split = store.open_split(tmp_path)
  with pytest.raises(errors.DataError) as caught:
    split.verification.wait()
  assert split.verification.done
  assert str(path) in str(caught.value) and "remove its dir" in str(
    caught.value
  )
  with pytest.raises(errors.DataError):
    split.check()
  assert store.open_split(tmp_path, verify=False).verification is None


@pytest.mark.slow
def test_a_run_ends_when_damage_is_found(tmp_path, all_are_large, monkeypatch):
  data_dir = runs.make_data(tmp_path / "data")

  class Damaged(verification.Verification):
    def check(self):
      raise errors.DataError("labels.npy", "checksum 1", "2")

  monkeypatch.setattr(verification, "Verification", Damaged)
  config = runs.make_config(data_dir)
  with pytest.raises(errors.DataError, match=r"labels\.npy"):
    train.train(config, tmp_path / "run")
  config.data.verify = False
  config.train.num_steps = 2
  train.train(config, tmp_path / "other")


def test_checking_rests_as_long_as_it_works(tmp_path):
  make(tmp_path)
  split = store.open_split(tmp_path)
  meta = cache.read_meta(split.cache_dir)
  rests = []
  path = split.cache_dir / "labels.indices.npy"
  mapped.check_array(path, meta["arrays"]["labels.indices"], rests.append)
  assert len(rests) == 1 and rests[0] >= 0


def test_no_two_are_alone_at_a_time_and_no_lock_stays(tmp_path):
  inside, worst = [], []

  def work():
    for _ in range(50):
      with cache.alone(tmp_path / "entry"):
        inside.append(1)
        worst.append(len(inside))
        time.sleep(1e-4)
        inside.pop()

  threads = [threading.Thread(target=work) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(worst) == 400 and max(worst) == 1
  assert not list(tmp_path.iterdir())
