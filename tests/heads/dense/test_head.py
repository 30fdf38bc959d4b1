"""The sharded dense head equals a textbook model on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import cases
from tests import dense_heads
from tests import meshes
from tests import reference
from xlj import ops
from xlj import sharding
from xlj.heads.dense import rows as rows_lib
from xlj.losses import bce
from xlj.losses import softmax
from xlj.losses import squared_hinge
from xlj.ops import feature_rows
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib

N, D, F, K, P = 16, 12, 40, 5, 3
NUM_LABELS = 83  # divisible by nothing in sight; padded to 88
LOSSES = {
  "softmax": (softmax.Softmax(), reference.softmax_loss),
  "squared_hinge": (squared_hinge.SquaredHinge(), reference.squared_hinge_loss),
  "bce": (bce.BinaryCrossEntropy(), reference.bce_loss),
}
PARTS = ["rows", "wide", "both", "cosine"]
PAIRS = np.random.default_rng(5).random((F, 88)) < 0.4  # by row


def make_head(loss, parts):
  return dense_heads.make(
    num_labels=NUM_LABELS,
    dim=0 if parts == "wide" else D,
    loss=LOSSES[loss][0],
    optimizer=row_optimizer.RowOptimizer(optax.adam(0.1)),
    wide_features=0 if parts in ("rows", "cosine") else F,
    wide_learning_rate=lambda step: 0.5 / (1 + step),
    wide_pairs=PAIRS.reshape(F, 8, -1).sum((0, 2)).max(),
    blocks=8,
    init_scale=0.3,
    init_bias=-0.5,
    cosine=parts == "cosine",
  )


def make_batch(seed):
  """Numpy batch: embeddings, features, label ids and weights.

  It has examples without positives, with padded positives, without features
  and of weight 0.
  """
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(N, D)).astype(np.float32)
  lengths = rng.integers(0, K + 1, N).astype(np.int32)
  lengths[0] = 0
  feature_ids = rng.integers(0, F, (N, K)).astype(np.int32)
  values = rng.normal(size=(N, K)).astype(np.float32)
  used = np.arange(K) < lengths[:, None]
  features = feature_rows.SparseRows(
    np.where(used, feature_ids, 0).astype(np.int32),
    np.where(used, values, 0).astype(np.float32),
    lengths,
  )
  targets = targets_lib.Targets(*cases.some_labels(rng, N, P, NUM_LABELS))
  return x, features, targets


def reference_step(head, reference_loss, params, opt, step, batch):
  """The same step, dense, on one device, by `jax.grad`."""
  x, features, targets = batch
  hot = reference.multi_hot(jnp.asarray(targets.ids), NUM_LABELS)
  one_hot = jax.nn.one_hot(features.ids, F)
  dense_features = (features.values[..., None] * one_hot).sum(1)  # [N, F]

  def loss_fn(params, x):
    z = params["bias"][None]
    if "rows" in params:
      rows = params["rows"]
      if head.label_rows.cosine:
        rows = rows / jnp.sqrt((rows**2).sum(1, keepdims=True) + 1e-6)
      z = z + x @ rows.T
    if "wide" in params:
      wide = dense_features @ params["wide"]
      z = z + wide
    losses = reference_loss(z, hot)
    return reference.weighted_mean(losses, targets.weights)

  loss, (grads, dx) = jax.value_and_grad(loss_fn, (0, 1))(params, x)
  wide = grads.pop("wide", None)
  plain = {k: v for k, v in params.items() if k != "wide"}
  updates, opt = head.label_rows.optimizer.tx.update(grads, opt, plain)
  new = optax.apply_updates(plain, updates)
  if wide is not None:
    meet = in_label_order(head, {"meet": PAIRS.T})["meet"].T
    wide = jnp.where(meet, wide, 0)
    new["wide"] = params["wide"] - head.wide_learning_rate(step) * wide
  return new, opt, dx, loss


def first_params(head):
  params = jax.tree.map(np.asarray, jax.jit(head.init)(jax.random.key(0)))
  if head.label_rows.wide_features:
    weights = np.random.default_rng(6).normal(size=PAIRS.shape) * PAIRS
    return dense_heads.with_wide(params, weights, head.layout.blocks)
  return params


def in_label_order(head, params):
  """The parameters without padding, label i at position i."""
  blocks, out = head.layout.blocks, {}
  rows = [
    i % blocks * -(-NUM_LABELS // blocks) + i // blocks
    for i in range(NUM_LABELS)
  ]
  if "wide" in params:
    out["wide"] = dense_heads.wide(params, head.num_rows)[:, rows]
  for name, value in rows_lib.without_wide(params).items():
    out[name] = np.asarray(value)[rows]
  return out


def place(mesh, head, params, opt):
  def put(tree, specs):
    return jax.device_put(tree, sharding.named(mesh, specs))

  return put(params, head.specs()), put(opt, head.optimizer_specs())


def inputs(head, batch):
  x, features, targets = sharding.put_batch(batch)
  return (
    x if head.dim else None,
    features if head.label_rows.wide_features else None,
    targets,
  )


@pytest.mark.parametrize(
  "loss,parts,shape", cases.covering(LOSSES, PARTS, meshes.SHAPES)
)
def test_steps_equal_the_textbook(loss, parts, shape):
  head = make_head(loss, parts)
  params = first_params(head)
  opt = jax.tree.map(np.asarray, head.init_optimizer(params))
  expected = in_label_order(head, params)
  expected_opt = head.init_optimizer(expected).tx
  reference = functools.partial(reference_step, head, LOSSES[loss][1])
  reference, own_step = jax.jit(reference), jax.jit(head.step)
  with meshes.mesh(shape) as mesh:
    params, opt = place(mesh, head, params, opt)
    for step in range(3):
      batch = make_batch(step)
      expected, expected_opt, expected_dx, expected_loss = reference(
        expected, expected_opt, step, batch
      )
      args = inputs(head, batch)
      if step == 1:
        evaluated = jax.jit(head.evaluate_loss)(params, *args)
        np.testing.assert_allclose(evaluated, expected_loss, rtol=2e-6)
      params, opt, dx, metrics = own_step(params, opt, jnp.int32(step), *args)
      np.testing.assert_allclose(metrics["loss"], expected_loss, rtol=2e-6)
      if head.dim:
        np.testing.assert_allclose(dx, expected_dx, atol=1e-5)
    for name, value in in_label_order(head, params).items():
      np.testing.assert_allclose(value, expected[name], atol=3e-5, err_msg=name)


@pytest.mark.parametrize(
  "k,shape", cases.covering([1, 7, NUM_LABELS], meshes.SHAPES)
)
def test_topk_equals_sorting_all_labels(shape, k):
  head = make_head("softmax", "both")
  params = first_params(head)
  rng = np.random.default_rng(0)
  by_label = in_label_order(head, params)
  batch = x, features, _ = make_batch(3)
  offset = rng.normal(size=head.num_rows).astype(np.float32)
  exclude = rng.integers(-1, NUM_LABELS, (N, 4)).astype(np.int32)
  z = x @ by_label["rows"].T + by_label["bias"]
  z += in_label_order(head, {"offset": offset})["offset"]
  for n in range(N):
    for j in range(features.lengths[n]):
      z[n] += features.values[n, j] * by_label["wide"][features.ids[n, j]]
    z[n, exclude[n][exclude[n] >= 0]] = -np.inf
  order = np.argsort(-z, axis=1)[:, :k]
  with meshes.mesh(shape) as mesh:
    placed, _ = place(mesh, head, params, head.init_optimizer(params))
    x, features, _ = inputs(head, batch)
    scores, ids = jax.jit(head.topk, static_argnums=3)(
      placed,
      x,
      features,
      k,
      ops.Choice(sharding.put_batch(exclude)),
      jax.device_put(offset, jax.NamedSharding(mesh, sharding.LABELS)),
    )
  expected = np.take_along_axis(z, order, 1)
  np.testing.assert_allclose(scores, expected, atol=1e-5)
  found = np.isfinite(expected)
  assert (np.asarray(ids)[~found] == -1).all()
  np.testing.assert_array_equal(np.asarray(ids)[found], order[found])


@pytest.mark.parametrize("shape", meshes.SHAPES)
def test_add_to_rows_sums_the_vectors_of_each_label(shape):
  head = make_head("softmax", "rows")
  x, _, targets = make_batch(4)
  expected = np.zeros((NUM_LABELS, D), np.float32)
  for n in range(N):
    for label in targets.ids[n]:
      if label >= 0:
        expected[label] += x[n]
  with meshes.mesh(shape) as mesh:
    rows = jax.device_put(
      np.zeros((head.num_rows, D), np.float32),
      jax.NamedSharding(mesh, sharding.LABELS),
    )
    got = jax.jit(head.add_to_rows)(rows, *sharding.put_batch((targets.ids, x)))
  got = in_label_order(head, {"rows": got})["rows"]
  np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_a_linear_gradient_that_is_not_finite_makes_the_loss_so(shape):
  head = dense_heads.make(
    num_labels=8,
    dim=0,
    loss=bce.BinaryCrossEntropy(),
    optimizer=row_optimizer.RowOptimizer(optax.sgd(0.1)),
    wide_features=F,
    wide_learning_rate=lambda step: 0.5,
    wide_pairs=1,
    blocks=8,
  )
  features = feature_rows.SparseRows(
    np.zeros((N, K), np.int32),
    np.zeros((N, K), np.float32),
    np.full(N, K, np.int32),
  )
  targets = targets_lib.Targets(np.zeros((N, 1), np.int32), np.ones(N, "f"))
  weights = np.zeros((F, 8))
  weights[0] = 1
  params = dense_heads.with_wide({"bias": np.zeros(8, "f")}, weights, 8)
  params["wide"] *= 0
  opt = jax.tree.map(np.asarray, head.init_optimizer(params))
  with meshes.mesh(shape) as mesh:
    params, opt = place(mesh, head, params, opt)
    for value in (3.0, 3e38):  # times weights of 0, and N K of them
      features.values[:] = value
      batch = sharding.put_batch((features, targets))
      new, _, _, metrics = jax.jit(head.step)(params, opt, 0, None, *batch)
      assert np.isfinite(new["wide"]).all() == (value == 3)
      assert np.isfinite(metrics["loss"]) == (value == 3)


def test_ids_beyond_the_labels_are_of_no_other_label():
  head = dense_heads.make(
    num_labels=43,
    dim=2,
    loss=bce.BinaryCrossEntropy(),
    optimizer=row_optimizer.RowOptimizer(optax.sgd(0.1)),
    blocks=8,
  )
  rows = head.label_rows.of_labels(np.array([1, 42, 43, 48, -1]))
  # 48 would be the place of label 1.
  np.testing.assert_array_equal(rows, [6, 17, -1, -1, -1])
