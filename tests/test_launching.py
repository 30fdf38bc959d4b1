"""Which messages of a launcher are shown."""

import logging
from pathlib import Path

import grain
import jax
import orbax.checkpoint
import pytest

from xlj import launching


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
