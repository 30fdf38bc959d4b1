"""What --help says: what a command does, and the flags that are its own."""

from collections.abc import Sequence
import re
import shlex
import sys
import textwrap

from absl import flags

from xlj import shell

_WORDS = {"--help", "-help", "-h", "-?", "--helpshort"}
_FULL = {"--helpfull", "-helpfull"}
_PROCESSES = "xlj.commands.processes"


def help_if_asked(argv: Sequence[str]) -> None:
  """Prints the help and ends, if flags ask for it.

  That of absl tells nothing of flags that a command shares with others, and
  ends with a status of failure.
  """
  if asked := {*argv[1:]} & (_WORDS | _FULL):
    shell.show(text(full=bool(asked & _FULL)))
    sys.exit()


def text(full: bool = False) -> str:
  """The help of the command that runs.

  Args:
    full: Whether to tell the flags of libraries as well.

  Returns:
    Lines.
  """
  own: list[flags.Flag] = []
  of_processes: list[flags.Flag] = []
  for module, found in flags.FLAGS.flags_by_module_dict().items():
    if module == _PROCESSES:
      of_processes += found
    elif module.startswith("xlj.") or module == sys.argv[0]:
      own += found
  parts = [_as_called((sys.modules["__main__"].__doc__ or "").strip())]
  for title, found in (
    ("Flags", own),
    ("Flags of its processes", of_processes),
  ):
    if found:
      parts.append("\n".join([f"{title}:", *map(_described, found)]))
  if full:
    parts.append(f"All flags:\n{flags.FLAGS.get_help()}")
  else:
    parts.append("--helpfull tells those of libraries as well.")
  return "\n\n".join(parts)


def _as_called(doc: str) -> str:
  """Commands as they are typed where this one was: by `xlj`, or by scripts."""
  return re.sub(
    rf"\bxlj ({'|'.join(shell.NAMES)})\b",
    lambda match: shlex.join(shell.words(match[1])),
    doc,
  )


def _described(flag: flags.Flag) -> str:
  """A flag, what it is for, and what it is if not given."""
  words = [f"--{flag.name}: {flag.help}"]
  if any("other than None" in check.message for check in flag.validators):
    words.append("[required]")
  elif type(flag.default) in (int, float, str, list) and flag.default_as_str:
    words.append(f"[{flag.default_as_str.strip(chr(39))}]")
  return textwrap.fill(
    " ".join(words),
    80,
    initial_indent="  ",
    subsequent_indent="    ",
    break_on_hyphens=False,
  )
