"""What to type: commands as messages, pages and `--help` name them."""

from collections.abc import Sequence
import os
from pathlib import Path
import shlex
import sys
from typing import Any

# In the order of a first job, then what is done with runs, then the rest.
NAMES = (
  "demo", "train", "evaluate", "predict", "calibrate", "export", "serve",
  "report", "average", "labels", "plan", "images", "corrupt", "local",
)  # fmt: skip


def words(name: str) -> list[str]:
  """How a command begins: `xlj NAME`, or the script beside the one that runs.

  Args:
    name: One of `NAMES`.
  """
  script = Path(sys.argv[0])
  if script.suffix == ".py" and script.parent.name == "launch":
    return ["python", str(script.with_name(f"{name}.py"))]
  return ["xlj", name]


def started(words: Sequence[str]) -> list[str]:
  """What starts `xlj train ...`, or `train ...`: this xlj, in this Python.

  Args:
    words: A command; any other one stays as it is.
  """
  own = list(words[1:] if words[0] == "xlj" else words)
  if own and own[0] in NAMES:
    return [sys.executable, "-m", "xlj", *own]
  return list(words)


def command(name: str, **flags: Any) -> str:
  """A command with flags, quoted as a shell needs it."""
  values = {
    flag: f"{value:g}" if isinstance(value, float) else str(value)
    for flag, value in flags.items()
  }
  given = [f"--{flag}={value}" for flag, value in values.items()]
  return shlex.join([*words(name), *given])


def show(text: str) -> None:
  """Prints what was asked for; who reads it may leave early, as `head` does."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
