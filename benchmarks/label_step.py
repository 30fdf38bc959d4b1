"""A step of a label layer, by xlj and by others, on this machine.

  python benchmarks/label_step.py --json=step.json
  python benchmarks/label_step.py --L=3000000 --D=768 --N=1024 --dtypes=bfloat16

A step is the loss of N examples over L labels, its gradient with respect to the
examples, and the label rows after a step of SGD. It is taken by the dense head
of xlj; by plain JAX and optax, with all logits; by PyTorch, eager and compiled,
and on GPUs by Liger Kernel and Cut Cross-Entropy where they are installed;
and the three matrix products that it cannot do without are timed by themselves,
in JAX and in PyTorch. Each has a process of its own, they take turns, and all
have to find the same losses. PyTorch is installed into an environment of its
own the first time.

Prints tables, and writes a list of records. Their `time_s` is the median of
xlj's steps, `time_vs_...` that over the peer's, `roofline_fraction` the time of
the three products in JAX over it, and `fastest_roofline_fraction` that of
products whose operands lie in memory as suits the compiler best. `peak_bytes`
is the memory that a step needs at most beyond what is there before it (the
rows, above all): on CPUs that of the process, on GPUs that of the allocator.
What was not run is null.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import contestant
import environments
import label_step_report
import side_process

PEERS = {
  "torch": ["torch", "torch_compile", "torch_products"],
  "jax": ["jax"],
}
# On GPUs, where they are installed: losses that never form all logits.
PACKAGES = {"torch_liger": "liger_kernel", "torch_cce": "cut_cross_entropy"}
# Relative, of losses and gradients; products of float32 may be of TF32 on GPUs,
# and bfloat16 logits of 16 have steps of 1/8.
TOLERANCES = {"float32": 5e-3, "bfloat16": 5e-2}


def main() -> None:
  options = parse()
  if options.threads:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
  load = os.getloadavg()[0]
  if load > 0.5:
    print(f"load average {load:.1f}: others compute here, times may mislead")
  device = backend()
  python = None
  if "torch" in options.peers:
    python = environments.find(environments.TORCH, options.torch_python)
  names = ["xlj", "products"]
  for peer in options.peers:
    names += PEERS[peer] if peer != "torch" or python else []
  records = []
  for dtype in options.dtypes:
    for loss in options.losses:
      more = packages(python) if loss == "softmax" and device != "cpu" else []
      problem = contestant.Problem(
        loss,
        dtype,
        options.N,
        options.D,
        options.L,
        device,
        {
          "rounding": options.rounding,
          "chunk_size": options.chunk_size,
          "keep_logits": kept(loss, dtype, options.keep_logits),
        },
      )
      records.append(compare(problem, [*names, *more], python, options))
      if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])

  def some_of(*choices):
    def parse(text):
      found = [part for part in text.split(",") if part]
      if set(found) - set(choices):
        raise argparse.ArgumentTypeError(f"use some of {','.join(choices)}")
      return found

    return {"type": parse, "default": list(choices), "metavar": "A,B"}

  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  parser.add_argument("--N", type=int, default=256, help="examples")
  parser.add_argument("--D", type=int, default=256, help="width")
  parser.add_argument("--L", type=int, default=131072, help="labels")
  parser.add_argument("--losses", **some_of(*contestant.LOSSES))
  parser.add_argument("--dtypes", **some_of(*contestant.DTYPES))
  parser.add_argument("--peers", **some_of("torch", "jax"))
  parser.add_argument(
    "--rounds", type=int, default=5, help="turns of each side"
  )
  parser.add_argument("--steps", type=int, default=2, help="of a turn")
  parser.add_argument("--threads", type=int, help="processors to use, on Linux")
  parser.add_argument("--torch_python", help="a Python that has PyTorch")
  parser.add_argument("--chunk_size", type=int, help="labels of a chunk in xlj")
  parser.add_argument(
    "--keep_logits",
    default="auto",
    help="type that xlj keeps the logits of softmax in, or none; auto: float16"
    " beside float32 rows, where it pays",
  )
  parser.add_argument(
    "--rounding",
    default="stochastic",
    choices=("stochastic", "nearest"),
    help="of bfloat16 rows in xlj; its peers round to nearest",
  )
  parser.add_argument(
    "--one_by_one",
    action=argparse.BooleanOptionalAction,
    help="no turns: one process after the other, for memory; default on GPUs",
  )
  return parser.parse_args()


def kept(loss: str, dtype: str, choice: str) -> str | None:
  """The type that xlj keeps logits in, None for none."""
  if choice == "auto":
    pays = loss == "softmax" and dtype == "float32"
    return "float16" if pays else None
  return None if choice == "none" else choice


def backend() -> str:
  """What JAX computes on: "cpu", "gpu", ..."""
  return subprocess.run(
    [sys.executable, "-c", "import jax; print(jax.default_backend())"],
    env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  ).stdout.strip()


def packages(python: str | None) -> list[str]:
  """The sides of other packages that an interpreter has."""
  found = []
  for side, module in PACKAGES.items():
    code = f"import importlib.util as u; print(bool(u.find_spec({module!r})))"
    if (
      python
      and "True" in subprocess.check_output([python, "-c", code]).decode()
    ):
      found.append(side)
  return found


def compare(
  problem: contestant.Problem,
  names: list[str],
  python: str | None,
  options: argparse.Namespace,
) -> dict[str, Any]:
  """Runs the sides on a problem, prints their table, returns the record."""
  on_cpu = problem.device == "cpu"
  one_by_one = not on_cpu if options.one_by_one is None else options.one_by_one
  # Several processes cannot each take most of a GPU's memory in advance.
  environment = {} if one_by_one else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  results = {}

  def start(name, environment):
    return side_process.Side(name, problem, python, environment)

  for group in [[name] for name in names] if one_by_one else [names]:
    sides = []
    for name in group:  # each alone, since some try what is fastest
      sides.append(start(name, environment))
      sides[-1].wait()
    for _ in range(options.rounds):
      for side in sides:
        side.turn(options.steps)
    for side in sides:
      if not on_cpu:
        side.measure_memory()
      results[side.name] = side.end()
  if on_cpu:  # in new processes, in which steps may be slower
    steps = [name for name in names if not name.endswith("products")]
    environment = contestant.ProcessMemory.ENVIRONMENT
    for side in [start(name, environment) for name in steps]:
      side.wait()
      side.measure_memory()
      results[side.name]["peak_bytes"] = side.end()["peak_bytes"]
  check(problem, results)
  return label_step_report.report(
    problem, results, options.rounds * options.steps
  )


def check(problem: contestant.Problem, results: dict[str, Any]) -> None:
  """Raises an AssertionError if sides disagree on what they computed."""
  ours = results["xlj"]
  if "failed" in ours:
    raise RuntimeError(f"xlj failed: {ours['failed']}")
  tolerance = TOLERANCES[problem.dtype]
  for name, result in results.items():
    for own, other in zip(ours["outcomes"], result.get("outcomes", [])):
      for key in other:
        if abs(own[key] - other[key]) > tolerance * abs(own[key]):
          raise AssertionError(
            f"{name} and xlj disagree in their first steps: "
            f"{result['outcomes']} against {ours['outcomes']}"
          )


if __name__ == "__main__":
  main()
