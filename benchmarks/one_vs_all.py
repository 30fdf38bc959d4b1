"""xlj, PECOS XR-Linear and the PLT of napkinXC, on one data set.

  python benchmarks/one_vs_all.py --data_dir=DIR --json=out.json \\
    --config=configs/xmc.py:citeulike_tags
  python benchmarks/one_vs_all.py --data_dir=DIR --systems=xlj,pecos \\
    -- --config.train.epochs=2

One system after the other trains in a process of its own, and predicts the five
best labels of the test rows in another. xlj does what the config says; the
peers have their defaults, all threads, and features weighted as in xlj with
rows of norm 1. Each peer is installed into an environment of its own the first
time; what xlj compiles once after an install is compiled before, too.

Prints a table, and writes the origin of the figures and a row for each system:

  train_s     seconds from parsed data in memory (xlj: its cache of arrays on
              disk) to the saved model: statistics, compilation, trees, saving
  others      processors that other work kept busy meanwhile, on Linux
  peak_bytes  memory of the process that trains, at most, imports included
  model_bytes size on disk of what prediction reads
  P@k, PSP@k  percent, by xlj's metrics and the propensities of its config
  batch_ms    milliseconds a row where the whole test split is predicted at
              once, the model being warm; xlj weights features in this time
  row_p50_ms  the median where one row is predicted
  xlj_takes   seconds of xlj's training over those of this system's; null where
              xlj was not run

or `failed` with the reason.
"""

import argparse
from collections.abc import Sequence
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from absl import flags
import environments
import ml_collections
from ml_collections import config_flags
import numpy as np
import scipy.sparse
import side_process

from xlj import config as config_lib
from xlj.config import splits
from xlj.data import csr as csr_lib
from xlj.data import statistics
from xlj.data import store
from xlj.data import weighting as weighting_lib
from xlj.evaluation import metrics
from xlj.report import machine

HERE = pathlib.Path(__file__).parent
SYSTEMS: dict[str, environments.Peer | None] = {
  "xlj": None,
  "pecos": environments.PECOS,
  "napkinxc": environments.NAPKINXC,
}
KS = (1, 3, 5)


def main() -> None:
  options, config = parse()
  origin = origin_of(command(options))
  with tempfile.TemporaryDirectory() as directory:
    data = pathlib.Path(directory)
    try:
      test, propensities = write_data(config, data)
    except (ValueError, OSError) as error:
      sys.exit(f"error: {error}")
    rows = []
    for name in options.systems:
      peer = SYSTEMS[name]
      python = environments.find(peer) if peer else sys.executable
      if python is not None:
        rows.append(run(name, python, data, test, propensities))
        add_ratios(rows)
        if options.json:
          record = {
            "origin": origin,
            "set": options.data_dir.resolve().name,
            "rows": rows,
          }
          options.json.write_text(json.dumps(record, indent=1) + "\n")
  print_table(rows)
  if any("failed" in row for row in rows):
    sys.exit(1)


def parse() -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data_dir", type=pathlib.Path, required=True)
  parser.add_argument("--config", default="configs/xmc.py", help="of xlj")
  parser.add_argument("--systems", default=",".join(SYSTEMS))
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  parser.add_argument(
    "overrides", nargs="*", help="fields of the config, after --"
  )
  options = parser.parse_args()
  options.systems = options.systems.split(",")
  unknown = set(options.systems) - set(SYSTEMS)
  if unknown:
    parser.error(
      f"systems are {', '.join(SYSTEMS)}; got {', '.join(sorted(unknown))}"
    )
  try:
    config = load_config(options.config, options.overrides)
    config.data.dir = str(options.data_dir)  # it may not have been loaded
  except (ValueError, OSError, AttributeError, flags.Error) as error:
    parser.error(f"config: {' '.join(str(error).split())}")
  return options, config


def load_config(
  name: str, overrides: Sequence[str]
) -> ml_collections.ConfigDict:
  """The config of a file, with some fields changed."""
  argv = ["", f"--config={name}", *overrides]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  _, *unused = values(argv)
  if unused:
    raise ValueError(f"unexpected arguments: {' '.join(unused)}")
  return values["config"].value


def command(options: argparse.Namespace) -> str:
  """The command that says again what the options say."""
  overrides = ["--", *options.overrides] if options.overrides else []
  return " ".join(
    [
      "python benchmarks/one_vs_all.py --data_dir=DIR",
      f"--config={options.config}",
      *overrides,
    ]
  )


def origin_of(command: str) -> dict[str, Any]:
  """Where the figures come from, as files of `benchmarks/results` say it."""
  facts = machine.facts()
  commit = subprocess.run(
    ["git", "rev-parse", "--short=8", "HEAD"],
    cwd=HERE,
    capture_output=True,
    text=True,
  ).stdout.strip()
  return {
    "machine": facts["cpu"],
    "cores": facts["cores"],
    "commit": commit or None,
    "date": datetime.date.today().isoformat(),
    "seeds": "one, of the config",
    "load": f"load average {os.getloadavg()[0]:.1f} before",
    "command": command,
  }


def write_data(
  config: ml_collections.ConfigDict, data: pathlib.Path
) -> tuple[store.Split, np.ndarray]:
  """Writes what the processes of systems read.

  Args:
    config: That of xlj; gets a cache of its own, which has no statistics yet.
    data: Directory to write to.

  Returns:
    The test split, and the propensity of each label.

  Raises:
    ValueError: The data cannot be read, or are not sparse.
    OSError: A file cannot be read or written.
  """
  config.data.cache_dir = str(data / "cache")
  train = splits.open_split(config)
  if not isinstance(train.features, csr_lib.Csr):
    raise ValueError(
      f"{config.data.dir} has dense features; the peers take sparse ones"
    )
  test = splits.open_split(
    config,
    "test",
    num_features=train.num_features,
    num_labels=train.num_labels,
  )
  stats = statistics.compute(train)
  weighting = weighting_lib.fit(
    config.data.weighting or "auto", stats, l2=True, smooth=True
  )
  for split, name in ((train, "train"), (test, "test")):
    assert isinstance(split.features, csr_lib.Csr)
    for matrix, kind in (
      (weighting(split.features), "features"),
      (split.labels, "labels"),
    ):
      scipy.sparse.save_npz(
        data / f"{name}_{kind}.npz",
        scipy.sparse.csr_matrix(matrix.to_scipy()),
        compressed=False,
      )
  (data / config_lib.FILE).write_text(config_lib.to_json(config))
  assert stats.label_counts is not None
  return test, statistics.propensities(
    stats.label_counts,
    stats.num_rows,
    config.data.propensity_a,
    config.data.propensity_b,
  )


def run(
  name: str,
  python: str,
  data: pathlib.Path,
  test: store.Split,
  propensities: np.ndarray,
) -> dict[str, Any]:
  """Has a system train and predict.

  Args:
    name: Of the system.
    python: Its interpreter.
    data: Where `write_data` has written.
    test: The test split.
    propensities: Of the labels.

  Returns:
    Its row, see above.
  """
  output = data / name
  output.mkdir()
  row: dict[str, Any] = {"system": name}
  # Programs compiled before would make xlj's training faster than the first.
  environment = {
    key: value
    for key, value in os.environ.items()
    if key != "JAX_COMPILATION_CACHE_DIR"
  }
  if SYSTEMS[name]:
    environment.pop("PYTHONPATH", None)  # of xlj's environment
  for phase in ("train", "predict"):
    print(f"{name}: {phase}", flush=True)
    done = subprocess.run(
      [python, HERE / f"{name}_one_vs_all.py", phase, data, output],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors="replace",
    )
    if done.returncode:
      reason = side_process.failure(done.stdout, done.returncode)
      return row | {"failed": reason}
    row |= json.loads((output / f"{phase}.json").read_text())
  ranking = metrics.Ranking(
    test.num_labels, ks=KS, propensities=propensities, per_label=False
  )
  ranking.update(np.load(output / "top.npy"), test.labels)
  found = ranking.compute()
  return row | {f"{m}@{k}": found[f"{m}@{k}"] for m in ("P", "PSP") for k in KS}


def add_ratios(rows: list[dict[str, Any]]) -> None:
  """Adds `xlj_takes` to the rows."""
  seconds = {row["system"]: row.get("train_s") for row in rows}
  for row in rows:
    ours, theirs = seconds.get("xlj"), row.get("train_s")
    row["xlj_takes"] = ours / theirs if ours and theirs else None


def print_table(rows: list[dict[str, Any]]) -> None:
  """Prints a line for each system."""
  print(
    f"{'':>9} {'version':>8} {'training':>10} {'xlj takes':>9} {'others':>6}"
    f" {'peak':>10} {'model':>11}   {'P@1 / P@3 / P@5':>18}  "
    f" {'PSP@1 / 3 / 5':>18} {'batch/row':>10} {'one row':>9}"
  )
  for row in rows:
    if "failed" in row:
      print(f"{row['system']:>9} failed: {row['failed']}")
      continue
    ratio, others = row["xlj_takes"], row["others"]
    peak = row["peak_bytes"]
    p, psp = (
      " / ".join(f"{row[f'{name}@{k}']:.1f}" for k in KS)
      for name in ("P", "PSP")
    )
    print(
      f"{row['system']:>9} {row['version']:>8} {row['train_s']:8.1f} s"
      f" {f'{ratio:.2f}x' if ratio else '':>9}"
      f" {'' if others is None else f'{others:.1f}':>6}"
      f" {f'{peak / 2**20:,.0f} MiB' if peak else 'not known':>10}"
      f" {row['model_bytes'] / 2**20:7,.1f} MiB   {p:>18}   {psp:>18}"
      f" {row['batch_ms']:7.3f} ms {row['row_p50_ms']:6.2f} ms"
    )


if __name__ == "__main__":
  main()
