"""Configs by name: those that come with xlj, and one's own by path."""

import pytest

from tests import runs
from xlj.config import checks
from xlj.config import named


def test_xljs_own_are_found_from_any_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  files = (runs.ROOT / "configs").glob("*.py")
  assert named.names() == sorted(path.stem for path in files)
  assert named.read("xmc:bibtex").train.epochs == 20.0
  assert named.read("xmc").train.epochs != 20.0


@pytest.mark.parametrize("path", ["xmc", "mine.py", "a folder/xmc.py"])
def test_a_file_wins(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  file = tmp_path / path
  file.parent.mkdir(exist_ok=True)
  file.write_text(
    "from xlj import config\ndef get_config():\n"
    "  made = config.base()\n  made.seed = 7\n  return made\n"
  )
  assert named.read(path).seed == 7


@pytest.mark.parametrize(
  "text,near",
  [
    ("xcm:bibtex", "did you mean xmc?"),
    ("configs/text.py", "mean text?"),
    ("?", ""),
  ],
)
def test_a_wrong_name_tells_those_there_are(text, near, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(checks.ConfigError) as error:
    named.read(text)
  message = str(error.value)
  assert near in message and ("did you mean" in message) == bool(near)
  assert f"no file {text.split(':')[0]}," in message
  assert "images, ptb, sequences, text, xmc" in message
