"""The fused step: memory, storage formats, optimizers, and what it sends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import cases
from tests import dense_heads
from tests import meshes
from xlj import sharding
from xlj.config import optim
from xlj.losses import bce
from xlj.losses import softmax
from xlj.ops import label_pass
from xlj.ops import row_optimizer
from xlj.ops import shards
from xlj.ops import targets as targets_lib

OPTIMIZERS = {
  "sgd": optax.sgd(0.1),
  "momentum": optax.sgd(0.1, momentum=0.9),
  "adagrad": optax.adagrad(0.1),
  "rowwise": optax.chain(optim.scale_by_rowwise_rss(), optax.scale(-0.1)),
  "adam": optax.adam(0.1),
  "bfloat16_momentum": optax.sgd(0.1, 0.9, accumulator_dtype=jnp.bfloat16),
}
SMALL_STEPS, LARGE_STEPS = optax.sgd(1e-3), optax.sgd(2.0)
LOSSES = {"softmax": softmax.Softmax(), "bce": bce.BinaryCrossEntropy()}
N, D, NUM_LABELS, P = 16, 8, 203, 3


def make_head(tx=OPTIMIZERS["sgd"], loss="softmax", storage=None, **fields):
  settings = {
    "num_labels": NUM_LABELS,
    "dim": D,
    "blocks": 8,
    "init_scale": 0.5,
    "chunk_size": 11,
  }
  optimizer = row_optimizer.RowOptimizer(tx, **(storage or {}))
  return dense_heads.make(
    loss=LOSSES[loss], optimizer=optimizer, **(settings | fields)
  )


def make_batch(seed):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(N, D)).astype(np.float32)
  ids = rng.integers(0, NUM_LABELS, (N, P)).astype(np.int32)
  ids[:, 1] = np.where(ids[:, 1] == ids[:, 0], -1, ids[:, 1])
  ids[:, 2] = -1
  return x, targets_lib.Targets(ids, np.ones(N, np.float32))


@functools.cache
def train(head, shape, num_steps, same_batch=False):
  """Parameters, state and losses after some steps on a mesh, as numpy."""
  losses = []
  with meshes.mesh(shape):
    params, state = meshes.start(head)
    step = jax.jit(head.step, donate_argnums=(0, 1))
    for i in range(num_steps):
      x, targets = sharding.put_batch(make_batch(0 if same_batch else i))
      params, state, _, metrics = step(
        params, state, jnp.int32(i), x, None, targets
      )
      losses.append(float(metrics["loss"]))
    return jax.tree.map(np.asarray, (params, state)), losses


# --- equal to the differentiable loss ----------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
  "loss,tx",
  cases.covering(LOSSES, ["sgd", "momentum", "adagrad", "adam"]),
)
def test_a_hundred_steps_equal_those_of_the_differentiable_loss(loss, tx):
  head = make_head(OPTIMIZERS[tx], loss, blocks=1)
  params = jax.jit(head.init)(jax.random.key(0))
  opt = OPTIMIZERS[tx].init(params)

  @jax.jit
  def step(params, opt, x, targets):
    def loss_fn(params):
      small = shards.Placement(chunk_size=50)
      return label_pass.label_loss(
        *(x, params["rows"], params["bias"], targets, LOSSES[loss]),
        placement=small,
      )

    updates, opt = OPTIMIZERS[tx].update(jax.grad(loss_fn)(params), opt, params)
    return optax.apply_updates(params, updates), opt

  for i in range(100):
    params, opt = step(params, opt, *make_batch(i))
  (got, _), _ = train(head, (1, 1), 100)
  for name, value in params.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


# --- memory and communication ------------------------------------------------


def compile_step(head, shape, n, step=None):
  """Compiles a step; nothing of it is allocated."""
  with meshes.mesh(shape) as mesh:
    batch = jax.NamedSharding(mesh, sharding.BATCH)

    def put(tree, specs):
      return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        tree,
        sharding.named(mesh, specs),
      )

    params = put(jax.eval_shape(head.init, jax.random.key(0)), head.specs())
    state = jax.eval_shape(head.init_optimizer, params)
    state = put(state, head.optimizer_specs())

    def of_batch(shape, dtype):
      return jax.ShapeDtypeStruct(shape, dtype, sharding=batch)

    targets = targets_lib.Targets(
      of_batch((n, 4), jnp.int32), of_batch((n,), jnp.float32)
    )
    x = of_batch((n, head.dim), jnp.float32)
    traced = jax.ShapeDtypeStruct((), jnp.int32)

    def run(params, state, traced, x, targets):
      number = traced if step is None else jnp.int32(step)
      return head.step(params, state, number, x, None, targets)

    return (
      jax.jit(run, donate_argnums=(0, 1))
      .lower(params, state, traced, x, targets)
      .compile()
    )


@pytest.mark.parametrize(
  ("tx", "shape", "dtype"),
  [
    *cases.covering(
      ["sgd", "momentum", "adagrad", "adam"],
      [(1, 1), (2, 4)],
      ["float32", "bfloat16"],
    ),
    *cases.first(
      1,
      [
        ("adam", (2, 4), "float8"),
        ("sgd", (1, 1), "float8"),
        ("rowwise", (1, 1), "bfloat16"),
        ("bfloat16_momentum", (1, 1), "bfloat16"),
      ],
    ),
  ],
)
def test_temporaries_are_a_few_chunks(tx, shape, dtype):
  n, d, chunk = 64, 32, 2048
  head = make_head(
    OPTIMIZERS[tx],
    storage={"dtype": dtype},
    num_labels=2**21 - 100,
    dim=d,
    chunk_size=chunk,
  )
  found = compile_step(head, shape, n).memory_analysis()
  assert found.temp_size_in_bytes <= 4 * 4 * chunk * (n + d)


def test_a_constant_step_costs_no_copy():
  head = make_head(
    storage={"dtype": "bfloat16"}, num_labels=2**20, dim=32, chunk_size=3000
  )
  found = compile_step(head, (1, 1), 64, step=0).memory_analysis()
  assert found.temp_size_in_bytes <= 4 * 4 * 3000 * (64 + 32)


@pytest.mark.parametrize("correction", ["kahan", "master"])
def test_corrections_are_updated_in_place_too(correction):
  n, d, chunk = 64, 32, 2048
  head = make_head(
    storage={"dtype": "bfloat16", "correction": correction},
    num_labels=2**20,
    dim=d,
    chunk_size=chunk,
    kahan_labels=2**18,
  )
  found = compile_step(head, (1, 1), n).memory_analysis()
  assert found.temp_size_in_bytes <= 4 * 4 * chunk * (n + d)


def test_kept_logits_are_all_that_is_added():
  n, d, chunk, num_labels = 64, 32, 2048, 2**20
  head = make_head(
    num_labels=num_labels, dim=d, chunk_size=chunk, keep_logits="float16"
  )
  found = compile_step(head, (1, 1), n).memory_analysis()
  limit = 2 * n * num_labels + 4 * 4 * chunk * (n + d)
  assert found.temp_size_in_bytes <= limit


def test_what_is_sent_does_not_depend_on_the_number_of_labels():
  head = make_head(num_labels=2**20, dim=32, chunk_size=2048)
  found = meshes.sent(compile_step(head, (2, 4), 64))
  assert found == meshes.SENT_BY_A_STEP


# --- storage formats ---------------------------------------------------------

STORAGE = {
  "bfloat16": {"dtype": "bfloat16"},
  "nearest": {"dtype": "bfloat16", "rounding": "nearest"},
  "kahan": {"dtype": "bfloat16", "correction": "kahan"},
  "master": {"dtype": "bfloat16", "correction": "master"},
  "float8": {"dtype": "float8"},
  "float8_kahan": {"dtype": "float8", "correction": "kahan"},
}


@pytest.mark.parametrize(
  "storage,shape",
  cases.covering(["bfloat16", "float8"], meshes.SHAPES[1:]),
)
def test_what_is_rounded_does_not_depend_on_the_mesh(storage, shape):
  head = make_head(storage=STORAGE[storage])
  (expected, _), expected_losses = train(head, (1, 1), 3)
  (got, _), losses = train(head, shape, 3)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-3)
  # Sums in another order may differ in the last bit before they are rounded.
  same = np.mean(got["rows"] == expected["rows"])
  assert same > 0.99, same


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("storage", STORAGE)
def test_narrow_rows_learn_what_float32_rows_learn(storage):
  tx = LARGE_STEPS
  _, expected = train(make_head(tx), (1, 1), 60, same_batch=True)
  _, losses = train(
    make_head(tx, storage=STORAGE[storage]), (1, 1), 60, same_batch=True
  )
  assert losses[-1] < 0.5 * losses[0]
  assert abs(losses[-1] - expected[-1]) < 0.05 * expected[0]


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
  "storage",
  cases.some(["bfloat16", "kahan", "master", "float8"], ["kahan", "float8"]),
)
def test_updates_far_below_the_grid_are_not_lost(storage):
  """A hundred tiny steps move rows as far as they do in float32, on average.

  Rounding to nearest, which loses them all, is seen to fail this.
  """
  tx = SMALL_STEPS
  moved = {}
  for name in ("float32", "nearest", storage):
    head = make_head(tx, storage=STORAGE.get(name), use_bias=False)
    start = np.asarray(head.rows(jax.jit(head.init)(jax.random.key(0))))
    (params, state), _ = train(head, (1, 1), 100, same_batch=True)
    rows = np.asarray(head.rows(params))
    if state.kahan is not None:
      rows = rows + np.asarray(state.kahan).view(jnp.bfloat16).astype("f4")
    if state.master is not None:
      rows = state.master
    moved[name] = (rows - start).ravel()
  full = moved["float32"]

  def share(name):
    return np.dot(moved[name], full) / np.dot(full, full)

  assert abs(share("nearest") - 1) > 0.5
  assert abs(share(storage) - 1) < 0.3


def test_compensation_of_more_labels_than_there_are_is_of_all():
  head = make_head(kahan_labels=10 * NUM_LABELS)
  assert head.label_rows.kahan_layout == head.layout


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_compensation_of_the_most_frequent_labels_alone():
  storage = STORAGE["kahan"]
  tx = optax.sgd(0.3)
  (some, state), _ = train(
    make_head(tx, storage=storage, kahan_labels=20), (2, 4), 5
  )
  (every, all_state), _ = train(make_head(tx, storage=storage), (2, 4), 5)
  num_rows = make_head(tx).num_rows
  assert state.kahan.shape == (24, D)  # 3 labels of each of 8 blocks
  first = np.arange(num_rows).reshape(8, -1)[:, :3].ravel()

  def exact(params, kahan):
    return np.asarray(params["rows"]).view(jnp.bfloat16)[first].astype(
      "f4"
    ) + kahan.view(jnp.bfloat16).astype("f4")

  np.testing.assert_allclose(
    exact(some, state.kahan), exact(every, all_state.kahan[first]), atol=1e-4
  )
  assert np.abs(state.kahan.view(jnp.bfloat16).astype("f4")).max() > 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
  "dtype", cases.some(["float16", "bfloat16", "float32"], ["float16"])
)
def test_kept_logits_change_little(dtype):
  (expected, _), losses = train(make_head(), (2, 4), 5)
  (got, _), kept_losses = train(make_head(keep_logits=dtype), (2, 4), 5)
  tolerance = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-6}[dtype]
  np.testing.assert_allclose(kept_losses, losses, rtol=tolerance)
  np.testing.assert_allclose(got["rows"], expected["rows"], atol=tolerance)


def test_skipped_chunks_are_wrong_by_no_more_than_stated():
  """Of two blocks of labels one is far away from all examples."""
  skip = 1e-3
  head = make_head(num_labels=200, blocks=2, chunk_size=50, use_bias=False)
  params = jax.jit(head.init)(jax.random.key(0))
  x, targets = make_batch(0)
  x[:, 0], targets.ids[:] = 2, targets.ids // 2 * 2 % 200
  rows = np.array(params["rows"])
  rows[100:, 0] = -3  # the odd labels
  found = {}
  for below in (0.0, skip):
    other = dense_heads.changed(head, skip_below=below)
    with meshes.mesh((1, 1)) as mesh:
      split = jax.NamedSharding(mesh, sharding.LABELS)
      placed = {"rows": jax.device_put(rows, split)}
      state = other.init_optimizer(placed)
      batch = sharding.put_batch((x, targets))
      new, _, dx, _ = jax.jit(other.step)(
        placed, state, jnp.int32(0), batch[0], None, batch[1]
      )
    found[below] = np.asarray(dx), np.asarray(new["rows"])
  exact, skipped = found[0.0], found[skip]
  np.testing.assert_array_equal(skipped[1][100:], rows[100:])
  assert (exact[1][100:] != rows[100:]).any()
  np.testing.assert_allclose(skipped[1][:100], exact[1][:100], atol=1e-7)
  length = np.linalg.norm(rows[100:], axis=1).sum()
  wrong = np.linalg.norm(N * (exact[0] - skipped[0]), axis=1)
  assert 0 < wrong.max() <= skip * length


def test_a_chunk_whose_gradient_is_not_a_number_is_not_left_out():
  head = make_head(num_labels=8, blocks=1, use_bias=False)
  head = dense_heads.changed(head, skip_below=0.9)  # above all others
  x, rows = np.ones((4, head.dim), "f"), np.zeros((8, head.dim), "f")
  x[1, 0] = np.nan
  targets = targets_lib.Targets(np.zeros((4, 1), np.int32), np.ones(4, "f"))
  with meshes.mesh((1, 1)) as mesh:
    split = jax.NamedSharding(mesh, sharding.LABELS)
    params = {"rows": jax.device_put(rows, split)}
    state = head.init_optimizer(params)
    batch = sharding.put_batch((x, targets))
    _, _, dx, _ = jax.jit(head.step)(
      params, state, jnp.int32(0), batch[0], None, batch[1]
    )
  assert np.isnan(dx).any()


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_initial_rows_do_not_depend_on_the_mesh_and_are_normal():
  head = make_head(num_labels=5003, storage=STORAGE["float8"])
  alone = head.init(jax.random.key(3))
  with meshes.mesh((2, 4)):
    split = jax.jit(head.init)(jax.random.key(3))
  jax.tree.map(np.testing.assert_array_equal, alone, split)
  rows = np.asarray(make_head(num_labels=5003).init(jax.random.key(3))["rows"])
  assert abs(rows.mean()) < 0.01
  assert abs(rows.std() - 0.5) < 0.01
  assert 3.5 * 0.5 < np.abs(rows).max() < 6 * 0.5


def test_rows_are_no_longer_than_the_limit():
  head = make_head(optax.sgd(5.0), storage={"max_norm": 1.0})
  (params, _), _ = train(head, (2, 4), 3)
  length = np.linalg.norm(params["rows"], axis=1)
  assert length.max() <= 1 + 1e-6
  assert 0.05 < (length > 1 - 1e-6).mean() < 0.5


# --- kernels -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
  ("loss", "dtype", "shape"),
  cases.first(
    2,
    [
      ("softmax", "bfloat16", (2, 4)),
      ("bce", "float8", (1, 1)),
      ("softmax", "float32", (1, 1)),
      ("bce", "bfloat16", (1, 1)),
      ("bce", "float8", (2, 4)),
    ],
  ),
)
def test_kernels_do_the_same_step(loss, dtype, shape):
  optimizer = row_optimizer.sgd(
    optax.linear_schedule(0.5, 0.1, 3), weight_decay=0.1, dtype=dtype
  )
  head = dense_heads.changed(make_head(loss=loss), optimizer=optimizer)
  (expected, state), losses = train(head, shape, 2)
  head = dense_heads.changed(head, kernels="interpret")
  assert head.uses_kernels
  (got, got_state), got_losses = train(head, shape, 2)
  np.testing.assert_allclose(got_losses, losses, rtol=1e-5)
  np.testing.assert_allclose(got["bias"], expected["bias"], atol=1e-5)
  np.testing.assert_allclose(
    head.rows(got), head.rows(expected), atol=1e-6 if dtype == "float32" else 1
  )
  # Where sums in another order lie on two sides of what is drawn, the rounded
  # values differ.
  close = np.abs(head.rows(got) - head.rows(expected)) < 1e-6
  assert close.mean() > 0.98
  jax.tree.map(np.testing.assert_array_equal, got_state, state)


@pytest.mark.parametrize(
  ("fields", "storage", "why"),
  [
    ({}, None, "not plain SGD"),
    ({"cosine": True}, {}, "direction"),
    ({"dim": 300}, {}, "rows of 1 to"),
    ({"skip_below": 0.1}, {}, "skipped"),
    ({}, {"max_norm": 1.0}, "limited"),
    ({}, {"dtype": "bfloat16", "correction": "kahan"}, "corrected"),
  ],
)
def test_heads_that_kernels_cannot_do_say_why(fields, storage, why):
  head = make_head(kernels="interpret", **fields)
  if storage is not None:
    optimizer = row_optimizer.sgd(0.1, **storage)
    head = dense_heads.changed(head, optimizer=optimizer)
  assert why in head.why_no_kernels()
  assert not head.uses_kernels
