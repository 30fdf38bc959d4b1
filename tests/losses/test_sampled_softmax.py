"""Sampled losses: equal to dense references, and right on average."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from tests import meshes
from tests.losses import table
from xlj import sharding
from xlj.losses import sampled_softmax
from xlj.losses import softmax
from xlj.losses import weighted_bce
from xlj.ops import label_candidates
from xlj.ops import label_pass
from xlj.ops import label_ranking
from xlj.ops import label_sample
from xlj.ops import shards
from xlj.ops import targets as targets_lib

N, D, P = 16, 6, 4
NUM_LABELS, NUM_ROWS = 43, 48
BATCHES = {"split": sharding.BATCH, "replicated": sharding.REPLICATED}
BCE = table.Case(weighted_bce.WeightedBinaryCrossEntropy(), None)
SAMPLES = {
  "uniform": lambda key: label_sample.uniform_sample(key, 16, NUM_ROWS),
  "runs": lambda key: label_sample.uniform_sample(key, 32, NUM_ROWS, run=2),
  "zipf": lambda key: label_sample.log_uniform_sample(key, 16, NUM_ROWS),
  "repeated": lambda key: label_sample.log_uniform_sample(
    key, 24, NUM_ROWS, distinct=False, blocks=8
  ),
}
assert_close = functools.partial(cases.assert_close, atol=3e-6, rtol=1e-5)


def make_inputs(dtype=np.float32):
  """Examples, rows and bias (padding would win), targets."""
  rng = np.random.default_rng(0)
  x, rows, bias = (
    rng.normal(size=shape).astype(dtype) * 0.8
    for shape in ((N, D), (NUM_ROWS, D), (NUM_ROWS,))
  )
  bias[NUM_LABELS:] = 100
  targets = table.make_targets(table.CASES["softmax"], N, NUM_LABELS, P)
  return x, rows, bias, targets


def on_mesh(mesh, x, rows, bias, targets, batch="split"):
  split = jax.NamedSharding(mesh, BATCHES[batch])
  labels = jax.NamedSharding(mesh, sharding.LABELS)
  x, targets = jax.device_put((x, targets), split)
  return x, *jax.device_put((rows, bias), labels), targets


def value_and_grads(loss, x, rows, bias, targets):
  run = jax.value_and_grad(loss, (0, 1, 2))
  return jax.jit(run)(x, rows, bias, targets)


def dense_loss(x, rows, bias, targets, weights):
  """Mean of softmax losses; terms of partition functions have `weights`."""
  z = (x @ rows.T + bias)[:, :NUM_LABELS]
  lse = jax.nn.logsumexp(z, axis=1, b=weights)
  hot = table.dense_targets(targets, NUM_LABELS)
  share = hot / np.maximum(hot.sum(1, keepdims=True), 1)
  losses = (share * (lse[:, None] - z)).sum(1)
  return (losses * targets.weights).sum() / targets.weights.sum()


def expected_of(x, rows, bias, targets, weights):
  """`dense_loss` and its gradients."""
  loss = functools.partial(dense_loss, targets=targets, weights=weights)
  return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(x, rows, bias)


def weights_of(sample, sure):
  """`[L]`: 1 at `sure` labels, the sum of 1 / q over what was drawn else."""
  weights = np.zeros(NUM_LABELS)
  for row, log_count in zip(sample.rows, sample.log_counts):
    if 0 <= row < NUM_LABELS:
      weights[row] += np.exp(-log_count)
  weights[list(sure)] = 1
  return weights


def positives_of(targets):
  return {int(i) for i in np.unique(targets.ids) if i >= 0}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "shape"),
  cases.first(
    3,
    [
      ("decoupled", (2, 4)),
      ("arcface", (1, 1)),
      ("bce", (8, 1)),
      *(("softmax", shape) for shape in meshes.SHAPES),
    ],
  ),
)
def test_all_labels_are_the_full_loss(name, shape):
  case = BCE if name == "bce" else table.CASES[name]
  inputs = make_inputs()
  ones = {"positive": jnp.ones(NUM_ROWS)} if name == "bce" else None
  full = functools.partial(
    label_pass.label_loss,
    loss=case.loss,
    num_labels=NUM_LABELS,
    label_values=ones,
  )
  expected = value_and_grads(full, *inputs)

  def loss(*args):
    sample = label_sample.uniform_sample(jax.random.key(0), 48, NUM_ROWS)
    return sampled_softmax.sampled_loss(
      *args, sample, case.loss, num_labels=NUM_LABELS, weigh=name == "bce"
    )

  with meshes.mesh(shape) as mesh:
    args = on_mesh(mesh, *inputs)
    got = value_and_grads(loss, *args)
    for gradient, of in zip(got[1], args):
      assert gradient.sharding.is_equivalent_to(of.sharding, of.ndim)
  assert_close(got, expected)


@pytest.mark.parametrize(
  ("name", "shape", "batch"),
  cases.first(
    4,
    [
      ("uniform", (2, 4), "replicated"),
      ("runs", (2, 4), "split"),
      ("zipf", (8, 1), "split"),
      ("repeated", (1, 1), "split"),
      *(("uniform", shape, "split") for shape in meshes.SHAPES),
      ("zipf", (2, 4), "split"),
      ("repeated", (8, 1), "replicated"),
    ],
  ),
)
def test_equals_a_dense_reference_on_any_mesh(name, shape, batch):
  inputs = make_inputs()
  key = jax.random.key(7)
  sample = jax.jit(SAMPLES[name])(key)
  sure = positives_of(inputs[3])
  drawn = {int(r) for r in sample.rows}
  assert drawn & sure and drawn - sure  # some are dropped, some are not
  weights = weights_of(sample, sure)
  expected = expected_of(*inputs, weights)

  def loss(*args):
    return sampled_softmax.sampled_loss(
      *args,
      SAMPLES[name](key),
      num_labels=NUM_LABELS,
      placement=shards.Placement(chunk_size=5),
    )

  with meshes.mesh(shape) as mesh:
    got = value_and_grads(loss, *on_mesh(mesh, *inputs, batch=batch))
  assert_close(got, expected)


def estimates(name, x, rows, bias, ids, times):
  """Partition functions `[times, N]` of the candidates of many keys."""
  targets = targets_lib.Targets(ids[:, None], np.ones(len(ids), np.float32))
  z = x @ rows.T + bias

  def one(key):
    losses = sampled_softmax.sampled_loss(
      x,
      rows,
      bias,
      targets,
      SAMPLES[name](key),
      reduce=False,
      num_labels=NUM_LABELS,
    )
    return jnp.exp(losses + z[np.arange(len(ids)), ids])

  return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(5), times))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_the_partition_function_is_right_on_average(name):
  x, rows, bias, _ = make_inputs()
  x *= 0.5
  ids = np.random.default_rng(2).integers(0, NUM_LABELS, N).astype(np.int32)
  got = np.asarray(estimates(name, x, rows, bias, ids, 3000), np.float64)
  exact = np.exp((x @ rows.T + bias)[:, :NUM_LABELS]).sum(1)
  error = got.std(0) / np.sqrt(len(got))
  assert (error < 0.03 * exact).all()
  assert (np.abs(got.mean(0) - exact) < 4.5 * error).all()


def test_batches_as_samples_are_right_on_average():
  x, rows, bias, _ = make_inputs()
  share = np.random.default_rng(3).dirichlet(np.ones(NUM_LABELS))
  share = np.append(share, np.full(5, 0.5)).astype(np.float32)
  z = jnp.asarray(x @ rows.T + bias)

  def one(key):
    others = jax.random.choice(key, NUM_LABELS, (N - 1,), p=share[:NUM_LABELS])
    ids = jnp.concatenate([jnp.array([11]), others]).astype(jnp.int32)
    targets = targets_lib.Targets(ids[:, None], jnp.ones(N))
    losses = sampled_softmax.sampled_loss(
      x,
      rows,
      bias,
      targets,
      label_share=jnp.asarray(share),
      reduce=False,
      num_labels=NUM_LABELS,
    )
    return jnp.exp(losses[0] + z[0, 11])

  keys = jax.random.split(jax.random.key(5), 4000)
  got = np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)
  exact = np.exp(z[0, :NUM_LABELS]).sum()
  error = got.std() / np.sqrt(len(got))
  assert error < 0.04 * exact
  assert abs(got.mean() - exact) < 4.5 * error


@pytest.mark.parametrize(
  ("shape", "correct_positives"),
  [((1, 1), False), ((2, 4), False), ((2, 4), True), ((8, 1), True)],
)
def test_batch_negatives_equal_a_dense_reference(shape, correct_positives):
  inputs = make_inputs()
  targets = inputs[3]
  share = np.linspace(0.02, 0.9, NUM_ROWS).astype(np.float32)
  others = (targets.weights > 0).sum() - 1
  counts = 1 - (1 - share[:NUM_LABELS].astype(np.float64)) ** others
  present = np.isin(np.arange(NUM_LABELS), list(positives_of(targets)))
  hot = table.dense_targets(targets, NUM_LABELS) > 0
  weights = np.where(present, 1 / counts, 0)[None]
  if not correct_positives:
    weights = np.where(hot, 1, weights)

  def dense(x, rows, bias):
    value = dense_loss(x, rows, bias, targets, weights)
    if correct_positives:  # then the logit of the positive is shifted as well
      own = np.log(counts) * hot / np.maximum(hot.sum(1, keepdims=True), 1)
      value += (own.sum(1) * targets.weights).sum() / targets.weights.sum()
    return value

  expected = jax.jit(jax.value_and_grad(dense, (0, 1, 2)))(*inputs[:3])
  with meshes.mesh(shape) as mesh:
    args = on_mesh(mesh, *inputs)
    split = jax.NamedSharding(mesh, sharding.LABELS)
    put_share = jax.device_put(share, split)

    def loss(*args):
      return sampled_softmax.sampled_loss(
        *args,
        label_share=put_share,
        correct_positives=correct_positives,
        num_labels=NUM_LABELS,
      )

    got = value_and_grads(loss, *args)
  assert_close(got, expected)


@pytest.mark.parametrize("shape", [(1, 1), (8, 1)])
def test_hard_negatives(shape):
  inputs = make_inputs()
  x, rows, bias, targets = inputs
  z = (x @ rows.T + bias)[:, :NUM_LABELS]
  hot = table.dense_targets(targets, NUM_LABELS) > 0
  best = np.argsort(np.where(hot, np.inf, -z), axis=1)[:, :2]
  sample = jax.jit(SAMPLES["uniform"])(jax.random.key(1))
  sure = positives_of(targets) | {int(i) for i in best.flat}
  weights = weights_of(sample, sure)
  expected = expected_of(*inputs, weights)

  def loss(x, rows, bias, targets):
    _, hard = label_ranking.label_topk(
      x, rows, bias, 2, num_labels=NUM_LABELS, exclude=targets.ids
    )
    return sampled_softmax.sampled_loss(
      x,
      rows,
      bias,
      targets,
      SAMPLES["uniform"](jax.random.key(1)),
      include=hard,
      num_labels=NUM_LABELS,
    )

  with meshes.mesh(shape) as mesh:
    got = value_and_grads(loss, *on_mesh(mesh, *inputs))
  assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_the_gradient_of_candidates_is_row_sparse(shape):
  inputs = make_inputs()
  with meshes.mesh(shape) as mesh:
    args = on_mesh(mesh, *inputs)

    @jax.jit
    def sparse(x, rows, bias, targets):
      candidates = label_candidates.find_candidates(
        rows,
        targets,
        SAMPLES["repeated"](jax.random.key(2)),
        num_labels=NUM_LABELS,
      )
      few = label_candidates.gather_candidates((rows, bias), candidates)

      def loss(few):
        return sampled_softmax.candidate_loss(x, *few, candidates)

      return candidates.ids, jax.grad(loss)(few)

    def loss(*args):
      sample = SAMPLES["repeated"](jax.random.key(2))
      return sampled_softmax.sampled_loss(*args, sample, num_labels=NUM_LABELS)

    ids, gradients = jax.device_get(sparse(*args))
    _, dense = jax.device_get(value_and_grads(loss, *args))
  for few, all_rows in zip(gradients, dense[1:]):
    got = np.zeros_like(all_rows)
    np.add.at(got, ids[ids >= 0], few[ids >= 0])
    np.testing.assert_array_equal(few[ids < 0], 0)
    np.testing.assert_allclose(got, all_rows, rtol=1e-5, atol=1e-7)


def test_inside_shard_map():
  inputs = make_inputs()
  key = jax.random.key(7)

  def loss(*args, **axes):
    return sampled_softmax.sampled_loss(
      *args, SAMPLES["uniform"](key), num_labels=NUM_LABELS, **axes
    )

  expected = value_and_grads(loss, *inputs)
  with meshes.mesh((2, 4)) as mesh:
    args = on_mesh(mesh, *inputs)
    inside = jax.shard_map(
      functools.partial(
        loss,
        placement=shards.Placement(
          row_axes=sharding.AXES, batch_axes=sharding.AXES
        ),
      ),
      in_specs=(sharding.BATCH,) * 4,
      out_specs=sharding.REPLICATED,
    )
    got = value_and_grads(inside, *args)
  assert_close(got, expected)


def test_bfloat16_rows():
  x, rows, bias, targets = make_inputs()
  narrow = [jnp.asarray(a, jnp.bfloat16) for a in (x, rows, bias)]
  sample = jax.jit(SAMPLES["uniform"])(jax.random.key(7))
  weights = weights_of(sample, positives_of(targets))
  wide = (jnp.asarray(a, jnp.float32) for a in narrow)
  expected = expected_of(*wide, targets, weights)

  def loss(*args):
    sample = SAMPLES["uniform"](jax.random.key(7))
    return sampled_softmax.sampled_loss(*args, sample, num_labels=NUM_LABELS)

  value, gradients = value_and_grads(loss, *narrow, targets)
  np.testing.assert_allclose(value, expected[0], rtol=1e-5)
  for got, exact in zip(gradients, expected[1]):
    assert got.dtype == jnp.bfloat16
    limit = 0.01 * np.abs(exact).max()
    np.testing.assert_allclose(np.float32(got), exact, atol=limit)


def test_what_does_not_go_together_is_refused():
  x, rows, bias, targets = make_inputs()
  sample = jax.jit(SAMPLES["uniform"])(jax.random.key(7))
  share = jnp.full(NUM_ROWS, 0.1)
  with pytest.raises(ValueError, match="label_share"):
    sampled_softmax.sampled_loss(
      x, rows, bias, targets, sample, label_share=share
    )
  with pytest.raises(ValueError, match="weigh"):
    sampled_softmax.sampled_loss(
      x, rows, bias, targets, label_share=share, weigh=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_temporaries_do_not_grow_with_the_labels(devices):
  n, d, p, num_rows, num_samples = 64, 32, 4, 2**21, 8192

  def function(x, rows, ids, weights):
    sample = label_sample.uniform_sample(
      jax.random.key(0), num_samples, num_rows
    )
    targets = targets_lib.Targets(ids, weights)
    candidates = label_candidates.find_candidates(rows, targets, sample)
    few = label_candidates.gather_candidates(rows, candidates)

    def loss(few):
      return sampled_softmax.candidate_loss(
        x,
        few,
        None,
        candidates,
        softmax.Softmax(),
        placement=shards.Placement(chunk_size=1024),
      )

    return candidates.ids, jax.grad(loss)(few)

  shapes = (n, d), (num_rows, d), (n, p), (n,)
  dtypes = jnp.float32, jnp.float32, jnp.int32, jnp.float32
  compiled = meshes.compile_split(function, (devices, 1), *zip(shapes, dtypes))
  candidates = 4 * (n * p + num_samples // devices) * d
  draws = 16 * 4 * num_samples
  chunk = 4 * 1024 * (n + d)
  limit = 3 * candidates + draws + 4 * chunk
  assert compiled.memory_analysis().temp_size_in_bytes <= limit
  sent = meshes.sent(compiled)
  assert sent or devices == 1
  for of, _ in sent:  # no rows, and nothing of the size of the sample
    sizes = re.fullmatch(r"\w+\[([\d,]*)\]", of)[1]
    assert np.prod([int(a) for a in sizes.split(",") if a]) <= n * d
