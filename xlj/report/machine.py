"""Facts about the machine that a run is on."""

import collections
from collections.abc import Mapping, Sequence
import importlib.metadata
import os
import pathlib
import platform
import re
import resource
import sys
from typing import Any

import xlj
from xlj import processors

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def facts(devices: Sequence[Any] = ()) -> dict[str, Any]:
  """What the run ran on, for `machine.json`.

  Args:
    devices: the JAX devices, `jax.devices()`.

  Returns:
    `cpu`, `cores` (those the process may use), `memory_gib`, `devices` (kind
    and number of each, e.g. "NVIDIA H200 × 8"),
    `processes`, `system`, and under `versions` those of Python and of the
    packages that matter.
  """
  kinds = collections.Counter(str(d.device_kind) for d in devices)
  versions = {
    "python": platform.python_version(),
    "xlj": xlj.__version__,
  }
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    "cpu": _cpu_model(),
    "cores": processors.usable(),
    "memory_gib": _memory_gib(),
    "devices": ", ".join(
      f"{kind} \N{MULTIPLICATION SIGN} {n}" for kind, n in kinds.items()
    ),
    "processes": len({d.process_index for d in devices}) or 1,
    "system": f"{platform.system()} {platform.release()}",
    "versions": versions,
  }


def with_peak(
  facts: Mapping[str, Any], devices: Sequence[Any] = ()
) -> dict[str, Any]:
  """The facts with the most memory that this process has had.

  Args:
    facts: Those of `machine.json`; of an earlier process they may have more.
    devices: The JAX devices of this process.

  Returns:
    With `peak_memory_gib`, and `peak_device_memory_gib` of the device with most
    of it where devices count it.
  """
  unit = 1 if sys.platform == "darwin" else 2**10
  peaks = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  stats = [device.memory_stats() or {} for device in devices]
  of_devices = [
    s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s
  ]
  found = {"peak_memory_gib": peaks}
  if of_devices:
    found["peak_device_memory_gib"] = max(of_devices)
  return {**facts} | {
    name: max(round(count / 2**30, 2), facts.get(name) or 0)
    for name, count in found.items()
  }


def _cpu_model() -> str:
  """The model by its trade name, which only /proc tells on Linux."""
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
  except OSError:
    return platform.processor() or platform.machine()
  found = re.search(r"model name\s*:\s*(.+)", text)
  return found[1] if found else platform.machine()


def _memory_gib() -> float | None:
  try:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (ValueError, OSError, AttributeError):
    return None
  return round(total / 2**30, 1)
