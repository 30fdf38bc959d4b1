"""Configs by the name of their file: xlj's own, and any other by its path."""

import difflib
import importlib.machinery
import importlib.util
import os
from pathlib import Path
import sys
import traceback
from typing import Any

import ml_collections

from xlj import config as config_lib

_PACKAGE = Path(config_lib.__file__).parents[1]
# In an installed package, or beside it in a checkout.
_DIRECTORIES = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def names() -> list[str]:
  """Those that come with xlj."""
  for directory in _DIRECTORIES:
    if found := sorted(path.stem for path in directory.glob("*.py")):
      return found
  return []


def read(text: str) -> ml_collections.ConfigDict:
  """The config that is meant by `NAME[:ARGUMENT]` or `FILE[:ARGUMENT]`.

  Args:
    text: One of `names`, or a file, which wins: of Python with a function
      `get_config`, to which the argument goes, or the config.json of a run.

  Returns:
    The config.

  Raises:
    ConfigError: There is none, or an error in the file; the message names its
      line.
  """
  name, colon, argument = text.partition(":")
  if name.endswith(".json"):
    return config_lib.load(name)
  path = _file(name)
  try:
    module = _imported(path)
    if not hasattr(module, "get_config"):
      raise config_lib.ConfigError(f"{path} has no function get_config")
    config = module.get_config(argument) if colon else module.get_config()
  except config_lib.ConfigError:
    raise
  except Exception as error:
    raise config_lib.ConfigError(_where(path, error)) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise config_lib.ConfigError(
      f"get_config of {path} returns {type(config).__name__}; it must return"
      " xlj.config.base(), with fields set"
    )
  return config


def _file(name: str) -> str:
  """Where a config is."""
  if os.path.isfile(name):
    return name
  for directory in _DIRECTORIES:
    if os.path.isfile(path := directory / f"{name}.py"):
      return str(path)
  known = names()
  near = difflib.get_close_matches(Path(name).stem, known, 1, 0.5)
  hint = f"did you mean {near[0]}? " if near else ""
  raise config_lib.ConfigError(
    f"there is no file {name}, and no config of that name; {hint}xlj has"
    f" {', '.join(known)}, and one of your own is a file with a function"
    " get_config"
  )


def _imported(path: str) -> Any:
  """The module in a file of any name."""
  loader = importlib.machinery.SourceFileLoader("config_of_the_run", path)
  spec = importlib.util.spec_from_loader(loader.name, loader)
  assert spec is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[loader.name] = module  # as data classes need
  loader.exec_module(module)
  return module


def _where(path: str, error: Exception) -> str:
  """An error in a file, with its line."""
  line, text = 0, str(error)
  if isinstance(error, SyntaxError):
    path, line, text = error.filename or path, error.lineno or 0, error.msg
  else:
    for frame in traceback.extract_tb(error.__traceback__):
      if os.path.realpath(frame.filename) == os.path.realpath(path):
        line = frame.lineno or 0
  return f"{path}:{line}: {type(error).__name__}: {text}"
