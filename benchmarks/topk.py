"""The ten best of a million label rows: xlj beside FAISS and USearch.

  python benchmarks/topk.py --json=out.json
  python benchmarks/topk.py --rows=ROWS.npy --queries=QUERIES.npy

Rows are made, unless they are given, so that they have the structure of trained
ones: a Gaussian mixture of two levels, with groups of all sizes in a tenth as
many topics, and lengths that vary. An example is the sum of one to four rows,
half of the time of one topic, with noise. What is asked for are the rows with
the largest inner products. All have the same rows, examples, and two threads
(`--threads`), in one process.

The methods:

  exact float32, bfloat16, int8   `xlj.search.exact`
  index 0.95, 0.99                `xlj.search.index`, tuned for such a recall
  FAISS Flat                      all rows, float32, with its own products (as
                                  1.15 does for up to 128,000 examples)
  FAISS Flat, BLAS                the same with BLAS, as older versions do from
                                  20 examples on
  FAISS IVF 0.95, 0.99            as many lists as the index has; float32
  FAISS HNSW 0.95, 0.99           32 links; float32
  USearch 0.95, 0.99              its defaults, bfloat16

Those with a recall are tuned on other examples than those that they are timed
with, each in the same way: its one parameter is the smallest that reaches the
recall. IVF shares out the lists of an example, or whole examples, and finds
lists with or without BLAS, whichever is fastest for a batch. The methods take
turns, so that what else the machine does slows all of them down.

Writes the origin of the figures and rows:

  method, L, D, batch
  p50_ms, p99_ms     of calls with a batch, over `--seconds` for each size of
                     batch, at least five turns
  recall             of the ten best by float32, over the examples of all calls
  time_vs_faiss_flat the median of the ratios to FAISS Flat in the same turn,
                     with its own products or BLAS, whichever was faster then
  setting            lists or candidates that are looked at
  bytes              of what is searched
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import dataclasses
import json
import math
import os
import pathlib
import time
from typing import Any

import numpy as np
import one_vs_all

from xlj import processors
from xlj.search import exact
from xlj.search import index as index_lib

K = 10
RECALLS = (0.95, 0.99)
BATCHES = (1, 16, 256)
_TUNED_ON = 512  # examples
_BLOCK = 2**16
_LEAST_TURNS = 5
_TRIED = 3  # times
_PAUSE = 0.01  # in which threads that still wait for work go to sleep
COLUMNS = [
  ["", None],
  ["batch", "{:,}"],
  ["p50 ms", "{:,.2f}"],
  ["p99 ms", "{:,.2f}"],
  ["recall@10", "{:.3f}"],
  ["times FAISS Flat's", "{:.3f}"],
]

Search = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass
class Method:
  """One way to search.

  Attributes:
    name: Of the method.
    search: From examples `[n, D]` to the numbers of rows `[n, K]`.
    nbytes: Of what is searched.
    setting: What it was tuned to.
  """

  name: str
  search: Search
  nbytes: int
  setting: int | None = None


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--labels", type=int, default=1_000_000)
  parser.add_argument("--dim", type=int, default=256)
  parser.add_argument("--rows", type=pathlib.Path, help="float32 [L, D], .npy")
  parser.add_argument("--queries", type=pathlib.Path, help="[n, D], .npy")
  parser.add_argument("--lists", type=int, help="of the index and IVF")
  parser.add_argument("--seconds", type=float, default=60.0)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument(
    "--without", default="", help="methods to leave out, such as HNSW,USearch"
  )
  parser.add_argument(
    "--kept", type=pathlib.Path, help="directory of indexes, made if not there"
  )
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  options = parser.parse_args()
  origin = one_vs_all.origin_of("python benchmarks/topk.py")
  if options.rows:
    rows = np.load(options.rows, mmap_mode="r")
    x = np.load(options.queries).astype(np.float32)
  else:
    rows, x = made(options.labels, options.dim)
  cores = sorted(os.sched_getaffinity(0))[: options.threads]
  os.sched_setaffinity(0, cores)
  methods = build(rows, x[:_TUNED_ON], options)
  found = measure(methods, rows, x[_TUNED_ON:], options.seconds)
  origin |= {"seeds": "one", "threads": processors.usable()}
  record = {"origin": origin, "columns": COLUMNS, "rows": found}
  for row in found:
    print(json.dumps({key: row[key] for key in row if key != "cells"}))
  if options.json:
    options.json.write_text(json.dumps(record, indent=2) + "\n")


def made(
  num_rows: int, dim: int, num_examples: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
  """Rows as trained ones are, and examples.

  Args:
    num_rows: L.
    dim: D.
    num_examples: n.

  Returns:
    float32 `[L, D]` and `[n, D]`.
  """
  generator = np.random.default_rng(0)

  def normal(*shape: int) -> np.ndarray:
    return generator.standard_normal(shape, np.float32)

  num_groups = max(1, num_rows // 100)
  topics = normal(max(1, num_groups // 10), dim)
  topic_of = generator.integers(len(topics), size=num_groups)
  groups = topics[topic_of] + normal(num_groups, dim)
  # Groups have sizes from a few rows to thousands, as topics of labels have.
  shares = generator.pareto(1.5, num_groups) + 0.1
  group_of = generator.choice(num_groups, num_rows, p=shares / shares.sum())
  rows = np.empty((num_rows, dim), np.float32)
  for start in range(0, num_rows, _BLOCK):
    part = slice(start, start + _BLOCK)
    own = groups[group_of[part]]
    rows[part] = own + normal(*own.shape)
    rows[part] *= np.exp(0.2 * normal(len(own)))[:, None] / math.sqrt(3 * dim)
  by_topic = np.argsort(topic_of[group_of], kind="stable")
  place = np.empty(num_rows, np.int64)
  place[by_topic] = np.arange(num_rows)
  x = 0.5 * normal(num_examples, dim) / math.sqrt(dim)
  for n in range(num_examples):
    first = generator.integers(num_rows)
    count = generator.integers(1, 5)
    others = generator.integers(num_rows, size=count - 1)
    if n % 2:  # Of the same topic, or the next ones.
      near = place[first] + generator.integers(-500, 500, size=count - 1)
      others = by_topic[near % num_rows]
    x[n] += rows[[first, *others]].sum(0)
  return rows, x


def build(
  rows: np.ndarray, tuned_on: np.ndarray, options: argparse.Namespace
) -> list[Method]:
  """Makes all that is searched, and tunes it.

  Args:
    rows: `[L, D]`.
    tuned_on: Examples `[n, D]`.
    options: Of the command.

  Returns:
    The methods, the first two of which are FAISS Flat.
  """
  import faiss

  faiss.omp_set_num_threads(options.threads)
  left_out = [name for name in options.without.split(",") if name]
  num_rows, dim = rows.shape
  flat = faiss.IndexFlatIP(dim)
  flat.add(np.asarray(rows))

  def of_flat(blas: bool) -> Search:
    def search(x: np.ndarray) -> np.ndarray:
      faiss.cvar.distance_compute_blas_threshold = 1 if blas else 10**9
      return flat.search(x, K)[1]

    return search

  methods = [
    Method("FAISS Flat", of_flat(False), rows.nbytes),
    Method("FAISS Flat, BLAS", of_flat(True), rows.nbytes),
  ]
  for dtype in exact.DTYPES:
    stored = exact.stored(rows, dtype)
    methods.append(
      Method(
        f"exact {dtype}",
        lambda x, stored=stored: exact.topk(x, stored, K)[1],
        stored.nbytes,
      )
    )
    if dtype == "float32":
      true = exact.topk(tuned_on, stored, K)[1]
    if dtype == "bfloat16":
      half = stored
  clock = time.perf_counter()
  index = _kept(
    options.kept,
    "index",
    lambda: index_lib.build(half, options.lists),
    lambda path: _in_memory(index_lib.load(path, half)),
    lambda index, path: index.save(path),
  )
  _say("index", clock)
  for recall in RECALLS:
    tuned = index.tune(tuned_on, recall, K)
    size = half.nbytes + tuned.codes.nbytes + 8 * num_rows
    methods.append(
      Method(
        f"index {recall}",
        lambda x, tuned=tuned: tuned.topk(x, K)[1],
        *(size, tuned.probes),
      )
    )
  if "IVF" not in left_out:
    methods += _ivf(rows, tuned_on, true, index.num_lists, options.kept)
  if "HNSW" not in left_out:
    methods += _hnsw(rows, tuned_on, true, options.kept)
  if "USearch" not in left_out:
    methods += _usearch(rows, tuned_on, true, options)
  return methods


def _ivf(
  rows: np.ndarray,
  x: np.ndarray,
  true: np.ndarray,
  num_lists: int,
  kept: pathlib.Path | None,
) -> list[Method]:
  import faiss

  dim = rows.shape[1]
  clock = time.perf_counter()

  def build() -> Any:
    centres = faiss.IndexFlatIP(dim)
    ivf = faiss.IndexIVFFlat(
      centres, dim, num_lists, faiss.METRIC_INNER_PRODUCT
    )
    generator = np.random.default_rng(0)
    size = min(len(rows), 64 * num_lists)
    ivf.train(rows[np.sort(generator.choice(len(rows), size, False))])
    ivf.add(np.asarray(rows))
    return ivf

  index = _kept(
    *(kept, "ivf.faiss", build),
    lambda path: faiss.read_index(str(path)),
    lambda index, path: faiss.write_index(index, str(path)),
  )
  _say("FAISS IVF", clock)

  def search(x: np.ndarray, probes: int) -> np.ndarray:
    index.nprobe = probes
    return index.search(x, K)[1]

  methods = []
  for recall in RECALLS:
    probes = _smallest(search, x, true, recall, index.nlist)
    own = _fastest(lambda x, probes=probes: search(x, probes), index, x)
    size = rows.nbytes + 8 * len(rows)
    methods.append(Method(f"FAISS IVF {recall}", own, size, probes))
  return methods


def _fastest(search: Search, index: Any, x: np.ndarray) -> Search:
  """Searches lists with FAISS in the way that is fastest for a batch.

  Args:
    search: With an index.
    index: It.
    x: Examples to try it with.

  Returns:
    The same search.
  """
  import faiss

  def as_told(x: np.ndarray, how: tuple[int, int]) -> np.ndarray:
    faiss.cvar.distance_compute_blas_threshold, index.parallel_mode = how
    return search(x)

  ways = [(blas, mode) for blas in (1, 10**9) for mode in (0, 1)]
  best = {}
  for batch in BATCHES:
    seconds: dict[tuple[int, int], float] = {}
    for way in ways * _TRIED:
      clock = time.perf_counter()
      as_told(x[:batch], way)
      taken = time.perf_counter() - clock
      seconds[way] = min(taken, seconds.get(way, taken))
    best[batch] = min(ways, key=lambda way: seconds[way])
  return lambda x: as_told(x, best[len(x)])


def _hnsw(
  rows: np.ndarray,
  x: np.ndarray,
  true: np.ndarray,
  kept: pathlib.Path | None,
) -> list[Method]:
  import faiss

  clock = time.perf_counter()

  def build() -> Any:
    hnsw = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    hnsw.add(np.asarray(rows))
    return hnsw

  index = _kept(
    *(kept, "hnsw.faiss", build),
    lambda path: faiss.read_index(str(path)),
    lambda index, path: faiss.write_index(index, str(path)),
  )
  _say("FAISS HNSW", clock)

  def search(x: np.ndarray, candidates: int) -> np.ndarray:
    index.hnsw.efSearch = candidates
    return index.search(x, K)[1]

  nbytes = rows.nbytes + 4 * 64 * len(rows)
  return [
    Method(
      f"FAISS HNSW {recall}",
      lambda x, candidates=candidates: search(x, candidates),
      *(nbytes, candidates),
    )
    for recall in RECALLS
    for candidates in [_smallest(search, x, true, recall, 4096)]
  ]


def _usearch(
  rows: np.ndarray,
  x: np.ndarray,
  true: np.ndarray,
  options: argparse.Namespace,
) -> list[Method]:
  import usearch.index

  clock = time.perf_counter()

  def new() -> Any:
    return usearch.index.Index(
      ndim=rows.shape[1], metric="ip", dtype="bf16", multi=False
    )

  def build() -> Any:
    made = new()
    made.add(np.arange(len(rows)), np.asarray(rows), threads=options.threads)
    return made

  def load(path: pathlib.Path) -> Any:
    found = new()
    found.load(str(path))
    return found

  index = _kept(
    *(options.kept, "rows.usearch", build, load),
    lambda index, path: index.save(str(path)),
  )
  _say("USearch", clock)

  def search(x: np.ndarray, candidates: int) -> np.ndarray:
    index.expansion_search = candidates
    keys = index.search(x, K, threads=options.threads).keys
    return keys.astype(np.int64).reshape(len(x), -1)

  return [
    Method(
      f"USearch {recall}",
      lambda x, candidates=candidates: search(x, candidates),
      *(index.memory_usage, candidates),
    )
    for recall in RECALLS
    for candidates in [_smallest(search, x, true, recall, 4096)]
  ]


def _smallest(
  search: Callable[[np.ndarray, int], np.ndarray],
  x: np.ndarray,
  true: np.ndarray,
  recall: float,
  most: int,
) -> int:
  """The smallest setting with a recall; `most` if none has it."""

  def reaches(setting: int) -> bool:
    return exact.recall(search(x, setting), true) >= recall

  return exact.smallest(reaches, most)


def measure(
  methods: list[Method], rows: np.ndarray, x: np.ndarray, seconds: float
) -> list[dict[str, Any]]:
  """Times the methods in turns.

  Args:
    methods: The faster of the first two is what others are compared with.
    rows: `[L, D]`.
    x: Examples `[n, D]`.
    seconds: For a size of batch, at least.

  Returns:
    Rows as they are written.
  """
  _, true = exact.topk(x, exact.Rows(np.asarray(rows)), K)
  found = []
  for batch in BATCHES:
    clocks: list[list[float]] = [[] for _ in methods]
    shares: list[list[float]] = [[] for _ in methods]
    start, turn = time.perf_counter(), 0
    while turn < _LEAST_TURNS or time.perf_counter() - start < seconds:
      first = turn * batch % (len(x) - batch + 1)
      asked = slice(first, first + batch)
      some = np.ascontiguousarray(x[asked])
      for i, method in enumerate(methods):
        if not turn:
          method.search(some)  # compiles
        time.sleep(_PAUSE)
        clock = time.perf_counter()
        ids = method.search(some)
        clocks[i].append(time.perf_counter() - clock)
        shares[i].append(exact.recall(ids, true[asked]))
      turn += 1
    fastest = np.minimum(clocks[0], clocks[1])
    for i, method in enumerate(methods):
      p50, p99 = (1e3 * np.quantile(clocks[i], q) for q in (0.5, 0.99))
      ratio = np.median(np.divide(clocks[i], fastest))
      recall = float(np.mean(shares[i]))
      row = {
        "method": method.name,
        "L": len(rows),
        "D": rows.shape[1],
        "batch": batch,
        "p50_ms": round(float(p50), 4),
        "p99_ms": round(float(p99), 4),
        "recall": round(recall, 4),
        "time_vs_faiss_flat": round(float(ratio), 5),
        "setting": method.setting,
        "bytes": int(method.nbytes),
        "turns": turn,
      }
      shown = ("method", "batch", "p50_ms", "p99_ms", "recall")
      cells = [row[name] for name in (*shown, "time_vs_faiss_flat")]
      found.append(row | {"cells": cells})
  return found


def _kept(
  directory: pathlib.Path | None,
  name: str,
  build: Callable[[], Any],
  load: Callable[[pathlib.Path], Any],
  save: Callable[[Any, pathlib.Path], None],
) -> Any:
  """What was built before, or is now."""
  if directory is None:
    return build()
  path = directory / name
  if not path.exists():
    directory.mkdir(parents=True, exist_ok=True)
    save(build(), path)
  return load(path)


def _in_memory(index: index_lib.Index) -> index_lib.Index:
  """The same without maps of files, as FAISS reads its own."""
  _, *rest = index.codes.arrays()
  scale, bias = (np.array(a) if len(a) else None for a in rest)
  codes = exact.Rows(np.array(index.codes.values), scale, bias)
  return dataclasses.replace(index, codes=codes)


def _say(what: str, clock: float) -> None:
  print(f"{what}: ready after {time.perf_counter() - clock:.0f} s", flush=True)


if __name__ == "__main__":
  main()
