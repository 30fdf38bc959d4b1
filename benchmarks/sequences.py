"""An epoch on sequences of items: the exact softmax, and sampled ones.

  python benchmarks/sequences.py --data=DIR --name=Beauty --json=FILE

Trains `configs/sequences.py:NAME` for an epoch with the softmax over all items,
then with one over a few drawn at random (`head.sampled`), and the same layers
in PyTorch with that (`torch_sequences.py`), all on the same batches. Sides take
turns, each in a process of its own, after a step on every shape; what is told
is the least of their seconds, and of those that their threads were computing,
which other work on the machine leaves as they are.

  python benchmarks/sequences.py --items=10000000 [--devices=8]

The exact loss of so many items, its gradients, and what memory they take: that
of the rows, of their gradient, and of a chunk. Devices are simulated, and the
loss and the norms of the gradients are the same on any number of them.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import contestant
import environments
import numpy as np

HERE = pathlib.Path(__file__).parent
SIDES = ("exact", "sampled", "torch")
DIM, PLACES = 64, 256  # of the loss over many items


def main() -> None:
  options = parse()
  if options.items:
    print(json.dumps(many_items(options.items, options.devices)))
  elif options.side:
    print(json.dumps({"seconds": epoch(options)}))
  else:
    compare(options)


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data", help="directory of NAME.txt")
  parser.add_argument("--name", default="Beauty")
  parser.add_argument("--sampled", type=int, default=256, help="items drawn")
  parser.add_argument("--turns", type=int, default=2)
  parser.add_argument("--torch_python", help="an interpreter with PyTorch")
  parser.add_argument("--json", help="where the table of figures goes")
  parser.add_argument("--items", type=int, default=0, help="see above")
  parser.add_argument("--devices", type=int, default=1)
  parser.add_argument("--side", choices=SIDES[:2], help=argparse.SUPPRESS)
  parser.add_argument("--batches", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if not options.items and not options.data:
    parser.error("give --data, or --items")
  return options


# --- an epoch ----------------------------------------------------------------


def prepared(options: argparse.Namespace, sampled: int = 0) -> Any:
  """The config of a side, resolved, and the data."""
  from xlj.config import named
  from xlj.training import preparation

  config = named.read(f"sequences:{options.name}")
  config.data.dir = options.data
  config.head.sampled = sampled
  return preparation.prepare(config)


def write_batches(options: argparse.Namespace, path: str) -> dict[str, Any]:
  """Writes those of an epoch; gives the settings of PyTorch's side."""
  from xlj.config import training
  from xlj.model import batches

  config, data = prepared(options)
  steps = training.steps_per_epoch(config)
  found = batches.for_training(
    *(config, data.split, data.weighting), rows=data.rows, sampler=data.sampler
  )
  arrays = {}
  for i, batch in zip(range(steps), found):
    inputs = batches.to_inputs(batch, type(data.order).identity(), every=True)
    there = batch.feature_values != 0
    ages = there.sum(1, keepdims=True) - 1 - np.arange(there.shape[1])
    arrays |= {
      f"ids_{i}": batch.feature_ids,
      f"ages_{i}": np.where(there, ages, -1),
      f"labels_{i}": inputs.label_ids,
    }
  np.savez(path, **arrays)
  return {
    "num_items": config.data.num_labels,
    "dim": config.encoder.dim,
    "positions": config.encoder.sizes.positions,
    "dropout": config.encoder.hidden_dropout,
    "item_dropout": config.encoder.feature_dropout,
    "learning_rate": config.optim.encoder.learning_rate,
    "sampled": options.sampled,
  }


def epoch(options: argparse.Namespace) -> list[float]:
  """Seconds of an epoch of xlj, and those of its threads."""
  import jax

  from xlj import mesh as mesh_lib
  from xlj import sharding
  from xlj.config import training
  from xlj.model import batches
  from xlj.model import model as model_lib

  sampled = options.sampled if options.side == "sampled" else 0
  config, data = prepared(options, sampled)
  with jax.set_mesh(mesh_lib.make_mesh()):
    model = model_lib.Model(config)
    counts = np.bincount(
      data.split.labels.indices, minlength=config.data.num_labels
    )
    state = model.init(
      sharding.replicate(jax.random.key(0)),
      model.by_row(data.order.data_ids, -1),
      model.by_row(counts[data.order.data_ids].astype(np.int32), 0),
      sharding.replicate(np.ones(config.data.num_features, np.float32)),
    )
    step = jax.jit(model.train_step, donate_argnums=0)
    steps = training.steps_per_epoch(config)
    found = batches.for_training(
      *(config, data.split, data.weighting),
      rows=data.rows,
      sampler=data.sampler,
    )
    inputs = [
      sharding.put_batch(batches.to_inputs(batch, data.order, every=True))
      for _, batch in zip(range(steps), found)
    ]
    shapes = {i.feature_ids.shape: i for i in inputs}
    for each in shapes.values():
      state, metrics = step(state, each)
    jax.block_until_ready(state)
    start = time.perf_counter(), time.process_time()
    for each in inputs:
      state, metrics = step(state, each)
    jax.block_until_ready((state, metrics))
    ends = time.perf_counter(), time.process_time()
  return [b - a for a, b in zip(start, ends)]


def compare(options: argparse.Namespace) -> None:
  """Times all sides in turns; writes the table."""
  torch_python = environments.find(environments.TORCH, options.torch_python)
  best: dict[str, list[float]] = {}
  with tempfile.TemporaryDirectory() as directory:
    path = os.path.join(directory, "batches.npz")
    settings = json.dumps(write_batches(options, path))
    here = [sys.executable, __file__, *sys.argv[1:]]
    commands = {side: [*here, f"--side={side}"] for side in SIDES[:2]}
    if torch_python:
      file = str(HERE / "torch_sequences.py")
      commands["torch"] = [torch_python, file, path, settings]
    for _ in range(options.turns):
      for side, command in commands.items():
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        seconds = json.loads(run.stdout.splitlines()[-1])["seconds"]
        best[side] = [*map(min, zip(seconds, best.get(side, seconds)))]
        print(side, *(f"{s:.1f}" for s in seconds), flush=True)
  if options.json:
    names = {
      "exact": "xlj, all items",
      "sampled": f"xlj, {options.sampled} sampled items",
      "torch": f"PyTorch, {options.sampled} sampled items",
    }
    table = {
      "columns": [
        [f"an epoch of {options.name}", None],
        ["seconds", "{:.1f}"],
        ["seconds of all threads", "{:.1f}"],
      ],
      "rows": [{"cells": [names[s], *best[s]]} for s in best],
    }
    pathlib.Path(options.json).write_text(json.dumps(table, indent=1) + "\n")


# --- many items --------------------------------------------------------------


def many_items(count: int, devices: int) -> dict[str, Any]:
  """The exact loss over so many items, and what memory it takes."""
  os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + f" --xla_force_host_platform_device_count={devices}"
  )
  import jax
  import jax.numpy as jnp

  from xlj import mesh as mesh_lib
  from xlj import sharding
  from xlj.losses import softmax
  from xlj.ops import label_pass
  from xlj.ops import rounding
  from xlj.ops import targets as targets_lib

  def rows_of(seed, numbers):
    bits = rounding.hash_bits(seed, 0, numbers, jnp.arange(DIM))
    return 0.1 * ((bits >> 9).astype(jnp.float32) * 2.0**-22 - 1)

  with jax.set_mesh(mesh_lib.make_mesh()):

    @jax.shard_map(in_specs=sharding.REPLICATED, out_specs=sharding.LABELS)
    def make(seed):
      numbers = sharding.own_rows(count).astype(jnp.int32)
      return rows_of(seed, numbers)

    rows = jax.jit(make)(jnp.uint32(1))
    ids = np.arange(PLACES, dtype=np.int32) * (count // PLACES)
    x = 10 * np.asarray(rows_of(jnp.uint32(1), jnp.asarray(ids)))
    batch = x, targets_lib.Targets(ids[:, None], np.ones(PLACES, np.float32))
    x, targets = sharding.put_batch(batch)

    def loss(x, rows):
      return label_pass.label_loss(x, rows, None, targets, softmax.Softmax())

    step = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, rows).compile()
    temporaries = step.memory_analysis().temp_size_in_bytes
    start = time.perf_counter(), time.process_time()
    value, (dx, drows) = jax.block_until_ready(step(x, rows))
    ends = time.perf_counter(), time.process_time()
    peak = contestant.process_bytes("VmHWM")
    norms = [float(jnp.sqrt(jnp.sum(a * a))) for a in (dx, drows)]
  return {
    "items": count,
    "devices": devices,
    "loss": float(value),
    "gradient_norms": norms,
    "seconds": [b - a for a, b in zip(start, ends)],
    "rows_bytes": rows.nbytes,
    "temporaries_bytes": temporaries,
    "peak_bytes": peak,
  }


if __name__ == "__main__":
  main()
