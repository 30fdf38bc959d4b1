"""One side of a comparison of steps: a process that takes them when told to.

The command that compares starts a process for each side, with a problem in its
arguments. Each says on a line of JSON what it is ready with, then answers every
line that it reads: "turn N" with the seconds of N steps, "memory" with the
bytes that a step needs at most beyond what is there before it. Imports nothing
but numpy, since sides have environments of their own.

Legend: N examples, D width, L labels.
"""

from collections.abc import Callable
import ctypes
import dataclasses
import gc
import json
import os
import pathlib
import sys
import time
from typing import Any, ClassVar, Protocol

import numpy as np

LOSSES = ("softmax", "bce")
DTYPES = ("float32", "bfloat16")
PRODUCTS = ("x Wt", "g W", "gt x")  # of a step, as they are named in times
WARM_UP = 3  # steps; the sides' losses in them are compared
_PERIOD = 4093  # label rows repeat, so that no machine must send them all
_STATUS, _CLEAR = (
  pathlib.Path("/proc/self", name) for name in ("status", "clear_refs")
)


@dataclasses.dataclass(frozen=True)
class Problem:
  """A step of stochastic gradient descent to be taken.

  Attributes:
    loss: "softmax", the mean of cross-entropies with one positive each, or
      "bce", the mean of sums of binary cross-entropies over the labels.
    dtype: Type of rows and examples; products of them are summed in float32.
    N: Number of examples.
    D: Width.
    L: Number of labels.
    device: "cpu" or "gpu".
    options: What else a side is told.
  """

  loss: str
  dtype: str
  N: int
  D: int
  L: int
  device: str = "cpu"
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def learning_rate(self) -> float:
    """As large as keeps both losses stable, so that errors would show."""
    return min(1.0, self.N / self.D)

  @property
  def itemsize(self) -> int:
    """Bytes of a weight."""
    return 4 if self.dtype == "float32" else 2

  def examples(self) -> np.ndarray:
    """`[N, D]` float32."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(self.N, self.D)).astype(np.float32)

  def ids(self) -> np.ndarray:
    """`[N]` int64, the positive of each example."""
    return np.random.default_rng(1).integers(0, self.L, self.N)

  def some_rows(self) -> np.ndarray:
    """`[P, D]` float32; label i starts from row i modulo P."""
    rng = np.random.default_rng(2)
    shape = min(self.L, _PERIOD), self.D
    return (0.05 * rng.normal(size=shape)).astype(np.float32)


class Side(Protocol):
  """What takes steps."""

  facts: dict[str, Any]  # to be reported, such as versions

  def step(self) -> dict[str, float]:
    """Takes a step and says the seconds of its parts, by name."""
    ...

  def outcome(self) -> dict[str, float]:
    """Numbers of the last step that have to be the same for all sides."""
    ...


class Memory(Protocol):
  """The memory of the device."""

  def reset(self) -> None:
    """Notes what is in use; the peak starts anew from there."""
    ...

  def peak(self) -> int | None:
    """Bytes beyond that at the peak, None if unknown."""
    ...


class ProcessMemory:
  """The resident memory of this process, as Linux counts it.

  Memory that an earlier step has freed but that the C library holds on to would
  count as there before the step. So it has to be told not to, by
  `ENVIRONMENT`, before the process starts.
  """

  # Arrays come from the kernel, and go back when they are freed.
  ENVIRONMENT: ClassVar[dict[str, str]] = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}

  def reset(self) -> None:
    """Gives back what was freed, and starts the peak anew."""
    gc.collect()
    time.sleep(0.3)  # some is freed after the result is there
    self._before = None
    try:
      ctypes.CDLL("libc.so.6").malloc_trim(0)
      _CLEAR.write_text("5")
      self._before = process_bytes("VmRSS")
    except (OSError, AttributeError):
      pass

  def peak(self) -> int | None:
    """Bytes at the peak beyond those at the reset."""
    peak = process_bytes("VmHWM")
    return peak - self._before if peak and self._before else None


def process_bytes(name: str) -> int | None:
  """Memory of this process: "VmRSS" now, "VmHWM" at the peak; or None."""
  try:
    lines = _STATUS.read_text().splitlines()
  except OSError:
    return None
  sizes = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
  return 1024 * int(sizes[0]) if sizes else None


def num_threads() -> int:
  """Number of processors that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def serve(make: Callable[[str, Problem], tuple[Side, Memory]]) -> None:
  """Runs the process of a side: arguments are its name and the problem.

  Args:
    make: From those to the side and the memory that it works in.
  """
  name, text = sys.argv[1:]
  # Whatever else prints must not get between the answers.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)

  def answer(**facts: Any) -> None:
    print(json.dumps(facts), file=answers, flush=True)

  side, memory = make(name, Problem(**json.loads(text)))
  outcomes = []
  for _ in range(WARM_UP):
    side.step()
    outcomes.append(side.outcome())
  answer(outcomes=outcomes, **side.facts)
  for line in sys.stdin:
    match line.split():
      case ["turn", number]:
        side.step()  # others have used the caches
        answer(seconds=[side.step() for _ in range(int(number))])
      case ["memory"]:
        answer(peak_bytes=_peak(side, memory))


def _peak(side: Side, memory: Memory) -> int | None:
  """The most that one of some steps needed."""
  peaks = []
  for _ in range(WARM_UP):
    memory.reset()
    side.step()
    peaks.append(memory.peak())
  return None if None in peaks else max(peaks)
