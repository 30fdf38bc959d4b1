"""The names that `xlj.ops` and `xlj.losses` promise."""

import inspect
import pydoc
import subprocess
import sys
import types

import pytest

from tests import test_imports
import xlj
from xlj import losses
from xlj import ops


def promised(room):
  """Public names of a room besides its modules."""
  return {
    name: value
    for name, value in vars(room).items()
    if not name.startswith("_") and not isinstance(value, types.ModuleType)
  }


@pytest.mark.parametrize("room", [ops, losses])
def test_the_index_names_what_there_is_and_all_is_documented(room):
  names = promised(room)
  assert names
  for name, value in names.items():
    assert f"`{name}`" in room.__doc__, f"{name} is missing in the index"
    assert inspect.getdoc(value), f"{name} has no docstring"
    assert value.__module__.startswith(room.__name__), name
  for word in room.__doc__.split("\n\n", 1)[1].split("`")[1::2]:
    assert word in names, f"the index names {word}, which is not there"


def test_no_name_hides_a_module():
  for room in (ops, losses):
    for path in room.__path__:
      for file in test_imports.Path(path).glob("[!_]*.py"):
        found = getattr(room, file.stem, None)
        assert found is None or isinstance(found, types.ModuleType), file


def printed(code):
  """What a new process prints."""
  out = subprocess.run(
    [sys.executable, "-c", code],
    check=True,
    cwd=test_imports.ROOT,
    capture_output=True,
    text=True,
  )
  return out.stdout.strip()


def test_nothing_of_the_framework_is_loaded():
  # optax itself loads absl.
  unwanted = sorted(test_imports.NOT_FOR_THE_LABEL_LAYER - {"absl"})
  code = (
    "import sys; from xlj import losses, ops;"
    f"print(sorted(set({unwanted}) & set(sys.modules)))"
  )
  assert printed(code) == "[]"


def test_the_package_shows_what_there_is():
  assert {*xlj.__all__} <= {*dir(xlj)}
  for name in xlj.__all__:
    assert f"`{name}`" in xlj.__doc__, name
  text = pydoc.plain(pydoc.render_doc(xlj))
  assert "load(directory" in text and 'xlj.load("WD")' in text


def test_rooms_are_imported_when_they_are_asked_for():
  code = (
    "import sys, xlj; assert 'jax' not in sys.modules;"
    "xlj.ops.label_loss; xlj.losses.Softmax; xlj.heads.DenseHead;"
    "assert 'orbax.checkpoint' not in sys.modules; print(xlj.load.__name__)"
  )
  assert printed(code) == "load"


def test_nothing_is_drawn_at_the_start():
  code = "import sys, xlj.report.report; print('matplotlib' in sys.modules)"
  assert printed(code) == "False"
