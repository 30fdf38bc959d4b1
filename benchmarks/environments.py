"""Pythons with the peers of xlj, each in an environment of its own."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys


@dataclasses.dataclass(frozen=True)
class Peer:
  """A package to compare with.

  Attributes:
    name: What people call it.
    package: What the package index calls it.
    version: The version to compare with.
    module: What is imported of it.
    needs: Requirements that are installed before it.
    alone: Whether what else it asks for is left out.
  """

  name: str
  package: str
  version: str
  module: str
  needs: tuple[str, ...] = ()
  alone: bool = False


TORCH = Peer("PyTorch", "torch", "2.13.0", "torch", ("numpy",))
# It asks for PyTorch and more, which its linear models do without.
PECOS = Peer(
  "PECOS",
  "libpecos",
  "1.2.8",
  "pecos.xmc",
  ("numpy==1.26.4", "scipy==1.13.1", "scikit-learn==1.5.2"),
  alone=True,
)
NAPKINXC = Peer(
  "napkinXC",
  "napkinxc",
  "0.7.2",
  "napkinxc.models",
  ("numpy==2.2.6", "scipy==1.15.3"),
)


def path(peer: Peer) -> pathlib.Path:
  """Where the interpreter of a peer is, or would be, in the user's cache."""
  user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  python = f"py{sys.version_info.major}.{sys.version_info.minor}"
  name = f"{peer.package}-{peer.version}-{python}"
  return pathlib.Path(user, "xlj", "benchmarks", name, "bin", "python")


def find(peer: Peer, given: str | None = None) -> str | None:
  """The interpreter to run a peer with.

  Makes an environment in the user's cache if none is given and there is none
  yet, from the package index that pip is configured for.

  Args:
    peer: The peer.
    given: Path of an interpreter that has it, or None.

  Returns:
    The path, or None where the peer is not to be had; prints why.
  """
  python = path(peer)
  if not given and not python.exists() and not _make(peer, python.parents[1]):
    return None
  found = given or str(python)
  return found if _has(peer, found) else None


def _make(peer: Peer, where: pathlib.Path) -> bool:
  """Makes an environment; prints why if that fails."""
  print(
    f"Installing {peer.name} {peer.version} into {where}, once; pip's own "
    "settings say from which index",
    flush=True,
  )
  making = where.with_name(f"{where.name}.{os.getpid()}")
  pip = (str(making / "bin" / "python"), "-m", "pip", "install", "--quiet")
  alone = ["--no-deps"] if peer.alone else []
  try:
    _run(sys.executable, "-m", "venv", str(making))
    if peer.needs:
      _run(*pip, *peer.needs)
    _run(*pip, *alone, f"{peer.package}=={peer.version}")
    making.rename(where)
  except (OSError, subprocess.CalledProcessError) as error:
    shutil.rmtree(making, ignore_errors=True)
    said = (getattr(error, "stderr", "") or str(error)).strip()
    print(f"{peer.name} could not be installed: {said.splitlines()[-1]}")
    return False
  return True


def _has(peer: Peer, python: str) -> bool:
  """Whether an interpreter can import a peer; prints why not."""
  try:
    _run(python, "-c", f"import numpy, {peer.module}")
  except OSError as error:
    print(f"no Python at {python}: {error.strerror}")
  except subprocess.CalledProcessError as error:
    said = error.stderr.splitlines()[-1]
    print(f"{python} has no {peer.name}: {said}")
  else:
    return True
  return False


def _run(*command: str) -> None:
  subprocess.run(command, check=True, capture_output=True, text=True)
