"""Training steps compiled for GPUs and TPUs that are not here.

  pip install 'xlj-jax[cuda]'
  export JAX_PLATFORMS=cpu
  python benchmarks/compiled_deviceless.py cuda --json=compiled.json

Their compilers come in wheels and need none of them: `xlj-jax[tpu]` for those
of TPUs, with `TPU_SKIP_MDS_QUERY=1` too. The step of `configs/billion.py` is
compiled for a topology, and memory, collectives and fusions are read from what
comes of it. Nothing runs.

Prints a line for each, and writes the list of them.
"""

import argparse
import collections
import json
import pathlib
import re
import time
from typing import Any

import jax
from jax.experimental import topologies
import numpy as np

from xlj import sharding
from xlj.config import named
from xlj.model import model as model_lib
from xlj.ops import platform
from xlj.planning import collectives
from xlj.planning import stated
from xlj.training import profiling

HUNDRED_MILLION = "num_labels=100_000_000,"
# For each platform, topologies and what `configs/billion.py` is told.
CASES = {
  "cuda": (
    ("1x1x1", HUNDRED_MILLION + "dtype=bfloat16"),
    ("1x1x1", "dtype=bfloat16"),
    ("1x1x1", "dtype=float8"),
    ("1x1x8", HUNDRED_MILLION + "dtype=bfloat16"),
    ("1x1x8", "dtype=bfloat16"),
    ("1x1x8", "dtype=float8"),
  ),
  "tpu": (
    ("v5e:2x4", HUNDRED_MILLION + "dtype=bfloat16"),
    ("v5e:4x4", "dtype=bfloat16"),
    ("v5e:4x4", "dtype=float8"),
    ("v5p:2x2x2", "dtype=bfloat16"),
  ),
}
# What XLA asks an H200 for when there is one: a `GpuTargetConfigProto`.
H200 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  device_memory_size: 151397597184
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
}
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("platform", choices=CASES)
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  parser.add_argument("--cases", type=int, help="how many")
  parser.add_argument("--kernels", action="store_true", help="fused, for cuda")
  options = parser.parse_args()
  records = []
  for topology, arg in CASES[options.platform][: options.cases]:
    records.append(measure(options.platform, topology, arg, options.kernels))
    print(json.dumps(records[-1]), flush=True)
  if options.json:
    options.json.write_text(json.dumps(records, indent=1) + "\n")


def describe(of: str, topology: str) -> topologies.TopologyDescription:
  """The devices of a topology: H200s, or the TPUs that its name says."""
  if of == "tpu":
    return topologies.get_topology_desc(topology, platform=of)
  return topologies.get_topology_desc(
    "H200", platform=of, topology=topology, target_config=H200
  )


def measure(
  of: str, topology: str, arg: str, kernels: bool = False
) -> dict[str, Any]:
  """Compiles the step of `billion:ARG` for a topology of a platform."""
  described = describe(of, topology)
  config = named.read(f"billion:{arg}")
  config.head.kernels = "auto" if kernels else "never"
  config = stated.resolve(config)
  model = model_lib.Model(config)
  _ = model.specs  # which are computed, and so before there is such a mesh
  mesh = jax.sharding.Mesh(
    np.array(described.devices).reshape(1, -1),
    sharding.AXES,
    axis_types=(jax.sharding.AxisType.Explicit,) * 2,
  )
  began = time.monotonic()
  kind = "gpu" if of == "cuda" else of
  with jax.set_mesh(mesh), platform.tracing_for(kind):
    compiled = (
      profiling.compiled_step(model.train_step)
      .lower(model.abstract(), stated.batch(config))
      .compile()
    )
  seconds = time.monotonic() - began
  memory: Any = compiled.memory_analysis()
  text = compiled.as_text() or ""
  kinds = collections.Counter(
    kind
    for kind in collectives.KINDS
    for _ in re.findall(rf" {kind}(?:-start)?\(", text)
  )
  return {
    "platform": of,
    "topology": topology,
    "config": arg,
    "kernels": text.count('"__gpu$xla.gpu.triton"'),
    "devices": mesh.size,
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "updated_in_place": memory.alias_size_in_bytes,
    "new_results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    "collectives": dict(kinds),
    "asynchronous": len(re.findall(r"-start\(", text)),
    "fusions": len(re.findall(r" fusion\(", text)),
    "loops": len(re.findall(r" while\(", text)),
    "compile_s": round(seconds, 1),
  }


if __name__ == "__main__":
  main()
