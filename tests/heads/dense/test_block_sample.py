"""Steps that visit some blocks of labels: equal, unbiased, and nothing else."""

import functools
import itertools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import cases
from tests import dense_heads
from tests import meshes
from tests import reference
from tests.heads.dense import test_fused_step
from xlj import sharding
from xlj.heads.dense import block_sample
from xlj.losses import bce
from xlj.losses import decoupled_softmax
from xlj.losses import label_smoothing
from xlj.losses import logit_adjustment
from xlj.losses import margin
from xlj.losses import softmax
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib

N, D, NUM_LABELS, BLOCKS = 16, 8, 203, 32  # blocks of 7 rows
LOSSES = {
  "softmax": softmax.Softmax(),
  "decoupled": decoupled_softmax.DecoupledSoftmax(),
  "arcface": margin.Margin(4.0, angle=0.3),
  "cosface": margin.Margin(4.0, cosine=0.2),
  "adjusted": logit_adjustment.LogitAdjustment(),
}


def make_head(loss="softmax", tx=None, storage=None, **fields):
  cosine = loss in ("arcface", "cosface")
  return dense_heads.make(
    num_labels=fields.pop("num_labels", NUM_LABELS),
    dim=D,
    loss=LOSSES[loss],
    optimizer=row_optimizer.RowOptimizer(
      tx or optax.adamw(0.1, eps=1e-3), **(storage or {})
    ),
    blocks=fields.pop("blocks", BLOCKS),
    init_scale=0.5,
    use_bias=not cosine,
    cosine=cosine,
    **{"chunk_size": 14, **fields},
  )


def decoded(head, params):
  return head.label_rows.decoded(params)


def make_batch(seed, labels=NUM_LABELS, width=2):
  """Few labels: most blocks have no positive."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(N, D)).astype(np.float32)
  few = rng.permutation(labels)[: max(4, width)]
  ids = np.stack([rng.permutation(few)[:width] for _ in range(N)])
  ids = np.where(np.arange(width) > 0, np.where(x[:, :1] > 0, ids, -1), ids)
  ids[3] = -1
  weights = rng.uniform(0.5, 1.5, N).astype(np.float32)
  weights[5] = 0
  return x, targets_lib.Targets(ids.astype(np.int32), weights)


def label_values(head):
  if not isinstance(head.loss, logit_adjustment.LogitAdjustment):
    return None
  values = np.linspace(-3, -1, head.num_rows).astype(np.float32)
  split = jax.NamedSharding(jax.sharding.get_mesh(), sharding.LABELS)
  return {"log_prior": jax.device_put(values, split)}


@functools.cache
def step_of(head):
  return jax.jit(head.step)


def train(head, shape, num_steps=3, batches=make_batch):
  """Parameters and state as numpy, losses, gradients of the embeddings."""
  losses, gradients = [], []
  with meshes.mesh(shape):
    params, state = meshes.start(head)
    step = step_of(head)
    values = label_values(head)
    for i in range(num_steps):
      x, targets = sharding.put_batch(batches(i))
      params, state, dx, metrics = step(
        params, state, jnp.int32(i), x, None, targets, values
      )
      losses.append(float(metrics["loss"]))
      gradients.append(np.asarray(dx))
    return jax.tree.map(np.asarray, (params, state)), losses, gradients


def visited(head, step, batch, scores=None):
  """Which blocks a step visits, on one device."""
  rows = head.label_rows.of_labels(batch[1].ids)
  size = head.layout.rows_per_block
  return block_sample.choose(
    block_sample.of_positives(rows, size, head.label_rows.blocks),
    head.sample_blocks,
    block_sample.random_keys(
      head.label_rows.optimizer.seed, step, head.label_rows.blocks
    ),
    scores,
    head.hard_blocks,
  )


def assert_same(a, b, atol):
  """Trees are equal; bits of narrow numbers but for roundings of sums."""

  def one(a, b):
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype == np.uint16:
      assert np.mean(a == b) > 0.99
    else:
      np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4)

  jax.tree.map(one, a, b)


# --- equal to what visits all ------------------------------------------------


@pytest.mark.parametrize(
  ("sample", "dtype", "shape"),
  cases.first(
    2,
    [
      (BLOCKS, "float32", (1, 1)),
      (1000, "bfloat16", (2, 4)),
      (1000, "float32", (2, 4)),
      (BLOCKS, "bfloat16", (1, 1)),
    ],
  ),
)
def test_all_blocks_are_the_full_step(sample, dtype, shape):
  head = make_head(storage={"dtype": dtype})
  expected = train(head, shape)
  got = train(dense_heads.changed(head, sample_blocks=sample), shape)
  # Compilers contract other products and sums where blocks are copied.
  assert_same(got, expected, 1e-5 if dtype == "float32" else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
  "loss", cases.some(list(LOSSES)[1:], ["decoupled", "arcface"])
)
def test_all_blocks_are_the_full_step_for_each_loss(loss):
  head = make_head(loss)
  expected = train(head, (1, 1), 2)
  got = train(dense_heads.changed(head, sample_blocks=BLOCKS), (1, 1), 2)
  assert_same(got, expected, 1e-6)


@pytest.mark.slow
@settings(max_examples=3, deadline=None, derandomize=True)
@given(
  num_labels=st.integers(1, 60),
  blocks=st.integers(1, 20),
  chunk=st.integers(1, 70),
  extra=st.integers(0, 3),
)
def test_all_groups_of_any_size_are_the_full_step(
  num_labels, blocks, chunk, extra
):
  head = make_head(
    tx=optax.sgd(0.5), num_labels=num_labels, blocks=blocks, chunk_size=chunk
  )

  def batches(seed):
    return make_batch(seed, num_labels, min(2, num_labels))

  expected = train(head, (1, 1), 2, batches)
  sampled = dense_heads.changed(head, sample_blocks=blocks + extra)
  got = train(sampled, (1, 1), 2, batches)
  assert_same(got, expected, 1e-5)


# --- the mesh does not matter ------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
  ("loss", "dtype", "hard", "shape"),
  cases.first(
    2,
    [
      ("adjusted", "float32", 0, (2, 4)),
      ("softmax", "bfloat16", 3, (8, 1)),
      ("decoupled", "float32", 3, (8, 1)),
      ("arcface", "float32", 3, (2, 4)),
    ],
  ),
)
def test_samples_do_not_depend_on_the_mesh(loss, dtype, hard, shape):
  head = make_head(
    loss, storage={"dtype": dtype}, sample_blocks=13, hard_blocks=hard
  )
  expected = train(head, (1, 1))
  got = train(head, shape)
  assert_same(got, expected, 2e-5 if dtype == "float32" else 1e-2)


# --- a step equals its definition --------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
  ("shape", "storage", "keep"),
  [((1, 1), {"dtype": "bfloat16"}, "float32"), ((2, 4), {}, None)],
)
def test_a_step_is_a_corrected_softmax_over_visited_labels(
  shape, storage, keep
):
  head = make_head(
    tx=optax.sgd(0.5), storage=storage, sample_blocks=11, keep_logits=keep
  )
  batch = x, targets = make_batch(0)
  choice = visited(head, 0, batch)
  with meshes.mesh(shape):
    params = meshes.first_params(head)
    rows = np.asarray(decoded(head, params))
    bias = np.asarray(params["bias"])
  labels = head.layout.label_of_row(np.arange(head.num_rows))
  used = np.repeat(choice.visited, head.layout.rows_per_block)
  used &= labels < NUM_LABELS
  shift = np.repeat(choice.shift, head.layout.rows_per_block)
  hot = reference.multi_hot(jnp.asarray(targets.ids), BLOCKS * 7)[:, labels]

  def loss_fn(x, rows):
    if storage:  # what products are made of
      x = x.astype(jnp.bfloat16).astype(jnp.float32)
    z = jnp.where(used, x @ rows.T + bias + shift, -1e30)
    losses = reference.softmax_loss(z, hot)
    return reference.weighted_mean(losses, targets.weights)

  value, (dx, drows) = jax.jit(jax.value_and_grad(loss_fn, (0, 1)))(x, rows)
  (new, _), losses, gradients = train(head, shape, 1)
  atol = 2e-2 if storage else 1e-6
  np.testing.assert_allclose(losses[0], value, rtol=1e-5)
  np.testing.assert_allclose(gradients[0], dx, atol=atol)
  np.testing.assert_allclose(decoded(head, new), rows - 0.5 * drows, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("correction", "shape"),
  [("none", (8, 1)), ("kahan", (1, 1)), ("master", (2, 4))],
)
def test_rows_of_other_blocks_stay_to_the_last_bit(correction, shape):
  storage = {"dtype": "bfloat16", "correction": correction}
  # Momentum and decay would move rows without a gradient.
  tx = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.3, 0.9))
  head = make_head(tx=tx, storage=storage, sample_blocks=9)
  before = train(head, shape, 1)[0]
  after = train(head, shape, 2)[0]
  choice = visited(head, 1, make_batch(1))
  assert choice.visited.sum() == 9
  kept = ~np.repeat(choice.visited, head.layout.rows_per_block)
  found = 0
  for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
    if a.shape[:1] == kept.shape:
      np.testing.assert_array_equal(a[kept], b[kept])
      assert (a[~kept] != b[~kept]).any()
      found += 1
  assert found == (4 if correction == "none" else 5)


# --- what is chosen ----------------------------------------------------------


def test_blocks_of_positives_are_visited_even_if_they_are_more():
  head = make_head(sample_blocks=5)
  x, _ = make_batch(0)
  ids = np.arange(N, dtype=np.int32)[:, None] * 2
  batch = x, targets_lib.Targets(ids, np.ones(N, np.float32))
  choice = visited(head, 0, batch)
  np.testing.assert_array_equal(np.flatnonzero(choice.visited), ids[:, 0])
  with meshes.mesh((2, 4)):
    before = np.asarray(decoded(head, meshes.first_params(head)))
  (new, _), _, _ = train(head, (2, 4), 1, lambda _: batch)
  moved = (decoded(head, new) != before).reshape(BLOCKS, -1).any(1)
  np.testing.assert_array_equal(moved, choice.visited)


def test_the_sum_over_all_samples_is_that_over_all_labels():
  """Every order of keys once: 5 of 6 blocks are drawn from, 2 at a time."""
  blocks, size, rng = 6, 3, np.random.default_rng(0)
  weight = np.exp(rng.normal(size=blocks))  # sum of exp(z) of each
  positive = jnp.arange(blocks) == 4
  sums = []
  for keys in itertools.permutations(range(5)):
    keys = jnp.asarray(np.insert(np.uint32(keys), 4, 2))
    choice = block_sample.choose(positive, size, keys)
    assert choice.visited.sum() == size and choice.visited[4]
    sums.append((weight * np.exp(choice.shift))[np.asarray(choice.visited)])
  np.testing.assert_allclose(
    np.mean([s.sum() for s in sums]), weight.sum(), rtol=1e-6
  )
  assert np.std([s.sum() for s in sums]) > 0.1


def test_equal_keys_do_not_change_how_many_are_chosen():
  positive = jnp.arange(8) == 2
  for top in (0, 5, 2**32 - 1):
    for size in range(9):
      keys = jnp.asarray(np.full(8, top, np.uint32))
      visited = np.asarray(block_sample.choose(positive, size, keys).visited)
      assert visited[2] and visited.sum() == max(size, 1)


def test_steps_sum_to_all_labels_on_average():
  """`exp(loss)` of a uniform softmax is a sum that steps estimate."""
  blocks, size, steps = 40, 12, 4000
  weight = jnp.exp(jax.random.normal(jax.random.key(1), (blocks,)))
  scores = jnp.arange(blocks, dtype=jnp.float32)
  positive = jnp.arange(blocks) < 3

  @jax.jit
  @jax.vmap
  def one(step):
    choice = block_sample.choose(
      positive, size, block_sample.random_keys(7, step, blocks), scores, 4
    )
    terms = jnp.where(choice.visited, weight * jnp.exp(choice.shift), 0)
    return terms.sum(), choice.visited

  sums, chosen = one(jnp.arange(steps))
  error = np.std(sums) / np.sqrt(steps)
  assert abs(np.mean(sums) - weight.sum()) < 4 * error < 0.03 * weight.sum()
  assert chosen[:, :3].all() and chosen[:, -4:].all()
  share = np.asarray(chosen.mean(0))[3:-4]  # 5 of 33
  np.testing.assert_allclose(share, 5 / 33, atol=5 * np.sqrt(0.13 / steps))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_hard_blocks_are_those_of_greatest_scores(shape):
  """They change although nothing is drawn: as many are sure as are visited."""
  head = make_head(tx=optax.sgd(0.5), sample_blocks=4, hard_blocks=4)
  x, targets = make_batch(0)
  positive = np.zeros(BLOCKS, bool)
  positive[targets.ids[targets.ids >= 0] % BLOCKS] = True
  head = dense_heads.changed(head, sample_blocks=int(positive.sum()) + 4)
  with meshes.mesh(shape):
    params = meshes.first_params(head)
    rows = np.asarray(decoded(head, params))
  (new, state), _, _ = train(head, shape, 1)
  size = head.layout.rows_per_block
  labels = head.layout.label_of_row(np.arange(head.num_rows))
  used = (labels < NUM_LABELS).reshape(BLOCKS, size, 1)

  def centroids(rows):
    return (rows.reshape(BLOCKS, size, D) * used).sum(1) / used.sum(1)

  scores = (x[targets.weights > 0] @ centroids(rows).T).max(0)
  hard = np.argsort(np.where(positive, np.inf, -scores))[:4]
  moved = (np.asarray(decoded(head, new)) != rows).reshape(BLOCKS, -1).any(1)
  expected = positive.copy()
  expected[hard] = True
  np.testing.assert_array_equal(moved, expected)
  # Those visited are averaged again; the others have not changed.
  np.testing.assert_allclose(
    state.centroids,
    centroids(np.asarray(decoded(head, new))),
    atol=1e-6,
  )


def test_prediction_and_evaluation_are_over_all_labels():
  head, full = make_head(sample_blocks=4), make_head()
  x, targets = make_batch(0)
  with meshes.mesh((2, 4)):
    params = meshes.first_params(head)
    x, targets = sharding.put_batch((x, targets))
    found, expected = (
      (
        jax.jit(h.topk, static_argnums=3)(params, x, None, 9),
        jax.jit(h.evaluate_loss)(params, x, None, targets),
      )
      for h in (head, full)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# --- memory ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
  ("shape", "hard", "dtype"),
  cases.covering([(1, 1), (2, 4)], [16, 0], ["float32", "bfloat16"]),
)
def test_temporaries_are_a_few_chunks(shape, hard, dtype):
  n, d, chunk = 64, 32, 2048
  head = test_fused_step.make_head(
    optax.adam(0.1),
    storage={"dtype": dtype},
    num_labels=2**20 - 100,
    dim=d,
    blocks=2**11,
    chunk_size=chunk,
    sample_blocks=128,
    hard_blocks=hard,
  )
  found = test_fused_step.compile_step(head, shape, n).memory_analysis()
  assert found.temp_size_in_bytes <= 4 * 4 * chunk * (n + d)


# --- what is refused ---------------------------------------------------------


@pytest.mark.parametrize(
  ("field", "fields"),
  [
    ("hard_blocks", {"sample_blocks": 3, "hard_blocks": 4}),
    ("hard_blocks", {"sample_blocks": 3, "hard_blocks": -1}),
    ("hard_blocks", {"sample_blocks": 0, "hard_blocks": 1}),
    ("sample_blocks", {"sample_blocks": -1}),
    ("dim", {"dim": 0, "wide_features": 5}),
    ("wide_features", {"wide_features": 5}),
    ("kahan_labels", {"kahan_labels": 5}),
    ("kernels", {"kernels": "interpret"}),
    ("loss", {"loss": bce.BinaryCrossEntropy()}),
    ("loss", {"loss": label_smoothing.LabelSmoothing(0.1)}),
    ("loss", {"loss": margin.Margin(1.0, base=bce.BinaryCrossEntropy())}),
  ],
)
def test_what_does_not_go_with_it_is_refused_by_name(field, fields):
  with pytest.raises(ValueError, match=field):
    dense_heads.changed(make_head(sample_blocks=4), **fields)


def test_kernels_leave_sampled_steps_to_xla():
  head = make_head(sample_blocks=4, kernels="auto")
  assert "some blocks" in head.why_no_kernels()
