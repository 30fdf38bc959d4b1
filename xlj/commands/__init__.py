"""The commands: `xlj train` and `launch/train.py` run `xlj.commands.train`.

Each of these modules defines its flags as it is imported, and has a function
`run`, which reads them and does the work.
"""

import ast
import importlib
from pathlib import Path
import sys


def run(name: str) -> None:
  """Runs a command; its flags are in `sys.argv`.

  Args:
    name: Of one of these modules, such as `train`.
  """
  # Before what takes seconds to import.
  importlib.import_module("xlj.distributed.interruption")
  module = importlib.import_module(f"{__name__}.{name}")
  sys.modules["__main__"].__doc__ = module.__doc__  # what --help begins with
  module.run()


def summary(name: str) -> str:
  """What a command does, in a line; it is not imported, which takes seconds."""
  tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text())
  return (ast.get_docstring(tree) or "").split("\n")[0]
