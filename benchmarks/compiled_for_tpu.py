"""Training steps compiled for TPUs that are not here.

  pip install 'xlj-jax[tpu]'
  export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1
  python benchmarks/compiled_for_tpu.py --json=compiled.json

The compiler of TPUs comes in a wheel and needs none of them. The step of
`configs/billion.py` is compiled for a topology, and memory, collectives and
fusions are read from what comes of it. Nothing runs.

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

GIB = 2**30
# Topology, and what `configs/billion.py` is told.
CASES = (
  ("v5e:2x4", "num_labels=100_000_000,dtype=bfloat16"),
  ("v5e:4x4", "dtype=bfloat16"),
  ("v5e:4x4", "dtype=float8"),
  ("v5p:2x2x2", "dtype=bfloat16"),
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  parser.add_argument("--cases", type=int, default=len(CASES), help="how many")
  options = parser.parse_args()
  records = []
  for topology, arg in CASES[: options.cases]:
    records.append(measure(topology, arg))
    print(json.dumps(records[-1]), flush=True)
  if options.json:
    options.json.write_text(json.dumps(records, indent=1) + "\n")


def measure(topology: str, arg: str) -> dict[str, Any]:
  """Compiles the step of `billion:ARG` for a topology."""
  described = topologies.get_topology_desc(topology, platform="tpu")
  config = stated.resolve(named.read(f"billion:{arg}"))
  model = model_lib.Model(config)
  _ = model.specs  # which are computed, and so before there is such a mesh
  mesh = jax.sharding.Mesh(
    np.array(described.devices).reshape(1, -1),
    sharding.AXES,
    axis_types=(jax.sharding.AxisType.Explicit,) * 2,
  )
  began = time.monotonic()
  with jax.set_mesh(mesh), platform.tracing_for("tpu"):
    compiled = (
      jax.jit(model.train_step, donate_argnums=0)
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
    "topology": topology,
    "config": arg,
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
