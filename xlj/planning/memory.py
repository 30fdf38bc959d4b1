"""How much memory and disk there is, at most, as far as the system says."""

import os
from pathlib import Path
import shutil

import jax

try:
  import resource
except ImportError:  # not POSIX
  resource = None

_GROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def of_host() -> int | None:
  """Bytes that this process can still take; None if nobody says.

  That is no promise: others may take them too. But more there is not.
  """
  known = [size for size in (_free(), _group(), _address_space()) if size]
  return min(known, default=None)


def of_device() -> int | None:
  """Bytes of the smallest device of this process; None if it has not its own.

  Devices of a CPU share what `of_host` says.
  """
  sizes = []
  for device in jax.local_devices():
    stats = device.memory_stats() if device.platform != "cpu" else None
    sizes.append((stats or {}).get("bytes_limit"))
  known = [size for size in sizes if size]
  return min(known, default=None)


def of_disk(directory: str | Path) -> int | None:
  """Bytes free where a directory is or is to be; None of a bucket."""
  if "://" in str(directory):
    return None
  path = Path(directory).absolute()
  nearest = next(p for p in (path, *path.parents) if p.exists())
  try:
    return shutil.disk_usage(nearest).free
  except OSError:
    return None


def _free() -> int | None:
  """What the system has, swap included."""
  try:
    lines = (_PROC / "meminfo").read_text().splitlines()
    sizes = {name: rest for name, _, rest in (s.partition(":") for s in lines)}
    names = ("MemAvailable", "SwapFree")
    return sum(int(sizes[name].split()[0]) << 10 for name in names)
  except (OSError, KeyError, ValueError):
    return None


def _group() -> int | None:
  """The least limit of the control groups that this process is in."""
  found = []
  try:
    groups = (_PROC / "self/cgroup").read_text().splitlines()
  except OSError:
    return None
  for line in groups:
    _, controllers, name = line.split(":", 2)
    root, file = _GROUPS, "memory.max"
    if controllers:
      if "memory" not in controllers.split(","):
        continue
      root, file = _GROUPS / "memory", "memory.limit_in_bytes"
    own = root / name.lstrip("/")
    # A container may not see its own name, but its limit at the root.
    for path in (own, *own.parents):
      if path.is_relative_to(root):
        found.append(_number(path / file))
  return min((size for size in found if size), default=None)


def _address_space() -> int | None:
  """What a limit of addresses leaves."""
  if resource is None:
    return None
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  if limit == resource.RLIM_INFINITY:
    return None
  try:
    taken = int((_PROC / "self/statm").read_text().split()[0])
  except (OSError, ValueError):
    taken = 0
  return max(limit - taken * os.sysconf("SC_PAGE_SIZE"), 1)


def _number(path: Path) -> int | None:
  try:
    return int(path.read_text())
  except (OSError, ValueError):  # no such group, or "max"
    return None
