"""Missing, wrong and rare labels: each remedy beside doing nothing.

Makes worse versions of a data set (see launch/corrupt.py), trains the same
encoder with each remedy for some seeds, of the data and of the run, and scores
the untouched test split. Prints mean and standard deviation; the last line is
JSON.

  python benchmarks/remedies.py --data_dir=DIR --config=xmc.py:bibtex \\
    --corruption="--mode=single_positive" --remedies=missing --seeds=3
  python benchmarks/remedies.py --data_dir=DIR --corruption="--mode=noise \\
    --share=0.4" --remedies=noisy --set family=embedding
  python benchmarks/remedies.py --data_dir=DIR --remedies=tail

Columns, in percent: P@1, P@5, PSP@5; mAP, the average precision of each label
with a test row, averaged over labels (beyond its best 1,000 labels a row counts
as ranked last); Recall@5 of the positives whose labels are among the most
frequent that make up a third of all training positives (head), among those of
the next third (torso), and of the last one (tail).
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import statistics
from xlj.data import store
from xlj.evaluation import metrics
from xlj.inference import predictor
from xlj.training import train

ROOT = pathlib.Path(__file__).parents[1]
BCE = {"head.loss": "bce"}
REMEDIES: dict[str, dict[str, dict[str, Any]]] = {
  "missing": {
    "an": BCE | {"missing.method": "an"},
    **{
      name: BCE | {"missing.method": name}
      for name in ("wan", "lsan", "iu", "role", "ll_r", "ll_ct", "ll_cp")
    },
  },
  "noisy": {
    "ce": {"head.loss": "softmax", "noisy.method": "none"},
    "elr": {"head.loss": "softmax", "noisy.method": "elr"},
    "ps_kd": {"head.loss": "softmax", "noisy.method": "ps_kd"},
  },
  "tail": {
    "plain": BCE,
    "propensity": BCE | {"tail.weights": "propensity"},
    "class_balanced": BCE | {"tail.weights": "class_balanced"},
    "focal": {"head.loss": "focal"},
    "asymmetric": {"head.loss": "asymmetric"},
    "class_aware": BCE | {"tail.sampler": "class_aware"},
    "square_root": BCE | {"tail.sampler": "square_root"},
  },
  "prototypes": {
    f"rows_{number}": {
      "head.loss": "softmax",
      "head.wide": False,
      "head.prototypes": number,
    }
    for number in (1, 2, 4)
  },
  "tail_softmax": {
    "plain": {"head.loss": "softmax"},
    "adjusted": {"head.loss": "softmax", "tail.adjustment": 1.0},
    "class_aware": {"head.loss": "softmax", "tail.sampler": "class_aware"},
    "square_root": {"head.loss": "softmax", "tail.sampler": "square_root"},
  },
}
PARTS = ("head", "torso", "tail")
_RANKED = 1000  # labels of a row that count for mAP


def main() -> None:
  options = parse()
  logging.set_verbosity(logging.ERROR)
  found: dict[str, list[dict[str, float]]] = {}
  remedies = REMEDIES[options.remedies]
  if options.only:
    remedies = {name: remedies[name] for name in options.only.split(",")}
  source = pathlib.Path(options.data_dir)
  with tempfile.TemporaryDirectory(dir=options.workdir) as temporary:
    directory = pathlib.Path(temporary)
    jax.config.update("jax_compilation_cache_dir", str(directory / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
      data = source
      if options.corruption:
        data = directory / f"data_{seed}"
        corrupt(source, data, options.corruption, seed)
      for name, fields in remedies.items():
        begun = time.perf_counter()
        workdir = directory / f"{name}_{seed}"
        config = make_config(options, data, fields, seed)
        train.train(config, workdir)
        scores = score(workdir, source, options.map)
        scores["seconds"] = time.perf_counter() - begun
        shutil.rmtree(workdir)  # Linear weights take gigabytes.
        found.setdefault(name, []).append(scores)
        shown = ", ".join(f"{k} {v:.2f}" for k, v in scores.items())
        print(f"seed {seed}, {name}: {shown}", flush=True)
  print_table(found)
  print(json.dumps({**vars(options), "found": found}))


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--config", default="xmc.py", help="file:argument")
  parser.add_argument("--corruption", default="", help="flags of corrupt.py")
  parser.add_argument("--remedies", choices=REMEDIES, default="missing")
  parser.add_argument("--only", help="names, with commas; by default all")
  parser.add_argument("--set", nargs="*", default=[], help="FIELD=VALUE")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--first_seed", type=int, default=0)
  parser.add_argument("--map", action="store_true", help="also mAP")
  parser.add_argument("--workdir")
  return parser.parse_args()


def corrupt(
  source: pathlib.Path, output: pathlib.Path, flags: str, seed: int
) -> None:
  command = [sys.executable, str(ROOT / "launch/corrupt.py"), *flags.split()]
  command += [f"--data_dir={source}", f"--output_dir={output}"]
  subprocess.run([*command, f"--seed={seed}"], check=True, capture_output=True)


def make_config(
  options: argparse.Namespace,
  data: pathlib.Path,
  fields: dict[str, Any],
  seed: int,
) -> Any:
  """The set's config with a remedy; predictions favour no label."""
  name, _, argument = options.config.partition(":")
  names: dict[str, Any] = {}
  exec((ROOT / "configs" / name).read_text(), names)
  config = names["get_config"](argument)
  complete = store.open_split(options.data_dir).labels
  common = {
    "seed": seed,
    "data.dir": str(data),
    "data.validation": 0.0,
    "predict.propensity_power": 0.0,
    "checkpoint.keep": 1,
  }
  if fields.get("missing.method") == "role":
    positives = len(complete.indices) / complete.num_rows
    common["missing.positives"] = positives
  given = dict(text.split("=", 1) for text in options.set)
  for field, value in (common | given | fields).items():
    *sections, last = field.split(".")
    section = config
    for part in sections:
      section = section[part]
    if field in given and not isinstance(section[last], str):
      try:
        value = json.loads(value)
      except ValueError:
        pass
    section[last] = value
  return config


def score(
  workdir: pathlib.Path, source: pathlib.Path, every: bool
) -> dict[str, float]:
  """The scores of a run on the test split; label counts are the source's."""
  run = predictor.load(workdir, which="last")
  data = store.open_split(
    source,
    "test",
    num_features=run.num_features,
    num_labels=run.num_labels,
  )
  complete = store.open_split(source)
  counts = np.bincount(complete.labels.indices, minlength=run.num_labels)
  ranking = metrics.Ranking(
    run.num_labels,
    ks=(1, 5),
    propensities=statistics.propensities(counts, complete.num_rows, 0.55, 1.5),
  )
  k = min(run.num_labels, _RANKED) if every else 5
  ids, scores = [], []
  for start in range(0, data.num_rows, 512):
    stop = min(start + 512, data.num_rows)
    part = data.features
    part = (
      part.slice_rows(start, stop)
      if isinstance(part, csr_lib.Csr)
      else np.asarray(part[start:stop])
    )
    found = run.topk(part, k)
    ranking.update(found[1][:, :5], data.labels.slice_rows(start, stop))
    ids.append(found[1].astype(np.int32))
    scores.append(found[0].astype(np.float32) if every else None)
  names = "P@1", "P@5", "PSP@5"
  out = {name: ranking.compute()[name] for name in names}
  top = np.concatenate([part[:, :5] for part in ids])
  out |= by_frequency(top, data.labels, counts)
  if every:
    out["mAP"] = mean_average_precision(ids, scores, data.labels)
  return out


def by_frequency(
  top: np.ndarray, labels: csr_lib.Csr, counts: np.ndarray
) -> dict[str, float]:
  """Recall@5 of the positives by the frequency of their labels."""
  order = np.argsort(-counts, kind="stable")
  before = np.cumsum(counts[order]) - counts[order]
  part = np.empty(len(counts), np.int64)
  part[order] = np.minimum(3 * before // max(counts.sum(), 1), 2)
  owner = np.repeat(np.arange(labels.num_rows), labels.row_lengths)
  hit = (top[owner] == labels.indices[:, None]).any(1)
  kind = part[labels.indices]
  return {
    name: 100 * float(hit[kind == i].mean()) for i, name in enumerate(PARTS)
  }


def mean_average_precision(
  ids: list[np.ndarray], scores: list[np.ndarray], labels: csr_lib.Csr
) -> float:
  """The average precision of each label with a row, averaged over labels."""
  shape = labels.num_rows, labels.num_columns
  matrix = np.full(shape, -np.inf, np.float32)
  row = 0
  for part, values in zip(ids, scores):
    block = matrix[row : row + len(part)]
    np.put_along_axis(block, part, values, 1)
    row += len(part)
  by_label = labels.to_scipy().tocsc()
  found = []
  for label in np.flatnonzero(np.diff(by_label.indptr)):
    first, last = by_label.indptr[label : label + 2]
    order = np.argsort(-matrix[:, label], kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    ranks = np.sort(rank[by_label.indices[first:last]])
    found.append((np.arange(1, len(ranks) + 1) / ranks).mean())
  return 100 * float(np.mean(found))


def print_table(found: dict[str, list[dict[str, float]]]) -> None:
  """Mean and standard deviation of each remedy."""
  names = list(next(iter(found.values()))[0])
  print(" | ".join(["remedy".ljust(14), *(f"{n:>13}" for n in names)]))
  for remedy, runs in found.items():
    cells = []
    for name in names:
      values = [run[name] for run in runs]
      cells.append(f"{np.mean(values):6.2f} ± {np.std(values):4.2f}")
    print(" | ".join([remedy.ljust(14), *(f"{c:>13}" for c in cells)]))


if __name__ == "__main__":
  main()
