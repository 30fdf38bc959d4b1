"""Extreme classification in JAX: thousands to billions of labels.

Train, from a shell (`xlj` says what the commands are):

  xlj train --config=xmc --config.data.dir=D --workdir=WD

Predict, in Python:

  run = xlj.load("WD")
  run.warm_up()
  scores, ids = run.topk([{3: 1.0, 17: 0.5}], k=5)
  run.names(ids)

Loss and search over very many labels in a model of your own:

  targets = xlj.ops.Targets(ids, weights)
  loss = xlj.ops.label_loss(x, rows, bias, targets, xlj.losses.Softmax())

What is here:
  `load`: a trained run as a `Predictor`, or an exported model
  `train`: a run on what Python has in memory, in one call
  `data`: data sets from arrays, texts, lists and tables (`xlj.data.write`)
  `ops`: the label layer: losses, searches and updates over label rows
  `losses`: what it can be told to compute
  `heads`: label rows with what else a model has of its labels
  `open_world`: examples of no known label, distances between labels

`ops`, `losses` and `heads` need neither the packages that data and checkpoints
need nor those of training. All are imported when they are asked for.
"""

import importlib
import sys
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
  from xlj import data as data
  from xlj import heads as heads
  from xlj import losses as losses
  from xlj import open_world as open_world
  from xlj import ops as ops
  from xlj.export.model import load as load
  from xlj.training.in_memory import train as train

__version__ = "0.2.0"
__all__ = ["data", "heads", "load", "losses", "open_world", "ops", "train"]

_FUNCTIONS = {"load": "xlj.export.model", "train": "xlj.training.in_memory"}


def __getattr__(name: str) -> Any:
  """Imports what `__all__` names when it is asked for."""
  if name in _FUNCTIONS:
    return getattr(importlib.import_module(_FUNCTIONS[name]), name)
  if name in __all__:
    return importlib.import_module(f"xlj.{name}")
  raise AttributeError(f"module 'xlj' has no attribute {name!r}")


def __dir__() -> list[str]:
  """What there is, imported or not."""
  return sorted({*globals(), *__all__})


if sys.argv[:1] == ["-m"]:  # python -m xlj.MODULE, before it runs the module
  _module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
  if _module.startswith("xlj."):
    from xlj import __main__

    __main__.explain(_module)
