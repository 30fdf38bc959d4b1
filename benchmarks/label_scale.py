"""As many labels as the machine holds: steps of xlj's dense head, timed.

  python benchmarks/label_scale.py --L=100000000 --D=64 --N=64
  python benchmarks/label_scale.py --L=1000000000 --D=64 --N=1024

An example is a vector of random signs that belongs to its label, with noise, so
nothing but the label rows is as large as the labels are many. Every step takes
the same N labels with noise of its own; the loss has to fall. After that, the
plain matrix products of a step and its exponentials are timed by themselves, on
fewer rows. Prints each step, and last one line of JSON.

The peak of memory is that of the whole process on CPUs, that of the device's
allocator on GPUs.
"""

import argparse
from collections.abc import Iterator
import json
import os
import pathlib
import statistics
import time
from typing import Any

import contestant
import jax
import jax.numpy as jnp
import numpy as np
import optax
import roofline

from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib
from xlj.losses import bce
from xlj.losses import softmax
from xlj.ops import rounding
from xlj.ops import row_format
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib

LOSSES = {"softmax": softmax.Softmax(), "bce": bce.BinaryCrossEntropy()}
NOISE = 0.5  # standard deviation
# What the products of the roofline may take: many times the caches.
ROOFLINE_BYTES = {"cpu": 2**28, "gpu": 2**32}
GIB = 2**30


def main() -> None:
  options = parse()
  # For matrices of more than the three quarters of a GPU that JAX takes.
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.97")
  mesh = mesh_lib.make_mesh()
  with jax.set_mesh(mesh):
    record = train(mesh, options)
  limits = measure_limits(options)  # once the rows have left room
  record |= limits
  step_s = record["step_s"]
  # Without statistics the logits are needed once, else twice.
  passes = 2 if options.loss == "softmax" and not options.keep_logits else 1
  flops = (2 + passes) * 2 * options.N * options.D * options.L
  products_s, exponentials_s = limits["products_s"], limits["exponentials_s"]
  record |= {
    "examples_per_s": options.N / step_s,
    "tflops_per_s": flops / step_s / 1e12,
    "fastest_roofline_fraction": products_s / step_s,
    "wall_fraction": max(products_s, exponentials_s) / step_s,
  }
  print(
    f"median step {step_s:.3f} s: {record['examples_per_s']:.1f} examples/s, "
    f"{record['tflops_per_s']:.3f} TFLOP/s in {2 + passes} products; peak "
    f"memory {gib(record['peak_bytes'])}\n"
    f"three plain products would take {products_s:.3f} s, two exponentials a "
    f"logit {exponentials_s:.3f} s: {products_s / step_s:.0%} and "
    f"{exponentials_s / step_s:.0%} of a step"
  )
  text = json.dumps(record)
  print(text)
  if options.json:
    options.json.write_text(text + "\n")
  losses = record["losses"]
  if len(losses) > 1 and not losses[-1] < losses[0]:
    raise SystemExit("the loss did not fall")


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--L", type=int, default=1_000_000, help="labels")
  parser.add_argument("--D", type=int, default=64, help="width")
  parser.add_argument("--N", type=int, default=64, help="examples of a step")
  parser.add_argument(
    "--dtype", default="bfloat16", choices=row_format.DTYPES, help="of rows"
  )
  parser.add_argument("--loss", default="softmax", choices=sorted(LOSSES))
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--learning_rate", type=float, help="of SGD")
  parser.add_argument("--chunk_size", type=int, help="labels of a chunk")
  parser.add_argument("--keep_logits", help="their type, if at all")
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  options = parser.parse_args()
  if options.learning_rate is None:
    # One step raises the logit of an example's label by about one.
    rate = options.N / options.D
    options.learning_rate = rate if options.loss == "softmax" else min(1, rate)
  return options


def train(mesh: jax.sharding.Mesh, options: argparse.Namespace) -> dict:
  """Makes the rows, takes the steps, and returns what was measured."""
  rows = rows_lib.Rows(
    num_labels=options.L,
    dim=options.D,
    optimizer=row_optimizer.RowOptimizer(
      optax.sgd(options.learning_rate), dtype=options.dtype
    ),
    use_bias=False,
    blocks=jax.device_count(),
    init_scale=0.05,
    chunk_size=options.chunk_size,
    keep_logits=options.keep_logits,
  )
  head = dense.DenseHead(rows, LOSSES[options.loss])

  def init(key):
    params = head.init(key)
    return params, head.init_optimizer(params)

  specs = head.specs(), head.optimizer_specs()
  start = time.perf_counter()
  params, opt_state = jax.block_until_ready(
    jax.jit(init, out_shardings=sharding.named(mesh, specs))(jax.random.key(0))
  )
  weight_bytes = sum(a.nbytes for a in jax.tree.leaves(params))
  print(
    f"{options.L:,} x {options.D} {options.dtype} label rows, "
    f"{gib(weight_bytes)}, made in {time.perf_counter() - start:.1f} s",
    flush=True,
  )
  stream = batches(options)
  step_number = jnp.zeros((), jnp.int32)
  compiled = (
    jax.jit(head.step, donate_argnums=(0, 1))
    .lower(params, opt_state, step_number, *next(stream))
    .compile()
  )
  temporaries = compiled.memory_analysis().temp_size_in_bytes
  print(f"temporaries of the compiled step: {temporaries / 2**20:.1f} MiB")
  seconds, losses = [], []
  for i in range(options.steps):
    batch = next(stream)
    start = time.perf_counter()
    params, opt_state, dx, metrics = compiled(
      params, opt_state, step_number + i, *batch
    )
    jax.block_until_ready((params, opt_state, dx, metrics))
    seconds.append(time.perf_counter() - start)
    losses.append(float(metrics["loss"]))
    print(f"step {i}: {seconds[-1]:.3f} s, loss {losses[-1]:.4f}", flush=True)
  return {
    "num_labels": options.L,
    "dim": options.D,
    "examples": options.N,
    "dtype": options.dtype,
    "loss": options.loss,
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "step_s": statistics.median(seconds),
    "losses": losses,
    "weight_bytes": weight_bytes,
    "temp_bytes": temporaries,
    "peak_bytes": peak_bytes(),
  }


def batches(options: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
  """Yields what `DenseHead.step` takes of a batch, for ever."""
  rng = np.random.default_rng(0)
  ids = rng.choice(options.L, options.N, replace=options.N > options.L)
  columns = jnp.arange(options.D)
  bits = rounding.hash_bits(0, 0, jnp.asarray(ids, jnp.int32), columns)
  signs = 1 - 2 * (np.asarray(bits) >> 31).astype(np.float32)  # [N, D]
  dtype = jnp.float32 if options.dtype == "float32" else jnp.bfloat16
  while True:
    order = rng.permutation(options.N)
    x = signs[order] + NOISE * rng.normal(size=signs.shape)
    targets = targets_lib.Targets(
      ids[order].astype(np.int32)[:, None], np.ones(options.N, np.float32)
    )
    x, targets = sharding.put_batch((x.astype(dtype), targets))
    yield x, None, targets


def measure_limits(options: argparse.Namespace) -> dict[str, float]:
  """Seconds that plain products and exponentials of a step would take.

  Args:
    options: Of the command line.

  Returns:
    Those of the three products, their operands laid out as is fastest, and of
    two exponentials a logit, on all devices together.
  """
  size = ROOFLINE_BYTES.get(jax.default_backend(), 2**32) // (4 * options.N)
  size = min(options.L, size)
  dtype = jnp.float32 if options.dtype == "float32" else jnp.bfloat16
  keys = jax.random.split(jax.random.key(0))
  x, rows = (
    jax.random.normal(key, (number, options.D), dtype)
    for key, number in zip(keys, (options.N, size))
  )
  machine = roofline.Roofline(x, rows)
  factor = options.L / size / jax.device_count()
  products = [
    sum((machine.products() | machine.fastest_products()).values())
    for _ in range(5)
  ]
  exponentials = [2 * machine.exponentials() for _ in range(5)]
  return {
    "products_s": factor * min(products),
    "exponentials_s": factor * min(exponentials),
  }


def peak_bytes() -> int | None:
  """The most memory that was ever in use; see the top of this file."""
  if jax.default_backend() == "cpu":
    return contestant.process_bytes("VmHWM")
  return max(d.memory_stats()["peak_bytes_in_use"] for d in jax.local_devices())


def gib(count: int | None) -> str:
  return "not known" if count is None else f"{count / GIB:.2f} GiB"


if __name__ == "__main__":
  main()
