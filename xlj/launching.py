"""What every launcher shares: start, and refuse with one clear last line.

Exit statuses are those of `xlj.distributed.exit_status`.
"""

from collections.abc import Callable, Sequence
import difflib
import functools
import importlib.util
import logging as std_logging
import os
import pathlib
import sys
import traceback
from typing import Any, NoReturn

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from xlj import config as config_lib
from xlj.distributed import errors
from xlj.distributed import exchange
from xlj.distributed import exit_status
from xlj.distributed import start
from xlj.distributed import watch

# Errors that say what to do about them; anything else is a bug and keeps its
# traceback.
_REFUSALS = (ValueError, FloatingPointError, OSError, errors.StartError)
_SECTIONS = {"--config.": "", "--predict.": "predict."}


def run(main: Callable[[], int | None]) -> None:
  """Parses the flags and calls `main`; exits with REFUSED on a refusal.

  Args:
    main: The launcher's function; it reads its flags itself. It may return an
      exit status.
  """

  def guarded(argv: Sequence[str]) -> int:
    if len(argv) > 1:
      _refuse(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_ours)
    try:
      status = main()
      sys.stdout.flush()
      return status or 0
    except BrokenPipeError:
      # Whoever read our output has left; there is nobody to tell.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      return 0
    except errors.LostPeerError as error:
      _say(str(error))
      return exit_status.LOST
    except _REFUSALS as error:
      logging.debug("Refused", exc_info=True)
      _refuse(str(error))

  app.run(guarded, flags_parser=_parse)


def run_distributed(main: Callable[[], int | None]) -> None:
  """The same for a launcher that runs as one of several processes.

  The flags below say which; without them, and outside of a cluster that JAX
  knows, it runs alone.

  Args:
    main: The launcher's function.
  """
  flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, any free port."
  )
  flags.DEFINE_integer("num_processes", None, "Processes of the job.", 1)
  flags.DEFINE_integer("process_id", None, "Number of this one, from 0.", 0)
  flags.DEFINE_float(
    "initialization_timeout", 300, "Seconds to wait for all processes.", 0
  )
  flags.DEFINE_float(
    "peer_timeout",
    60,
    "Seconds without a sign of life after which a process is lost.",
    1,
  )
  flags.DEFINE_float(
    "stall_timeout",
    1800,
    "Seconds without a step after which the job is stuck.",
    1,
  )
  flags.DEFINE_string(
    "compilation_cache",
    os.path.join(
      os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
      "xlj",
      "compiled",
    ),
    "Directory or bucket of compiled programs, so that the next start is"
    " faster; empty for none.",
  )
  run(lambda: _as_one_of_many(main))


def _as_one_of_many(main: Callable[[], int | None]) -> int | None:
  values = flags.FLAGS
  start.initialize(
    values.coordinator_address,
    values.num_processes,
    values.process_id,
    initialization_timeout=values.initialization_timeout,
    peer_timeout=values.peer_timeout,
    stall_timeout=values.stall_timeout,
  )
  if exchange.process_id():
    logging.set_verbosity(logging.WARNING)  # process 0 speaks for all
  _keep_compiled(values.compilation_cache)
  try:
    status = main()
  except (Exception, KeyboardInterrupt) as error:
    if watch.is_watching():
      # JAX's errors about other processes may be plain ValueErrors.
      own = isinstance(error, _REFUSALS) and not watch.is_about_others(error)
      _say(str(error)) if own else traceback.print_exc()
      status = exit_status.REFUSED if own else exit_status.CRASHED
      watch.fail(error, status)
    raise
  watch.end()
  return status


def define_predict() -> flags.FlagHolder:
  """Defines `--predict.FIELD=VALUE`, for `xlj.config.with_predict`."""
  try:
    return config_flags.DEFINE_config_dict(
      "predict",
      config_lib.base().predict,
      "Override what the run's config says of predictions, by"
      " --predict.FIELD=VALUE.",
    )
  except AttributeError:  # the flag looks for overrides as it is defined
    _refuse(_unknown_field(sys.argv))


def _keep_compiled(directory: str) -> None:
  """Keeps compiled programs, also small ones: there are many of them."""
  for name, value in {
    "jax_compilation_cache_dir": directory or None,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }.items():
    if name.upper() not in os.environ:
      jax.config.update(name, value)


def _is_ours(record: std_logging.LogRecord) -> bool:
  """Drops the chatter of libraries; their warnings pass."""
  if record.levelno >= std_logging.ERROR:
    # A failed save: `xlj.checkpoint` says it in a line.
    return not _is_of("orbax.checkpoint", record)
  return record.levelno >= std_logging.WARNING or not any(
    _is_of(package, record) for package in ("orbax.checkpoint", "grain", "jax")
  )


def _is_of(package: str, record: std_logging.LogRecord) -> bool:
  """Whether a message comes from a file of a package, wherever that lies."""
  return any(
    pathlib.Path(record.pathname).is_relative_to(directory)
    for directory in _directories(package)
  )


@functools.cache
def _directories(package: str) -> tuple[str, ...]:
  spec = importlib.util.find_spec(package)
  return tuple(spec.submodule_search_locations or ()) if spec else ()


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
  plain = [a for a in argv if not a.startswith(tuple(_SECTIONS))]
  sys.argv = plain  # config_flags looks for overrides here
  fresh(plain, known_only=True)
  config: Any = fresh["config"].value or config_lib.base()
  known = config_lib.field_names(config)
  for argument in argv:
    for flag, section in _SECTIONS.items():
      name = section + argument.removeprefix(flag).split("=")[0]
      if argument.startswith(flag) and name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        return f"there is no config field {name!r}; did you mean {near[0]!r}?"
  return f"cannot apply {' '.join(argv[1:])}"


def _refuse(text: str) -> NoReturn:
  _say(text)
  sys.exit(exit_status.REFUSED)


def _say(text: str) -> None:
  """The last line."""
  print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)
