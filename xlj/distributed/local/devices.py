"""Which devices each of several processes on one machine gets.

A process that sees all GPUs takes all of them, so each is shown its share.
"""

import os
import subprocess

_SIMULATED = "--xla_force_host_platform_device_count"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class DevicesError(ValueError):
  """The machine's devices do not suit the number of processes."""


def environments(
  num_processes: int, devices: int | None = None
) -> list[dict[str, str]]:
  """The environment of each process.

  Args:
    num_processes: How many processes share this machine.
    devices: CPU devices to simulate in each; None for the machine's own ones:
      an equal share of its GPUs, if there are any that JAX may use.

  Returns:
    All variables, by process.

  Raises:
    DevicesError: If the GPUs cannot be shared out equally.
  """
  if devices is not None:
    return [_simulated(devices)] * num_processes
  gpus = _gpus()
  if not gpus:
    return [dict(os.environ)] * num_processes
  if len(gpus) % num_processes:
    raise DevicesError(
      f"{len(gpus)} GPUs ({', '.join(gpus)}) cannot be shared out equally to"
      f" {num_processes} processes; give another number of processes, other"
      f" GPUs in {_VISIBLE}, or --devices for simulated CPU devices"
    )
  share = len(gpus) // num_processes
  return [
    {**os.environ, _VISIBLE: ",".join(gpus[i * share : (i + 1) * share])}
    for i in range(num_processes)
  ]


def _simulated(devices: int) -> dict[str, str]:
  flags = os.environ.get("XLA_FLAGS", "").split()
  kept = [flag for flag in flags if not flag.startswith(_SIMULATED)]
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": " ".join((*kept, f"{_SIMULATED}={devices}")),
  }


def _gpus() -> list[str]:
  """Names of the GPUs that JAX may use, as CUDA_VISIBLE_DEVICES has them."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
    return []
  if (visible := os.environ.get(_VISIBLE)) is not None:
    names = [name.strip() for name in visible.split(",")]
    return [name for name in names if name not in ("", "-1")]
  try:
    listed = subprocess.run(
      ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60
    )
  except (OSError, subprocess.TimeoutExpired):
    return []
  lines = listed.stdout.splitlines()
  count = sum(line.startswith("GPU ") for line in lines)
  return [str(i) for i in range(count)]
