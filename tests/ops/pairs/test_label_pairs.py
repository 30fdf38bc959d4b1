"""Weights of pairs against a dense matrix with zeros elsewhere."""

from concurrent import futures
import importlib.util

import jax
from jax import lax
import jax.numpy as jnp
from numba.core import caching
import numpy as np
import pytest

from tests import cases
from tests import meshes
from xlj import sharding
from xlj.ops import feature_rows
from xlj.ops.pairs import host_call
from xlj.ops.pairs import host_loops
from xlj.ops.pairs import label_pairs
from xlj.ops.pairs import segment_sums

# Rows enough that single pairs of a feature are searched for.
FEATURES, BLOCKS, ROWS, EXAMPLES, WIDTH = 13, 24, 100, 11, 5
P = jax.P


def problem(seed=0, dtype=np.uint16, density=0.4):
  """Pairs, the dense `[F, B * R]` with their weights, and examples."""
  rng = np.random.default_rng(seed)
  exists = rng.random((BLOCKS, FEATURES, ROWS)) < density
  exists[:, 3] = False  # a feature without pairs
  exists[1] = False  # a block without any
  dense = np.where(exists, rng.standard_normal(exists.shape), 0)
  counts = exists.sum(2)
  starts = np.zeros((BLOCKS, FEATURES + 1), np.int32)
  starts[:, 1:] = np.cumsum(counts, 1)
  width = starts[:, -1].max() + 3
  columns = np.zeros((BLOCKS, width), dtype)
  weights = np.zeros((BLOCKS, width), np.float32)
  for b in range(BLOCKS):
    f, r = np.nonzero(exists[b])
    columns[b, : len(r)] = r
    weights[b, : len(r)] = dense[b, f, r]
  lengths = rng.integers(0, WIDTH + 1, EXAMPLES).astype(np.int32)
  ids = np.stack(
    [rng.choice(FEATURES, WIDTH, replace=False) for _ in range(EXAMPLES)]
  ).astype(np.int32)
  used = np.arange(WIDTH) < lengths[:, None]
  values = np.where(used, rng.standard_normal(ids.shape), 0)
  ids = np.where(used, ids, 0)
  features = feature_rows.SparseRows(
    *map(jnp.asarray, (ids, values.astype(np.float32), lengths))
  )
  pairs = label_pairs.LabelPairs(*map(jnp.asarray, (starts, columns, weights)))
  x = np.zeros((EXAMPLES, FEATURES))
  np.add.at(x, (np.arange(EXAMPLES)[:, None], ids), np.where(used, values, 0))
  dense, exists = (
    np.moveaxis(a, 1, 0).reshape(FEATURES, -1) for a in (dense, exists)
  )
  return pairs, dense, exists, features, x


def dense_of(pairs, weights):
  """`[F, B * R]` of the weights of pairs, to compare them."""
  found = np.zeros((FEATURES, BLOCKS, ROWS))
  starts, columns, weights = map(
    np.asarray, (pairs.starts, pairs.columns, weights)
  )
  for b in range(BLOCKS):
    for f in range(FEATURES):
      part = slice(starts[b, f], starts[b, f + 1])
      found[f, b, columns[b, part]] = weights[b, part]
    assert not weights[b, starts[b, -1] :].any()
  return found.reshape(FEATURES, -1)


PATHS = {
  "host": (
    lambda *a: label_pairs.logits(*a, ROWS),
    label_pairs.add_outer,
    label_pairs.step_by_example,
  ),
  "segment_sums": (
    lambda pairs, features: segment_sums.logits(*pairs, *features, ROWS),
    lambda pairs, features, *a: segment_sums.add_outer(*pairs, *features, *a),
    lambda pairs, bias, rows, features, positives, weights, rates: (
      segment_sums.step_by_example(
        *(*pairs, bias, rows, *features, positives, weights, jnp.stack(rates))
      )
    ),
  ),
}
paths = pytest.mark.parametrize("path", PATHS)
shapes = pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 4)])


def split(function, shape, *args, specs, out_specs):
  """A function on the devices of a mesh, each with its blocks of pairs."""
  specs = (sharding.LABELS, *specs)
  with meshes.mesh(shape):
    run = jax.shard_map(function, in_specs=specs, out_specs=out_specs)
    put = sharding.named(jax.sharding.get_mesh(), specs)
    return jax.jit(run)(*jax.device_put(args, put))


@paths
@shapes
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_logits(path, shape, dtype):
  pairs, dense, _, features, x = problem(dtype=dtype)
  found = split(
    *(PATHS[path][0], shape, pairs, features),
    specs=(P(),),
    out_specs=P(None, sharding.AXES),
  )
  np.testing.assert_allclose(found, x @ dense, rtol=1e-5, atol=1e-6)


@paths
@shapes
def test_add_outer(path, shape):
  pairs, dense, exists, features, x = problem()
  grad = np.random.default_rng(1).standard_normal((EXAMPLES, BLOCKS * ROWS))
  found = split(
    *(PATHS[path][1], shape, pairs, features),
    *(jnp.asarray(grad, jnp.float32), jnp.float32(-0.3)),
    specs=(P(), P(None, sharding.AXES), P()),
    out_specs=sharding.LABELS,
  )
  expected = dense - np.where(exists, 0.3 * x.T @ grad, 0)
  np.testing.assert_allclose(
    dense_of(pairs, found), expected, rtol=1e-5, atol=1e-6
  )


def by_example(dense, exists, bias, row_rates, x, positives, weights, rates):
  """One example after another, all labels at once, in float64."""
  rate, bias_rate, threshold = rates
  dense, bias, loss = dense.copy(), bias.astype(np.float64), np.zeros(len(bias))
  for row, ids, weight in zip(x, positives, weights):
    z = row @ dense + bias
    y = np.isin(np.arange(len(bias)), ids)
    used = weight * (y | (z > threshold))
    loss += used * (np.logaddexp(0, z) - y * z)
    grad = row_rates * used * (1 / (1 + np.exp(-z)) - y)
    dense -= rate * np.where(exists, np.outer(row, grad), 0)
    bias -= bias_rate * grad
  return dense, bias, loss.reshape(BLOCKS, -1).sum(1)


def own_positives(step):
  """With the numbers of all rows in place of those of the device."""

  def run(pairs, bias, row_rates, features, positives, weights, rates):
    first = lax.axis_index(sharding.AXES) * len(bias)
    rows = jnp.where(positives < 0, -1, positives - first)
    return step(pairs, bias, row_rates, features, rows, weights, rates)

  return run


# How labels above the threshold are found: density of pairs, greatest bias, and
# threshold.
WAYS = {
  "all": (0.4, 9, -50.0),
  "positives": (0.4, 9, 50.0),
  "pairs": (0.04, -1.5, 0.3),
  "rows": (0.4, -1.5, 0.3),  # an example's pairs are too many
  "biases": (0.04, 9, 0.3),
  "rising biases": (0.04, 0.29, 0.3),
}


@pytest.mark.parametrize(
  "case,shape",
  cases.covering(
    [
      *((way, "host") for way in WAYS),
      *((way, "segment_sums") for way in ("all", "positives", "rows")),
    ],
    [(1, 1), (1, 3), (2, 4)],
  ),
)
def test_step_by_example(case, shape):
  way, path = case
  density, top, threshold = WAYS[way]
  pairs, dense, exists, features, x = problem(density=density)
  visits = (x != 0) @ exists.reshape(-1, BLOCKS, ROWS).sum(2)
  assert (visits < ROWS // 2).all() == (density < 0.1)
  rng = np.random.default_rng(2)
  bias = rng.standard_normal(BLOCKS * ROWS).astype(np.float32)
  bias = np.minimum(bias, top)
  row_rates = rng.uniform(0.5, 2, len(bias)).astype(np.float32)
  # The best label is one of an example, and twice; some examples have no other.
  positives = rng.integers(-BLOCKS * ROWS, BLOCKS * ROWS, (EXAMPLES, 4)).astype(
    np.int32
  )
  positives[::2, 0] = positives[::2, 3] = (x @ dense + bias)[::2].argmax(1)
  weights = rng.choice([0.5, 1], EXAMPLES).astype(np.float32)
  weights[[3, 8]] = 0
  rates = label_pairs.Rates(*map(jnp.float32, (0.7, 0.1, threshold)))
  new, new_bias, loss = split(
    *(own_positives(PATHS[path][2]), shape, pairs),
    *map(jnp.asarray, (bias, row_rates)),
    *(features, jnp.asarray(positives), jnp.asarray(weights), rates),
    specs=(sharding.LABELS, sharding.LABELS, P(), P(), P(), P()),
    out_specs=sharding.LABELS,
  )
  expected = by_example(
    *(dense, exists, bias, row_rates, x, positives, weights),
    map(float, rates),
  )
  close = dict(rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(dense_of(pairs, new), expected[0], **close)
  np.testing.assert_allclose(new_bias, expected[1], **close)
  np.testing.assert_allclose(loss, expected[2], **close)


@paths
def test_biases_that_pass_the_threshold_count_from_the_next_example(path):
  pairs, dense, exists, features, x = problem(density=0.1)
  size = BLOCKS * ROWS
  bias, row_rates = np.full(size, 1.4, np.float32), np.ones(size, np.float32)
  positives = np.arange(4 * EXAMPLES, dtype=np.int32).reshape(-1, 4)
  weights, rates = np.ones(EXAMPLES, np.float32), (0.7, 2.0, 1.5)
  new, new_bias, _ = PATHS[path][2](
    *(pairs, *map(jnp.asarray, (bias, row_rates)), features),
    *map(jnp.asarray, (positives, weights)),
    label_pairs.Rates(*map(jnp.float32, rates)),
  )
  expected = by_example(
    *(dense, exists, bias, row_rates, x, positives, weights), rates
  )
  close = dict(rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(dense_of(pairs, new), expected[0], **close)
  np.testing.assert_allclose(new_bias, expected[1], **close)


def test_the_number_of_threads_changes_nothing(monkeypatch):
  pairs, _, _, features, _ = problem()
  args = (
    *(pairs, jnp.zeros(BLOCKS * ROWS), jnp.ones(BLOCKS * ROWS), features),
    *(jnp.zeros((EXAMPLES, 1), jnp.int32), jnp.ones(EXAMPLES)),
    label_pairs.Rates(*map(jnp.float32, (0.7, 0.1, -50))),
  )
  found = []
  for count in (1, 3):
    with futures.ThreadPoolExecutor(count) as threads:
      monkeypatch.setattr(host_call, "_threads", lambda: threads)
      found.append(jax.jit(label_pairs.step_by_example)(*args))
      jax.block_until_ready(found)
  jax.tree.map(np.testing.assert_array_equal, *found)


def test_donated_weights_are_updated_in_place():
  pairs, _, _, features, _ = problem()
  grad = jnp.ones((EXAMPLES, BLOCKS * ROWS))

  def run(weights):
    pairs_of = pairs._replace(weights=weights)
    return label_pairs.add_outer(pairs_of, features, grad, -1.0)

  weights = jnp.array(pairs.weights)
  address = weights.unsafe_buffer_pointer()
  new = jax.jit(run, donate_argnums=0)(weights)
  assert new.unsafe_buffer_pointer() == address


def test_a_fault_in_a_loop_is_an_error_of_the_step(monkeypatch):
  def fail(*args):
    raise ValueError("no such block")

  monkeypatch.setattr(host_loops, "logits", fail)
  pairs, _, _, features, _ = problem()
  with pytest.raises(jax.errors.JaxRuntimeError, match="no such block"):
    jax.block_until_ready(
      jax.jit(lambda p, f: label_pairs.logits(p, f, ROWS))(pairs, features)
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_for_accelerators(platform):
  pairs, _, _, features, _ = problem()

  def run(pairs, features, bias, positives, weights):
    z = label_pairs.logits(pairs, features, ROWS)
    new = label_pairs.add_outer(pairs, features, z, -1.0)
    rates = label_pairs.Rates(*map(jnp.float32, (1, 1, 0)))
    return new, label_pairs.step_by_example(
      pairs, bias, bias + 1, features, positives, weights, rates
    )

  text = (
    jax.jit(run)
    .trace(
      *(pairs, features, jnp.zeros(BLOCKS * ROWS)),
      *(jnp.zeros((EXAMPLES, 1), jnp.int32), jnp.ones(EXAMPLES)),
    )
    .lower(lowering_platforms=(platform,))
    .as_text()
  )
  assert "xlj_pairs" not in text and "stablehlo.sort" in text


def test_loops_compile_where_nothing_can_be_kept(monkeypatch):
  monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
  spec = importlib.util.find_spec(host_loops.__name__)
  again = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(again)
  column = np.array([1, 3, 7], np.uint16)
  assert [again._first_not_below(column, row, 0) for row in (0, 3, 8)] == [
    *(0, 1, 3)
  ]
