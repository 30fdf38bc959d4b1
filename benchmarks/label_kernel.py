"""The kernels of a label step beside the XLA chunk loop, in the same head.

  python benchmarks/label_kernel.py --L=10000000 --D=64 --N=1024

First both take a step of a small head with sizes that nothing divides, for each
loss and type of rows, and the results are compared; then both are timed at the
given size. `--sweep` also times other tiles. On a CPU kernels are interpreted,
so their times mean nothing there, and the sizes are tiny by default. Prints a
table, and last one line of JSON, a list of objects.

Rooflines are those of an H200: 790 TFLOP/s in bfloat16, 3.9e12 exponentials a
second. The wall of a pass is the greater of the times of its products and of
its exponentials.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib
from xlj.losses import bce
from xlj.losses import softmax
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib
from xlj.ops.kernels import problem

LOSSES = {"softmax": softmax.Softmax(), "bce": bce.BinaryCrossEntropy()}
FLOPS, EXPONENTIALS = 790e12, 3.9e12  # a second
POSITIVES = 4
SIZES = {"cpu": (200, 16, 24), "gpu": (10_000_000, 64, 1024)}  # L, D, N
SWEEP = {  # the sizes of the tile that passes by, or of both
  "statistics": [(128, 64), (128, 128), (128, 256)],
  "gradient": [(128, 32), (128, 64), (128, 128), (64, 128)],
  "update": [(32, 128), (64, 128), (128, 128), (64, 64)],
}
Tile = problem.Tile


def main() -> None:
  options = parse()
  with jax.set_mesh(mesh_lib.make_mesh()):
    records = [check(loss, dtype) for loss, dtype in cases(options)]
    for loss, dtype in cases(options):
      records += measure(loss, dtype, options)
  text = json.dumps(records)
  print(text)
  if options.json:
    options.json.write_text(text + "\n")


def parse() -> argparse.Namespace:
  sizes = SIZES.get(jax.default_backend(), SIZES["gpu"])
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--L", type=int, default=sizes[0], help="labels")
  parser.add_argument("--D", type=int, default=sizes[1], help="width")
  parser.add_argument("--N", type=int, default=sizes[2], help="examples")
  parser.add_argument("--loss", nargs="+", default=sorted(LOSSES))
  parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float8"])
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--sweep", action="store_true", help="time other tiles")
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  return parser.parse_args()


def cases(options: argparse.Namespace) -> list[tuple[str, str]]:
  return list(itertools.product(options.loss, options.dtype))


def make_head(
  num_labels: int, dim: int, loss: str, dtype: str, kernels: bool
) -> dense.DenseHead:
  on = "interpret" if jax.default_backend() == "cpu" else "auto"
  rows = rows_lib.Rows(
    num_labels=num_labels,
    dim=dim,
    optimizer=row_optimizer.sgd(0.1, dtype=dtype),
    blocks=jax.device_count(),
    init_scale=0.5 / dim**0.5,
  )
  head = dense.DenseHead(rows, LOSSES[loss], kernels=on if kernels else "never")
  if kernels and not head.uses_kernels:
    raise SystemExit(head.why_no_kernels() or "no device for kernels")
  return head


def make_batch(num_labels: int, dim: int, num_examples: int) -> tuple[Any, ...]:
  """What `DenseHead.step` takes of a batch."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(num_examples, dim)), jnp.bfloat16)
  first = rng.integers(num_labels, size=(num_examples, 1))
  ids = (first + np.arange(POSITIVES)) % num_labels
  ids[::3, 1:] = -1
  weights = np.ones(num_examples, np.float32)
  targets = targets_lib.Targets(ids.astype(np.int32), weights)
  x, targets = sharding.put_batch((x, targets))
  return x, None, targets


def start(head: dense.DenseHead) -> tuple[Any, Any]:
  """Parameters and state of the optimizer."""
  mesh = jax.sharding.get_mesh()

  def init(key):
    params = head.init(key)
    return params, head.init_optimizer(params)

  specs = head.specs(), head.optimizer_specs()
  return jax.jit(init, out_shardings=sharding.named(mesh, specs))(
    jax.random.key(0)
  )


def check(loss: str, dtype: str) -> dict[str, Any]:
  """Compares a step of both."""
  shards = jax.device_count()
  sizes = (187 * shards + 1, 20, 24 * shards)
  if jax.default_backend() != "cpu":
    sizes = (100_003, 60, 1000 * shards)
  results = []
  for kernels in (False, True):
    head = make_head(*sizes[:2], loss, dtype, kernels)
    params, state = start(head)
    params, _, dx, metrics = jax.jit(head.step)(
      params, state, jnp.zeros((), jnp.int32), *make_batch(*sizes)
    )
    rows = head.label_rows.optimizer.format.decode(params)
    values = dx, rows, params["bias"], metrics["loss"]
    results.append([np.asarray(v, np.float32) for v in values])
  apart = [
    float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*results)
  ]
  same_rows = float((results[0][1] == results[1][1]).mean())
  print(
    f"{loss} {dtype} {sizes}: apart by {apart[0]:.1e} (dx) {apart[1]:.1e} "
    f"(rows) {apart[2]:.1e} (bias) {apart[3]:.1e} (loss) of the greatest; "
    f"{same_rows:.2%} of the rows' numbers are the same",
    flush=True,
  )
  names = ("dx", "rows", "bias", "loss")
  record = {f"{n}_apart": a for n, a in zip(names, apart)}
  return record | {"loss": loss, "dtype": dtype, "same_rows": same_rows}


def measure(
  loss: str, dtype: str, options: argparse.Namespace
) -> list[dict[str, Any]]:
  """Times both, and the kernels with other tiles."""
  sizes = options.L, options.D, options.N
  xla = time_step(sizes, loss, dtype, False, options.steps)
  runs = [("XLA", xla), ("kernels", None)]
  usual = problem.tiles_for(problem.width_of(options.D), dtype, loss, True)
  runs[1] = "kernels", time_step(sizes, loss, dtype, True, options.steps)
  if options.sweep:
    for kernel, tiles in SWEEP.items():
      for tile, stages in itertools.product(tiles, (2, 3)):
        tile = Tile(*tile, stages=stages)
        name = f"{kernel} {tile.examples} x {tile.rows}, {stages} stages"
        runs.append((name, sweep(kernel, tile, usual, sizes, loss, dtype)))
  products = (4 if loss == "softmax" else 3) * 2 * np.prod(sizes, dtype=float)
  wall = wall_seconds(loss, *sizes)
  records = []
  for name, run in runs:
    if run is None:
      print(f"{loss} {dtype} {name}: cannot be compiled")
      continue
    seconds, temporaries = run
    print(
      f"{loss} {dtype} {sizes} {name}: {seconds * 1e3:.2f} ms, "
      f"{products / seconds / 1e12:.1f} TFLOP/s, {wall / seconds:.0%} of the "
      f"wall, {xla[0] / seconds:.2f} times as fast as XLA, "
      f"{temporaries / 2**20:.0f} MiB of temporaries",
      flush=True,
    )
    records.append(
      dict(zip("LDN", sizes))
      | {"loss": loss, "dtype": dtype, "by": name, "time_s": seconds}
      | {"time_vs_xla": seconds / xla[0], "temp_bytes": temporaries}
      | {"wall_fraction": wall / seconds}
    )
  return records


def sweep(kernel: str, tile: Tile, usual: problem.Tiles, *case: Any) -> Any:
  """Times the kernels with another tile; None if it cannot be compiled."""
  tiles_for = problem.tiles_for
  problem.tiles_for = lambda *_: dataclasses.replace(usual, **{kernel: tile})
  try:
    return time_step(*case, True, 5)
  except jax.errors.JaxRuntimeError:  # Too much shared memory.
    return None
  finally:
    problem.tiles_for = tiles_for


def time_step(
  sizes: tuple[int, int, int], loss: str, dtype: str, kernels: bool, steps: int
) -> tuple[float, int]:
  """Seconds of the median step, and bytes of its temporaries."""
  head = make_head(*sizes[:2], loss, dtype, kernels)
  params, state = start(head)
  batch = make_batch(*sizes)
  number = jnp.zeros((), jnp.int32)
  compiled = (
    jax.jit(head.step, donate_argnums=(0, 1))
    .lower(params, state, number, *batch)
    .compile()
  )
  seconds = []
  for _ in range(steps + 1):
    begin = time.perf_counter()
    params, state, *rest = compiled(params, state, number, *batch)
    jax.block_until_ready((params, rest))
    seconds.append(time.perf_counter() - begin)
  temporaries = compiled.memory_analysis().temp_size_in_bytes
  return statistics.median(seconds[1:]), temporaries  # the first warms up


def wall_seconds(loss: str, num_labels: int, dim: int, num: int) -> float:
  """The least time of the passes on H200s, one after the other."""
  logits = num_labels * num / jax.device_count()
  product, exponential = 2 * logits * dim / FLOPS, logits / EXPONENTIALS
  # A sigmoid takes an exponential and a reciprocal, from the same unit.
  units = exponential if loss == "softmax" else 2 * exponential
  passes = [max(2 * product, units)] * 2  # of the examples, and of the rows
  if loss == "softmax":
    passes.append(max(product, units))
  return sum(passes)


if __name__ == "__main__":
  main()
