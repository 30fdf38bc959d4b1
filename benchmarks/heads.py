"""Which head: accuracy, time and memory of each, on one data set.

  python benchmarks/heads.py --data_dir=DIR --set=citeulike_tags --json=out.json

Trains the same encoder for the same number of epochs with the dense head, the
cascade (mhc; with labels clustered into groups, and with labels dealt out to
them by frequency), sampled groups (mhs) and, with --heads, the product of
digits (mhp). Each is trained and evaluated by the launchers, in processes of
its own. Then steps and predictions of all trained models are timed in turns, on
the same batches.

Columns: percent on the test split; the share of labels that an example is
scored against in training; seconds of training; step and top-5 prediction in ms
per 512 examples (medians), and their ratio to the dense head's; numbers in the
head's parameters.
"""

import argparse
import json
import os
import pathlib
import statistics as python_statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax

from xlj import heads as heads_lib
from xlj import sharding
from xlj.config import heads as heads_config
from xlj.data import pipeline
from xlj.model import batches
from xlj.model import model as model_lib
from xlj.runs import directory
from xlj.training import preparation

ROOT = pathlib.Path(__file__).parents[1]
HEADS = {
  "dense": ("dense", ()),
  "mhc": ("mhc", ()),
  "mhc unclustered": ("mhc", ("--config.head.order=frequency",)),
  "mhs": ("mhs", ()),
  "mhp": ("mhp", ()),
}


def main() -> None:
  options = parse()
  workdir = pathlib.Path(options.workdir or tempfile.mkdtemp())
  records = {}
  for name in options.heads:
    place = workdir / name.replace(" ", "_")
    records[name] = run(name, place, options)
  places = {name: workdir / name.replace(" ", "_") for name in options.heads}
  for name, times in time_all(places, options.rounds).items():
    records[name] |= times
  print_table(records)
  if options.json:
    options.json.write_text(json.dumps(records, indent=1) + "\n")


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--set", default="", help="a set of configs/xmc.py")
  parser.add_argument("--heads", default="dense,mhc,mhc unclustered,mhs")
  parser.add_argument("--epochs", type=float, default=4.0)
  parser.add_argument("--rounds", type=int, default=10, help="steps timed")
  parser.add_argument("--workdir", help="kept there; trained ones are used")
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  parser.add_argument("config", nargs="*", help="more flags, after --")
  options = parser.parse_args()
  options.heads = options.heads.split(",")
  unknown = set(options.heads) - set(HEADS)
  if unknown:
    parser.error(f"heads are {', '.join(HEADS)}; got {', '.join(unknown)}")
  return options


def run(
  name: str, workdir: pathlib.Path, options: argparse.Namespace
) -> dict[str, Any]:
  """Trains and evaluates one head."""
  head, extra = HEADS[name]
  known = workdir / "benchmark.json"
  if known.exists():
    return json.loads(known.read_text())
  name_of_set = f"{options.set}," if options.set else ""
  flags = [
    f"--config=configs/xmc.py:{name_of_set}head={head}",
    f"--config.data.dir={options.data_dir}",
    f"--config.train.epochs={options.epochs}",
    *extra,
    *options.config,
  ]
  if head == "dense":  # The same encoder as the others, no linear weights.
    flags[0] += ",family=embedding"
    flags += ["--config.optim.head.learning_rate=2e-3"]
  start = time.perf_counter()
  launch("train.py", *flags, f"--workdir={workdir}")
  record = {"training_s": time.perf_counter() - start}
  out = launch("evaluate.py", f"--workdir={workdir}")
  record |= json.loads(out.strip().splitlines()[-1])
  known.write_text(json.dumps(record))
  return record


def launch(script: str, *flags: str) -> str:
  """Runs a launcher; its progress is shown."""
  done = subprocess.run(
    [sys.executable, str(ROOT / "launch" / script), *flags],
    cwd=ROOT,
    env=os.environ,
    stdout=subprocess.PIPE,
    text=True,
  )
  if done.returncode:
    raise SystemExit(f"{script} {' '.join(flags)} failed")
  return done.stdout


def time_all(
  workdirs: dict[str, pathlib.Path], rounds: int
) -> dict[str, dict[str, float]]:
  """Steps and predictions of all trained models, in turns."""
  sides = {name: Side(workdir) for name, workdir in workdirs.items()}
  for _ in range(rounds):
    for side in sides.values():
      side.turn()
  return {name: side.record() for name, side in sides.items()}


class Side:
  """A trained model that takes steps and predicts."""

  def __init__(self, workdir: pathlib.Path):
    """Restores it and runs everything once."""
    run = directory.load(workdir, which="last", training=True)
    self._config, self._mesh = run.config, run.mesh
    with jax.set_mesh(self._mesh):
      self._model = run.model()
      _, data = preparation.prepare(run.config)
      count = sharding.replicate(jax.numpy.int32(run.step))
      self._state = model_lib.State(
        run.trees["model"], run.trees["training"], count
      )
      self._batches = pipeline.train_batches(
        data.split,
        data.weighting,
        batch_size=512,
        seed=1,
        start_step=0,
        rows=data.rows,
        process=batches.this_process(),
      )
      self._order = data.order
      self._step = jax.jit(self._model.train_step, donate_argnums=0)
      self._topk = jax.jit(self._model.topk, static_argnums=2)
    self._seconds: list[tuple[float, float]] = []
    self.turn()
    self.turn()
    self._seconds.clear()

  def turn(self) -> None:
    """One step and one prediction, timed."""
    with jax.set_mesh(self._mesh):
      batch = next(self._batches)
      inputs = sharding.put_batch(batches.to_inputs(batch, self._order))
      start = time.perf_counter()
      self._state, metrics = self._step(self._state, inputs)
      jax.block_until_ready(metrics)
      middle = time.perf_counter()
      jax.block_until_ready(self._topk(self._state.model, inputs, 5))
      end = time.perf_counter()
    self._seconds.append((middle - start, end - middle))

  def record(self) -> dict[str, float]:
    """What was measured."""
    steps, predictions = zip(*self._seconds)
    leaves = jax.tree.leaves(self._state.model["head"])
    return {
      "step_s": python_statistics.median(steps),
      "predict_s": python_statistics.median(predictions),
      "head_numbers": sum(leaf.size for leaf in leaves),
      "scored": scored(self._config),
    }


def scored(config: Any) -> float:
  """Share of the labels that an example is scored against in training."""
  head = heads_config.make(config)
  if isinstance(head, heads_lib.ProductHead):
    return sum(head.lengths) / head.num_labels
  if isinstance(head, heads_lib.CascadeHead):
    return head.candidates / head.levels[-1].layout.blocks
  assert isinstance(head, heads_lib.DenseHead)
  return head.sample_blocks / head.layout.blocks if head.sample_blocks else 1.0


def print_table(records: dict[str, dict[str, Any]]) -> None:
  """Prints a line for each head."""
  dense = records.get("dense")
  print(
    f"{'head':>16} {'P@1':>6} {'P@3':>6} {'P@5':>6} {'scored':>7}"
    f" {'training':>9} {'step':>8} {'ratio':>6} {'top-5':>8} {'ratio':>6}"
    f" {'numbers':>12}"
  )
  for name, r in records.items():
    ratios = [
      f"{r[key] / dense[key]:.2f}" if dense else ""
      for key in ("step_s", "predict_s")
    ]
    print(
      f"{name:>16} {r['P@1']:6.2f} {r['P@3']:6.2f} {r['P@5']:6.2f}"
      f" {r['scored']:7.1%} {r['training_s']:7.0f} s"
      f" {1e3 * r['step_s']:5.0f} ms {ratios[0]:>6}"
      f" {1e3 * r['predict_s']:5.0f} ms {ratios[1]:>6}"
      f" {r['head_numbers']:12,}"
    )


if __name__ == "__main__":
  main()
