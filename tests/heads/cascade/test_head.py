"""The cascade head equals a dense model whose other logits are left out."""

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
from xlj import ops
from xlj import sharding
from xlj.heads.cascade import head as cascade
from xlj.losses import bce
from xlj.losses import decoupled_softmax
from xlj.losses import softmax
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib

N, D, P = 16, 12, 3
NUM_LABELS, GROUPS = 83, 16
LOSSES = {
  "softmax": softmax.Softmax(),
  "bce": bce.BinaryCrossEntropy(),
  "decoupled": decoupled_softmax.DecoupledSoftmax(),
}


def make_head(
  loss="bce",
  candidates=4,
  sizes=(GROUPS, NUM_LABELS),
  tx=None,
  dtype="float32",
  **fields,
):
  optimizer = row_optimizer.RowOptimizer(tx or optax.adam(0.1), dtype=dtype)
  levels = [
    dense_heads.make(
      num_labels=size,
      dim=D,
      loss=LOSSES[loss],
      optimizer=optimizer,
      blocks=blocks,
      init_scale=0.3,
    )
    for size, blocks in zip(sizes, (8, *sizes))
  ]
  return cascade.CascadeHead(tuple(levels), candidates, **fields)


def make_batch(seed=0, num_labels=NUM_LABELS):
  """Examples with up to P positives, one with none, one of weight 0."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(N, D)).astype(np.float32)
  return x, targets_lib.Targets(*cases.some_labels(rng, N, P, num_labels))


def start(head):
  """Parameters, not all of whose biases are 0, and optimizer state."""
  params, state = meshes.start(head)
  return with_biases(params), state


def with_biases(params):
  return {
    name: part | {"bias": part["bias"] + 0.5 * int(name)}
    for name, part in params.items()
  }


def numpy_tree(tree):
  return jax.tree.map(np.asarray, tree)


@pytest.mark.parametrize(
  "shape, loss, dtype",
  cases.first(
    1,
    [
      ((8, 1), "bce", "float32"),
      ((2, 4), "softmax", "bfloat16"),
      ((1, 1), "softmax", "float32"),
      ((8, 1), "decoupled", "float32"),
    ],
  ),
)
def test_all_groups_equal_the_dense_head(shape, loss, dtype):
  head = make_head(loss, candidates=GROUPS, dtype=dtype)
  with meshes.mesh(shape):
    x, targets = sharding.put_batch(make_batch())
    params, state = start(head)
    groups = head._nodes(targets)[0]
    expected = [
      jax.jit(level.step)(
        params[name], state[name], jnp.int32(0), x, None, some
      )
      for level, name, some in zip(head.levels, "01", (groups, targets))
    ]
    new, new_state, dx, metrics = jax.jit(head.step)(
      params, state, jnp.int32(0), x, None, targets
    )
    evaluated = jax.jit(head.evaluate_loss)(params, x, None, targets)
    scores, ids = jax.jit(head.topk, static_argnums=3)(params, x, None, 10)
  close = {"rtol": 1e-5, "atol": 1e-6}
  if dtype == "bfloat16":
    close = {"rtol": 2e-2, "atol": 2e-2}
  total = expected[0][3]["loss"] + expected[1][3]["loss"]
  np.testing.assert_allclose(metrics["loss"], total, **close)
  np.testing.assert_allclose(evaluated, metrics["loss"], **close)
  np.testing.assert_allclose(dx, expected[0][2] + expected[1][2], **close)
  if dtype == "float32":  # Others are rounded at random.
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, **close),
      numpy_tree((new["1"], new_state["1"])),
      numpy_tree(expected[1][:2]),
    )
  if dtype == "float32":
    best, best_ids = brute_force_topk(
      head, numpy_tree(params), np.asarray(x), GROUPS, 10
    )
    np.testing.assert_array_equal(ids, best_ids)
    np.testing.assert_allclose(scores, best, rtol=1e-4, atol=1e-5)


def reference_loss(params, x, targets, groups, head, chosen):
  """Both levels with all logits, those that are left out at -inf."""
  total = 0.0
  for name, ids, there in (
    ("0", groups, np.ones((N, GROUPS), bool)),
    ("1", targets.ids, chosen[:, np.arange(NUM_LABELS) % GROUPS]),
  ):
    level = head.levels[int(name)]
    rows = level.layout.row_of_label(np.arange(level.layout.num_labels))
    z = x @ params[name]["rows"][rows].T + params[name]["bias"][rows]
    hot = np.zeros((N, level.layout.num_labels))
    n, p = np.nonzero(np.asarray(ids) >= 0)
    hot[n, np.asarray(ids)[n, p]] = 1
    hot *= there
    if isinstance(level.loss, softmax.Softmax):
      lse = jax.nn.logsumexp(jnp.where(there, z, -jnp.inf), axis=1)
      count = np.maximum(hot.sum(1), 1)
      value = (hot * (lse[:, None] - z)).sum(1) / count
    else:
      value = (jnp.where(there, jax.nn.softplus(z), 0) - hot * z).sum(1)
    total += (value * targets.weights).sum() / targets.weights.sum()
  return total


def choose(head, params, x, targets, count):
  """Candidates by brute force: groups of positives, then the best others."""
  level = head.levels[0]
  rows = level.layout.row_of_label(np.arange(GROUPS))
  z = x @ params["0"]["rows"][rows].T + params["0"]["bias"][rows]
  chosen = np.zeros((N, GROUPS), bool)
  for n in range(N):
    true = sorted({i % GROUPS for i in targets.ids[n] if i >= 0})[:count]
    others = [g for g in np.argsort(-z[n], kind="stable") if g not in true]
    chosen[n, [*true, *others[: count - len(true)]]] = True
  return chosen


@pytest.mark.parametrize(
  "shape, loss, candidates",
  cases.first(
    2,
    [
      ((2, 4), "softmax", 2),
      ((8, 1), "bce", 5),
      ((1, 1), "softmax", 5),
      ((1, 1), "bce", 1),
    ],
  ),
)
def test_a_step_equals_a_masked_dense_one(shape, loss, candidates):
  head = make_head(loss, candidates, tx=optax.sgd(0.5))
  x, targets = make_batch(1)
  with meshes.mesh(shape):
    params, state = start(head)
    before = numpy_tree(params)
    batch = sharding.put_batch((x, targets))
    new, _, dx, metrics = jax.jit(head.step)(
      params, state, jnp.int32(0), batch[0], None, batch[1]
    )
    new, dx = numpy_tree((new, dx))
  chosen = choose(head, before, x, targets, candidates)
  groups = np.asarray(head._nodes(targets)[0].ids)
  reference = jax.value_and_grad(
    lambda params, x: reference_loss(params, x, targets, groups, head, chosen),
    (0, 1),
  )
  expected, (grads, dx_expected) = jax.jit(reference)(before, x)
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
  np.testing.assert_allclose(dx, dx_expected, rtol=1e-4, atol=1e-6)
  jax.tree.map(
    lambda a, b, g: np.testing.assert_allclose(
      a, b - 0.5 * g, rtol=1e-4, atol=1e-6
    ),
    new,
    before,
    numpy_tree(grads),
  )


def test_rows_of_other_groups_stay_with_their_state():
  head = make_head("bce", 1)
  x, targets = make_batch(2)
  targets = targets._replace(ids=np.full((N, 1), 5 + GROUPS, np.int32))
  with meshes.mesh((2, 4)):
    params, state = start(head)
    before = numpy_tree((params["1"], state["1"].tx))
    step = jax.jit(head.step)
    batch = sharding.put_batch((x, targets))
    new, new_state, *_ = step(
      params, state, jnp.int32(0), batch[0], None, batch[1]
    )
    after = numpy_tree((new["1"], new_state["1"].tx))
  size = head.layout.rows_per_block
  visited = np.arange(head.num_rows) // size == 5

  def check(a, b):
    if a.shape[:1] == visited.shape:
      np.testing.assert_array_equal(a[~visited], b[~visited])
      assert (a[visited] != b[visited]).any()

  jax.tree.map(check, before, after)


def brute_force_topk(head, params, x, beam, k):
  """Scores down the tree of the best nodes of each level."""
  binary = isinstance(head.levels[0].loss, bce.BinaryCrossEntropy)
  z, scores, there = {}, None, None
  for i, level in enumerate(head.levels):
    part = params[str(i)]
    rows = level.layout.row_of_label(np.arange(level.layout.num_labels))
    z = x @ part["rows"][rows].T + part["bias"][rows]
    own = -np.logaddexp(0, -z) if binary else z
    if i:
      parent = np.arange(level.layout.num_labels) % level.layout.blocks
      above = scores[:, parent] * (1 if binary else 0.5)
      own = np.where(there[:, parent], own + above, -np.inf)
    scores = own
    best = np.argsort(-scores, axis=1, kind="stable")[:, :beam]
    there = np.zeros(scores.shape, bool)
    np.put_along_axis(there, best, True, 1)
  best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return np.take_along_axis(scores, best, 1), best


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_topk_equals_brute_force(data):
  groups = 8 * data.draw(st.integers(1, 3))
  middle = 8 * data.draw(st.integers(groups // 8, 8))
  labels = data.draw(st.integers(middle, 150))
  sizes = data.draw(
    st.sampled_from([(groups, labels), (groups, middle, labels)])
  )
  beam = data.draw(st.integers(1, groups))
  shape = data.draw(st.sampled_from(meshes.SHAPES))
  head = make_head(sizes=sizes, candidates=1, beam=beam)
  x, _ = make_batch(data.draw(st.integers(0, 99)), labels)
  with meshes.mesh(shape):
    params = with_biases(meshes.first_params(head))
    scores, ids = jax.jit(head.topk, static_argnums=3)(
      params, sharding.put_batch(x), None, 7
    )
    params = numpy_tree(params)
  expected, expected_ids = brute_force_topk(head, params, x, beam, 7)
  expected = np.pad(
    expected, ((0, 0), (0, 7 - expected.shape[1])), constant_values=-np.inf
  )
  np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
  scored = np.isfinite(expected)
  assert (np.asarray(ids)[~scored] == -1).all()
  for n in range(N):
    assert len(set(np.asarray(ids)[n][scored[n]])) == scored[n].sum()


def test_excluded_labels_and_offsets():
  head = make_head(candidates=GROUPS)
  x, _ = make_batch()
  with meshes.mesh((2, 4)):
    params = with_biases(meshes.first_params(head))
    topk = jax.jit(head.topk, static_argnums=3)
    batch = sharding.put_batch(x)
    scores, ids = numpy_tree(topk(params, batch, None, 6))
    exclude = ops.Choice(sharding.put_batch(ids[:, :2].astype(np.int32)))
    left, left_ids = numpy_tree(topk(params, batch, None, 4, exclude))
    offset = head.layout.by_row(jnp.arange(float(NUM_LABELS)) * 1e3, 0)
    offset = jax.reshard(offset, sharding.LABELS)
    _, last = numpy_tree(topk(params, batch, None, 3, None, offset))
  np.testing.assert_array_equal(left_ids, ids[:, 2:])
  np.testing.assert_allclose(left, scores[:, 2:], rtol=1e-6)
  np.testing.assert_array_equal(
    last, np.tile(NUM_LABELS - 1 - np.arange(3), (N, 1))
  )


@pytest.mark.slow
def test_three_levels_learn():
  head = make_head("bce", 4, sizes=(8, 24, NUM_LABELS))
  x, targets = make_batch(4)
  with meshes.mesh((2, 4)):
    params, state = start(head)
    batch = sharding.put_batch((x, targets))
    step = jax.jit(head.step)
    values = []
    for i in range(30):
      params, state, _, metrics = step(
        params, state, jnp.int32(i), batch[0], None, batch[1]
      )
      values.append(float(metrics["loss"]))
    _, ids = jax.jit(head.topk, static_argnums=3)(params, batch[0], None, 1)
  assert values[-1] < 0.3 * values[0]
  some = (targets.ids >= 0).any(1) & (targets.weights > 0)
  hits = (np.asarray(ids) == targets.ids).any(1)
  assert hits[some].all()


@pytest.mark.slow
def test_nothing_of_the_size_of_the_rows_is_copied():
  num_labels, groups, dim = 65_536, 1024, 64
  optimizer = row_optimizer.RowOptimizer(optax.adam(0.1))
  levels = tuple(
    dense_heads.make(
      num_labels=size,
      dim=dim,
      loss=LOSSES["bce"],
      optimizer=optimizer,
      blocks=blocks,
    )
    for size, blocks in ((groups, 8), (num_labels, groups))
  )
  head = cascade.CascadeHead(levels, 4)
  with meshes.mesh((1, 1)):
    params = jax.eval_shape(head.init, jax.random.key(0))
    state = jax.eval_shape(head.init_optimizer, params)
    x, targets = sharding.put_batch(
      (np.zeros((N, dim), np.float32), make_batch()[1])
    )
    step = jax.jit(head.step, donate_argnums=(0, 1))
    lowered = step.lower(params, state, jnp.int32(0), x, None, targets)
    compiled = lowered.compile()
  rows = 4 * num_labels * dim
  assert compiled.memory_analysis().temp_size_in_bytes < rows / 4


def test_rows_start_at_centroids():
  head = make_head(candidates=2)
  x, targets = make_batch(5)
  with meshes.mesh((2, 4)):
    params = with_biases(meshes.first_params(head))
    batch = sharding.put_batch((x, targets.ids))
    sums = jax.jit(
      lambda: jnp.zeros((head.num_rows, D)),
      out_shardings=jax.NamedSharding(jax.sharding.get_mesh(), sharding.LABELS),
    )()
    sums = jax.jit(head.add_to_rows)(sums, batch[1], batch[0])
    new = numpy_tree(jax.jit(head.at_centroids)(params, sums, 2.0))
  expected = np.zeros((GROUPS, D))
  for n in range(N):
    for i in targets.ids[n][targets.ids[n] >= 0]:
      expected[i % GROUPS] += x[n]
  layout = head.levels[0].layout
  for g in range(GROUPS):
    row = new["0"]["rows"][layout.row_of_label(np.int64(g))]
    if np.linalg.norm(expected[g]):
      unit = 2 * expected[g] / np.linalg.norm(expected[g])
      np.testing.assert_allclose(row, unit, rtol=1e-4, atol=1e-5)


def test_levels_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="at least two levels"):
    make_head(sizes=(GROUPS,))
  levels = make_head().levels
  with pytest.raises(ValueError, match="level 1 has 16 blocks"):
    cascade.CascadeHead((make_head(sizes=(8, 80)).levels[0], levels[1]), 2)
  with pytest.raises(ValueError, match="candidates is 0"):
    make_head(candidates=0)
