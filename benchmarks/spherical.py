"""Steps whose time does not depend on the number of labels, timed.

  python benchmarks/spherical.py --json=out.json --figure=out.png

For each number of labels L, steps of SGD with the Z-loss in factored form
(`xlj.heads.spherical`), and of the same loss through the dense head, on the
same examples, both with rows in place. A row is multiplied out every so many
steps (`SphericalHead.refactor_every`), which does take time that grows with L:
`refactor_s` is that of once, `factored_s` is `step_s` with its share of it, and
`factored_vs_dense` the ratio of `factored_s` to `dense_s`.

Times are medians; `fastest_s` and `dense_fastest_s` are the least of steps,
which other work on the machine disturbs less. The dense side is run up to
--dense_up_to labels. Labels of examples are uniform: no row is likely to be in
a cache from the step before.
"""

import argparse
from collections.abc import Callable, Iterator
import json
import pathlib
import statistics
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
from xlj.heads.spherical import head as spherical
from xlj.losses import spherical as spherical_losses
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib

RATE = 1.0
Step = Callable[..., Any]


def main() -> None:
  options = parse()
  records = []
  with jax.set_mesh(mesh_lib.make_mesh()):
    for num_labels in options.L:
      records.append(measure(num_labels, options))
      print(line(records[-1]), flush=True)
  if options.json:
    options.json.write_text(json.dumps(records, indent=1) + "\n")
  if options.figure:
    draw(records, options.figure)


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  numbers = "10000,30000,100000,300000,1000000,3000000,10000000"
  parser.add_argument("--L", default=numbers, help="labels, with commas")
  parser.add_argument("--D", type=int, default=64, help="width")
  parser.add_argument("--N", type=int, default=128, help="examples of a step")
  parser.add_argument("--steps", type=int, default=50, help="factored ones")
  parser.add_argument("--dense_steps", type=int, default=3)
  parser.add_argument("--dense_up_to", type=int, default=1_000_000)
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  parser.add_argument("--figure", type=pathlib.Path, help="file to write")
  options = parser.parse_args()
  options.L = [int(number) for number in options.L.split(",")]
  return options


def measure(num_labels: int, options: argparse.Namespace) -> dict[str, Any]:
  """Times both forms with so many labels."""
  head = make_head(num_labels, options)
  seconds, memory = run(head, options.steps, options)
  step_s = statistics.median(seconds)
  refactor_s = time_refactoring(head, options)
  record = {
    "L": num_labels,
    "D": options.D,
    "N": options.N,
    "step_s": step_s,
    "fastest_s": min(seconds),
    "refactor_s": refactor_s,
    "refactor_every": head.refactor_every,
    "factored_s": step_s + refactor_s / head.refactor_every,
    "factored_temporary_bytes": memory.temp_size_in_bytes,
    "dense_s": None,
    "dense_fastest_s": None,
    "factored_vs_dense": None,
  }
  if num_labels <= options.dense_up_to:
    seconds, _ = run(head.labels, options.dense_steps, options)
    dense_s = statistics.median(seconds)
    record |= {
      "dense_s": dense_s,
      "dense_fastest_s": min(seconds),
      "factored_vs_dense": record["factored_s"] / dense_s,
    }
  return record


def make_head(
  num_labels: int, options: argparse.Namespace, refactor_every: int = 1000
) -> spherical.SphericalHead:
  """The factored head, which holds the dense one."""
  threshold = spherical_losses.threshold_of(num_labels)
  schedule = optax.constant_schedule(RATE)
  rows = rows_lib.Rows(
    num_labels=num_labels,
    dim=options.D,
    optimizer=row_optimizer.RowOptimizer(
      optax.sgd(schedule), plain=row_optimizer.Sgd(schedule)
    ),
    use_bias=False,
    blocks=jax.device_count(),
    init_scale=0.05,
  )
  loss = spherical_losses.ZLoss(num_labels, threshold)
  labels = dense.DenseHead(rows, spherical_losses.Spherical(loss))
  return spherical.SphericalHead(labels, refactor_every)


def run(
  head: Any, steps: int, options: argparse.Namespace
) -> tuple[list[float], Any]:
  """The seconds of steps, and the memory of the compiled one.

  Args:
    head: Either form.
    steps: How many are timed; one goes before them.
    options: Of the command line.

  Returns:
    See above.
  """
  params, state = start(head)
  stream = batches(head.layout.num_labels, options)
  step, memory = compiled(head, params, state, next(stream))
  seconds = []
  for i in range(steps + 1):
    batch = next(stream)
    count = sharding.replicate(jnp.int32(i))
    begin = time.perf_counter()
    params, state, dx, metrics = step(params, state, count, *batch)
    jax.block_until_ready((params, dx, metrics))
    seconds.append(time.perf_counter() - begin)
  return seconds[1:], memory


def time_refactoring(
  head: spherical.SphericalHead, options: argparse.Namespace
) -> float:
  """Seconds of a step in which V is multiplied out, less those of another."""
  params, state = start(head)
  stream = batches(head.layout.num_labels, options)
  step, _ = compiled(head, params, state, next(stream))
  seconds = {False: [], True: []}
  for i in range(6):
    due = i % 2 == 1
    count = sharding.replicate(jnp.int32(head.refactor_every - 1 if due else 0))
    batch = next(stream)
    begin = time.perf_counter()
    params, state, dx, _ = step(params, state, count, *batch)
    jax.block_until_ready((params, dx))
    seconds[due].append(time.perf_counter() - begin)
  plain, multiplied = (min(seconds[due]) for due in (False, True))
  return max(0.0, multiplied - plain)


def start(head: Any) -> tuple[Any, Any]:
  """Parameters and optimizer state on the mesh in context."""
  mesh = jax.sharding.get_mesh()
  specs = head.specs(), head.optimizer_specs()

  def init(key):
    params = head.init(key)
    return params, head.init_optimizer(params)

  put = sharding.named(mesh, specs)
  return jax.block_until_ready(
    jax.jit(init, out_shardings=put)(jax.random.key(0))
  )


def compiled(
  head: Any, params: Any, state: Any, batch: tuple[Any, ...]
) -> tuple[Step, Any]:
  """A step that donates, and what memory it needs."""
  count = sharding.replicate(jnp.int32(0))
  step = (
    jax.jit(head.step, donate_argnums=(0, 1))
    .lower(params, state, count, *batch)
    .compile()
  )
  return step, step.memory_analysis()


def batches(
  num_labels: int, options: argparse.Namespace
) -> Iterator[tuple[Any, ...]]:
  """Yields what a step takes of a batch, the same from each start."""
  rng = np.random.default_rng(0)
  while True:
    ids = rng.integers(0, num_labels, (options.N, 1), dtype=np.int32)
    x = rng.normal(size=(options.N, options.D)).astype(np.float32)
    targets = targets_lib.Targets(ids, np.ones(options.N, np.float32))
    x, targets = sharding.put_batch((x, targets))
    yield x, None, targets


def line(record: dict[str, Any]) -> str:
  """What is printed of a number of labels."""
  text = (
    f"{record['L']:>11,} labels: step {1e3 * record['step_s']:8.2f} ms "
    f"(fastest {1e3 * record['fastest_s']:.2f}), "
    f"multiplied out in {record['refactor_s']:7.3f} s, with its share "
    f"{1e3 * record['factored_s']:8.2f} ms"
  )
  if record["dense_s"] is None:
    return text
  return (
    f"{text}; dense {1e3 * record['dense_s']:9.1f} ms, "
    f"{1 / record['factored_vs_dense']:.1f} times as long"
  )


def draw(records: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Draws times against numbers of labels."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(6, 4))
  for name, label in (
    ("dense_s", "dense"),
    ("factored_s", "factored, with its share of multiplying out"),
    ("step_s", "factored, the step alone"),
    ("fastest_s", "the fastest of these"),
  ):
    points = [(r["L"], 1e3 * r[name]) for r in records if r[name] is not None]
    axes.loglog(*zip(*points), marker="o", label=label)
  first = records[0]
  axes.set(
    xlabel="labels",
    ylabel="ms",
    title=f"SGD with the Z-loss, width {first['D']}, {first['N']} examples",
  )
  axes.legend()
  axes.grid(alpha=0.3)
  figure.tight_layout()
  figure.savefig(path, dpi=150)
  pyplot.close(figure)


if __name__ == "__main__":
  main()
