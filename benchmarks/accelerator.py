"""One command that measures xlj on whatever accelerator JAX finds.

  python benchmarks/accelerator.py --minutes=25 --json=accelerator.json

Measurements run one after the other, most important first, each as a process of
its own with a time limit; the file is written anew after each, so that what was
measured stays whatever happens to the rest. One that fails, or runs past its
limit, leaves its last lines. Needs jax, flax, optax, orbax and numpy, and for
the comparison with PyTorch torch, beside it or as `--torch_python=PATH`; Liger
and Cut Cross-Entropy are compared with where they are installed. On a CPU all
sizes are toys: it shows that everything runs, and no goal counts.

The goals are those of one GPU of 139 GiB: see `goals`.

Legend: L labels, D width, N examples of a step.
"""

import argparse
from collections.abc import Iterable
import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
LEAST_SECONDS = 20  # below which nothing more is begun
BILLION = 10**9
LINES = 15  # that are kept of what has failed


@dataclasses.dataclass(frozen=True)
class Measurement:
  """A process that writes JSON.

  Attributes:
    name: Of its results.
    command: A script beside this one, and its arguments.
    toy: Its arguments in place of those on a CPU.
    seconds: Its limit.
  """

  name: str
  command: tuple[str, ...]
  toy: tuple[str, ...]
  seconds: int


def main() -> None:
  options = parse()
  began = time.monotonic()
  report: dict[str, Any] = {"machine": machine(), "results": {}}
  toy = report["machine"]["platform"] == "cpu"
  print(json.dumps(report["machine"]), flush=True)
  for measurement in measurements(options.torch_python):
    if options.only and measurement.name not in options.only:
      continue
    left = 60 * options.minutes - (time.monotonic() - began)
    if left < (1 if toy else LEAST_SECONDS):
      found = {"failed": f"{options.minutes:g} minutes were over"}
    else:
      found = run(measurement, toy, min(measurement.seconds, left))
    report["results"][measurement.name] = found
    report["goals"] = goals(report["results"], toy)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{measurement.name}: {told(found)}", flush=True)
  for goal in report.get("goals", ()):
    print(json.dumps(goal))


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--minutes", type=float, default=25, help="for all")
  parser.add_argument("--json", type=pathlib.Path, required=True)
  parser.add_argument(
    "--only", default="", help="names of measurements, with commas"
  )
  parser.add_argument("--torch_python", default=sys.executable)
  options = parser.parse_args()
  options.only = [name for name in options.only.split(",") if name]
  known = [m.name for m in measurements("")]
  if unknown := set(options.only) - set(known):
    parser.error(f"--only: {sorted(unknown)}; use some of {','.join(known)}")
  return options


def measurements(torch_python: str) -> Iterable[Measurement]:
  """Yields what is measured, the most important first."""
  parts = "accelerator_parts.py"
  yield Measurement("heads", (parts, "heads"), (parts, "heads"), 300)
  scale = "label_scale.py", "--loss=softmax"
  toy = (*scale, "--L=3001", "--D=16", "--N=16", "--steps=3")
  billion = (*scale, f"--L={BILLION}", "--D=64", "--N=1024", "--steps=10")
  for dtype in ("float8", "bfloat16"):
    kind = f"--dtype={dtype}"
    name = f"billion_{dtype}"
    yield Measurement(name, (*billion, kind), (*toy, kind), 420)
  kernel = ("label_kernel.py",)
  small = (*kernel, "--L=96", "--D=16", "--N=16", "--steps=1")
  small += ("--loss", "softmax", "--dtype", "bfloat16")
  for size, dim in ((10**7, 64), (3 * 10**6, 256)):
    sizes = f"--L={size}", f"--D={dim}", "--N=1024"
    yield Measurement(f"kernels_{dim}", (*kernel, *sizes), small, 300)
  step = "label_step.py", f"--torch_python={torch_python}", "--rounds=2"
  little = (*step, "--L=512", "--D=16", "--N=16", "--peers=jax")
  little += ("--losses=softmax", "--dtypes=float32", "--steps=1")
  for size, dim in (
    *((10**6, 64), (3 * 10**6, 256), (3 * 10**6, 768), (10**7, 64)),
  ):
    sizes = f"--L={size}", f"--D={dim}", "--N=1024", "--losses=softmax"
    name = f"steps_{size // 10**6}e6_{dim}"
    yield Measurement(name, (*step, *sizes), little, 300)
  yield Measurement(
    "search_billion",
    (parts, "search", f"--L={BILLION}", "--D=64", "--N=128", "--k=100"),
    (parts, "search", "--L=3001", "--D=16", "--N=8", "--k=10"),
    240,
  )
  factored = "spherical.py", "--dense_up_to=0", "--steps=20"
  yield Measurement(
    "spherical_billion",
    (*factored, f"--L={BILLION}", "--D=32", "--N=1024"),
    (*factored, "--L=3001", "--D=8", "--N=16"),
    240,
  )
  yield Measurement(
    "checkpoint",
    (parts, "checkpoint", "--gib=100"),
    (parts, "checkpoint", "--gib=0.001"),
    600,
  )
  yield Measurement(
    "encoder",
    (parts, "encoder", "--N=256", "--tokens=128"),
    (parts, "encoder", "--N=8", "--tokens=16", "--width=32", "--depth=1"),
    180,
  )
  for dtype in ("float8", "bfloat16"):
    more = f"--dtype={dtype}", "--L=10000000", "--N=1024"
    name = f"more_{dtype}"
    yield Measurement(name, (*scale, *more), (*toy, more[0]), 180)
  yield Measurement("tiles", (*kernel, "--sweep"), small, 600)


def machine() -> dict[str, Any]:
  """What JAX finds, asked in a process of its own, which leaves the memory."""
  code = (
    "import jax, json; d = jax.devices(); print(json.dumps(dict("
    "platform=jax.default_backend(), kind=d[0].device_kind, devices=len(d),"
    " jax=jax.__version__)))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  today = datetime.datetime.now(datetime.UTC).date().isoformat()
  load = os.getloadavg()[0]
  return json.loads(done.stdout.splitlines()[-1]) | {
    "date": today,
    "cores": os.cpu_count(),
    "load": load,
  }


def run(measurement: Measurement, toy: bool, seconds: float) -> dict[str, Any]:
  """Runs a measurement.

  Args:
    measurement: Which.
    toy: Whether at the size for CPUs.
    seconds: Its limit.

  Returns:
    `seconds` it took, and `found`, the JSON that it wrote, or `failed`, why it
    wrote none, and `lines`, its last ones.
  """
  script, *arguments = measurement.toy if toy else measurement.command
  with tempfile.TemporaryDirectory() as folder:
    file, log = pathlib.Path(folder, "out.json"), pathlib.Path(folder, "log")
    command = [sys.executable, HERE / script, *arguments, f"--json={file}"]
    began, why = time.monotonic(), ""
    with log.open("w") as out:
      process = subprocess.Popen(
        command,
        env=environment(),
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # with those that it starts
      )
      try:
        status = process.wait(seconds)
        why = f"it ended with status {status}" if status else ""
      except subprocess.TimeoutExpired:
        why = f"it was not through after {seconds:.0f} s"
      finally:
        end(process)
    record: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
    if file.exists() and file.stat().st_size:
      record["found"] = json.loads(file.read_text())
    if why or "found" not in record:
      text = log.read_text(errors="replace").splitlines()
      record |= {"failed": why or "it wrote nothing", "lines": text[-LINES:]}
    return record


def environment() -> dict[str, str]:
  """That of a measurement: it finds this xlj."""
  path = str(HERE.parent)
  if before := os.environ.get("PYTHONPATH"):
    path += os.pathsep + before
  return os.environ | {"PYTHONPATH": path}


def end(process: subprocess.Popen[bytes]) -> None:
  """Ends a process, if it still runs, with all that it has started."""
  if process.poll() is None:
    os.killpg(process.pid, 9)
    process.wait()


def goals(results: dict[str, Any], toy: bool) -> list[dict[str, Any]]:
  """What is wanted of one GPU of 139 GiB, and what was found.

  Args:
    results: Of the measurements so far.
    toy: Whether sizes were toys, which say nothing.

  Returns:
    For each goal `goal`, `least` or `most`, what was `found` (None if nothing
    was), and whether it is `met` (None if that is not known).
  """

  def of(name: str) -> Any:
    return results.get(name, {}).get("found")

  def best(values: Iterable[float | None]) -> float | None:
    return max((v for v in values if v is not None), default=None)

  bf16, fp8 = of("billion_bfloat16"), of("billion_float8")
  learned = [r for r in (bf16, fp8) if r and r["losses"][-1] < r["losses"][0]]
  kernels = [
    record
    for name in ("kernels_64", "kernels_256")
    for record in of(name) or ()
    if "time_s" in record
  ]

  def gib(record: Any) -> float | None:
    return record["peak_bytes"] / 2**30 if record in learned else None

  wide = [tflops(r) for r in kernels if r["D"] == 256]
  wanted = [
    ("10^9 x 64 in bfloat16, exact softmax: GiB", "most", 139, gib(bf16)),
    ("10^9 x 64 in float8, exact softmax: GiB", "most", 75, gib(fp8)),
    (
      *("10^9 x 64: examples a second", "least", 600),
      best(r["examples_per_s"] for r in learned),
    ),
    ("a step of width 256: TFLOP/s", "least", 550, best(wide)),
    (
      *("a step: share of the wall", "least", 0.7),
      best(r["wall_fraction"] for r in kernels),
    ),
  ]
  return [
    {"goal": goal, kind: bound, "found": found, "met": met(kind, bound, found)}
    if not toy
    else {"goal": goal, kind: bound, "found": found, "met": None}
    for goal, kind, bound, found in wanted
  ]


def met(kind: str, bound: float, found: float | None) -> bool | None:
  """Whether a goal is met; None if nothing was found."""
  if found is None:
    return None
  return found <= bound if kind == "most" else found >= bound


def tflops(record: dict[str, Any]) -> float:
  """Those a second of a record of `label_kernel.py`."""
  products = 4 if record["loss"] == "softmax" else 3
  flops = products * 2 * record["N"] * record["D"] * record["L"]
  return flops / record["time_s"] / 1e12


def told(found: dict[str, Any]) -> str:
  """A line about a result."""
  if "failed" in found:
    return f"{found['failed']}; {' / '.join(found.get('lines', [])[-2:])}"
  return f"{found['seconds']} s, {json.dumps(found['found'])[:300]}"


if __name__ == "__main__":
  main()
