"""What saving costs the steps of a run: in the background, and blocking.

Trains a dense head for the same number of steps four times: without saving,
with xlj's Checkpointer, which writes while steps go on, with Orbax's blocking
one, and with `numpy.save` between steps. The state is rows and Adam's moments.
Prints the seconds of each and last one line of JSON with the ratios to the run
that does not save.

  python benchmarks/checkpoint_steps.py --L=1000000 --D=128 --every=20
"""

import argparse
from collections.abc import Callable
import functools
import json
import pathlib
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.checkpoint import checkpointer
from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib
from xlj.losses import softmax
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--L", type=int, default=1_000_000)
  parser.add_argument("--D", type=int, default=128)
  parser.add_argument("--N", type=int, default=64)
  parser.add_argument("--steps", type=int, default=60)
  parser.add_argument("--every", type=int, default=20)
  parser.add_argument("--directory", help="where; by default a temporary one")
  options = parser.parse_args()
  seconds = {}
  with jax.set_mesh(mesh_lib.make_mesh()):
    step, state = make(options)
    size = sum(a.nbytes for a in jax.tree.leaves(state))
    print(f"state: {size / 2**30:.2f} GiB, saved every {options.every} steps")
    for name, start in SAVERS.items():
      with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        save, finish = start(pathlib.Path(directory))
        state, times, begun = run(step, state, save, options)
        ended = time.perf_counter()
        finish()
        whole = time.perf_counter() - begun
      seconds[name] = ended - begun
      print(
        f"{name:>10}: {seconds[name]:6.2f} s for {options.steps} steps, median"
        f" {1000 * np.median(times):.0f} ms, longest {1000 * max(times):.0f}"
        f" ms; {whole:.2f} s until all is saved",
        flush=True,
      )
  ratios = {name: s / seconds["none"] for name, s in seconds.items()}
  saves = options.steps // options.every
  cost = {name: (s - seconds["none"]) / saves for name, s in seconds.items()}
  for name in list(SAVERS)[1:]:
    print(
      f"{name:>10}: {ratios[name]:.3f} of the time without saving,"
      f" {cost[name]:.2f} s a save"
    )
  print(json.dumps({"bytes": size, "seconds": seconds, "ratios": ratios}))


def make(options: argparse.Namespace) -> tuple[Any, Any]:
  """A compiled step of a state, and the state."""
  optimizer = row_optimizer.RowOptimizer(optax.adam(1e-3))
  rows = rows_lib.Rows(options.L, options.D, optimizer, init_scale=0.05)
  head = dense.DenseHead(rows, softmax.Softmax())
  rng = np.random.default_rng(0)
  batch = sharding.put_batch(
    (
      rng.normal(size=(options.N, options.D)).astype(np.float32),
      targets_lib.Targets(
        rng.integers(0, options.L, (options.N, 1)).astype(np.int32),
        np.ones(options.N, np.float32),
      ),
    )
  )

  def init(key):
    params = head.init(key)
    return params, head.init_optimizer(params)

  specs = head.specs(), head.optimizer_specs()
  placed = sharding.named(jax.sharding.get_mesh(), specs)
  state = jax.jit(init, out_shardings=placed)(jax.random.key(0))

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, number, x, targets):
    params, opt, _, metrics = head.step(*state, number, x, None, targets)
    return (params, opt), metrics["loss"]

  def next_step(state, number):
    return step(state, jnp.int32(number), *batch)

  state, loss = next_step(state, 0)
  jax.block_until_ready((state, loss))
  return next_step, state


def run(
  step: Any,
  state: Any,
  save: Callable[[int, Any], None],
  options: argparse.Namespace,
) -> tuple[Any, list[float], float]:
  """The state after all steps, the seconds of each, and when they began."""
  times, begun = [], time.perf_counter()
  for number in range(1, options.steps + 1):
    before = time.perf_counter()
    state, loss = step(state, number)
    jax.block_until_ready((state, loss))
    if number % options.every == 0:
      save(number, state)
    times.append(time.perf_counter() - before)
  return state, times, begun


def nothing(directory: pathlib.Path) -> Any:
  return lambda number, state: None, lambda: None


def xlj_saves(directory: pathlib.Path) -> Any:
  keeper = checkpointer.Checkpointer(directory)

  def save(number, state):
    keeper.save(number, state[0], state[1], {})

  return save, keeper.close


def orbax_saves(directory: pathlib.Path) -> Any:
  writer = ocp.Checkpointer(ocp.StandardCheckpointHandler())

  def save(number, state):
    writer.save(directory / str(number), args=ocp.args.StandardSave(state))

  return save, writer.close


def numpy_saves(directory: pathlib.Path) -> Any:
  def save(number, state):
    for i, array in enumerate(jax.tree.leaves(state)):
      np.save(directory / f"{i}.npy", np.asarray(array))

  return save, lambda: None


SAVERS = {
  "none": nothing,
  "xlj": xlj_saves,
  "orbax": orbax_saves,
  "numpy": numpy_saves,
}

if __name__ == "__main__":
  main()
