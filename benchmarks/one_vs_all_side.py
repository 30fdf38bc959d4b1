"""The process of a system in `one_vs_all.py`, which trains or which predicts.

A system has a file of its own, which is run in its own environment as

  python SYSTEM_one_vs_all.py train|predict DATA OUTPUT

and finds in DATA what `one_vs_all.py` has written, leaves its model in OUTPUT,
and what was measured in OUTPUT/train.json or OUTPUT/predict.json, with
OUTPUT/top.npy, the best labels of the test rows. Imports nothing but numpy and
scipy.

Legend: N rows, F features, L labels.
"""

from collections.abc import Callable
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any, Protocol

import contestant
import numpy as np
import scipy.sparse

K = 5  # labels that are predicted for a row
REPEATS = 3  # of predicting the test split
SINGLE_ROWS = 1000  # that are predicted one by one


class System(Protocol):
  """What trains and predicts; reading and `ids` are not timed."""

  version: str

  def read(self, split: str) -> Any:
    """A split, "train" or "test", as the system takes it."""
    ...

  def train(self, split: Any) -> None:
    """Trains, and saves the model."""
    ...

  def load(self) -> pathlib.Path:
    """Loads the model; returns the directory that it is in."""
    ...

  def rows(self, split: Any, numbers: np.ndarray | None) -> Any:
    """Some rows of a split, or all, as `predict` takes them."""
    ...

  def predict(self, rows: Any) -> Any:
    """The best K labels of rows, in whatever form."""
    ...

  def ids(self, predicted: Any) -> np.ndarray:
    """The same as ids `[N, K]`, best first; -1 where there are fewer."""
    ...


Matrices = tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix]


class OfMatrices:
  """What systems have in common that take weighted features as SciPy has them.

  They keep their model in `model_dir`.
  """

  def __init__(self, data: pathlib.Path, output: pathlib.Path):
    """Knows where its files are."""
    self._data, self.model_dir = data, output / "model"

  def read(self, split: str) -> Matrices:
    """Features `[N, F]` and labels `[N, L]`."""
    x, y = (
      scipy.sparse.load_npz(self._data / f"{split}_{name}.npz")
      for name in ("features", "labels")
    )
    return x, y

  def rows(self, split: Matrices, numbers: np.ndarray | None) -> Any:
    """Features of some rows, or of all."""
    return split[0] if numbers is None else split[0][numbers]


def serve(make: Callable[[pathlib.Path, pathlib.Path], System]) -> None:
  """Runs the process of a system.

  Args:
    make: From DATA and OUTPUT to the system.
  """
  phase, data, output = sys.argv[1], *map(pathlib.Path, sys.argv[2:])
  system = make(data, output)
  measure = {"train": _train, "predict": _predict}[phase]
  (output / f"{phase}.json").write_text(json.dumps(measure(system, output)))


def _train(system: System, output: pathlib.Path) -> dict[str, Any]:
  split = system.read("train")
  before = seconds_of_others()
  seconds = _seconds(lambda: system.train(split))
  after = seconds_of_others()
  return {
    "version": system.version,
    "train_s": seconds,
    # Ticks of the clock make it a little less than nothing now and then.
    "others": max(0.0, after - before) / seconds if before and after else None,
    # Of this program, whereas `getrusage` tells the peak of the process that
    # has started it where that is higher.
    "peak_bytes": contestant.process_bytes("VmHWM"),
  }


def _predict(system: System, output: pathlib.Path) -> dict[str, Any]:
  directory = system.load()
  load_s = seconds_of_this_process()
  split = system.read("test")
  rows = system.rows(split, None)
  top = system.ids(system.predict(rows))  # what is compiled is compiled now
  np.save(output / "top.npy", top)
  batch = [_seconds(lambda: system.predict(rows)) for _ in range(REPEATS)]
  numbers = np.linspace(0, len(top) - 1, min(SINGLE_ROWS, len(top)), dtype=int)
  singles = [
    system.rows(split, numbers[i : i + 1]) for i in range(len(numbers))
  ]
  for row in singles:
    system.predict(row)
  single = [_seconds(lambda row=row: system.predict(row)) for row in singles]
  return {
    "model_bytes": sum(
      path.stat().st_size for path in directory.rglob("*") if path.is_file()
    ),
    "load_s": load_s,
    "batch_ms": 1e3 * statistics.median(batch) / len(top),
    "row_p50_ms": 1e3 * statistics.median(single),
    "row_p99_ms": 1e3 * float(np.percentile(single, 99)),
  }


def seconds_of_others() -> float | None:
  """Processor seconds, since some time, of all but this process."""
  try:
    line = pathlib.Path("/proc/stat").read_text().splitlines()[0]
  except OSError:
    return None
  user, nice, system, _, _, *interrupts = map(int, line.split()[1:9])
  ticks = user + nice + system + sum(interrupts)
  return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def seconds_of_this_process() -> float | None:
  """Seconds since this process was started, on Linux."""
  try:
    text = pathlib.Path("/proc/self/stat").read_text()
  except OSError:
    return None
  ticks = int(text.rpartition(")")[2].split()[19])
  now = time.clock_gettime(time.CLOCK_BOOTTIME)
  return now - ticks / os.sysconf("SC_CLK_TCK")


def _seconds(run: Callable[[], Any]) -> float:
  begun = time.perf_counter()
  run()
  return time.perf_counter() - begun
