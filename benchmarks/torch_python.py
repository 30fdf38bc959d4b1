"""A Python with PyTorch, in an environment of the benchmarks' own."""

import os
import pathlib
import shutil
import subprocess
import sys

VERSION = "2.13.0"


def find(given: str | None) -> str | None:
  """The interpreter to run PyTorch with.

  Makes an environment in the user's cache if none is given and there is none
  yet, from the package index that pip is configured for.

  Args:
    given: Path of one that has PyTorch, or None.

  Returns:
    The path, or None where there is no PyTorch to be had; prints why.
  """
  if given:
    return given if _has_torch(given) else None
  user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  name = f"torch-{VERSION}-py{sys.version_info.major}.{sys.version_info.minor}"
  where = pathlib.Path(user, "xlj", "benchmarks", name)
  python = where / "bin" / "python"
  if python.exists():
    return str(python) if _has_torch(str(python)) else None
  print(
    f"Installing PyTorch {VERSION} into {where}, once; pip's own settings say "
    "from which index, such as one of wheels without CUDA; --torch_python=PATH "
    "uses a Python that has it",
    flush=True,
  )
  making = where.with_name(f"{where.name}.{os.getpid()}")
  try:
    _run(sys.executable, "-m", "venv", str(making))
    _run(
      str(making / "bin" / "python"),
      *("-m", "pip", "install", "--quiet", f"torch=={VERSION}", "numpy"),
    )
    making.rename(where)
  except (OSError, subprocess.CalledProcessError) as error:
    shutil.rmtree(making, ignore_errors=True)
    said = (getattr(error, "stderr", "") or str(error)).strip()
    print(f"PyTorch could not be installed: {said.splitlines()[-1]}")
    return None
  return str(python)


def _has_torch(python: str) -> bool:
  """Whether an interpreter can import PyTorch; prints why not."""
  try:
    _run(python, "-c", "import numpy, torch")
  except OSError as error:
    print(f"no Python at {python}: {error.strerror}")
  except subprocess.CalledProcessError as error:
    print(f"{python} has no PyTorch: {error.stderr.splitlines()[-1]}")
  else:
    return True
  return False


def _run(*command: str) -> None:
  subprocess.run(command, check=True, capture_output=True, text=True)
