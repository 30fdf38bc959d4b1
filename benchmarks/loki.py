"""The likeliest label against the one at the least expected tree distance.

Trains a bag of features with a softmax on a data set whose labels are a tree
(wordnet_hypernym: the last column of labels.txt is the parent), once with all
labels and once without the examples of one in five of them, and predicts the
test split in both ways (Roberts et al. 2023, "Geometry-aware adaptation for
pretrained models"). The temperature of the geometry-aware prediction is the one
of the least mean squared distance on training rows that were held out.

Prints, for all test rows and for those of labels without examples: the mean
squared distance on the tree from prediction to label, P@1 in percent, and the
share of predictions that are labels without examples. The last line is JSON.

  python benchmarks/loki.py --data_dir=DIR

Legend: N examples, k candidates of each, L labels.
"""

import argparse
import json
import pathlib
import tempfile
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from xlj import config as config_lib
from xlj.data import csr as csr_lib
from xlj.data import store
from xlj.inference import predictor
from xlj.open_world import label_tree
from xlj.open_world import loki
from xlj.training import train

TEMPERATURES = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)


class Examples(NamedTuple):
  """Rows to predict.

  Attributes:
    features: N rows.
    labels: `[N]`, the first label of each.
  """

  features: csr_lib.Csr
  labels: np.ndarray


class Candidates(NamedTuple):
  """The likeliest labels of N rows.

  Attributes:
    scores: `[N, k]` logits, descending.
    ids: `[N, k]`.
  """

  scores: np.ndarray
  ids: np.ndarray


def read_tree(data_dir: pathlib.Path) -> label_tree.LabelTree:
  """The tree that the last column of labels.txt says."""
  with (data_dir / "labels.txt").open() as file:
    parents = [int(line.rstrip("\n").split("\t")[-1]) for line in file]
  return label_tree.from_parents(np.array(parents))


def examples_of(split: store.Split, rows: np.ndarray | None = None) -> Examples:
  """All rows of a split, or some; those without labels are left out."""
  if rows is None:
    rows = np.arange(split.num_rows)
  lengths = np.diff(split.labels.indptr)
  rows = rows[lengths[rows] > 0]
  first = np.asarray(split.labels.indices)[split.labels.indptr[rows]]
  features: Any = split.features
  return Examples(features.take(rows), first)


def write_training(
  source: pathlib.Path, output: pathlib.Path, rows: np.ndarray
) -> None:
  """A data set with some of the training rows, and no other files but them."""
  output.mkdir()
  with (source / "train.txt").open() as file:
    header = file.readline().split()
    lines = file.readlines()
  kept = [lines[row] for row in rows]
  text = " ".join([str(len(kept)), *header[1:]]) + "\n" + "".join(kept)
  (output / "train.txt").write_text(text)


def candidates(run: predictor.Predictor, rows: Any, k: int) -> Candidates:
  """The likeliest labels; those that had no examples are none."""
  scores, ids = run.topk(rows, k)
  counts = run.label_counts()
  assert counts is not None
  return Candidates(np.where(counts[ids] > 0, scores, -np.inf), ids)


def by_geometry(
  tree: label_tree.LabelTree, found: Candidates, temperature: float
) -> np.ndarray:
  """Labels `[N]` at the least expected squared distance."""
  weights = loki.sharpened(jnp.asarray(found.scores), temperature)
  _, ids = _nearest(tree, jnp.asarray(found.ids), weights)
  return np.asarray(ids)[:, 0]


@jax.jit
def _nearest(tree, ids, weights):
  return loki.nearest_on_tree(tree, ids, weights, 1)


def figures(
  tree: label_tree.LabelTree,
  predicted: np.ndarray,
  truth: np.ndarray,
  is_new: np.ndarray,
) -> dict[str, float]:
  """Of all rows, and of those whose label is new; see the module."""
  squares = label_tree.distances(tree, predicted, truth) ** 2
  right = predicted == truth
  result = {
    "squared_distance": float(squares.mean()),
    "P@1": float(100 * right.mean()),
    "predicted_new": float(100 * is_new[predicted].mean()),
  }
  new = is_new[truth]
  if new.any():
    result["squared_distance_new"] = float(squares[new].mean())
    result["P@1_new"] = float(100 * right[new].mean())
    result["rows_new"] = int(new.sum())
  return result


def compare(
  options: argparse.Namespace, share: float, workdir: pathlib.Path
) -> dict[str, Any]:
  """Trains without the examples of a share of the labels; scores both ways."""
  source = pathlib.Path(options.data_dir)
  tree = read_tree(source)
  split = store.open_split(source)
  rng = np.random.default_rng(options.seed)
  is_new = np.zeros(split.num_labels, bool)
  chosen = rng.permutation(split.num_labels)
  is_new[chosen[: round(share * split.num_labels)]] = True
  labels = split.labels
  of_new = np.add.reduceat(
    np.append(is_new[labels.indices], False).astype(int), labels.indptr[:-1]
  )
  rows = np.flatnonzero((of_new == 0) & (np.diff(labels.indptr) > 0))
  held_out = rng.random(len(rows)) < 0.05
  write_training(source, workdir / "data", rows[~held_out])

  config = config_lib.base()
  config.update_from_flattened_dict(
    {
      "seed": options.seed,
      "family": "embedding",
      "data.dir": str(workdir / "data"),
      "data.validation": 0.0,
      "encoder.dim": options.dim,
      "train.epochs": options.epochs,
      "predict.propensity_power": 0.0,
      "checkpoint.keep": 1,
    }
  )
  train.train(config, workdir / "run")
  run = predictor.load(workdir / "run", which="last")

  valid = examples_of(split, rows[held_out])
  found = candidates(run, valid.features, options.candidates)
  costs = [
    np.mean(
      label_tree.distances(
        tree, by_geometry(tree, found, temperature), valid.labels
      )
      ** 2
    )
    for temperature in TEMPERATURES
  ]
  temperature = TEMPERATURES[int(np.argmin(costs))]
  test = examples_of(store.open_split(source, "test"))
  found = candidates(run, test.features, options.candidates)
  likeliest = found.ids[np.arange(len(found.ids)), found.scores.argmax(1)]
  return {
    "new_labels": int(is_new.sum()),
    "temperature": temperature,
    "argmax": figures(tree, likeliest, test.labels, is_new),
    "loki": figures(
      tree, by_geometry(tree, found, temperature), test.labels, is_new
    ),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data_dir", required=True, help="wordnet_hypernym")
  parser.add_argument("--dim", type=int, default=256, help="of embeddings")
  parser.add_argument("--epochs", type=float, default=4.0)
  parser.add_argument("--candidates", type=int, default=64, help="a row")
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  results = {}
  print(f"{'examples of':<14}{'prediction':<12}{'d^2':>8}{'P@1 %':>8}")
  for share in (0.0, 0.2):
    with tempfile.TemporaryDirectory() as directory:
      name = f"{1 - share:.0%} of labels"
      results[name] = compare(options, share, pathlib.Path(directory))
    for way in ("argmax", "loki"):
      row = results[name][way]
      line = f"{name:<14}{way:<12}{row['squared_distance']:>8.2f}"
      line += f"{row['P@1']:>8.2f}"
      if "P@1_new" in row:
        line += (
          f"   of labels without: {row['squared_distance_new']:.2f}"
          f" {row['P@1_new']:.2f}, predicted {row['predicted_new']:.1f} %"
        )
      print(line, flush=True)
  print(json.dumps({**vars(options), **results}))


if __name__ == "__main__":
  main()
