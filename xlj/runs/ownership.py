"""One run, one owner: the process that writes into its directory.

The owner has a file there, `owner-N.json`, that says who it is. It is made
exclusively, which file systems that several hosts share can do too, and renewed
every few seconds. Whoever finds one goes on only if its maker is dead: on the
same machine its process is gone; from another one its file is not renewed for a
minute. It then makes the file with the next number, which can succeed only
once, however many try. Clocks of hosts are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import datetime
import json
import os
from pathlib import Path
import random
import re
import secrets
import socket
import threading
import time
from typing import Any

from absl import logging
import jax

from xlj import config as config_lib
from xlj import files

_NAME = re.compile(r"owner-([0-9]+)\.json")
_RENEW = 5.0  # seconds
_STALE = 60.0
_WRITTEN = 1.0  # after which an owner has said who it is


class Owner:
  """What a process knows of being the owner; see `owning`."""

  def __init__(self, workdir: Path):
    """Owns nothing yet."""
    self._workdir = workdir
    self._lost = False

  def check(self) -> None:
    """Looks whether the run is still one's own; cheap enough for each step.

    Raises:
      ConfigError: If not: this process was stopped for so long that another
        one took it for dead, or somebody has removed its file.
    """
    if self._lost:
      raise config_lib.ConfigError(
        f"{self._workdir} has another owner now, or lost the file that says"
        " who it is; this process ends without writing into it"
      )

  def renew(self, path: Path, token: str) -> None:
    """Gives a sign of life, unless somebody else has come."""
    with contextlib.suppress(OSError):
      os.utime(path)
    try:
      self._lost |= _facts(path).get("token") != token
    except FileNotFoundError:
      self._lost = True
    except OSError:
      pass  # a file system that fails for a while


@contextlib.contextmanager
def owning(workdir: Path) -> Iterator[Owner]:
  """Makes this process the only one that writes into a run's directory.

  Of the processes of a job the first one owns it, and the others nothing.

  Args:
    workdir: The directory; made if it is missing, and removed again if it is
      left empty.

  Yields:
    The owner, to be checked now and then.

  Raises:
    ConfigError: If another process owns it, which may take a minute to see if
      it is, or was, on another machine.
    OSError: If the directory cannot be written.
  """
  owner = Owner(workdir)
  if jax.process_index():
    yield owner
    return
  made = [p for p in (workdir, *workdir.parents) if not p.exists()]
  workdir.mkdir(parents=True, exist_ok=True)
  token, ended = secrets.token_hex(8), threading.Event()
  try:
    path = _take(workdir, token)

    def keep() -> None:
      while not ended.wait(_RENEW):
        owner.renew(path, token)

    thread = threading.Thread(target=keep, name="owner of a run", daemon=True)
    thread.start()
    try:
      yield owner
    finally:
      ended.set()
      thread.join()
      with contextlib.suppress(OSError):
        if _facts(path).get("token") == token:
          path.unlink()
  finally:
    with contextlib.suppress(OSError):
      for directory in made:
        directory.rmdir()  # unless there is something in it


def is_mark(path: Path) -> bool:
  """Whether a file in a run's directory only says who owns it."""
  return bool(_NAME.fullmatch(path.name))


def _take(workdir: Path, token: str) -> Path:
  """Makes the file that says that this process is the owner."""
  me = {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
    "machine": files.machine(),
    "start": files.start_of(os.getpid()),
    "token": token,
  }
  while True:
    dead = _owners(workdir)
    for path, facts in dead.items():
      _check_dead(path, facts, workdir)
    last = max((_number(path) for path in dead), default=-1)
    path = workdir / f"owner-{last + 1}.json"
    try:
      with path.open("x") as file:
        file.write(json.dumps(me) + "\n")
    except FileExistsError:
      continue  # another one was faster
    except OSError as error:
      with contextlib.suppress(OSError):
        path.unlink()  # there was room for no more than a name
      reason = error.strerror
      raise OSError(f"{workdir} cannot be written: {reason}") from None
    # Who looked before the last owner was gone may have made another number.
    others = _owners(workdir)
    others.pop(path, None)
    if others.items() <= dead.items():
      for other in others:
        other.unlink(missing_ok=True)
      return path
    path.unlink()
    time.sleep(random.uniform(0.1, 1))


def _owners(workdir: Path) -> dict[Path, dict[str, Any]]:
  """What the files of owners say."""
  found = {}
  for path in filter(is_mark, workdir.iterdir()):
    with contextlib.suppress(FileNotFoundError):
      found[path] = _facts(path)
  return found


def _number(path: Path) -> int:
  found = _NAME.fullmatch(path.name)
  assert found
  return int(found[1])


def _facts(path: Path) -> dict[str, Any]:
  """What a file says; nothing if it is not whole."""
  end = time.monotonic() + _WRITTEN
  while True:
    try:
      found = json.loads(path.read_text())
      if isinstance(found, dict):
        return found
    except (ValueError, RecursionError):
      pass
    if time.monotonic() > end:
      return {}
    time.sleep(0.05)


def _check_dead(path: Path, facts: dict[str, Any], workdir: Path) -> None:
  """Refuses a directory whose owner lives."""
  pid, host = facts.get("pid"), facts.get("host", "another host")
  who = f"process {pid} on {host}, since {facts.get('since')}"
  if facts.get("machine") == files.machine():
    start = files.start_of(int(pid or 0))
    dead = start is None or start != facts.get("start")
  else:
    logging.info(
      "Looking for %.0f s whether the owner of %s lives: %s",
      *(_STALE, workdir, who),
    )
    dead = not _is_renewed(path)
  if not dead:
    raise config_lib.ConfigError(
      f"{workdir} is being written by another process: {who}; wait for its end,"
      " stop it, or use another directory"
    )
  logging.warning("%s is taken over from a dead owner: %s", workdir, who)


def _is_renewed(path: Path) -> bool:
  """Whether a file changes within `_STALE` seconds."""
  end = time.monotonic() + _STALE
  first = None
  while time.monotonic() < end:
    try:
      with path.open("rb") as file:  # opened: or what is cached would be told
        now = os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
      return False
    if first is not None and now != first:
      return True
    first = now
    time.sleep(min(1.0, _STALE / 10))
  return False
