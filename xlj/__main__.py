"""What `python -m xlj` says: the commands are files."""

import ast
import os
from pathlib import Path
import sys
from typing import NoReturn

_LAUNCH = Path(__file__).resolve().parents[1] / "launch"
_NOT_INSTALLED = (
  "The commands are files in the directory launch of xlj's repository, which is"
  " not here;\nfrom Python: import xlj; help(xlj)"
)


def commands() -> str:
  """A line for each command."""
  files = sorted(_LAUNCH.glob("*.py"))
  if not files:
    return _NOT_INSTALLED
  lines = ["The commands; each tells its flags with --help:"]
  for file in files:
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    path = min(str(file), os.path.relpath(file), key=len)
    lines.append(f"  python {path}  {text.splitlines()[0]}")
  return "\n".join(lines)


def explain(module: str) -> NoReturn:
  """Says what to run instead of a module of xlj, which would do nothing."""
  print(commands(), file=sys.stderr)
  print(f"error: {module} is no command; see those above", file=sys.stderr)
  sys.exit(2)


if __name__ == "__main__":
  print(commands())
