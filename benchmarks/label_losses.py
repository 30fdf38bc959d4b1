"""What the remedies for missing, wrong and rare labels cost a step.

Times steps of the dense head with each loss in turns, beside the plain binary
cross-entropy or softmax that it is made from. Prints milliseconds, the ratio
to the plain loss (median of the ratios of neighbouring steps), the temporaries
of the compiled step, and last one line of JSON.

  python benchmarks/label_losses.py --L=1000000 --D=128 --N=64
"""

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib
from xlj.losses import assume_negative
from xlj.losses import asymmetric
from xlj.losses import bce
from xlj.losses import focal
from xlj.losses import large_loss
from xlj.losses import logit_adjustment
from xlj.losses import remembered
from xlj.losses import role
from xlj.losses import softmax
from xlj.losses import weighted_bce
from xlj.ops import layout as layout_lib
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib

STEP = 4  # of an epoch each: the fifth epoch
REMEMBERED = 16


def losses(num_labels: int) -> dict[str, tuple[str, Any]]:
  """The plain loss that each is compared with, and the loss, by name."""

  def large(scheme: str, **how: float) -> large_loss.LargeLoss:
    grows = scheme != "correct_forever"
    schedule = large_loss.Schedule(1, 10, grows=grows, **how)
    return large_loss.LargeLoss(schedule, num_labels, scheme)

  return {
    "bce": ("bce", bce.BinaryCrossEntropy()),
    "ll_r": ("bce", large("reject", per_example=0.2)),
    "ll_ct": ("bce", large("correct", per_example=0.2)),
    "ll_cp": ("bce", large("correct_forever", per_example=0.2)),
    "ll_r by threshold": ("bce", large("reject", threshold=2.0, decay=0.1)),
    "ll_ct by threshold": ("bce", large("correct", threshold=2.0, decay=0.1)),
    "wan": ("bce", assume_negative.AssumeNegative(1e-6)),
    "lsan": ("bce", assume_negative.AssumeNegative(smoothing=0.1)),
    # As many estimates as positives, as by default.
    "role": ("bce", role.OnlineEstimation(num_labels, 5.0, 5)),
    "weighted": ("bce", weighted_bce.WeightedBinaryCrossEntropy()),
    "focal": ("bce", focal.Focal(2.0)),
    "asymmetric": ("bce", asymmetric.Asymmetric()),
    "softmax": ("softmax", softmax.Softmax()),
    "elr": ("softmax", remembered.EarlyLearning(REMEMBERED)),
    "ps_kd": (
      "softmax",
      remembered.SelfDistillation(REMEMBERED, num_epochs=10),
    ),
    "adjusted": ("softmax", logit_adjustment.LogitAdjustment()),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--L", type=int, default=1_000_000)
  parser.add_argument("--D", type=int, default=128)
  parser.add_argument("--N", type=int, default=64)
  parser.add_argument("--P", type=int, default=5)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--only", help="names, with commas; by default all")
  options = parser.parse_args()
  with jax.set_mesh(mesh_lib.make_mesh()):
    records = compare(options)
  print(json.dumps(records))


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
  """Compiles all steps and runs them in turns."""
  every = losses(options.L)
  if options.only:
    chosen = options.only.split(",")
    plain = {every[name][0] for name in chosen}
    every = {
      name: pair for name, pair in every.items() if name in plain | set(chosen)
    }
  label_values = make_label_values(options.L)
  batches = {
    name: make_batch(options, getattr(loss, "remembered", REMEMBERED))
    for name, (_, loss) in every.items()
  }
  steps, temporaries = {}, {}
  params = state = None
  for name, (_, loss) in every.items():
    rows = rows_lib.Rows(
      num_labels=options.L,
      dim=options.D,
      optimizer=row_optimizer.RowOptimizer(optax.sgd(0.1)),
      init_scale=0.1,
      init_bias=-5.0,
    )
    head = dense.DenseHead(rows, loss)
    if params is None:
      params, state = start(head)
    x, targets = batches[name]
    arguments = params, state, jnp.int32(STEP), x, None, targets, label_values
    step = jax.jit(head.step, donate_argnums=(0, 1))
    compiled = step.lower(*arguments).compile()
    steps[name] = compiled
    temporaries[name] = compiled.memory_analysis().temp_size_in_bytes
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for round_ in range(options.rounds + 1):
    for name, step in steps.items():
      x, targets = batches[name]
      begun = time.perf_counter()
      params, state, dx, metrics = step(
        params, state, jnp.int32(STEP), x, None, targets, label_values
      )
      jax.block_until_ready((params, state, dx, metrics))
      if round_:  # the first one touches the memory
        seconds[name].append(time.perf_counter() - begun)
  records = []
  for name, (plain, _) in every.items():
    ratio = np.median(np.divide(seconds[name], seconds[plain]))
    record = {
      "loss": name,
      "ms": 1000 * float(np.median(seconds[name])),
      "plain": plain,
      "ratio": float(ratio),
      "temporary_bytes": temporaries[name],
    }
    records.append(record)
    print(
      f"{name:>20}: {record['ms']:7.1f} ms, {ratio:.2f} of {plain},"
      f" {temporaries[name] / 2**20:.0f} MiB of temporaries",
      flush=True,
    )
  return records


def start(head: dense.DenseHead) -> tuple[Any, Any]:
  """Parameters and optimizer state, sharded."""

  def init(key):
    params = head.init(key)
    return params, head.init_optimizer(params)

  specs = head.specs(), head.optimizer_specs()
  placed = sharding.named(jax.sharding.get_mesh(), specs)
  return jax.jit(init, out_shardings=placed)(jax.random.key(0))


def make_batch(options: argparse.Namespace, remembered: int) -> Any:
  """Examples, and their positives and memory."""
  rng = np.random.default_rng(0)
  shape = options.N, remembered
  memory = targets_lib.Memory(
    np.sort(rng.integers(0, options.L, shape).astype(np.int32), 1),
    rng.dirichlet(np.ones(remembered), options.N).astype(np.float32),
  )
  ids = rng.integers(0, options.L, (options.N, options.P)).astype(np.int32)
  return sharding.put_batch(
    (
      rng.normal(size=(options.N, options.D)).astype(np.float32),
      targets_lib.Targets(ids, np.ones(options.N, np.float32), None, memory),
    )
  )


def make_label_values(num_labels: int) -> Any:
  """Values per label, by row."""
  rng = np.random.default_rng(1)
  rows = layout_lib.Layout(num_labels, rows_lib.Rows.blocks).num_rows
  labels = jax.NamedSharding(jax.sharding.get_mesh(), sharding.LABELS)
  values = {
    "positive": np.ones(rows, np.float32),
    "log_prior": rng.normal(size=rows).astype(np.float32),
  }
  return jax.device_put(values, labels)


if __name__ == "__main__":
  main()
