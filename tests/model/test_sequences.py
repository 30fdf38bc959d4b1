"""A step on every item of sequences, against a softmax over `[N, T, L]`."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from tests import meshes
from tests import runs
from xlj import sharding
from xlj.config import families
from xlj.data import label_order
from xlj.data import label_pairs
from xlj.data import pipeline
from xlj.heads.dense import rows as rows_lib
from xlj.model import batches
from xlj.model import inputs as inputs_lib
from xlj.model import model as model_lib

N, T, L = 24, 8, 21
FACTS = families.DataFacts(9_000, L, L, 1.0, 6.0, False, "counts", "x")
ORDER = label_order.LabelOrder.of(np.random.default_rng(1).permutation(L))


def batch(most=L):
  """Sequences of 1 to T items, oldest first, and a row that is padding."""
  rng = np.random.default_rng(0)
  there = np.arange(T) < rng.integers(1, T + 1, N)[:, None]
  ids = np.where(there, rng.integers(0, most, (N, T)), 0).astype(np.int32)
  values = np.where(there, np.arange(1, T + 1), 0).astype(np.float32)
  labels = rng.integers(0, most, (N, 1)).astype(np.int32)
  weights = np.ones(N, np.float32)
  ids[-1], values[-1], labels[-1], weights[-1] = 0, 0, -1, 0
  return pipeline.Batch(ids, values, labels, weights, np.arange(N))


def test_the_target_of_each_item_is_the_next_one():
  read = batch()
  inputs = batches.to_inputs(read, ORDER, every=True)
  found = ORDER.to_data(np.asarray(inputs.label_ids))
  for row in range(N):
    items = read.feature_ids[row][read.feature_values[row] > 0].tolist()
    wanted = [*items[1:], read.label_ids[row, 0]] if items else []
    assert found[row].tolist() == [*wanted, *[-1] * (T - len(wanted))]


def resolved(tied, **fields):
  return runs.resolved(
    FACTS,
    data__sequences="Some",
    encoder__type="causal",
    encoder__dim=8,
    encoder__tied=tied,
    encoder__heads=2,
    encoder__depth=1,
    head__loss="softmax",
    head__blocks=8,
    head__use_bias=False,
    optim__encoder__name="sgd",
    optim__head__name="sgd",
    optim__encoder__weight_decay=0.0,
    optim__head__weight_decay=0.0,
    optim__encoder__learning_rate=1.0,
    optim__head__learning_rate=1.0,
    optim__decay="constant",
    optim__warmup=0.0,
    train__batch_size=N,
    **fields,
  )


def reference(model, state, inputs):
  """Loss and gradients of a softmax that holds all logits."""
  graph = model._graph
  rows = model.layout.row_of_label(np.arange(L))

  def loss(encoder, head):
    module = nnx.merge(graph, jax.tree.map(nnx.Param, encoder))
    items = None
    if model._config.encoder.tied:
      items = head[rows[ORDER.head_ids[inputs.feature_ids]]]
    h = module.every(inputs_lib.features(inputs), items)  # [N, T, D]
    z = jnp.einsum("ntd,ld->ntl", h, head[rows])  # [N, T, L]
    labels = jnp.asarray(inputs.label_ids)
    each = -jnp.take_along_axis(
      jax.nn.log_softmax(z), jnp.maximum(labels, 0)[..., None], 2
    )[..., 0]
    weights = (labels >= 0) * inputs.weights[:, None]
    return jnp.sum(each * weights) / jnp.sum(weights)

  return jax.value_and_grad(loss, argnums=(0, 1))(
    *jax.tree.map(jnp.asarray, (state["encoder"], state["head"]["rows"]))
  )


def start(model):
  """The state before the first step, on the mesh in context."""
  return model.init(
    sharding.replicate(jax.random.key(3)),
    model.by_row(ORDER.data_ids, -1),
    model.by_row(np.ones(L, np.int32), 0),
    sharding.replicate(np.ones(L, np.float32)),
  )


def stepped(shape, tied, most=L, **fields):
  """A model before and after a step."""
  inputs = batches.to_inputs(batch(most), ORDER, every=True)
  with meshes.mesh(shape):
    model = model_lib.Model(resolved(tied, **fields))
    state = start(model)
    first = jax.tree.map(np.asarray, state.model)
    state, metrics = jax.jit(model.train_step)(
      state, sharding.put_batch(inputs)
    )
    return model, inputs, first, jax.tree.map(np.asarray, state.model), metrics


@pytest.mark.parametrize(
  ("shape", "tied"),
  [*((shape, False) for shape in meshes.SHAPES), ((1, 1), True), ((3, 1), True)]
  + [((2, 4), True)],
)
def test_loss_and_gradients_are_those_of_all_logits(shape, tied):
  model, inputs, first, last, metrics = stepped(shape, tied)
  loss, grads = reference(model, first, inputs)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  steps = jax.tree.map(
    lambda a, b: a - b,
    *[(m["encoder"], m["head"]["rows"]) for m in (first, last)],
  )
  jax.tree.map(
    lambda step, grad: np.testing.assert_allclose(step, grad, atol=2e-6),
    steps,
    grads,
  )


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 4)])
def test_answers_add_what_came_after_and_steps_leave_it(shape):
  decay, read = 0.7, batch()
  inputs = batches.to_inputs(read, ORDER, every=True)
  counted = np.random.default_rng(2).random((L, L), np.float32)
  config = resolved(True, head__transitions=2.0, head__transitions_decay=decay)
  with meshes.mesh(shape):
    layout = model_lib.Model(config).layout
    rows = layout.row_of_label(np.arange(L))  # by the head's numbers
    weights = np.zeros((L, layout.num_rows), np.float32)
    weights[:, rows] = counted[:, ORDER.data_ids]
    arrays = label_pairs.by_block(
      scipy.sparse.csr_array(weights), (layout.blocks, layout.rows_per_block)
    )
    config.head.transition_pairs = arrays[1].shape[1]
    model = model_lib.Model(config)
    state = model.with_pairs(start(model), *arrays)
    first, put = (
      jax.tree.map(np.asarray, state.model),
      sharding.put_batch(inputs),
    )
    scores, ids = jax.jit(model.topk, static_argnums=2)(state.model, put, L)
    x = np.asarray(jax.jit(model.embed)(state.model, put))
    last = sharding.put_batch(batches.to_inputs(read, ORDER))
    alone = jax.jit(model.loss)(state.model, last)
    state, metrics = jax.jit(model.train_step)(state, put)
  ages = (read.feature_values > 0).sum(1)[:, None] - 1 - np.arange(T)
  values = np.where(ages >= 0, decay ** np.maximum(ages, 0), 0)
  added = np.einsum("nt,ntl->nl", values, counted[read.feature_ids])
  wanted = x @ first["head"]["rows"][rows].T + added[:, ORDER.data_ids]
  found = np.take_along_axis(wanted, np.asarray(ids), 1)
  np.testing.assert_allclose(np.asarray(scores)[:-1], found[:-1], rtol=1e-5)
  loss, _ = reference(model, first, inputs)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  z = (x @ first["head"]["rows"][rows].T)[:-1]
  p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
  of_label = p[np.arange(N - 1), ORDER.head_ids[read.label_ids[:-1, 0]]]
  np.testing.assert_allclose(alone, -np.log(of_label).mean(), rtol=1e-5)
  for name in rows_lib.PAIRS:
    np.testing.assert_array_equal(
      state.model["head"][name], first["head"][name]
    )


def test_the_softmax_over_all_that_can_be_drawn_is_that_over_all():
  found = [stepped((1, 1), True, 5, head__sampled=s) for s in (0, 24, 4)]
  losses = [float(metrics["loss"]) for *_, metrics in found]
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
  assert losses[2] != losses[0]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
    *(last for _, _, _, last, _ in found[:2]),
  )
