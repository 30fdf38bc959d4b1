"""The plan's time of a step beside the measured one, on this machine.

  python benchmarks/cost_model.py --json=cost_model.json

For each of five configs, the work that `xlj.planning` counts is divided by what
this machine reaches at most: plain products of matrices of the config's N, D
and type, exponentials, and reading and writing memory. A CPU does one after the
other, so the times add up: products, exponentials, then the traffic of weights,
state and logits. Then real steps of the same config are timed.

A plan for an accelerator divides the same work by its data-sheet; this says how
far the counting is right. Writes a table as `render_tables.py` has it.

Legend: N examples, D width, L labels.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import roofline

from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.config import named
from xlj.model import model as model_lib
from xlj.ops import chunks
from xlj.planning import plan as plan_lib
from xlj.planning import stated
from xlj.planning import work as work_lib

CONFIGS = (
  "num_labels=131072,dim=256,batch_size=256,dtype=float32",
  "num_labels=131072,dim=256,batch_size=256,dtype=float32,loss=bce",
  "num_labels=262144,dim=128,batch_size=256,dtype=float32",
  "num_labels=131072,dim=512,batch_size=128,dtype=float32",
  "num_labels=131072,dim=256,batch_size=256,dtype=bfloat16",
)
MEMORY = 2**28  # bytes that are read and written to see how fast that is
STEPS, TRIALS = 5, 5
COLUMNS = (
  ("labels", "{:,}"),
  ("D", "{:,}"),
  ("N", "{:,}"),
  ("rows, loss", None),
  ("products", "{:.0f} ms"),
  ("exponentials", "{:.0f} ms"),
  ("weights and state", "{:.0f} ms"),
  ("logits", "{:.0f} ms"),
  ("planned", "{:.0f} ms"),
  ("measured", "{:.0f} ms"),
  ("planned / measured", "{:.2f}"),
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  options = parser.parse_args()
  load = os.getloadavg()[0]
  bandwidth = bytes_per_second()
  print(f"memory: {bandwidth / 1e9:.1f} GB/s; load average {load:.1f}")
  rows = []
  for arg in CONFIGS:
    rows.append({"cells": measure(arg, bandwidth)})
    print(json.dumps(rows[-1]), flush=True)
  if options.json:
    kept = {"origin": origin(load), "columns": COLUMNS, "rows": rows}
    options.json.write_text(json.dumps(kept, indent=1) + "\n")


def measure(arg: str, bandwidth: float) -> list[Any]:
  """Plans the step of `billion:ARG`, takes it, and returns a table's cells."""
  asked = named.read(f"billion:{arg},blocks=8")
  asked.head.chunk_bytes = chunks.default_memory()  # a CPU's, not a GPU's
  config = stated.resolve(asked)
  mesh, model = mesh_lib.make_mesh(), model_lib.Model(config)
  with jax.set_mesh(mesh):
    parts = plan_lib.parts(model.abstract())
    work = work_lib.of_step(config, model, parts, 1, 0)
    measured = seconds_of_steps(model, config)
  n, dim = config.train.batch_size, model.head.dim
  flops, exponentials = rates(n, dim, config.data.num_labels, work.narrow_head)
  planned = {
    "products": work.flops / flops,
    "exponentials": work.exponentials / exponentials,
    "state": work.state_bytes / bandwidth,
    "logits": work.logit_bytes / bandwidth,
  }
  total = sum(planned.values())
  milliseconds = [1e3 * s for s in (*planned.values(), total, measured)]
  kind = f"{config.head.dtype}, {config.head.loss}"
  sizes = config.data.num_labels, dim, n
  return [*sizes, kind, *milliseconds, total / measured]


def seconds_of_steps(
  model: model_lib.Model, config: ml_collections.ConfigDict
) -> float:
  """Those of the median training step, on batches that are there."""
  rng = np.random.default_rng(0)

  def random(a: Any) -> np.ndarray:
    if a.dtype == jnp.int32:
      most = min(config.data.num_labels, config.data.num_features)
      return rng.integers(0, most, a.shape, dtype=np.int32)
    return np.ones(a.shape, np.float32)

  batch = sharding.put_batch(jax.tree.map(random, stated.batch(config)))
  shapes = model.abstract()
  by_label = shapes.model["buffers"].get("label_ids")
  count = None if by_label is None else jnp.ones(by_label.shape, jnp.int32)
  idf = jnp.ones(config.data.num_features)
  state = model.init(jax.random.key(0), count, count, idf)
  step = jax.jit(model.train_step, donate_argnums=0)
  seconds = []
  for _ in range(STEPS + 2):
    began = time.perf_counter()
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    seconds.append(time.perf_counter() - began)
  return statistics.median(seconds[2:])


def rates(
  n: int, dim: int, num_labels: int, narrow: bool
) -> tuple[float, float]:
  """Flops a second in plain products, and exponentials a second."""
  size = min(num_labels, max(2**15, 2**27 // (4 * n)))
  dtype = jnp.bfloat16 if narrow else jnp.float32
  keys = jax.random.split(jax.random.key(0))
  x, rows = (
    jax.random.normal(key, (count, dim), dtype)
    for key, count in zip(keys, (n, size))
  )
  machine = roofline.Roofline(x, rows)
  products = min(
    sum((machine.products() | machine.fastest_products()).values())
    for _ in range(TRIALS)
  )
  # As many as a step takes at a time, which stay in the caches.
  itemsize = (4 + dtype(0).itemsize) / 2
  chunk = chunks.chunk_size(chunks.default_memory(), size, n, dim, itemsize)
  part = roofline.Roofline(x, rows[:chunk])
  exponentials = min(part.exponentials() for _ in range(TRIALS))
  return 3 * 2.0 * n * dim * size / products, n * chunk / exponentials


def bytes_per_second() -> float:
  """Of an array that is read and written where it lies."""
  a = jnp.zeros(MEMORY // 4)
  add = jax.jit(lambda a: a + 1, donate_argnums=0)
  seconds = []
  for _ in range(TRIALS + 1):
    began = time.perf_counter()
    a = jax.block_until_ready(add(a))
    seconds.append(time.perf_counter() - began)
  return 2 * MEMORY / min(seconds[1:])


def origin(load: float) -> dict[str, Any]:
  """Where the figures come from."""
  here = pathlib.Path(__file__).parent
  commit = subprocess.run(
    ["git", "rev-parse", "--short=8", "HEAD"],
    cwd=here,
    stdout=subprocess.PIPE,
    text=True,
  ).stdout.strip()
  names = pathlib.Path("/proc/cpuinfo")
  lines = names.read_text().splitlines() if names.exists() else []
  kinds = [s.partition(": ")[2] for s in lines if s.startswith("model name")]
  return {
    "machine": kinds[0] if kinds else "not known",
    "cores": os.cpu_count(),
    "commit": commit or None,
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "seeds": "one; times only",
    "load": f"load average {load:.1f} at the start",
    "command": "python benchmarks/cost_model.py",
  }


if __name__ == "__main__":
  main()
