"""The sharded open long-tailed head equals a dense one that forms all pairs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import cases
from tests import dense_heads
from tests import meshes
from tests import reference
from xlj import sharding
from xlj.heads.oltr import head as oltr
from xlj.losses import softmax
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib

N, D, P, L = 16, 6, 2, 43  # padded to 48 rows
RATE = 0.1
SETTINGS = {
  "three_matrices": {},
  "one_matrix": {"tied": True, "own_keys": False, "attend_to": 5},
  "top_keys": {"attend_to": 5, "margin": 1e4},  # its hinge is active
}
assert_close = functools.partial(cases.assert_close, atol=2e-5, rtol=2e-4)


def make_head(**settings):
  labels = dense_heads.make(
    num_labels=L,
    dim=D,
    loss=softmax.Softmax(),
    optimizer=row_optimizer.RowOptimizer(optax.sgd(RATE)),
    use_bias=False,
    blocks=8,
    init_scale=0.5,
    cosine=True,
    chunk_size=2,
  )
  return oltr.OltrHead(
    labels, optax.adam(RATE), scale=9.0, centre_weight=0.5, centre_rate=0.2,
    repel_weight=0.3, **settings,
  )  # fmt: skip


def make_batch():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(N, D)).astype(np.float32)
  ids = np.stack([rng.permutation(6)[:P] for _ in range(N)]).astype(np.int32)
  ids[::2, 1] = -1  # one label; few labels, so that some meet
  ids[3] = -1
  weights = rng.uniform(0.5, 1.5, N).astype(np.float32)
  weights[5] = 0
  return x, targets_lib.Targets(ids, weights)


def make_params(head):
  """Of random memory and keys, by row; padding rows would win."""
  rng = np.random.default_rng(2)
  params = jax.device_get(jax.jit(head.init)(jax.random.key(0)))

  def fill(a):
    return (0.7 * rng.normal(size=a.shape)).astype(np.float32)

  params["asked"] = jax.tree.map(fill, params["asked"])
  if head.tied:
    params["labels"] = jax.tree.map(fill, params["labels"])
  else:
    params["memory"] = fill(params["memory"])
    padding = ~np.asarray(head.layout.is_label(jnp.arange(head.num_rows)))
    params["memory"][padding] = 0.1
    params["asked"]["key_bias"][padding] = 50
  return params


def by_label(head, a):
  return a[head.layout.row_of_label(np.arange(L))]


def meta_of(head, params, x, memory):
  """Meta-embeddings, distances, by all pairs; arrays by label."""
  squares = jnp.square(x[:, None] - memory).sum(2)
  asked = params["asked"]
  if head.own_keys:
    z = x @ by_label(head, asked["keys"]).T
    z += by_label(head, asked["key_bias"])
  else:
    z = -squares / 2
  if head.attend_to:
    least = jax.lax.top_k(z, head.attend_to)[0][:, -1:]
    z = jnp.where(z < least, -jnp.inf, z)
  found = jax.nn.softmax(z) @ memory
  distance = jnp.sqrt(squares.min(1))
  chosen = jnp.tanh(x @ asked["selector"] + asked["selector_bias"])
  meta = 10 / distance[:, None] * (x + chosen * found)
  length = jnp.linalg.norm(meta, axis=1, keepdims=True)
  return head.scale * meta / length * (length / (1 + length)), distance


def logits_of(head, params, meta):
  rows = by_label(head, params["labels"]["rows"])
  rows /= jnp.sqrt(jnp.square(rows).sum(1, keepdims=True) + 1e-6)
  return meta @ rows.T


@functools.partial(jax.jit, static_argnums=0)
def reference_logits(head, params, x):
  """Meta-embeddings, distances and logits."""
  meta, distance = meta_of(head, params, x, memory_of(head, params))
  return meta, distance, logits_of(head, params, meta)


def memory_of(head, params):
  every = params["labels"]["rows"] if head.tied else params["memory"]
  return jax.lax.stop_gradient(by_label(head, every))


@functools.partial(jax.jit, static_argnums=0)
def reference_step(head, params, x, targets):
  """New parameters, dx, loss and centre loss."""
  ids, weights = targets.ids, targets.weights
  share = weights / weights.sum()
  hot = reference.multi_hot(jnp.asarray(ids), L)
  memory = memory_of(head, params)

  def centre(x):
    squares = jnp.square(x[:, None] - memory).sum(2)
    own = (hot * squares).sum(1) / jnp.maximum(hot.sum(1), 1) / 2
    others = ((1 - hot) * squares).sum(1) / L
    hinge = jnp.maximum(0, head.margin - (share * others).sum())
    return (share * own).sum() + 0.3 * hinge

  def loss(params, x):
    meta, _ = meta_of(head, params, x, memory)
    losses = reference.softmax_loss(logits_of(head, params, meta), hot)
    return (share * losses).sum() + 0.5 * centre(x)

  value, (grads, dx) = jax.value_and_grad(loss, (0, 1))(params, x)
  updates, _ = head.optimizer.update(
    grads["asked"], head.optimizer.init(params["asked"]), params["asked"]
  )
  new = {
    "asked": optax.apply_updates(params["asked"], updates),
    "labels": jax.tree.map(
      lambda a, g: a - RATE * g, params["labels"], grads["labels"]
    ),
  }
  if not head.tied:
    hot *= (weights > 0)[:, None]
    count = hot.sum(0)[:, None]
    step = (count * memory - hot.T @ x) / (1 + count)
    rows = head.layout.row_of_label(np.arange(L))
    new["memory"] = params["memory"].at[rows].add(-0.2 * step)
  return new, dx, value, centre(x)


FAST = [("three_matrices", (2, 4))]
CASES = [*itertools.product(SETTINGS, [(2, 4)]), ("top_keys", (1, 1))]
CASES += [("one_matrix", (8, 1))]


@pytest.mark.parametrize("case", cases.some(CASES, FAST))
def test_a_step_and_what_it_predicts(case):
  name, shape = case
  head = make_head(**SETTINGS[name])
  params = make_params(head)
  x, targets = make_batch()
  expected = reference_step(head, params, jnp.asarray(x), targets)

  def run(params, opt, x, targets):
    new, _, dx, metrics = head.step(params, opt, jnp.int32(0), x, None, targets)
    found = head.topk(new, x, None, 4)
    sure = []
    if case not in FAST:  # to compile less
      sure = [head.confidence(new, x, None, by) for by in head.confidences]
      sure.append(head.evaluate_loss(new, x, None, targets))
    return new, dx, metrics["loss"], metrics["centre"], found, sure

  with meshes.mesh(shape) as mesh:
    placed = jax.device_put(params, sharding.named(mesh, head.specs()))
    opt = jax.jit(
      head.init_optimizer,
      out_shardings=sharding.named(mesh, head.optimizer_specs()),
    )(placed)
    batch = jax.device_put(
      (x, targets), jax.NamedSharding(mesh, sharding.BATCH)
    )
    *got, (scores, ids), sure = jax.jit(run)(placed, opt, *batch)
  assert_close(got, list(expected))

  meta, distance, z = jax.device_get(reference_logits(head, expected[0], x))
  order = np.argsort(-z, 1)[:, :4]
  np.testing.assert_array_equal(ids, order)
  assert_close(scores, np.take_along_axis(z, order, 1))
  hot = reference.multi_hot(jnp.asarray(targets.ids), L)
  losses = reference.softmax_loss(jnp.asarray(z), hot)
  every = [
    np.asarray(jax.nn.softmax(z)).max(1),
    z.max(1) / np.linalg.norm(meta, axis=1),
    1 / distance,
    reference.weighted_mean(losses, targets.weights),
  ]
  assert_close(sure, every[: len(sure)])


def test_a_memory_at_the_means():
  head = make_head()
  rng = np.random.default_rng(0)
  x = rng.normal(size=(32, D)).astype(np.float32)
  ids = rng.integers(0, 5, (32, 1)).astype(np.int32)
  means = np.stack([x[ids[:, 0] == i].mean(0) for i in range(5)])
  with meshes.mesh((2, 4)) as mesh:
    split = jax.NamedSharding(mesh, sharding.BATCH)
    params = jax.jit(
      head.init, out_shardings=sharding.named(mesh, head.specs())
    )(jax.random.key(0))
    zeros = jax.device_put(np.zeros((head.num_rows, D + 1), np.float32), split)

    @jax.jit
    def run(params, zeros, ids, x):
      sums = head.add_to_rows(zeros, ids, x)
      params = head.at_centroids(params, sums, 2.0)
      return head.with_keys(params, params["labels"]["rows"], None)

    got = run(params, zeros, *jax.device_put((ids, x), split))
  memory = by_label(head, np.asarray(got["memory"]))
  assert_close(memory[:5], means)
  assert_close(memory[5:], np.tile(x.mean(0), (L - 5, 1)))
  rows = by_label(head, np.asarray(got["labels"]["rows"]))
  unit = means / np.linalg.norm(means, axis=1, keepdims=True)
  assert_close(rows[:5], 2 * unit)
  before = by_label(head, np.asarray(params["labels"]["rows"]))
  assert_close(rows[5:], before[5:])
  assert_close(by_label(head, np.asarray(got["asked"]["keys"])), rows)


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"labels": {"cosine": False}}, "cosine is False"),
    ({"labels": {"use_bias": True}}, "it has a bias"),
  ],
)
def test_what_does_not_fit_is_refused(settings, message):
  labels = settings.pop("labels", {})
  head = make_head()
  with pytest.raises(ValueError, match=message):
    oltr.OltrHead(
      dense_heads.changed(head.labels, **labels),
      head.optimizer,
      9.0,
      **settings,
    )


@pytest.mark.slow
def test_the_memory_of_a_million_labels():
  """Nothing of the size of the rows is formed beside them."""
  num_labels, dim, n = 10**6, 32, 64
  labels = dense_heads.make(
    num_labels=num_labels,
    dim=dim,
    loss=softmax.Softmax(),
    optimizer=row_optimizer.RowOptimizer(optax.sgd(RATE)),
    use_bias=False,
    cosine=True,
    chunk_size=2048,
    memory=2**22,
  )
  head = oltr.OltrHead(
    labels, optax.sgd(RATE), 20.0, own_keys=False, attend_to=8
  )
  with meshes.mesh((8, 1)) as mesh:

    def place(a, spec):
      kind = jax.NamedSharding(mesh, spec)
      return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=kind)

    params = jax.eval_shape(head.init, jax.random.key(0))
    opt = jax.eval_shape(head.init_optimizer, params)
    params = jax.tree.map(place, params, head.specs())
    opt = jax.tree.map(place, opt, head.optimizer_specs())
    batch = place(jnp.zeros((n, dim)), sharding.BATCH)
    targets = targets_lib.Targets(
      place(jnp.zeros((n, 1), jnp.int32), sharding.BATCH),
      place(jnp.zeros(n), sharding.BATCH),
    )

    def run(params, opt, x, targets):
      return head.step(params, opt, jnp.int32(0), x, None, targets)

    compiled = (
      jax.jit(run, donate_argnums=(0, 1))
      .lower(params, opt, batch, targets)
      .compile()
    )
  rows = 4 * num_labels * dim // 8
  assert compiled.memory_analysis().temp_size_in_bytes < 0.3 * rows
