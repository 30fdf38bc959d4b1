"""Any number of devices: the same figures, and the same checkpoint."""

import dataclasses
import functools
import shutil

import jax
import ml_collections
import numpy as np
import pytest
import scipy.sparse

from tests import meshes
from tests import runs
from xlj import sharding
from xlj.checkpoint import errors
from xlj.checkpoint import steps
from xlj.config import families
from xlj.data import label_pairs
from xlj.model import model as model_lib
from xlj.ops import layout as layout_lib
from xlj.runs import directory

N, L, F, K = 14, 77, 50, 6  # examples, labels, features, best labels
FACTS = families.DataFacts(9_000, F, L, 2.0, 8.0, False, "counts", "x")
LINEAR = {"family": "linear", "encoder__dim": 0, "head__loss": "bce"}
HEADS = {
  "dense": {"head__loss": "softmax", "encoder__embedding_dropout": 0.3},
  "kahan": {
    "head__dtype": "bfloat16",
    "head__correction": "kahan",
    "head__kahan_labels": 9,
  },
  "pairs": {**LINEAR, "head__by_example": False},
  "by_example": {**LINEAR, "head__by_example": True},
  "prototypes": {"head__loss": "softmax", "head__prototypes": 3},
  "mhc": {"head__type": "mhc", "head__groups": (8, 20)},
  "mhs": {
    "head__type": "mhs",
    "head__loss": "softmax",
    "head__groups": (16,),
    "head__sample_groups": 6,
    "head__hard_groups": 2,
  },
  "mhp": {"head__type": "mhp", "predict__propensity_power": 0.0},
  "spherical": {"head__type": "spherical"},
  "oltr": {"head__type": "oltr"},
  "noisy": {"head__loss": "softmax", "noisy__method": "elr"},
}
# Each head on one odd number of devices.
CASES = [(head, (3, 5, 7)[i % 3]) for i, head in enumerate(HEADS)]
# The others are compiled with the slow tests.
QUICK = [("dense", 3), ("by_example", 7), ("mhp", 5)]


def resolved(head):
  fields = {"head__blocks": 8, "encoder__dim": 8, "family": "network"}
  fields |= {"train__batch_size": 16, "eval__batch_size": 16, **HEADS[head]}
  if fields.get("head__type") == "mhs":  # its groups are its blocks
    del fields["head__blocks"]
  single = head in ("mhp", "spherical", "oltr", "noisy")
  facts = dataclasses.replace(FACTS, labels_per_row=1.0 if single else 2.0)
  config = runs.resolved(facts, **fields)
  if config.head.wide:
    config.head.wide_pairs = pairs(config)[1].shape[1]
  return config


def pairs(config):
  """Where linear weights belong, by block."""
  layout = layout_lib.Layout(L, config.head.blocks)
  weights = scipy.sparse.random_array(
    (F, layout.num_rows), density=0.5, rng=0, format="csc", dtype=np.float32
  )
  shape = layout.blocks, layout.rows_per_block
  return label_pairs.by_block(weights, shape)[:2]


def batch(seed):
  """A batch with the padding that the devices in context need."""
  rng = np.random.default_rng(seed)
  inputs = model_lib.Inputs(
    rng.integers(0, F, (N, 8)).astype(np.int32),
    rng.random((N, 8)).astype(np.float32),
    rng.integers(0, L, (N, 1)).astype(np.int32),
    np.ones(N, np.float32),
    rng.permutation(9_000)[:N].astype(np.int32),
  )
  fills = model_lib.Inputs(0, 0, -1, 0, -1)

  def padded(a, fill):
    pads = [(0, sharding.fill(N))] + [(0, 0)] * (a.ndim - 1)
    return np.pad(a, pads, constant_values=fill)

  return sharding.put_batch(jax.tree.map(padded, inputs, fills))


def start(config):
  """A model, and its state before the first step."""
  model = model_lib.Model(config)
  ids = counts = None
  if config.head.order != "none":
    ids = model.by_row(np.arange(L, dtype=np.int32), -1)
    counts = model.by_row(np.arange(L, 0, -1, dtype=np.int32), 0)
  key = sharding.replicate(jax.random.key(3))
  idf = sharding.replicate(np.ones(F, np.float32))
  state = model.init(key, ids, counts, idf)
  if config.head.wide:
    state = model.with_pairs(state, *pairs(config))
  if config.head.init == "centroid" or "memory" in model.head.can:
    sums = jax.jit(model.add_to_centroids)(
      model.zero_rows(), state.model, batch(9)
    )
    state = jax.jit(model.start_at_centroids, out_shardings=model.shardings())(
      sums, state
    )
  return model, state


def cut(model, state):
  """The arrays of a state as they are saved, without empty rows behind."""
  saved = model.saved()
  return jax.tree.map(
    lambda a, s: np.asarray(a)[tuple(map(slice, s.shape))],
    (state.model, state.training),
    (saved.model, saved.training),
  )


def same_bits(a, b):
  assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())


@functools.cache
def trained(head, devices):
  """Figures of a step and after it, and the arrays as they are saved."""
  with meshes.mesh((1, devices)):
    model, state = start(resolved(head))
    state, metrics = jax.jit(model.train_step)(state, batch(1))
    test = batch(5)
    loss = jax.jit(model.loss)(state.model, test)
    scores, ids = jax.jit(model.topk, static_argnums=2)(state.model, test, K)
    losses = np.array([metrics["loss"], loss])
    return (
      losses,
      np.asarray(scores)[:N],
      np.asarray(ids)[:N],
      cut(model, state),
    )


@pytest.mark.parametrize(
  ("head", "devices"),
  [
    pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow])
    for case in CASES
  ],
)
def test_figures_do_not_depend_on_the_number_of_devices(head, devices):
  losses, scores, ids, arrays = trained(head, 1)
  found = trained(head, devices)
  np.testing.assert_allclose(found[0], losses, rtol=1e-5)
  np.testing.assert_allclose(found[1], scores, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(found[2], ids)
  for a, b in zip(jax.tree.leaves(arrays), jax.tree.leaves(found[3])):
    a, b = a.astype(np.float32), b.astype(np.float32)
    # Where a gradient is next to 0, Adam makes a step of what rounding left.
    assert (np.abs(a - b) > 1e-5 + 1e-3 * np.abs(a)).mean() < 0.01


@pytest.mark.parametrize(
  "head",
  [
    "pairs",
    "noisy",
    *(pytest.param(h, marks=pytest.mark.slow) for h in ("kahan", "mhc", "mhs")),
  ],
)
def test_a_checkpoint_does_not_depend_on_the_number_of_devices(head, tmp_path):
  config = resolved(head)
  wanted, described = None, []
  for number, devices in enumerate((3, 5, 8)):
    with meshes.mesh((1, devices)):
      if number == 0:
        model, state = start(config)
        wanted = cut(model, state)
      else:
        model = model_lib.Model(config)
        with directory.keeper(tmp_path, config, model) as keeper:
          here = model.abstract()
          _, *trees, _ = keeper.restore_newest(here.model, here.training)
        state = model_lib.State(*trees, step=jax.numpy.int32(0))
        jax.tree.map(same_bits, cut(model, state), wanted)
      with directory.keeper(tmp_path, config, model) as keeper:
        keeper.save(number, state.model, state.training, {})
    meta = steps.read_meta(steps.resolve(tmp_path) / "checkpoints", number)
    described.append(meta["arrays"])
  assert described[0] == described[1] == described[2]


def test_a_checkpoint_of_other_rows_is_refused(tmp_path):
  config = resolved("dense")
  more = ml_collections.ConfigDict(config.to_dict())
  more.data.num_labels = 81  # as many rows as 77 labels on 3 devices
  with meshes.mesh((1, 3)):
    model, state = start(config)
    with directory.keeper(tmp_path, config, model) as keeper:
      keeper.save(1, state.model, state.training, {})
    other = model_lib.Model(more)
    with directory.keeper(tmp_path, more, other) as keeper:
      with pytest.raises(errors.CheckpointError, match=r"is int32\[80\] there"):
        keeper.restore_model(other.abstract().model)


@pytest.mark.slow
def test_a_run_goes_on_and_predicts_on_any_number_of_devices(
  data_dir, tmp_path
):
  workdir = f"--workdir={tmp_path / 'run'}"
  train = [
    "--config=configs/xmc.py",
    f"--config.data.dir={data_dir}",
    workdir,
    "--config.train.batch_size=50",
    "--config.train.num_steps=8",
    "--config.checkpoint.every=4",
  ]
  predict = workdir, f"--input={data_dir / 'test.txt'}", "--output=-"

  def run(devices, name, *args):
    status, out, err = runs.finish(runs.launch(name, *args, devices=devices))
    assert status == 0, err
    return out

  def scores(devices):
    return [
      [float(answer.rsplit(":", 1)[1]) for answer in line.split("\t")]
      for line in run(devices, "predict", *predict).splitlines()
    ]

  run(2, "train", *train)
  wanted = scores(1)
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
  run(12, "train", *train)  # the last steps again
  found = scores(3)
  assert len(found) == runs.SPEC.num_test
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
