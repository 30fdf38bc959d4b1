"""Recall at 1 by how many training rows a label has, of runs on texts.

  python benchmarks/text_frequency.py --run=words=WORDS --run=together=WD \
    --alone=vectors=WD --json=out.json

A run of `configs/text.py` answers the test texts; with `--alone` the run on
vectors answers without the words and rows that help it. A true label counts as
found where it is the first answer; the last column is over all true labels.
"""

import argparse
import json
import pathlib

import numpy as np
import one_vs_all

import xlj
from xlj.config import splits
from xlj.config import text

BINS = [(1, 1), (2, 3), (4, 10), (11, None)]
HEADINGS = ["1 row", "2 or 3", "4 to 10", "more", "all"]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  for name in ("--run", "--alone"):
    parser.add_argument(name, action="append", default=[], help="NAME=DIR")
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  options = parser.parse_args()
  rows = []
  for alone, named in [(False, options.run), (True, options.alone)]:
    for name, _, workdir in (item.partition("=") for item in named):
      found, counts = recall(workdir, alone)
      rows.append({"cells": [name, *found]})
      print(name, *(f"{value:.1f}" for value in found))
  rows.append({"cells": ["true labels of the test split", *counts]})
  table = {
    "origin": one_vs_all.origin_of(
      "python benchmarks/text_frequency.py --run=words=WORDS"
      " --run=together=WD --alone=vectors=WD"
    ),
    "columns": [["recall at 1", None], *([h, "{:,.1f}"] for h in HEADINGS)],
    "rows": rows,
  }
  table["rows"][-1]["cells"][1:] = [
    {"show": "{:,}", "values": [count]} for count in counts
  ]
  if options.json:
    options.json.write_text(json.dumps(table, indent=1) + "\n")


def recall(workdir: str, alone: bool) -> tuple[list[float], list[int]]:
  """Percent of true labels that are first answers, and how many there are.

  Args:
    workdir: Directory of a run on texts.
    alone: Whether the run answers without what helps it.

  Returns:
    Both for each of `BINS`, and for all.
  """
  run = xlj.load(workdir)
  config, encoding = run.config, run.run.encoding
  data = splits.open_split(
    config,
    "test",
    num_features=run.num_features,
    num_labels=run.num_ids,
    encoding=encoding,
  )
  if alone or run.fusion is None:  # computed once, and read from the cache
    _, ids, _ = run.answers_alone(data.features, 1)
  else:
    found = text.documents(config, config.data.dir, "test", encoding)
    _, ids, _ = run.answers(found.texts[np.arange(data.num_rows)], 1)
  row = np.repeat(np.arange(data.num_rows), np.diff(data.labels.indptr))
  label = data.labels.indices
  counts = run.label_counts()
  assert counts is not None  # Runs on texts know them.
  known = np.append(counts, np.zeros(data.labels.num_columns - len(counts)))
  hit, count = ids[row, 0] == label, known[label]
  shares, sizes = [], []
  for low, high in [*BINS, (0, None)]:
    inside = (count >= low) & (count <= (np.inf if high is None else high))
    sizes.append(int(inside.sum()))
    shares.append(100 * float(hit[inside].mean()) if sizes[-1] else 0.0)
  return shares, sizes


if __name__ == "__main__":
  main()
