"""What the guide takes from the code: fields of configs, losses, the API.

Where a page says `<!-- generated: WHAT ARGUMENTS -->` the build puts in the
Markdown of the function WHAT; from a shell:

  python docs/generated.py fields head
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
import functools
import importlib
import inspect
from pathlib import Path
import re
import sys
import textwrap
from typing import Any

from absl import flags

from xlj import config as config_lib
from xlj import losses as losses_lib
from xlj import shell
from xlj.commands import helping
from xlj.config import checks
from xlj.config import heads
from xlj.config import losses
from xlj.config import options
from xlj.config import remedies

CONFIG = Path(config_lib.__file__).parent
_KINDS = {bool: "bool", int: "int", float: "float", str: "text", tuple: "ints"}
_ENTRY = re.compile(r'\s*f?"(?P<name>[\w.{}]+)":.*?(?:  # (?P<comment>.*))?$')
Rows = list[list[str]]


def fill(page: str) -> str:
  """The text of a page with what it asks for."""
  return re.sub(
    r"<!-- generated: (.+) -->",
    lambda found: markdown(*found[1].split()),
    page,
  )


def markdown(what: str, *arguments: str) -> str:
  """What a page asks for."""
  return globals()[what](*arguments)


# ------------------------------------------------------------------- configs


def fields(*sections: str) -> str:
  """The fields of sections, or single ones: a table."""
  rows = [
    [f"`{name}`", _default(name), _allowed(name), _meaning(name)]
    for name in all_fields()
    if name.split(".")[0] in sections
  ]
  return _table(["field", "default", "may be", "what it does"], rows)


@functools.cache
def all_fields() -> dict[str, Any]:
  """The default of every field, by dotted name, as the files order them."""
  values = {"seed": 0, "family": None}
  for part in config_lib.PARTS:
    values |= part.fields()
  default = config_lib.base()
  return {name: checks.value_of(default, name) for name in values}


@functools.cache
def comments() -> dict[str, str]:
  """What the files of xlj/config say of each field, beside it or above it."""
  found = {}
  for path in sorted(CONFIG.rglob("*.py")):
    for pattern, comment in _comments(path.read_text()):
      for name in all_fields():
        if re.fullmatch(pattern, name):
          found.setdefault(name, comment)
  return found


def _comments(source: str) -> Iterator[tuple[str, str]]:
  """Comments of a file by name of the field, a regular expression.

  A line of a comment that ends with a colon is of what follows, not of a field.
  """
  lines = source.splitlines()
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.FunctionDef):
      continue
    if node.name not in ("fields", "_fields", "base"):
      continue
    above: list[str] = []
    for line in lines[node.lineno : node.end_lineno]:
      if line.strip().startswith("#"):
        above.append(line.strip().removeprefix("# "))
      elif entry := _ENTRY.match(line):
        above.append(entry["comment"] or "")
        said = [part for part in above if part and not part.endswith(":")]
        if said:
          name = re.sub(r"{\w+}", r"\\w+", entry["name"].replace(".", r"\."))
          yield name, " ".join(said)
        above = []


def _meaning(name: str) -> str:
  """What a field does, and when it is read."""
  text = comments().get(name)
  assert text, f"xlj/config has no comment beside or above {name}"
  text = re.sub(r"(?<![\w`.])(xlj(\.\w+)+)", r"`\1`", text)
  for other in all_fields():
    if "." in other:
      text = re.sub(
        rf"(?<![\w`.]){re.escape(other)}(?![\w`.])", f"`{other}`", text
      )
  when = "; ".join(_when(name))
  return ". ".join(part[0].upper() + part[1:] for part in (text, when) if part)


def _when(name: str) -> Iterator[str]:
  """The values of other fields with which a field is read."""
  for switch in config_lib.SWITCHES:
    if name not in switch.governs:
      continue
    known = _values(switch.field)
    reads = [value for value in known if name in switch.reads(value)]
    others = [value for value in known if value not in reads]
    if not others:
      continue
    if len(others) == 1 and len(reads) > 1:
      yield f"not with {_code(switch.field, others)}"
    else:
      yield f"only with {_code(switch.field, reads)}"


def _code(field: str, values: Sequence[Any]) -> str:
  first, *more = (value if value != "" else '""' for value in values)
  return ", ".join([f"`{field}={first}`", *(f"`{value}`" for value in more)])


def _values(field: str) -> Sequence[Any]:
  """Values of a field that decides which others are read."""
  if field == "head.loss":
    return sorted({name for o in heads.HEADS.values() for name in o.losses})
  if field in config_lib.CHOICES:
    return config_lib.CHOICES[field]
  return (True, False) if config_lib.types()[field] is bool else (0, 1, 2)


def _default(name: str) -> str:
  value = all_fields()[name]
  if value is None:
    return "decided"
  shown = f"{value:_}" if type(value) is int else repr(value)
  return f"`{shown}`".replace("'", '"')


def _allowed(name: str) -> str:
  """What a field may be."""
  if name == "head.loss":
    return "see [losses](losses.md)"
  if name in config_lib.CHOICES:
    values = config_lib.CHOICES[name]
    return ", ".join(f"`{value}`" if value else '`""`' for value in values)
  kind = config_lib.types()[name]
  wanted = config_lib.RANGES.get(name)
  return " ".join(filter(None, [_KINDS[kind], wanted and _range(wanted)]))


def _range(wanted: checks.Range) -> str:
  """The numbers of a range."""
  if wanted.high >= checks.MOST:
    return f"{'>' if wanted.above else '≥'} {wanted.low:,}"
  left, right = "[("[wanted.above], "])"[wanted.below]
  low, high = (
    f"{n:,.0f}" if n == int(n) else f"{n:g}" for n in (wanted.low, wanted.high)
  )
  return f"in {left}{low}, {high}{right}"


def named_configs() -> str:
  """What the configs that come with xlj say of themselves."""
  configs = CONFIG.parents[1] / "configs"
  text = []
  for path in sorted(configs.glob("*.py")):
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    doc = re.sub(r"(^  .*\n)+", _code_block, f"{doc}\n", flags=re.M)
    text.append(f"### {path.stem}\n\n{doc}")
  return "\n".join(text)


def _code_block(lines: re.Match[str]) -> str:
  return f"```\n{textwrap.dedent(lines[0])}```\n"


def examples() -> str:
  """The scripts of `examples`."""
  text = []
  for path in sorted((CONFIG.parents[1] / "examples").glob("*.py")):
    code = path.read_text()
    doc = (ast.get_docstring(ast.parse(code)) or "").splitlines()
    text.append(f"## {path.name}\n\n{doc[0]}\n\n```python\n{code}```\n")
  return "\n".join(text)


# -------------------------------------------------------------------- losses


def named_losses() -> str:
  """What `head.loss` may be with heads of one loss for all labels: a table."""
  rows = []
  for name, option in losses.LOSSES.items():
    takers = [head for head, o in heads.HEADS.items() if name in o.losses]
    rows.append([f"`{name}`", *_said(option), _names(takers)])
  return _table(["`head.loss`", "loss", "what it computes", "heads"], rows)


def remedy_losses() -> str:
  """What remedies have in the place of `head.loss`: a table."""
  rows = [
    [f"`{field}={name}`", *_said(option), _names(option.reads)]
    for field, table in (
      ("missing.method", remedies.MISSING),
      ("noisy.method", remedies.NOISY),
      ("tail.weights", remedies.WEIGHTS),
    )
    for name, option in table.items()
    if option.make is not losses.make
  ]
  return _table(["field", "loss", "what it computes", "reads"], rows)


def other_losses() -> str:
  """Classes of `xlj.losses` that the tables above do not name: a list."""
  tables = losses.LOSSES, remedies.MISSING, remedies.NOISY, remedies.WEIGHTS
  named = {_class(option) for table in tables for option in table.values()}
  return "".join(
    f"- {_link(value)}: {_first_line(value)}\n"
    for _, value in sorted(vars(losses_lib).items())
    if hasattr(value, "value_and_grad") and value not in {*named, *_BASES}
  )


# What others are made of, or stand in.
_BASES = losses_lib.Separable, losses_lib.Spherical


def _said(option: options.Option) -> list[str]:
  found = _class(option)
  return [_link(found), _first_line(found)]


def _class(option: options.Option) -> type:
  """The class of the loss that an option makes."""
  config = config_lib.base()
  config.head.loss = "softmax"
  config.head.z_threshold = 0.0
  config.data.num_labels = config.data.num_rows = 1000
  config.data.validation = 0.0
  config.train.batch_size = config.train.num_steps = 10
  config.train.epochs = 1.0
  config.missing.positives = 1.0
  config.missing.remembered = 1
  made = option.make(config)
  return type(made.of if isinstance(made, losses_lib.Spherical) else made)


def _link(value: type) -> str:
  return f"{{class}}`~xlj.losses.{value.__name__}`"


def _first_line(value: type) -> str:
  return (inspect.getdoc(value) or "").split("\n")[0]


# ------------------------------------------------------------------ commands


def commands() -> str:
  """What each command says with `--help` of the flags that are its own."""
  main, values, text = sys.modules["__main__"], flags.FLAGS, []
  before, doc = set(values), main.__doc__
  for name in shell.NAMES:
    main.__doc__ = importlib.import_module(f"xlj.commands.{name}").__doc__
    shown, _, _ = helping.text().rpartition("\n\n")
    text.append(f"## xlj {name}\n\n```text\n{shown}\n```\n")
    for flag in set(values) - before:  # others have some of the same names
      delattr(values, flag)
    values.flags_by_module_dict().pop("xlj.commands.launching", None)
  main.__doc__ = doc
  return "\n".join(text)


# ------------------------------------------------------------------- the API


def api(room: str, *with_members: str) -> str:
  """The names of a room, under the headings that its docstring has for them.

  Args:
    room: A module, such as `xlj.ops`, whose docstring has paragraphs of a line
      that ends with a colon, and of names between backticks.
    *with_members: Classes whose methods are shown, too.

  Returns:
    Sections of autodoc's directives.
  """
  module = importlib.import_module(room)
  text = [f"```{{eval-rst}}\n.. currentmodule:: {room}\n```\n"]
  for part in inspect.getdoc(module).split("\n\n"):
    heading, _, names = part.partition(":\n")
    if names:
      text.append(f"## {heading}\n")
      text += [
        _documented(module, name, name in with_members)
        for name in re.findall(r"`(\w+)`", names)
      ]
  return "\n".join(text)


def _documented(module: Any, name: str, members: bool) -> str:
  value = getattr(module, name)
  kind = "class" if inspect.isclass(value) else "function"
  return (
    f"```{{eval-rst}}\n.. auto{kind}:: {name}\n"
    + "   :members:\n" * members
    + "```\n"
  )


# ------------------------------------------------------------------ Markdown


def _names(names: Iterable[str]) -> str:
  return ", ".join(f"`{name}`" for name in names)


def _table(headings: Sequence[str], rows: Rows) -> str:
  lines = [headings, ["---"] * len(headings), *rows]
  escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
  text = "".join(f"| {' | '.join(line)} |\n" for line in escaped)
  return "{.reference}\n" + text  # for docs/_static/guide.css


if __name__ == "__main__":
  print(markdown(*sys.argv[1:]))
