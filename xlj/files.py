"""Files that a reader, or a kill, never finds half written."""

from collections.abc import Iterator
import contextlib
import errno
import functools
import hashlib
import os
from pathlib import Path
import re
import secrets
import socket
import stat

_ABANDONED_SECONDS = 24 * 3600
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST = 50  # of a name that a longer one is made of


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
  """Gives another name to write a file under, which it has until it is whole.

  What links to a file stays a link: the file is replaced. What is no file of a
  disk (a pipe, a device) is written to as it is.

  Args:
    path: Of the file; one that is there is replaced when the block ends, and
      its permissions stay.

  Yields:
    The other name, in the same directory, of an empty file that nobody else
    writes. If the block raises, the file is removed, and what `path` names
    stays as it was. The name of what is no file of a disk is `path` itself.

  Raises:
    OSError: If there can be no such file: `path` is a directory, its directory
      is missing, or may not be written; or if there is no room for it.
  """
  path = _without_links(Path(path))
  mode = _mode(path)
  if stat.S_ISDIR(mode):
    raise IsADirectoryError(f"{path} is a directory; name a file")
  if is_stream(path):
    with _naming(path):
      yield path
    return
  partial = _create(path)
  try:
    with _naming(path):
      yield partial
    with partial.open("rb+") as file:
      os.fsync(file.fileno())  # or a crash could leave the name and no bytes
    if mode:
      partial.chmod(stat.S_IMODE(mode))
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def is_stream(path: str | os.PathLike[str]) -> bool:
  """Whether it is no file of a disk, and gets at once what is written."""
  path = _without_links(Path(path))
  mode = _mode(path)
  special = mode and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
  return bool(special) or _is_open_file(path)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
  """Says which file it is that there is no room for."""
  try:
    yield
  except OSError as error:
    if error.filename is None and error.errno in _NO_ROOM:
      raise OSError(
        f"{path} cannot be written: {error.strerror}; make room, or write to"
        " another place. What was there before is kept"
      ) from None
    raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a text in UTF-8; a reader sees all of it, or what was there.

  Bytes of names of files that are no UTF-8 are written as they are.
  """
  with replacing(path) as partial:
    partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def local(path: str | os.PathLike[str], name: str) -> Path:
  """The path of what is written to a file system.

  Args:
    path: Where it goes.
    name: The flag or field that says so, for the message.

  Returns:
    The path.

  Raises:
    ValueError: If it is the URL of a bucket.
  """
  if "://" in os.fspath(path):
    raise ValueError(
      f"{name} is {path}, a bucket; give a path of a file system, and copy what"
      " is written there into the bucket"
    )
  return Path(path)


# --- whose a file is ----------------------------------------------------------


@functools.cache
def machine() -> str:
  """What two processes share only if they see each other by their ids.

  That is a start of a machine, and what a container sees of its processes.
  """
  known = [socket.gethostname()]
  with contextlib.suppress(OSError):
    boot = Path("/proc/sys/kernel/random/boot_id")
    known += [boot.read_text(), os.readlink("/proc/self/ns/pid")]
  return hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]


def start_of(pid: int) -> str | None:
  """When a process of this machine started; None if it does not run.

  Returns:
    A text that another process with the same id does not have; empty where the
    system does not say.
  """
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass  # somebody else's
  try:
    found = Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return ""
  # After the name, which is in parentheses and may hold anything.
  fields = found.rpartition(")")[2].split()
  return None if fields[0] in "ZX" else fields[19]


def _create(path: Path) -> Path:
  """An empty file beside another, that no other process has made."""
  prefix = path.name[:_LONGEST]
  mark = f"{machine()}-{os.getpid()}-{secrets.token_hex(4)}"
  partial = path.with_name(f"{prefix}.{mark}.partial")
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
  try:
    os.close(os.open(partial, flags, 0o666))
  except FileNotFoundError:
    raise FileNotFoundError(
      f"{path}: directory {path.parent} does not exist; make it"
    ) from None
  except OSError as error:
    # The name that was asked for, not the other one.
    raise type(error)(error.errno, error.strerror, str(path)) from None
  with contextlib.suppress(OSError):
    _remove_abandoned(path.parent, prefix, partial.stat().st_mtime)
  return partial


def _remove_abandoned(directory: Path, prefix: str, now: float) -> None:
  """Removes what killed writers of a file have left."""
  name = re.compile(
    re.escape(prefix) + r"\.([0-9a-f]{12})-([0-9]+)-[0-9a-f]{8}\.partial"
  )
  for entry in os.scandir(directory):
    found = name.fullmatch(entry.name)
    if not found:
      continue
    where, pid = found.groups()
    with contextlib.suppress(OSError):  # another process was faster
      dead = where == machine() and start_of(int(pid)) is None
      # Both times are the file system's, whatever this machine's clock says.
      age = now - entry.stat(follow_symlinks=False).st_mtime
      if dead or age > _ABANDONED_SECONDS:
        os.unlink(entry.path)


def _without_links(path: Path) -> Path:
  """What a path leads to, which need not be there.

  What a process has open (/dev/stdout) is a link only by name: it stays.
  """
  for _ in range(40):
    if not path.is_symlink() or _is_open_file(path):
      return path
    path = path.parent / os.readlink(path)
  raise OSError(f"{path}: links that lead to themselves; name a file")


def _is_open_file(path: Path) -> bool:
  """Whether it is one of the open files that Linux shows in /proc."""
  return path.parent.resolve().is_relative_to("/proc")


def _mode(path: Path) -> int:
  """Kind and permissions of what is there; 0 for nothing."""
  try:
    return path.stat().st_mode
  except FileNotFoundError:
    return 0
