"""Memory and speed of saving and restoring a large matrix of labels.

Saves a matrix `[rows, dim]` of float32 from some simulated CPU devices, and
restores it in new processes on others, with xlj and with Orbax's own restore.
Each process prints the peak of its memory, and how far it is above the shards,
which are in the same memory here. That every number is right is checked. Prints
the figures, and last one line of JSON.

  python benchmarks/checkpoint_memory.py --rows=33554432 --peers= \
    --directory=DIR

`--train` takes a step that replaces the matrix while it is saved; what is saved
is then kept beside it.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

GIB = 1 << 30


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", type=int, default=1 << 22)
  parser.add_argument("--dim", type=int, default=80)
  parser.add_argument("--save_devices", type=int, default=1)
  parser.add_argument("--restore_devices", default="1,8")
  parser.add_argument("--peers", default="orbax", help="empty for none")
  parser.add_argument("--train", action="store_true")
  parser.add_argument("--directory", help="where; by default a temporary one")
  parser.add_argument("--part", choices=sorted(PARTS), help="internal")
  options = parser.parse_args()
  if options.part:
    run_part(options)
    return
  with tempfile.TemporaryDirectory(dir=options.directory) as directory:
    compare(options, directory)


def compare(options: argparse.Namespace, directory: str) -> None:
  size = options.rows * options.dim * 4
  print(f"float32[{options.rows}, {options.dim}]: {size / GIB:.2f} GiB")
  found = {}
  parts = [("save", options.save_devices)]
  for devices in map(int, options.restore_devices.split(",")):
    parts.append(("xlj", devices))
    parts += [(peer, devices) for peer in options.peers.split(",") if peer]
  for part, devices in parts:
    name = f"{part} on {devices}"
    found[name] = start(part, devices, options, directory)
    figures = found[name]
    gib_per_s = size / GIB / figures["seconds"]
    print(
      f"{name:>12}: {figures['seconds']:7.2f} s ({gib_per_s:.2f} GiB/s), peak"
      f" {figures['peak'] / GIB:.2f} GiB,"
      f" {(figures['peak'] - size) / GIB:.2f} GiB above the matrix"
      + (
        f"; {figures['blocked']:.2f} s before the next step"
        if "blocked" in figures
        else ""
      ),
      flush=True,
    )
    if part not in ("save", "xlj"):
      ratio = figures["peak"] / found[f"xlj on {devices}"]["peak"]
      print(f"{'':>12}  {ratio:.2f} times the memory of xlj")
  print(json.dumps({"bytes": size, **found}))


def start(
  part: str, devices: int, options: argparse.Namespace, directory: str
) -> dict[str, Any]:
  """Runs one part in a process of its own; returns its figures."""
  flag = f"--xla_force_host_platform_device_count={devices}"
  command = [
    sys.executable,
    __file__,
    f"--part={part}",
    f"--rows={options.rows}",
    f"--dim={options.dim}",
    f"--directory={directory}",
    *(["--train"] if options.train else []),
  ]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
  done = subprocess.run(
    command, env=environment, check=True, stdout=subprocess.PIPE, text=True
  )
  return json.loads(done.stdout.splitlines()[-1])


def run_part(options: argparse.Namespace) -> None:
  import jax

  mesh = jax.make_mesh((jax.device_count(),), ("label",))
  sharding = jax.NamedSharding(mesh, jax.P("label"))
  with jax.set_mesh(mesh):
    figures = PARTS[options.part](options, sharding)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(json.dumps({**figures, "peak": peak}))


def values(shape: tuple[int, int], first: Any) -> Any:
  """Numbers that do not compress, known by their place; a slice of rows."""
  import jax
  import jax.numpy as jnp

  row = jax.lax.broadcasted_iota(jnp.uint32, shape, 0) + first
  column = jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
  x = (row * jnp.uint32(0x9E3779B1)) ^ (column * jnp.uint32(0x85EBCA6B))
  x = (x ^ (x >> 15)) * jnp.uint32(0x2C1B3C6D)
  return (x ^ (x >> 13)).astype(jnp.float32)


def on_shards(function: Any, sharding: Any, *arrays: Any) -> Any:
  """Calls a function of (first row of the shard, shards) where they are."""
  import jax
  import jax.numpy as jnp

  def local(*shards):
    part = jax.lax.axis_index("label").astype(jnp.uint32)
    return function(part, *shards)

  run = jax.shard_map(
    local,
    mesh=sharding.mesh,
    in_specs=sharding.spec,
    out_specs=sharding.spec,
    check_vma=False,
  )
  return jax.jit(run)(*arrays)


def save(options: argparse.Namespace, sharding: Any) -> dict[str, Any]:
  import jax

  from xlj.checkpoint import checkpointer

  per = options.rows // jax.device_count()
  matrix = on_shards(
    lambda part: values((per, options.dim), part * per), sharding
  ).block_until_ready()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  with checkpointer.Checkpointer(options.directory) as keeper:
    begun = time.monotonic()
    keeper.save(1, {"rows": matrix}, {}, {})
    blocked = time.monotonic() - begun
    if options.train:
      step = jax.jit(lambda x: x * 2, donate_argnums=0)
      matrix = step(matrix).block_until_ready()
    keeper.wait()
    seconds = time.monotonic() - begun
  return {"seconds": seconds, "blocked": blocked, "before": before}


def abstract(options: argparse.Namespace, sharding: Any) -> Any:
  import jax

  shape = (options.rows, options.dim)
  return jax.ShapeDtypeStruct(shape, "float32", sharding=sharding)


def restore(options: argparse.Namespace, sharding: Any) -> dict[str, Any]:
  from xlj.checkpoint import checkpointer

  with checkpointer.Checkpointer(options.directory, read_only=True) as keeper:
    begun = time.monotonic()
    found = keeper.restore_newest({"rows": abstract(options, sharding)}, {})
    seconds = time.monotonic() - begun
  check(found[1]["rows"], sharding)
  return {"seconds": seconds}


def restore_by_orbax(
  options: argparse.Namespace, sharding: Any
) -> dict[str, Any]:
  import orbax.checkpoint as ocp

  begun = time.monotonic()
  path = pathlib.Path(options.directory, "1", "model")
  wanted = {"rows": abstract(options, sharding)}
  found = ocp.StandardCheckpointer().restore(path, wanted)
  found["rows"].block_until_ready()
  seconds = time.monotonic() - begun
  check(found["rows"], sharding)
  return {"seconds": seconds}


def check(matrix: Any, sharding: Any) -> None:
  """Compares every number with what was saved."""
  import jax

  def differ(part, shard):
    count, dim = shard.shape
    size = max(1, count // 256)  # all at once would take memory

    def look(i, wrong):
      first = jax.numpy.minimum(i * size, count - size)
      rows = jax.lax.dynamic_slice_in_dim(shard, first, size)
      place = part * count + first.astype("uint32")
      return wrong | (rows != values((size, dim), place)).any()

    return jax.lax.fori_loop(0, -(-count // size), look, False).reshape(1)

  wrong = jax.device_get(on_shards(differ, sharding, matrix))
  assert not wrong.any(), "restored numbers differ"


PARTS = {"save": save, "xlj": restore, "orbax": restore_by_orbax}


if __name__ == "__main__":
  main()
