"""Every type of head through a whole run: trained, continued, restored."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import runs
from xlj import config as config_lib
from xlj.config import heads
from xlj.data import store
from xlj.evaluation import evaluate
from xlj.inference import predictor
from xlj.training import train

HEADS = ["mhc", "mhs", "mhp"]


def make_config(data_dir, head, **overrides):
  fields = {"head__type": head, "head__wide": False, **overrides}
  if head == "mhp":
    fields |= {"data__max_labels": 1, "predict__propensity_power": 0.0}
  return runs.make_config(data_dir, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mhc", "mhs"])
def test_a_run_continues_elsewhere_and_predicts(
  head, data_dir, tmp_path, use_mesh
):
  labels = runs.SPEC.num_labels
  order = tmp_path / "order.txt"
  permuted = np.random.default_rng(0).permutation(labels)
  order.write_text("".join(f"{i}\n" for i in permuted))
  config = make_config(
    data_dir, head, checkpoint__every=8, head__order=str(order)
  )
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  use_mesh((2, 4))
  train.train(config, whole)
  assert np.mean(runs.losses(whole)[-9:]) < np.mean(runs.losses(whole)[:9])
  runs.stop_after(9, config, parts)
  use_mesh((1, 1))
  train.train(config, parts)
  np.testing.assert_allclose(runs.losses(parts), runs.losses(whole), rtol=1e-4)

  split = store.open_split(data_dir, "test")
  features = split.features.slice_rows(0, 8)
  found = []
  for workdir, shape in ((whole, (1, 1)), (parts, (2, 4))):
    use_mesh(shape)
    run = predictor.load(workdir, which="last")
    found.append(run.topk(features, 5))
  assert sorted(run.order.data_ids) == list(range(labels))
  (scores, ids), (again, _) = found
  np.testing.assert_allclose(scores, again, rtol=1e-2, atol=1e-2)
  assert ((ids >= 0) & (ids < split.num_labels)).all()
  assert all(len(set(row)) == 5 for row in ids)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["identity", "frequency"])
def test_orders_of_labels(order, data_dir, tmp_path, use_mesh):
  use_mesh((1, 1))
  config = make_config(data_dir, "mhc", head__order=order, train__num_steps=2)
  train.train(config, tmp_path / "run")
  run = predictor.load(tmp_path / "run", which="last")
  ids = run.order.data_ids
  assert sorted(ids) == list(range(runs.SPEC.num_labels))
  if order == "identity":
    assert (np.diff(ids) == 1).all()


def test_open_fields_are_decided_by_type():
  config = runs.resolved(head__type="mhc")
  assert config.family == "embedding" and config.head.order == "clusters"
  (groups,) = config.head.groups
  assert groups % 64 == 0 and config.head.candidates / groups <= 0.1
  head = heads.make(config)
  assert [level.layout.num_labels for level in head.levels] == [groups, 30_000]

  config = runs.resolved(head__type="mhp", predict__propensity_power=0.0)
  assert np.prod(config.head.lengths) >= 30_000
  assert heads.make(config).layout.num_labels == 30_000


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"head.type": "mlp"}, "head.type is 'mlp'; use one of"),
    (
      {"head.type": "mhc", "head.wide": True},
      "head.type is 'mhc', which needs",
    ),
    (
      {"head.type": "mhc", "head.groups": (40_000,)},
      "for 30000 labels; use fewer groups",
    ),
    ({"head.type": "mhp"}, "predict.propensity_power shifts"),
    (
      {
        "head.type": "mhp",
        "head.init": "centroid",
      },
      "head.init is 'centroid', which head.type='mhp' does not read",
    ),
    (
      {"head.order": "none"},
      "predict.propensity_power needs counts of labels",
    ),
  ],
)
def test_what_does_not_fit_is_refused_by_name(fields, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    runs.resolved(**fields)


@pytest.mark.parametrize(
  "num_labels, blocks", [(3_000, 8), (2**15, 16), (2**20, 16), (2**20 + 1, 32)]
)
def test_rows_of_a_block_have_numbers_of_16_bits(num_labels, blocks):
  facts = dataclasses.replace(runs.FACTS, num_labels=num_labels)
  assert runs.resolved(facts).head.blocks == blocks


def test_products_are_for_single_labels():
  facts = dataclasses.replace(runs.FACTS, labels_per_row=1.5)
  fields = {"head__type": "mhp", "predict__propensity_power": 0.0}
  with pytest.raises(config_lib.ConfigError, match="set data.max_labels=1"):
    runs.resolved(facts, **fields)


@pytest.mark.parametrize(
  "name", ["bibtex", "wordnet_hypernym", "citeulike_tags", "acl_authors"]
)
@pytest.mark.parametrize("head", HEADS)
def test_every_set_takes_every_head(name, head):
  config = runs.config_file("xmc").get_config(f"{name},head={head}")
  heads.make(config_lib.resolve(config, runs.FACTS))
  arg = f"{name},family=embedding,objective=psp"
  config = runs.config_file("xmc").get_config(arg)
  assert config_lib.resolve(config, runs.FACTS).head.wide is False


@pytest.mark.slow
def test_a_billion_labels_train_and_predict(tmp_path, use_mesh):
  use_mesh((2, 4))
  config = runs.config_file("billion_mhp").get_config("rows=20000")
  config.train.num_steps = 3
  config.data.generator.test_rows = 100
  train.train(config, tmp_path / "run")
  run = predictor.load(tmp_path / "run", which="last")
  assert run.num_labels == 10**9
  sizes = [leaf.size for leaf in jax.tree.leaves(run.state)]
  assert max(sizes) < 10**6  # nothing has an entry per label
  x = np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32)
  scores, ids = run.topk(x, 5)
  assert ((ids >= 0) & (ids < 10**9)).all()
  assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.slow
def test_next_words_have_a_perplexity(tmp_path, use_mesh):
  use_mesh((1, 1))
  text = "the cat sat on the mat <unk>\nthe dog sat on the cat <unk>\n" * 40
  for split in ("train", "valid", "test"):
    (tmp_path / f"ptb.{split}.txt").write_text(text)
  workdir = tmp_path / "run"
  ptb = runs.config_file("ptb")
  config = ptb.get_config("head=mhp,components=2,epochs=20")
  config.data.dir = str(tmp_path)
  config.train.batch_size = 32
  train.train(config, workdir)
  found = evaluate.evaluate(workdir)
  assert 1 <= found["perplexity"] < 5  # of 9 words
