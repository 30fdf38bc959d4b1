"""What messages name exists: flags, config fields, arguments."""

import ast
import fnmatch
import re

import pytest

from tests import runs
from tests import test_imports
from xlj import config as config_lib
from xlj import shell
from xlj.config import checks
from xlj.config import named

FIELDS = {name for name, _ in checks.flatten(config_lib.base())}
SECTIONS = {
  name.rsplit(".", i)[0]
  for name in FIELDS
  for i in range(1, name.count(".") + 1)
}
FILES = sorted(
  path
  for folder in ("xlj", "launch", "configs")
  for path in (runs.ROOT / folder).rglob("*.py")
)
TREES = {path: ast.parse(path.read_text()) for path in FILES}
EXTRAS = {
  f"{test_imports.PROJECT['name']}[{extra}]"
  for extra in test_imports.PROJECT["optional-dependencies"]
}
HOLE = "\0"  # where a message has a value of its own


def text_of(node):
  """The text of a string, with a hole for each value that is put in."""
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return re.sub(r"%[-.\d]*[a-z]", HOLE, node.value)
  if isinstance(node, ast.JoinedStr):
    return "".join(
      text_of(x) if isinstance(x, ast.Constant) else HOLE for x in node.values
    )
  return None


def strings(tree):
  """All strings but docstrings: messages are also put together elsewhere."""
  inside = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.JoinedStr):
      inside |= {id(x) for x in ast.walk(node) if x is not node}
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      inside.add(id(node.value))  # a docstring
  for node in ast.walk(tree):
    if id(node) not in inside and text_of(node):
      yield node.lineno, text_of(node)


STRINGS = [
  (f"{path.relative_to(runs.ROOT)}:{line}", text)
  for path, tree in TREES.items()
  for line, text in strings(tree)
]


def defined():
  """Names of flags, and of parameters and fields of Python."""
  flags, names = {"help", "helpfull", "config", "predict"}, set()
  for tree in TREES.values():
    for node in ast.walk(tree):
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        first = node.args[0] if node.args else None
        if node.func.attr.startswith("DEFINE_") and text_of(first):
          flags.add(text_of(first))
      if isinstance(node, ast.arg | ast.keyword):
        names.add(node.arg)
      elif isinstance(node, ast.AnnAssign):
        names.add(getattr(node.target, "id", ""))  # of a data class
  return flags, names


FLAGS, NAMES = defined()
_TOPS = "|".join(sorted({name.split(".")[0] for name in SECTIONS}))
_DOTTED = re.compile(
  rf"(?<![\w./-])(?:{_TOPS})(?:\.(?:\w+|\*))+(?![\w(/\0]|\.\w)"
)
_FLAG = re.compile(r"(?<![\w-])--([a-z][\w.]*\w)(?!\0)")
_ARGUMENT = re.compile(r"(?<![\w.\0-])([a-z_]\w*)=")
_PATH = re.compile(r"(?<![\w./\0])(?:launch|docs|configs)/\w+\.\w+")
_COMMAND = re.compile(r"(?<![\w./-])xlj ([a-z]+) --")
_CONFIG = re.compile(r"--config=([a-z]\w*)")
_EXTRA = re.compile(r"(?<![\w.])(xlj[\w-]*\[\w+\])")
_NO_FIELD = (".json", ".npz", ".txt")


def is_field(name):
  return any(fnmatch.fnmatch(x, name) for x in FIELDS | SECTIONS)


def wrong_names(text):
  """What a message names and there is not."""
  for flag in _FLAG.findall(text):
    section, _, field = flag.partition(".")
    known = flag in FLAGS
    if field and section in ("config", "predict"):
      known = is_field(flag.removeprefix("config.")) or field == "FIELD"
    if not known:
      yield f"--{flag}"
  for name in _DOTTED.findall(text):
    if not (is_field(name) or name.endswith(_NO_FIELD)):
      yield name
  for name in _ARGUMENT.findall(text):
    if name not in NAMES | FLAGS:
      yield f"{name}="
  for path in _PATH.findall(text):
    if not (runs.ROOT / path).exists():
      yield path
  yield from set(_COMMAND.findall(text)) - {*shell.NAMES}
  yield from set(_CONFIG.findall(text)) - {*named.names()}
  yield from set(_EXTRA.findall(text)) - EXTRAS


def test_what_messages_name_exists():
  messages = [
    (where, text)
    for where, text in STRINGS
    if " " in text and "(?:" not in text and "report/page.py" not in where
  ]
  assert len(messages) > 500
  wrong = [
    f"{where}: {name} in {text!r}"
    for where, text in messages
    for name in wrong_names(text)
  ]
  assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
  "text,names",
  [
    ("give --config.data.dir=DIR, or --workdir=WD", []),
    ("give --config.data.dri=DIR, or --wrokdir=WD", 2),
    ("lower optim.*.learning_rate or train.batch_size", []),
    ("lower optim.*.learning_rates or train.batch", 2),
    ("set data.one_based", 1),
    ("pass trainee=True", 1),
    ("run launch/trian.py", 1),
    ("by xlj trian --workdir=WD", 1),
    ("such as --config=xcm:bibtex", 1),
    ("pip install 'xlj[text]' or 'xlj-jax[txet]'", 2),
    ("by xlj train --config=xmc, pip install 'xlj-jax[text]'", []),
    ("head.type='dense', data.dir is there", []),
  ],
)
def test_what_does_not_exist_is_found(text, names):
  found = list(wrong_names(text))
  assert found == names or len(found) == names, found
