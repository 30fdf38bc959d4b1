"""Plans the training step of a config for devices that need not exist.

Nothing runs and no data is read; see `xlj.planning.plan` for what is exact.

  xlj plan --config=billion --devices=8 \\
    [--mesh=2,4] [--accelerator=h200] [--json=plan.json]
"""

import json
import os

from absl import flags

from xlj import files
from xlj.commands import launching
from xlj.distributed.local import devices as devices_lib

_CONFIG = launching.define_config()
_DEVICES = flags.DEFINE_integer(
  "devices", None, "Number of devices; by default those of the mesh.", 1
)
_MESH = flags.DEFINE_list(
  "mesh", None, "Sizes of the mesh's two axes, as in 2,4."
)
_ACCELERATOR = flags.DEFINE_string(
  "accelerator", "h200", "What each device is, as in xlj.planning.accelerators."
)
_JSON = flags.DEFINE_string("json", None, "File to write the plan to as JSON.")

flags.mark_flag_as_required("config")


def main() -> None:
  """Prints the plan."""
  mesh = _mesh()
  devices = _DEVICES.value or (mesh[0] * mesh[1] if mesh else 1)
  # Before any part of JAX looks for devices.
  os.environ.update(devices_lib.environments(1, devices)[0])
  from xlj import mesh as mesh_lib
  from xlj.planning import plan as plan_lib

  plan = plan_lib.make(
    _CONFIG.value, mesh_lib.make_mesh(mesh), _ACCELERATOR.value
  )
  print(plan)
  if _JSON.value:
    text = json.dumps(plan.to_json(), indent=2) + "\n"
    files.write_text(files.local(_JSON.value, "--json"), text)


def _mesh() -> tuple[int, int] | None:
  """The mesh asked for, by the flag or by the config."""
  sizes = _MESH.value or _CONFIG.value.mesh.shape
  if not sizes:
    return None
  try:
    rows, columns = (int(size) for size in sizes)
  except ValueError:
    raise ValueError(
      f"--mesh={','.join(map(str, sizes))} is not two whole numbers; give for"
      " instance --mesh=2,4"
    ) from None
  if min(rows, columns) < 1:
    raise ValueError(f"--mesh={rows},{columns} has an axis without devices")
  return rows, columns


def run() -> None:
  """Runs the command."""
  launching.run(main)
