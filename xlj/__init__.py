"""Extreme classification in JAX: thousands to billions of labels."""

import sys
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
  from xlj.inference.predictor import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
  """Imports `load` when it is asked for.

  The label layer (`xlj.ops`, `xlj.losses`, `xlj.heads`) can be used alone,
  without the packages that data and checkpoints need.
  """
  if name == "load":
    from xlj.inference import predictor

    return predictor.load
  raise AttributeError(f"module 'xlj' has no attribute {name!r}")


if sys.argv[:1] == ["-m"]:  # python -m xlj.MODULE, before it runs the module
  _module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
  if _module.startswith("xlj."):
    from xlj import __main__

    __main__.explain(_module)
