"""The process of one side of a comparison, see `contestant.py`."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import contestant

SECONDS_BETWEEN_TURNS = 0.1  # threads that wait stop to spin


class Side:
  """A side, as seen from the command that compares.

  Attributes:
    name: What it is told to be; those in PyTorch begin with "torch".
    result: What it has said so far: `failed` or facts, `seconds` (a list of
      those of a step by part) and `peak_bytes`.
  """

  def __init__(
    self,
    name: str,
    problem: contestant.Problem,
    torch_python: str | None,
    environment: dict[str, str],
  ):
    """Starts it.

    Args:
      name: See above.
      problem: What it is to solve.
      torch_python: An interpreter that has PyTorch.
      environment: Variables to set.
    """
    self.name = name
    self.result: dict[str, Any] = {"seconds": [], "peak_bytes": None}
    in_torch = name.startswith("torch")
    file = "torch_label_step.py" if in_torch else "jax_label_step.py"
    text = json.dumps(dataclasses.asdict(problem))
    self._errors = tempfile.TemporaryFile("w+")
    self._process: Any = subprocess.Popen(
      [
        torch_python if in_torch else sys.executable,
        str(pathlib.Path(__file__).with_name(file)),
        name,
        text,
      ],
      env=os.environ | environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
    )

  def wait(self) -> None:
    """Waits until it is warm."""
    self.result |= self._answer()

  def turn(self, steps: int) -> None:
    """Has it take some steps."""
    time.sleep(SECONDS_BETWEEN_TURNS)
    self.result["seconds"] += self._ask(f"turn {steps}").get("seconds", [])

  def measure_memory(self) -> None:
    """Has it measure what a step needs."""
    self.result |= self._ask("memory")

  def end(self) -> dict[str, Any]:
    """Ends it and returns the result."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.wait()
    return self.result

  def _ask(self, line: str) -> dict[str, Any]:
    if "failed" in self.result:
      return {}
    try:
      print(line, file=self._process.stdin, flush=True)
    except BrokenPipeError:
      pass  # it has not answered either
    return self._answer()

  def _answer(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if line:
      return json.loads(line)
    self._errors.seek(0)
    return {"failed": failure(self._errors.read(), self._process.wait())}


def failure(errors: str, code: int) -> str:
  """Why a process has ended, in a line, from what it printed and its status."""
  lines = [line.strip() for line in errors.splitlines() if line.strip()]
  # A traceback may have notes behind the error.
  lines = [line for line in lines if "Error: " in line] or lines
  return lines[-1][:300] if lines else f"exit code {code}"
