"""Dual encoders: what a step reads of label texts, and whole runs."""

import json

import jax
import numpy as np
import pytest

from tests import runs
from xlj import config as config_lib
from xlj.data import csr as csr_lib
from xlj.evaluation import evaluate
from xlj.runs import directory
from xlj.training import dual
from xlj.training import train

LABELS, WORDS = 60, 4  # words of the text of a label


def write_texts(place):
  """Rows made of words of their labels; half of the labels have no row."""
  rng = np.random.default_rng(0)
  place.mkdir(exist_ok=True)
  texts = [
    " ".join(f"w{i}" for i in rng.integers(0, 150, WORDS))
    for _ in range(LABELS)
  ]

  def row(some):
    labels = rng.permutation(some)[: rng.integers(1, 3)]
    own = [w for i in labels for w in rng.permutation(texts[i].split())[:3]]
    noise = [f"w{i}" for i in rng.integers(0, 150, 2)]
    return {"text": " ".join(own + noise), "labels": [f"l{i}" for i in labels]}

  files = {
    "labels": [
      {"label": f"l{i}", "text": t} if i else {"label": "l0", "text": " "}
      for i, t in enumerate(texts)
    ],
    "train": [row(LABELS // 2) for _ in range(400)],
    "test": [row(LABELS) for _ in range(100)],
  }
  for name, rows in files.items():
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (place / f"{name}.jsonl").write_text(lines)
  return place


@pytest.fixture(scope="module")
def texts_dir(tmp_path_factory):
  return write_texts(tmp_path_factory.mktemp("texts"))


def make_config(texts_dir, **fields):
  """A dual encoder of bags of words; overrides are dotted names with __."""
  config = config_lib.base()
  config.update_from_flattened_dict(
    {
      "data.dir": str(texts_dir),
      "data.text": "words",
      "data.validation": 0.1,
      "family": "embedding",
      "encoder.dim": 16,
      "head.blocks": 8,
      "train.batch_size": 32,
      "train.num_steps": 24,
      "train.log_every": 1,
      "checkpoint.every": 5,
      "dual.loss": "decoupled_softmax",
    }
    | {name.replace("__", "."): value for name, value in fields.items()}
  )
  return config


# Everything that there is: hard negatives beside those of the batch, both
# directions, and the views of label texts.
EVERYTHING = {
  "dual__loss": "triplet",
  "dual__least_margin": 0.1,
  "dual__negatives": 3,
  "dual__refresh": 7,
  "dual__queries": 0.5,
  "dual__self_weight": 0.3,
  "dual__self_masks": "correlated",
  "dual__self_dropout": 0.1,
  "encoder__chunk": 16,
}


@pytest.mark.slow
def test_an_interrupted_run_repeats_bit_for_bit(texts_dir, tmp_path, use_mesh):
  use_mesh((1, 2))
  config = make_config(texts_dir, **EVERYTHING, dual__head=False)
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  train.train(config, whole)
  runs.stop_after(steps=10, config=config, workdir=parts)
  train.train(config, parts)
  assert runs.records(parts, "train") == runs.records(whole, "train")
  assert runs.records(parts, "eval") == runs.records(whole, "eval")
  states = [
    directory.load(workdir, which="last", training=True).trees
    for workdir in (parts, whole)
  ]
  jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.slow
def test_losses_are_equal_on_all_meshes(texts_dir, tmp_path, use_mesh):
  found = []
  for shape in ((1, 1), (2, 3)):
    use_mesh(shape)
    workdir = tmp_path / str(shape)
    config = make_config(
      texts_dir, **(EVERYTHING | {"encoder__embedding_dropout": 0.0})
    )
    config.encoder.chunk = 0
    train.train(config, workdir)
    found.append(runs.losses(workdir))
  assert found[0][-1] < 0.95 * found[0][0]
  np.testing.assert_allclose(found[1], found[0], rtol=1e-3)


@pytest.mark.slow
def test_label_rows_are_embedded_texts_and_find_labels_without_rows(
  texts_dir, tmp_path, use_mesh
):
  use_mesh((1, 2))
  config = make_config(
    texts_dir, dual__head=False, dual__negatives=2, train__num_steps=100
  )
  train.train(config, tmp_path)
  found = evaluate.evaluate(tmp_path)
  assert found["P@1"] > 60  # half of the labels have no training row


def test_one_label_of_each_row_that_has_a_text():
  labels = csr_lib.Csr(
    np.array([0, 3, 3, 4, 5]), np.array([1, 2, 4, 3, 2]), None, 5
  )
  rows = np.array([0, 1, 2, -1, 3])  # label 3 has no text
  found = np.stack(
    [
      dual._one_of_each(labels, rows, np.random.default_rng(seed))
      for seed in range(300)
    ]
  )
  assert (found[:, 1:] == [-1, -1, 2]).all()
  share = [(found[:, 0] == label).mean() for label in (1, 2, 4)]
  np.testing.assert_allclose(share, 1 / 3, atol=0.1)
  chances = dual._chances(labels, rows)
  np.testing.assert_allclose(chances, [0, 1 / 12, 4 / 12, 0, 1 / 12])
