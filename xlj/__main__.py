"""The command `xlj`, also `python -m xlj`: it runs one of `xlj.commands`."""

import difflib
import sys
from typing import NoReturn

import xlj
from xlj import commands
from xlj import shell
from xlj.distributed import exit_status


def listing() -> str:
  """What there is to run."""
  return "\n".join(
    [
      f"xlj {xlj.__version__}: {(xlj.__doc__ or '').splitlines()[0]}",
      "",
      "  xlj COMMAND [flags]",
      "",
      "Commands; xlj COMMAND --help tells more of one, and its flags:",
      *(f"  {name:<10} {commands.summary(name)}" for name in shell.NAMES),
    ]
  )


def main() -> None:
  """Runs the command that the first word names."""
  word = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if word in shell.NAMES:
    del sys.argv[1]
    commands.run(word)
  elif word in ("--help", "-help", "-h", "help"):
    shell.show(listing())
  elif word in ("--version", "-version"):
    print(f"xlj {xlj.__version__}")
  elif word.startswith("-"):
    _refuse(f"a command comes before its flags, as in xlj train {word}")
  else:
    near = difflib.get_close_matches(word, shell.NAMES, 1, 0.5)
    hint = f"did you mean xlj {near[0]}? " if near else ""
    _refuse(f"there is no command {word!r}; {hint}xlj --help tells all")


def explain(module: str) -> NoReturn:
  """Says what to run instead of a module of xlj, which would do nothing."""
  print(listing(), file=sys.stderr)
  _refuse(f"{module} is no command; see those above")


def _refuse(text: str) -> NoReturn:
  print(f"error: {text}", file=sys.stderr)
  sys.exit(exit_status.REFUSED)


if __name__ == "__main__":
  main()
