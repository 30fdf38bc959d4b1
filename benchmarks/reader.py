"""Reading speed and memory of the first read, and of a cached open.

Generates a file in the one-file text format, reads it with xlj and with
scikit-learn's compiled svmlight reader (given the same file and told to skip
the header), each in a process of its own, and opens xlj's cache again in a
third one. Prints the figures, and last one line of JSON.

  python benchmarks/reader.py --megabytes=1000

Memory is the peak of the reading process, and by how much that exceeds its
peak after the imports; scikit-learn returns the whole set in memory, xlj maps
it from disk.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

NUM_FEATURES, NUM_LABELS = 40_000, 100_000
FEATURES_PER_ROW, LABELS_PER_ROW = 48, 5
MEGABYTE = 10**6


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--megabytes", type=int, default=1000)
  parser.add_argument("--directory", help="where; by default a temporary one")
  parser.add_argument("--reader", choices=sorted(READERS), help="internal")
  options = parser.parse_args()
  if options.reader:
    measure(options.reader, pathlib.Path(options.directory))
    return
  with tempfile.TemporaryDirectory(dir=options.directory) as directory:
    compare(pathlib.Path(directory), options.megabytes)


def compare(directory: pathlib.Path, megabytes: int) -> None:
  path = directory / "train.txt"
  generate(path, megabytes)
  size = path.stat().st_size / MEGABYTE
  print(f"{size:.0f} MB generated", flush=True)
  found = {}
  for name in ("scikit-learn", "xlj", "xlj cached"):
    found[name] = run(name, directory)
    seconds = found[name]["seconds"]
    print(
      f"{name:>12}: {seconds:9.4f} s {size / seconds:9.1f} MB/s "
      f"({size / found[name]['cpu_seconds']:.1f} MB per CPU second), "
      f"peak {found[name]['peak_mb']:.0f} MB, of which "
      f"{found[name]['above_imports_mb']:.0f} MB for reading",
      flush=True,
    )
  facts = [found[name]["facts"] for name in found]
  if facts.count(facts[0]) != len(facts):
    raise AssertionError(f"The readers disagree: {facts}")
  ours, peer = found["xlj"], found["scikit-learn"]
  result = {
    "megabytes": round(size),
    "first_read_mb_per_s": round(size / ours["seconds"], 1),
    "peak_mb": round(ours["peak_mb"]),
    "above_imports_mb": round(ours["above_imports_mb"]),
    "cached_open_s": round(found["xlj cached"]["seconds"], 4),
    "scikit_learn_mb_per_s": round(size / peer["seconds"], 1),
    "scikit_learn_above_imports_mb": round(peer["above_imports_mb"]),
    "speed_ratio": round(peer["seconds"] / ours["seconds"], 2),
    "cpu_ratio": round(peer["cpu_seconds"] / ours["cpu_seconds"], 2),
  }
  print(json.dumps(result))


def generate(path: pathlib.Path, megabytes: int) -> None:
  """Repeats a block of random rows until the file is large enough."""
  rng = np.random.default_rng(0)
  rows = []
  for _ in range(5000):
    labels = rng.choice(NUM_LABELS, LABELS_PER_ROW, replace=False)
    features = rng.choice(NUM_FEATURES, FEATURES_PER_ROW, replace=False)
    values = rng.integers(1, 10_000, FEATURES_PER_ROW) / 10_000
    head = ",".join(map(str, np.sort(labels)))
    cells = [f"{f}:{v}" for f, v in zip(np.sort(features), values)]
    rows.append(" ".join([head, *cells]))
  block = ("\n".join(rows) + "\n").encode()
  repeats = max(1, megabytes * MEGABYTE // len(block))
  with open(path, "wb") as file:
    header = f"{repeats * len(rows)} {NUM_FEATURES} {NUM_LABELS}\n"
    file.write(header.encode())
    for _ in range(repeats):
      file.write(block)


def run(name: str, directory: pathlib.Path) -> dict:
  command = [sys.executable, __file__, "--reader", name]
  command += ["--directory", str(directory)]
  out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
  return json.loads(out.stdout.splitlines()[-1])


def measure(name: str, directory: pathlib.Path) -> None:
  """Runs one reader in this process and prints what it took as JSON."""
  read = READERS[name]()
  before = peak_mb()
  start, cpu = time.perf_counter(), time.process_time()
  result = read(directory)
  seconds = time.perf_counter() - start
  cpu_seconds = time.process_time() - cpu
  peak = peak_mb()
  print(
    json.dumps(
      {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": peak,
        "above_imports_mb": peak - before,
        "facts": result(),
      }
    )
  )


def peak_mb() -> float:
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE


def with_xlj():
  from xlj.data import store

  def read(directory):
    split = store.open_split(directory)
    return lambda: [split.num_rows, split.features.nnz, split.labels.nnz]

  return read


def with_scikit_learn():
  from sklearn import datasets

  def read(directory):
    features, labels = datasets.load_svmlight_file(
      str(directory / "train.txt"),
      n_features=NUM_FEATURES,
      dtype=np.float32,
      multilabel=True,
      zero_based=True,
      offset=1,  # begins after the next line end, that of the header
    )
    return lambda: [features.shape[0], features.nnz, sum(map(len, labels))]

  return read


READERS = {
  "xlj": with_xlj,
  "xlj cached": with_xlj,
  "scikit-learn": with_scikit_learn,
}


if __name__ == "__main__":
  main()
