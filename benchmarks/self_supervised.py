"""What the self-supervised task of a dual encoder adds, by rows of a label.

  python benchmarks/self_supervised.py --data=DIR --shares 1 0.1 \
    --epochs 6 20 --weights 0.3 --seeds=3 [--held_out] [--json=out.json] \
    [--set dual.self_masks=correlated]

Trains a dual encoder on bags of words, whose labels answer by their texts
alone, on shares of the training rows, without the task and with each weight of
it (`dual.self_weight`), in one process. A true label counts as found where it
is among the first 10 answers; columns are labels by how many of the rows
trained on have them. Means over seeds and their standard errors, of gains those
of the differences; a seed is that of the run, and of which rows are the share.
With `--held_out` a tenth of the training rows is kept from all training and
scored, for the choice of settings; otherwise the test split is.
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
import shutil
import tempfile
from typing import Any

from absl import logging
import numpy as np
import one_vs_all

import xlj
from xlj import config as config_lib
from xlj.data import csr as csr_lib
from xlj.documents import store as documents_lib
from xlj.training import train

K = 10
BINS = [(0, 0), (1, 3), (4, None), (0, None)]
HEADINGS = ["no row", "1 to 3", "more", "all"]
FIELDS: dict[str, Any] = {
  "data.text": "words",
  "data.validation": 0.0,
  "text.words.ngrams": (1, 1),
  "text.words.char_ngrams": (0, 0),
  "family": "embedding",
  "encoder.dim": 128,
  "dual.loss": "softmax",
  "dual.correct": True,
  "dual.head": False,
  "train.batch_size": 512,
  "checkpoint.keep": 1,
}
_HELD_OUT = 0.1
_FEWEST = 50  # true labels of a column


def main() -> None:
  options = parse()
  logging.set_verbosity(logging.ERROR)
  rows = []
  with tempfile.TemporaryDirectory(dir=options.workdir) as temporary:
    directory = pathlib.Path(temporary)
    for share, epochs in zip(options.shares, options.epochs, strict=True):
      found: list[list[list[float]]] = []
      for seed in range(options.seeds):
        data = directory / "data"
        counts, labels = write_data(options, data, share, seed)
        found.append([])
        for weight in (0.0, *options.weights):
          fields = {
            "data.dir": str(data),
            "seed": seed,
            "train.epochs": epochs,
            "dual.self_weight": weight,
          }
          ids = answers(config_of(fields, options.set), data)
          found[-1].append(by_rows(ids, labels, counts))
          shown = " ".join(f"{value:.2f}" for value in found[-1][-1])
          print(f"{share:.0%} seed {seed} weight {weight}: {shown}", flush=True)
        shutil.rmtree(data)
      of_share = table_rows(f"{share:.0%}", options.weights, np.array(found))
      for row in of_share:
        print(*row["cells"], flush=True)
      rows += of_share
  if options.json:
    write_table(options, rows)


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data", required=True, help="of texts, and of labels")
  parser.add_argument("--shares", nargs="+", type=float, default=[1.0, 0.1])
  parser.add_argument("--epochs", nargs="+", type=float, default=[6.0, 20.0])
  parser.add_argument("--weights", nargs="+", type=float, default=[0.3])
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--held_out", action="store_true")
  parser.add_argument("--set", nargs="*", default=[], help="FIELD=VALUE")
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  parser.add_argument("--workdir")
  return parser.parse_args()


def write_data(
  options: argparse.Namespace, data: pathlib.Path, share: float, seed: int
) -> tuple[np.ndarray, csr_lib.Csr]:
  """Writes the rows to train on and to score, as files of texts.

  Args:
    options: Of the command.
    data: The directory to write.
    share: Of the training rows.
    seed: Which ones.

  Returns:
    How many of the rows to train on have each label, `[L]`, and the labels
    `[N, L]` of the rows to score.
  """
  cache = data.parent / "cache"
  train_texts = documents_lib.open_documents(options.data, cache_dir=cache)
  scored = train_texts
  rows = np.random.default_rng(0).permutation(train_texts.num_rows)
  held = rows[: int(_HELD_OUT * len(rows))]
  if options.held_out:
    rows = rows[len(held) :]
  else:
    scored = documents_lib.open_documents(options.data, "test", cache_dir=cache)
    held = np.arange(scored.num_rows)
  rows = np.random.default_rng([1, seed]).permutation(rows)
  rows = rows[: int(share * len(rows))]
  data.mkdir()
  said = train_texts.label_texts or []
  for name, lines in (
    ("labels", [{"label": i, "text": text} for i, text in enumerate(said)]),
    ("train", _lines(train_texts, rows)),
    ("test", _lines(scored, held)),
  ):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (data / f"{name}.jsonl").write_text(text)
  known = train_texts.labels.take(rows).indices
  return np.bincount(known, minlength=len(said)), scored.labels.take(held)


def _lines(
  documents: documents_lib.Documents, rows: np.ndarray
) -> list[dict[str, Any]]:
  labels = documents.labels.take(rows)
  ids = np.split(labels.indices, labels.indptr[1:-1])
  texts = documents.texts[rows]
  return [{"text": t, "labels": i.tolist()} for t, i in zip(texts, ids)]


def config_of(fields: dict[str, Any], given: Sequence[str]) -> Any:
  """The config of a run; `given` are `FIELD=VALUE`, with values of JSON."""
  config = config_lib.base()
  config.update_from_flattened_dict(FIELDS | fields)
  for name, _, value in (text.partition("=") for text in given):
    if name.startswith("dual.self_") and not fields["dual.self_weight"]:
      continue
    try:
      config.update_from_flattened_dict({name: json.loads(value)})
    except ValueError:
      config.update_from_flattened_dict({name: value})
  return config


def answers(config: Any, data: pathlib.Path) -> np.ndarray:
  """Trains a run; ids `[N, K]` of its best labels for the rows to score."""
  train.train(config, data / "run")
  lines = (data / "test.jsonl").read_text().splitlines()
  _, ids = xlj.load(data / "run").topk(
    [json.loads(s)["text"] for s in lines], K
  )
  shutil.rmtree(data / "run")
  return ids


def by_rows(
  ids: np.ndarray, labels: csr_lib.Csr, counts: np.ndarray
) -> list[float]:
  """Percent of true labels that are found, by how many rows have them.

  Args:
    ids: `[N, K]` the answers.
    labels: `[N, L]` the true labels.
    counts: `[L]` of the rows trained on.

  Returns:
    For each of `BINS` the percent; NaN of too few labels.
  """
  owner = np.repeat(np.arange(labels.num_rows), labels.row_lengths)
  hit = (ids[owner] == labels.indices[:, None]).any(1)
  known = counts[labels.indices]
  shares = []
  for low, high in BINS:
    inside = (known >= low) & (known <= (np.inf if high is None else high))
    few = inside.sum() < _FEWEST
    shares.append(np.nan if few else 100 * float(hit[inside].mean()))
  return shares


def table_rows(
  share: str, weights: Sequence[float], found: np.ndarray
) -> list[dict[str, Any]]:
  """Rows of the table: without the task, with it, and the gain.

  Args:
    share: Of the training rows.
    weights: Of the task.
    found: `[seeds, 1 + weights, columns]` percent, without and with it.

  Returns:
    The rows, whose cells are a mean and its standard error.
  """
  named = [("without", found[:, 0])]
  for i, weight in enumerate(weights, 1):
    named.append((f"weight {weight:g}", found[:, i]))
    named.append(("gain", found[:, i] - found[:, 0]))
  rows = []
  for name, values in named:
    error = values.std(0, ddof=1) / len(values) ** 0.5
    cells = [
      None if np.isnan(mean) else [round(mean, 3), round(e, 3)]
      for mean, e in zip(values.mean(0).tolist(), error.tolist())
    ]
    rows.append({"cells": [share, name, *cells]})
  return rows


def write_table(
  options: argparse.Namespace, rows: list[dict[str, Any]]
) -> None:
  """Writes a file of `benchmarks/results`."""
  given = f" --set {' '.join(options.set)}" if options.set else ""
  shares, epochs, weights = (
    " ".join(f"{number:g}" for number in numbers)
    for numbers in (options.shares, options.epochs, options.weights)
  )
  shows = ["{:.1f} ± {:.1f}", "{:+.1f} ± {:.1f}"]
  for row in rows:
    show = shows[row["cells"][1] == "gain"]
    row["cells"][2:] = [
      cell and {"show": show, "values": cell} for cell in row["cells"][2:]
    ]
  origin = one_vs_all.origin_of(
    "python benchmarks/self_supervised.py --data=wordnet_hypernym"
    f" --shares {shares} --epochs {epochs} --weights {weights}"
    f" --seeds={options.seeds}{given}"
  )
  origin["seeds"] = f"{options.seeds}, each with its own rows"
  headings = ["training rows", "the task", *HEADINGS]
  table = {
    "origin": origin,
    "columns": [[heading, None] for heading in headings],
    "rows": rows,
  }
  text = json.dumps(table, indent=1, ensure_ascii=False) + "\n"
  options.json.write_text(text)


if __name__ == "__main__":
  main()
