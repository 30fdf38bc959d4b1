"""What to type: commands as messages, pages and `--help` name them."""

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


def command(name: str, **flags: Any) -> str:
  """A command with flags, quoted as a shell needs it."""
  values = {
    flag: f"{value:g}" if isinstance(value, float) else str(value)
    for flag, value in flags.items()
  }
  given = [f"--{flag}={value}" for flag, value in values.items()]
  return shlex.join([*words(name), *given])
