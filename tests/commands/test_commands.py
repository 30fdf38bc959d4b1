"""The command `xlj`: what it lists, refuses, and says of each command."""

import ast
import re
import subprocess
import sys

from absl import flags
import pytest

from tests import runs
import xlj
from xlj import __main__ as main_lib
from xlj import shell
from xlj.commands import helping


@pytest.mark.parametrize("name", shell.NAMES)
def test_a_command_has_an_example_and_a_script(name):
  tree = ast.parse((runs.ROOT / f"xlj/commands/{name}.py").read_text())
  doc = ast.get_docstring(tree)
  assert re.search(rf"^ *xlj {name}\b", doc, re.M) and "launch/" not in doc
  assert any(getattr(node, "name", "") == "run" for node in tree.body)
  script = (runs.ROOT / f"launch/{name}.py").read_text()
  assert script.startswith('"""' + doc.split("\n")[0])
  assert f'commands.run("{name}")' in script


def test_all_commands_and_scripts_are_listed():
  shared = {"__init__", "helping", "launching", "processes"}
  for folder, others in (("xlj/commands", shared), ("launch", set())):
    files = {path.stem for path in (runs.ROOT / folder).glob("*.py")}
    assert files - others == {*shell.NAMES}


def says(monkeypatch, capsys, *words):
  """Exit status, stdout and stderr of `xlj`."""
  monkeypatch.setattr(sys, "argv", ["xlj", *words])
  status = 0
  try:
    main_lib.main()
  except SystemExit as error:
    status = error.code
  return status, *capsys.readouterr()


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_what_there_is(words, monkeypatch, capsys):
  status, out, err = says(monkeypatch, capsys, *words)
  assert (status, err) == (0, "")
  assert "  train      Trains a model" in out
  assert all(len(line) <= 95 for line in out.splitlines())


def test_its_version(monkeypatch, capsys):
  found = says(monkeypatch, capsys, "--version")
  assert found == (0, f"xlj {xlj.__version__}\n", "")


@pytest.mark.parametrize(
  "words,line",
  [
    (["tarin"], "there is no command 'tarin'; did you mean xlj train? xlj"),
    (["zzz"], "there is no command 'zzz'; xlj --help tells all"),
    (["--workdir=x"], "comes before its flags, as in xlj train --workdir=x"),
  ],
)
def test_a_wrong_command_is_refused(words, line, monkeypatch, capsys):
  status, out, err = says(monkeypatch, capsys, *words)
  assert (status, out) == (2, "")
  assert err.startswith("error: ") and line in err and err.count("\n") == 1


def test_the_list_is_quick_and_may_be_cut_off():
  code = (
    "import os, sys, xlj.__main__ as m\n"
    "reader, writer = os.pipe(); os.dup2(writer, 1); os.close(reader)\n"
    "sys.argv[1:] = []; m.main()\n"
    "assert not {'jax', 'absl', 'numpy'} & {*sys.modules}"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=runs.ROOT, capture_output=True, text=True
  )
  assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def defined(monkeypatch):
  """Flags as of `xlj train`, and of a library."""
  values = flags.FlagValues()
  for module, name, default in (
    ("xlj.commands.train", "workdir", None),
    ("xlj.commands.processes", "peer_timeout", "60"),
    ("xlj.commands.train", "k", "5"),
    ("absl.logging", "verbosity", "-1"),
  ):
    flags.DEFINE_flag(
      flags.Flag(
        flags.ArgumentParser(),
        flags.ArgumentSerializer(),
        name,
        default,
        f"About {name}.",
      ),
      values,
      module,
      required=name == "workdir",
    )
  monkeypatch.setattr(flags, "FLAGS", values)
  doc = "Trains.\n\n  xlj train --workdir=WD; xlj labels\n\nxlj trains.\n"
  monkeypatch.setattr(sys.modules["__main__"], "__doc__", doc)


def test_help_shows_what_matters_first(defined, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["/bin/xlj"])
  assert helping.text() == (
    "Trains.\n\n  xlj train --workdir=WD; xlj labels\n\nxlj trains.\n\n"
    "Flags:\n  --workdir: About workdir. [required]\n  --k: About k. [5]\n\n"
    "Flags of its processes:\n  --peer_timeout: About peer_timeout. [60]\n\n"
    "--helpfull tells those of libraries as well."
  )
  assert "--verbosity: About" in helping.text(full=True)


def test_help_shows_commands_as_they_were_called(defined, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["a b/launch/train.py"])
  assert (
    "python 'a b/launch/train.py' --workdir=WD; python 'a b/launch/labels.py'\n"
  ) in helping.text()


@pytest.mark.parametrize("word", ["--help", "-h", "--helpfull"])
def test_help_ends_well(word, defined, capsys):
  with pytest.raises(SystemExit) as end:
    helping.help_if_asked(["train", "--k=3", word])
  assert not end.value.code
  assert capsys.readouterr().out.startswith("Trains.")
  helping.help_if_asked(["train", "--k=3"])


@pytest.mark.parametrize(
  "words,rest",
  [
    (["xlj", "train", "--k=1"], ["train", "--k=1"]),
    (["train", "--k=1"], ["train", "--k=1"]),
    (["python", "train"], None),
    (["xlj"], None),
    (["./train"], None),
  ],
)
def test_processes_run_the_xlj_that_runs(words, rest):
  expected = [sys.executable, "-m", "xlj", *rest] if rest else words
  assert shell.started(words) == expected
