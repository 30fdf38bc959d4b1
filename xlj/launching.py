"""What every launcher shares: start, and refuse with one clear last line."""

from collections.abc import Callable, Sequence
import difflib
import logging as std_logging
import os
import sys
from typing import Any, NoReturn

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from xlj import config as config_lib

# Errors that say what to do about them; anything else is a bug and keeps its
# traceback.
_REFUSALS = (ValueError, FloatingPointError, OSError)
_OVERRIDE = "--config."


def run(main: Callable[[], None]) -> None:
  """Parses the flags and calls `main`; exits 2 on a refusal.

  Args:
    main: The launcher's function; it reads its flags itself.
  """

  def guarded(argv: Sequence[str]) -> None:
    if len(argv) > 1:
      _refuse(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_ours)
    try:
      main()
      sys.stdout.flush()
    except BrokenPipeError:
      # Whoever read our output has left; there is nobody to tell.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except _REFUSALS as error:
      logging.debug("Refused", exc_info=True)
      _refuse(str(error))

  app.run(guarded, flags_parser=_parse)


def _is_ours(record: std_logging.LogRecord) -> bool:
  """Drops the chatter of libraries; their warnings pass."""
  chatty = ("orbax", "grain", "jax")
  parts = record.pathname.replace("\\", "/").split("/")
  return record.levelno >= std_logging.WARNING or not set(chatty) & set(parts)


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; unknown ones are refused with the nearest name."""
  try:
    return flags.FLAGS(tuple(argv))
  except (AttributeError, KeyError):
    _refuse(_unknown_field(argv))
  except flags.Error as error:
    _refuse(str(error).removesuffix("."))
  except (ValueError, TypeError) as error:
    _refuse(str(error))


def _unknown_field(argv: Sequence[str]) -> str:
  """Names the config field that does not exist, and the nearest that does."""
  fresh = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=fresh)
  plain = [a for a in argv if not a.startswith(_OVERRIDE)]
  sys.argv = plain  # config_flags looks for overrides here
  fresh(plain, known_only=True)
  config: Any = fresh["config"].value
  known = config_lib.field_names(config)
  for argument in argv:
    name = argument.removeprefix(_OVERRIDE).split("=")[0]
    if argument.startswith(_OVERRIDE) and name not in known:
      near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
      return f"there is no config field {name!r}; did you mean {near[0]!r}?"
  return f"cannot apply {' '.join(argv[1:])}"


def _refuse(text: str) -> NoReturn:
  print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)
  sys.exit(2)
