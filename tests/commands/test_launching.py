"""What launchers share: messages, the config, Ctrl-C."""

import logging
from pathlib import Path
import re
import signal
import subprocess
import sys
import types

from absl import flags
import grain
import jax
from ml_collections import config_flags
import orbax.checkpoint
import pytest

from tests import runs
from xlj import config as config_lib
from xlj.commands import launching
from xlj.commands import processes
from xlj.config import checks


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
@pytest.mark.parametrize("name", ["jax", "grain", "orbax"])
def test_a_checkout_in_a_folder_with_the_name_of_a_library_speaks(
  tmp_path, name, level
):
  path = tmp_path / name / "checkout" / "loop.py"
  path.parent.mkdir(parents=True)
  path.write_text("def speak(logger, level):\n  logger.log(level, 'a word')\n")
  heard, scope = [], {}
  logger = logging.Logger("test")
  handler = logging.Handler()
  handler.emit = heard.append
  handler.addFilter(launching._is_ours)
  logger.addHandler(handler)
  exec(compile(path.read_text(), path, "exec"), scope)
  scope["speak"](logger, level)
  assert [record.pathname for record in heard] == [str(path)]


@pytest.mark.parametrize("package", [jax, grain, orbax.checkpoint])
def test_libraries_do_not_chatter_but_warn(package):
  path = str(Path(package.__file__).parent / "_src" / "module.py")

  def is_shown(level):
    record = logging.LogRecord("absl", level, path, 1, "a word", None, None)
    return launching._is_ours(record)

  assert not is_shown(logging.INFO)
  assert is_shown(logging.WARNING)
  assert is_shown(logging.ERROR) == (package is not orbax.checkpoint)


# --- the config --------------------------------------------------------------

CONFIGS = {
  "an unknown set": (
    None,
    ":foo",
    "'foo' is not known here; names: bibtex, delicious",
  ),
  "no such file": ("", "", "there is no file"),
  "a syntax error": ("x = 1\ndef get_config(:\n", "", ".py:2: SyntaxError"),
  "a missing module": ("import nowhere\n", "", ".py:1: ModuleNotFoundError"),
  "no function": ("x = 1\n", "", "has no function get_config"),
  "nothing": ("def get_config():\n  pass\n", "", "returns NoneType"),
  "a bug": ("def get_config():\n\n  return {}['a']\n", "", ".py:3: KeyError"),
  "no argument": ("def get_config():\n  pass\n", ":foo", "TypeError"),
  "no JSON": ("{", ".json", "is not a JSON config"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_cannot_be_read_is_refused_in_a_line(case, tmp_path):
  text, more, message = CONFIGS[case]
  path = runs.ROOT / "configs" / "xmc.py"
  if text is not None:
    suffix = more if more == ".json" else ".py"
    path, more = tmp_path / f"x{suffix}", more.removeprefix(".json")
  if text:
    path.write_text(text)
  with pytest.raises(checks.ConfigError) as error:
    launching._ConfigParser(()).parse(f"{path}{more}")
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def parsed(monkeypatch):
  """What `--config` is after flags were parsed."""

  def parse(*argv):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(config_flags.config_flags.flags, "FLAGS", values)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, argv)])
    flags.DEFINE_string(
      "workdir", None, "Of the run.", flag_values=values, required=True
    )
    holder = launching._define_config(values, "", ("workdir",))
    launching._parse(sys.argv)
    return holder.value

  return parse


def test_fields_of_a_runs_own_config_are_overridden(tmp_path, parsed):
  config = runs.resolved()
  config.train.epochs = 3.0
  (tmp_path / "config.json").write_text(config_lib.to_json(config))
  found = parsed(
    f"--workdir={tmp_path}",
    "--config.train.epochs=30",
    "--config.eval.ks=1",
    "--config.encoder.patch=4",  # open: nothing reads it
    "--config.head.order=frequency",
  )
  assert (found.train.epochs, found.eval.ks) == (30.0, (1,))
  assert found.encoder.patch == 4
  assert found.train.batch_size == config.train.batch_size


def test_without_config_and_run_both_are_asked_for(tmp_path, parsed, capsys):
  with pytest.raises(SystemExit):
    parsed(f"--workdir={tmp_path}", "--config.train.epochs=30")
  (line,) = capsys.readouterr().err.splitlines()
  assert "config.json does not exist" in line
  assert "--config=xmc" in line


@pytest.mark.parametrize(
  "words,line",
  [
    ([], "error: --workdir is missing: Of the run. --help shows an example"),
    (["--workdir=x", "--cofig=xmc"], "'cofig'. Did you mean: config ?"),
    (["--wrokdir=x"], "'wrokdir'. Did you mean: workdir ?"),
    (["--config=xcm", "--workdir=x"], "did you mean xmc?"),
  ],
)
def test_a_wrong_flag_names_the_nearest(words, line, parsed, capsys):
  with pytest.raises(SystemExit) as end:
    parsed(*words)
  assert end.value.code == 2 and line in capsys.readouterr().err


# --- lines and signals -------------------------------------------------------


@pytest.mark.parametrize(
  "level,process,expected",
  [
    (logging.INFO, 0, r"\d\d:\d\d:\d\d 3 words"),
    (logging.WARNING, 0, r"\d\d:\d\d:\d\d warning: 3 words"),
    (logging.ERROR, 2, r"\d\d:\d\d:\d\d process 2: error: 3 words"),
  ],
)
def test_a_line_of_the_log_is_short(level, process, expected, monkeypatch):
  monkeypatch.setattr(launching.exchange, "process_id", lambda: process)
  record = logging.LogRecord("absl", level, "x.py", 1, "%d words", (3,), None)
  assert re.fullmatch(expected, launching._Formatter().format(record))


def test_ctrl_c_during_imports_is_one_line():
  code = (
    "from xlj.distributed import interruption\nimport time\n"
    "print(flush=True)\n"
    "try:\n  time.sleep(60)\n"
    "except KeyboardInterrupt:\n  raise ImportError('of a library')"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    cwd=runs.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stdout.readline()
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=60)
  assert (process.returncode, err) == (130, "error: interrupted by Ctrl-C\n")


def test_ctrl_c_while_a_launcher_works_is_one_line(monkeypatch, capsys):
  interruption = launching.interruption

  def main(happens):
    monkeypatch.setattr(interruption, "_happened", happens)
    raise RuntimeError("of a library")

  with pytest.raises(RuntimeError):
    launching._interruptible(lambda: main(False))
  assert launching._interruptible(lambda: main(True)) == 130
  # That of a moment ago, which an import has made light of.
  assert launching._interruptible(lambda: 0) == 130
  assert capsys.readouterr().err == 2 * f"{interruption.TEXT}\n"


@pytest.mark.parametrize(
  "module,words,status",
  [
    ("xlj", [], 0),
    ("xlj.train", ["--workdir=x"], 2),
    ("xlj.training.train", ["--workdir=x"], 2),
  ],
)
def test_python_m_says_what_the_commands_are(module, words, status):
  process = subprocess.run(
    [sys.executable, "-m", module, *words],
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
  )
  assert process.returncode == status
  said = process.stderr if status else process.stdout
  assert "  train      Trains a model" in said
  last = said.splitlines()[-1]
  assert bool(status) == last.startswith(f"error: {module} is no command")


@pytest.mark.parametrize(
  "text,refused", [("pip install 'xlj-jax[serve]'", True), ("a bug", False)]
)
def test_a_package_that_is_missing_is_said_in_a_line(
  text, refused, monkeypatch, capsys
):
  quiet = types.SimpleNamespace(
    INFO=0, set_verbosity=abs, get_absl_handler=logging.NullHandler
  )
  monkeypatch.setattr(launching, "logging", quiet)
  monkeypatch.setattr(launching.app, "run", lambda main, **_: main(["x"]))

  def main():
    raise ImportError(text)

  with pytest.raises(SystemExit if refused else ImportError):
    launching.run(main)
  assert capsys.readouterr().err == f"error: {text}\n" * refused


@pytest.mark.parametrize(
  "given,kept", [("~/c", "/home/me/c"), ("gs://b/c", "gs://b/c"), ("", None)]
)
def test_compiled_programs_are_kept(given, kept, monkeypatch):
  found = {}
  config = types.SimpleNamespace(update=found.__setitem__)
  monkeypatch.setattr(processes, "jax", types.SimpleNamespace(config=config))
  monkeypatch.setenv("HOME", "/home/me")
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  processes._keep_compiled(given)
  assert found["jax_compilation_cache_dir"] == kept


# --- names of other letters --------------------------------------------------


def test_python_reads_names_as_utf8(monkeypatch):
  started = []
  monkeypatch.setattr(launching.os, "execve", lambda *a: started.append(a))
  launching._use_utf8()
  assert not started
  monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
  monkeypatch.setenv("PYTHONUTF8", "0")
  launching._use_utf8()
  ((program, arguments, variables),) = started
  assert arguments == [program, *sys.orig_argv[1:]]
  assert variables["PYTHONUTF8"] == "1"
  monkeypatch.setenv("PYTHONUTF8", "1")  # and yet it is another: go on
  launching._use_utf8()
  assert len(started) == 1
