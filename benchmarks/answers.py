"""Answers of exported models, of the run that they are of, and of PECOS.

  python benchmarks/answers.py --data_dir=DIR --json=out.json \\
    --config=configs/xmc.py:citeulike_tags
  python benchmarks/answers.py --data_dir=DIR --json=out.json --run=WD

Trains, if no run is given, by the config, and exports the run; trains PECOS as
`one_vs_all.py` does. Then each in turn, in a process of its own, loads its
model and answers the same test rows, with the five best labels. There are some
rounds of turns, so that what else the machine does falls on all of them.

Prints a table, and writes the origin of the figures and a row for each system:

  model_bytes  size on disk of what prediction reads
  load_s       seconds from the start of the process, imports included, to the
               loaded model, on Linux
  row_p50_ms   where one row is predicted: the median
  row_p99_ms   likewise: 99 of 100 take no longer
  batch_ms     milliseconds a row where the whole test split is predicted
  P@1          percent

or `failed` with the reason. Times are the least of the rounds.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import environments
import numpy as np
import one_vs_all
import side_process

from xlj.data import store
from xlj.evaluation import metrics
from xlj.runs import directory

HERE = pathlib.Path(__file__).parent
# What exports the run, by system.
EXPORTS = {
  "xlj exported": ["--dtype=float32"],
  "xlj exported int8": ["--dtype=int8"],
}
RUN, PECOS = "xlj run", "PECOS"
FILES = {RUN: "xlj", PECOS: "pecos"}  # of the systems of `one_vs_all.py`
TIMES = ("load_s", "row_p50_ms", "row_p99_ms", "batch_ms")
FIGURES = ("model_bytes", *TIMES, "P@1")


def main() -> None:
  options = parse()
  config = one_vs_all.load_config(options.config, options.overrides)
  if options.run:
    config = directory.load_config(options.run)
  config.data.dir = str(options.data_dir)
  origin = one_vs_all.origin_of(command(options))
  with tempfile.TemporaryDirectory() as temporary:
    data = pathlib.Path(temporary)
    test, _ = one_vs_all.write_data(config, data)
    systems = {name: data / name.replace(" ", "_") for name in FILES}
    if not prepare(systems, options.run, data):
      del systems[PECOS]
    for name, flags in EXPORTS.items():
      systems[name] = data / name.replace(" ", "_")
      export(systems[RUN] / "run", systems[name] / "model", flags)
    rows: dict[str, dict[str, Any]] = {name: {} for name in systems}
    for _ in range(options.rounds):
      for name, output in systems.items():
        found = predict(name, data, output)
        if not rows[name]:
          rows[name] = found
          if "failed" not in found:
            found["P@1"] = precision(output, test)
        for field in TIMES:
          if field in found and field in rows[name]:
            rows[name][field] = least(rows[name][field], found[field])
  record = {
    "origin": origin,
    "set": options.data_dir.resolve().name,
    "rows": [
      {"system": name}
      | {k: v for k, v in row.items() if k in (*FIGURES, "failed")}
      for name, row in rows.items()
    ],
  }
  if options.json:
    options.json.write_text(json.dumps(record, indent=1) + "\n")
  print_table(record["rows"])
  if any("failed" in row for row in record["rows"]):
    sys.exit(1)


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data_dir", type=pathlib.Path, required=True)
  parser.add_argument("--config", default="configs/xmc.py", help="of xlj")
  parser.add_argument("--run", type=pathlib.Path, help="trained on the data")
  parser.add_argument("--rounds", type=int, default=3, help="of turns")
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  parser.add_argument(
    "overrides", nargs="*", help="fields of the config, after --"
  )
  return parser.parse_args()


def command(options: argparse.Namespace) -> str:
  """The command that says again what the options say."""
  what = "--run=WD" if options.run else f"--config={options.config}"
  return " ".join(
    [
      f"python benchmarks/answers.py --data_dir=DIR {what}",
      f"--rounds={options.rounds}",
      *(["--", *options.overrides] if options.overrides else []),
    ]
  )


def prepare(
  systems: dict[str, pathlib.Path],
  run: pathlib.Path | None,
  data: pathlib.Path,
) -> bool:
  """Has the run, and a model of PECOS; returns whether that could be had."""
  for output in systems.values():
    output.mkdir()
  if run is None:
    call(RUN, "train", data, systems[RUN])
  else:
    (systems[RUN] / "run").symlink_to(run.resolve())
  if environments.find(environments.PECOS) is None:
    return False
  call(PECOS, "train", data, systems[PECOS])
  return True


def export(run: pathlib.Path, output: pathlib.Path, flags: list[str]) -> None:
  """Exports a run."""
  print(f"exporting with {' '.join(flags)}", flush=True)
  output.parent.mkdir()
  subprocess.run(
    [sys.executable, HERE.parent / "launch" / "export.py", *flags]
    + [f"--workdir={run}", f"--output={output}"],
    check=True,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )


def call(
  name: str, phase: str, data: pathlib.Path, output: pathlib.Path
) -> str:
  """Runs the process of a system; returns why it failed, or nothing."""
  print(f"{name}: {phase}", flush=True)
  python, environment = sys.executable, dict(os.environ)
  if name == PECOS:
    python = str(environments.path(environments.PECOS))
    environment.pop("PYTHONPATH", None)  # of xlj's environment
  file = f"{FILES.get(name, 'exported')}_one_vs_all.py"
  done = subprocess.run(
    [python, HERE / file, phase, data, output],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    errors="replace",
  )
  if not done.returncode:
    return ""
  return side_process.failure(done.stdout, done.returncode)


def predict(
  name: str, data: pathlib.Path, output: pathlib.Path
) -> dict[str, Any]:
  """The figures of a turn of a system."""
  if reason := call(name, "predict", data, output):
    return {"failed": reason}
  return json.loads((output / "predict.json").read_text())


def precision(output: pathlib.Path, test: store.Split) -> float:
  """P@1 of what a system has answered."""
  ranking = metrics.Ranking(test.num_labels, ks=(1,), per_label=False)
  ranking.update(np.load(output / "top.npy"), test.labels)
  return ranking.compute()["P@1"]


def least(*values: float | None) -> float | None:
  """The least, where all are known."""
  known = [value for value in values if value is not None]
  return min(known, default=None)


def print_table(rows: list[dict[str, Any]]) -> None:
  """Prints a line for each system."""
  print(
    f"{'':>18} {'model':>11} {'load':>7} {'one row p50 / p99':>20}"
    f" {'batch/row':>10} {'P@1':>6}"
  )
  for row in rows:
    if "failed" in row:
      print(f"{row['system']:>18} failed: {row['failed']}")
      continue
    load = row["load_s"]
    print(
      f"{row['system']:>18} {row['model_bytes'] / 2**20:7,.1f} MiB"
      f" {'' if load is None else f'{load:.2f} s':>7}"
      f" {row['row_p50_ms']:9.3f} / {row['row_p99_ms']:5.3f} ms"
      f" {row['batch_ms']:7.3f} ms {row['P@1']:6.2f}"
    )


if __name__ == "__main__":
  main()
