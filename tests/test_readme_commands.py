"""Each command of README.md is run, in order, as it is printed."""

import os
import shlex
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from tests import processes
from tests import runs
from tests import test_readme

pytestmark = pytest.mark.slow
# So that a billion labels take seconds; a start costs the rest.
_SHORTER = {"--config=billion_mhp": ["--config.train.num_steps=20"]}
# Elsewhere: tests/commands has the wheel; make is what runs the tests.
_INSTALLS = ("pip", "make")


def commands():
  """The words of each command."""
  shown = "\n".join(test_readme.blocks("README.md", ""))
  words = [shlex.split(line, comments=True) for line in shown.splitlines()]
  return [each for each in words if each]


def test_each_command(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  runs.make_data(tmp_path / "DIR")
  (tmp_path / "DIR" / "test.txt").rename("FILE.txt")
  (tmp_path / "DIR" / "test.txt").symlink_to(tmp_path / "FILE.txt")
  env = os.environ | {"PYTHONPATH": str(runs.ROOT)}
  done = []
  for number, words in enumerate(commands()):
    if words[0] in _INSTALLS:
      continue
    assert words[0] == "xlj"
    words = [word.replace("=FILE", "=FILE.txt") for word in words[1:]]
    if words[0] == "train":  # what they all train goes to WD
      os.path.exists("WD") and os.rename("WD", f"WD{number}")
    for word in words:
      words = words + _SHORTER.get(word, [])
    if words[0] == "serve":
      port = processes.free_port()
      words = [w.replace("8000", str(port)) for w in words]
    process = subprocess.Popen(
      [sys.executable, "-m", "xlj", *words],
      env=env,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )
    if words[0] == "serve":
      answer(port, process)
      process.terminate()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, (words, out[-3000:])
    done.append(words[0])
  assert sorted({*done}) == sorted(
    ["demo", "train", "evaluate", "predict", "export", "serve"]
  )
  assert (tmp_path / "answers.jsonl").read_text().count("\n") > 10


def answer(port, process):
  """Waits for the server."""
  for _ in range(600):
    assert process.poll() is None, process.stdout.read()
    try:
      url = f"http://127.0.0.1:{port}/v2/health/ready"
      assert urllib.request.urlopen(url, timeout=5).status == 200
      return
    except OSError:
      time.sleep(0.1)
  raise AssertionError("it does not answer")


def test_the_python_of_texts(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, *_ = test_readme.blocks("README.md", "python")
  rng = np.random.default_rng(0)
  trees = ["oak", "elm", "ash", "fir", "yew"]
  labels = [[name] for name in rng.choice(trees, 60)]
  texts = [f"a {one[0]} of {rng.integers(9)} years" for one in labels]
  names = {"texts": texts, "labels": labels}
  exec(compile(code, "README.md", "exec"), names)
  assert {*names["run"].names(names["ids"])[0]} == {*trees}
