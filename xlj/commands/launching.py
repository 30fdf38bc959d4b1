"""What commands share: start, and refuse with one clear last line.

Exit statuses are those of `xlj.distributed.exit_status`.
"""

# isort: off
from xlj.distributed import interruption  # before what takes seconds
# isort: on

from collections.abc import Callable, Sequence
import functools
import importlib.util
import io
import logging as std_logging
import math
import os
import pathlib
import re
import sys
import time
from typing import Any, NoReturn

from absl import app
from absl import flags
from absl import logging
import ml_collections
from ml_collections import config_dict
from ml_collections import config_flags

from xlj import config as config_lib
from xlj.commands import helping
from xlj.config import named
from xlj.distributed import errors
from xlj.distributed import exchange
from xlj.distributed import exit_status

# Errors that say what to do about them; anything else is a bug and keeps its
# traceback.
REFUSALS = (ValueError, FloatingPointError, OSError, errors.StartError)
_SECTIONS = {"--config.": "", "--predict.": "predict."}


def run(main: Callable[[], int | None]) -> None:
  """Parses the flags and calls `main`; exits with REFUSED on a refusal.

  Args:
    main: The command's function; it reads its flags itself. It may return an
      exit status.
  """

  def guarded(argv: Sequence[str]) -> int:
    if len(argv) > 1:
      _refuse(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_ours)
    logging.get_absl_handler().setFormatter(_Formatter())
    try:
      status = _interruptible(main)
      sys.stdout.flush()
      return status or 0
    except BrokenPipeError:
      # Whoever read our output has left; there is nobody to tell.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      return 0
    except errors.LostPeerError as error:
      say(str(error))
      return exit_status.LOST
    except ImportError as error:
      if "pip install" not in str(error):
        raise
      _refuse(str(error))
    except REFUSALS as error:
      logging.debug("Refused", exc_info=True)
      _refuse(str(error))

  _use_utf8()
  app.run(guarded, flags_parser=_parse)


def _use_utf8() -> None:
  """Starts Python again where its locale has no letters but a few.

  Names of files and labels could not be read, written or printed there.
  """
  if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
    wanted = os.environ | {"PYTHONUTF8": "1"}
    if wanted != os.environ:  # else it was tried
      os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")


def _interruptible(main: Callable[[], int | None]) -> int | None:
  """Calls `main`; says in a line if Ctrl-C has ended it."""
  try:
    if interruption.happened():  # and some import has made light of it
      raise KeyboardInterrupt
    return main()
  except BaseException:
    if not interruption.happened():
      raise
    print(interruption.TEXT, file=sys.stderr, flush=True)
    return exit_status.INTERRUPTED


def define_config(
  text: str = "", of_run: Sequence[str] = ()
) -> flags.FlagHolder[ml_collections.ConfigDict]:
  """Defines `--config=NAME` and `--config.FIELD=VALUE`.

  Args:
    text: Help, beside what is always true.
    of_run: Flags that name a run; the config of the first one that exists is
      taken where `--config` is not given.

  Returns:
    The holder of the config.
  """
  return _define_config(flags.FLAGS, text, of_run)


def _define_config(
  values: flags.FlagValues, text: str = "", of_run: Sequence[str] = ()
) -> flags.FlagHolder[ml_collections.ConfigDict]:
  what = (
    f"Name of a config ({', '.join(named.names())}), or a file; override a"
    f" field by --config.FIELD=VALUE. {text}"
  )
  holder = config_flags.DEFINE_config_file(
    "config", None, what.strip(), flag_values=values
  )
  values["config"].parser = _ConfigParser(of_run)
  return holder


class _ConfigParser(flags.ArgumentParser):
  """Reads the config that `--config` names."""

  def __init__(self, of_run: Sequence[str]):
    self.of_run = of_run

  def parse(self, argument: str) -> ml_collections.ConfigDict:
    """Reads it; every error in the file is one of the config."""
    return named.read(argument).lock()

  def flag_type(self) -> str:
    """What `--help` says."""
    return "config file"


def define_predict() -> Callable[[], dict[str, Any]]:
  """Defines `--predict.FIELD=VALUE`; returns what they say.

  What it returns is for `xlj.config.with_predict`, once they are parsed.
  """
  section = "predict."
  nothing = ml_collections.ConfigDict(
    {
      field.removeprefix(section): config_dict.placeholder(kind)
      for field, kind in config_lib.types().items()
      if field.startswith(section)
    }
  )
  try:
    said = config_flags.DEFINE_config_dict(
      "predict",
      nothing,
      "Override what the run's config says of predictions, by"
      " --predict.FIELD=VALUE.",
    )
  except AttributeError:  # the flag looks for overrides as it is defined
    _refuse(_unknown_field(sys.argv))
  return lambda: {n: v for n, v in said.value.items() if v is not None}


def define_label_files() -> Callable[[], dict[str, str | None]]:
  """Defines flags for labels that may be answers; returns what they say.

  What it returns is for `xlj.inference.label_files.Asked`, once they are
  parsed.
  """
  of_rows = "or 'labels' or 'features': those that rows of the input have."
  flags.DEFINE_string(
    "exclude",
    None,
    "File of labels that no row gets, an id or a name in a line.",
  )
  flags.DEFINE_string(
    "among", None, "File of labels of which no row gets others; likewise."
  )
  flags.DEFINE_string(
    "exclude_rows",
    None,
    "File with a line for each row: ids of labels that it does not get, with"
    f" commas or blanks between them; {of_rows}",
  )
  flags.DEFINE_string(
    "among_rows",
    None,
    f"Likewise, labels of which a row gets no others; {of_rows}",
  )
  names = "exclude", "among", "exclude_rows", "among_rows"
  return lambda: {name: flags.FLAGS[name].value for name in names}


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


class _Formatter(std_logging.Formatter):
  """The time, which process if not the first, and how bad it is."""

  def format(self, record: std_logging.LogRecord) -> str:
    """A line."""
    words = [time.strftime("%H:%M:%S", time.localtime(record.created))]
    if number := exchange.process_id():
      words.append(f"process {number}:")
    if record.levelno >= std_logging.WARNING:
      words.append(f"{record.levelname.lower()}:")
    return " ".join([*words, super().format(record)])


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; unknown ones are refused with the nearest name."""
  helping.help_if_asked(argv)
  try:
    sys.argv = _with_config(argv)  # config_flags looks for overrides there
    rest = flags.FLAGS(tuple(sys.argv))
    for name, value in flags.FLAGS.flag_values_dict().items():
      if isinstance(value, float) and not math.isfinite(value):
        _refuse(f"--{name} is {value}; give a finite number")
    return rest
  except (AttributeError, KeyError):
    _refuse(_unknown_field(argv))
  except flags.Error as error:
    text = str(error).removeprefix("flag ").removesuffix(".")
    if missing := re.match(r"--(\w+)=None: Flag .* other than None", text):
      what = flags.FLAGS[missing[1]].help
      text = f"--{missing[1]} is missing: {what} --help shows an example"
    _refuse(text)
  except (ValueError, TypeError) as error:
    _refuse(str(error))


def _with_config(argv: Sequence[str]) -> list[str]:
  """The flags, and where `--config` is missing that of the run."""
  argv = list(argv)
  parser = flags.FLAGS["config"].parser if "config" in flags.FLAGS else None
  if not isinstance(parser, _ConfigParser):
    return argv
  if any(re.match("--?config(=|$)", argument) for argument in argv):
    return argv
  try:
    left = flags.FLAGS(argv, known_only=True)[1:]
  except flags.Error:
    return argv  # which is refused later on
  if any(re.match(r"--?(?!config\.)\w", argument) for argument in left):
    return argv  # likewise, with the nearest name
  given = [run for name in parser.of_run if (run := flags.FLAGS[name].value)]
  if not given or "://" in given[0]:  # a bucket, which is refused later on
    return argv
  paths = [os.path.join(run, config_lib.FILE) for run in given]
  path = next(filter(os.path.isfile, paths), paths[-1])
  if not os.path.isfile(path):
    raise config_lib.ConfigError(
      f"{path} does not exist; is this the working directory of a run? A new"
      " run needs --config=NAME, such as --config=xmc"
    )
  return [argv[0], f"--config={path}", *argv[1:]]


def _unknown_field(argv: Sequence[str]) -> str:
  """Names the config field that does not exist, and the nearest that does."""
  fresh = flags.FlagValues()
  _define_config(fresh)
  plain = [a for a in argv if not a.startswith(tuple(_SECTIONS))]
  sys.argv = plain  # config_flags looks for overrides here
  fresh(plain, known_only=True)
  config: Any = fresh["config"].value or config_lib.base()
  known = config_lib.field_names(config)
  for argument in argv:
    for flag, section in _SECTIONS.items():
      name = section + argument.removeprefix(flag).split("=")[0]
      if argument.startswith(flag) and name not in known:
        return config_lib.unknown(name, known)
  return f"cannot apply {' '.join(argv[1:])}"


def _refuse(text: str) -> NoReturn:
  say(text)
  sys.exit(exit_status.REFUSED)


def say(text: str) -> None:
  """The last line."""
  print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)
