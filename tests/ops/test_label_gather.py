"""Rows and logits at given labels equal indexing the whole matrix."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from tests import meshes
from xlj import sharding
from xlj.ops import label_gather
from xlj.ops import shards

N, D, P, NUM_LABELS, NUM_ROWS = 16, 6, 3, 43, 48
BATCHES = {
  "split": sharding.BATCH,
  "partly": jax.P("data"),
  "replicated": sharding.REPLICATED,
}
assert_close = functools.partial(cases.assert_close, atol=1e-6, rtol=2e-6)


def make_inputs(dtype=np.float32):
  """Examples, rows, bias, ids: padding, other padding, duplicates."""
  rng = np.random.default_rng(0)
  x, rows, bias = (
    rng.normal(size=shape).astype(dtype)
    for shape in ((N, D), (NUM_ROWS, D), (NUM_ROWS,))
  )
  rows[NUM_LABELS:] = bias[NUM_LABELS:] = np.nan  # padding that is read shows
  ids = rng.integers(-1, NUM_ROWS + 3, (N, P)).astype(np.int32)
  ids[:5, 0], ids[5], ids[6, 0], ids[6, 1] = 7, -1, NUM_LABELS - 1, NUM_LABELS
  return x, rows, bias, ids


def expected_rows(rows, ids):
  is_label = (ids >= 0) & (ids < NUM_LABELS)
  return jnp.where(is_label[..., None], rows[jnp.where(is_label, ids, 0)], 0)


def expected_logits(x, rows, bias, ids, fill=-jnp.inf):
  is_label = (ids >= 0) & (ids < NUM_LABELS)
  z = (x[:, None] * expected_rows(rows, ids)).sum(2)
  z += bias[jnp.where(is_label, ids, 0)]
  return jnp.where(is_label, z, fill)


def objective(out):
  """Some function of it that has gradients everywhere; -inf counts nothing."""
  weight = jnp.linspace(-1, 1, out.size, dtype=out.dtype).reshape(out.shape)
  return (jnp.sin(jnp.where(jnp.isfinite(out), out, 0)) * weight).sum()


@pytest.mark.parametrize(
  ("shape", "batch", "memory"),
  cases.first(
    4,
    [
      ((1, 1), "replicated", None),
      ((2, 4), "split", 500),
      ((2, 4), "partly", 500),
      ((8, 1), "split", 500),
      ((1, 1), "split", 500),
      ((2, 4), "split", None),
      ((2, 4), "replicated", None),
    ],
  ),
)
def test_equals_indexing(shape, batch, memory):
  arrays = make_inputs()
  rows_of = functools.partial(
    label_gather.label_rows,
    num_labels=NUM_LABELS,
    placement=shards.Placement(memory=memory),
  )
  logits_of = functools.partial(
    label_gather.label_logits,
    num_labels=NUM_LABELS,
    placement=shards.Placement(memory=memory),
  )

  def functions(rows_of, logits_of):
    def both(x, rows, bias, ids):
      return objective(logits_of(x, rows, bias, ids)), rows_of(rows, ids)

    def value(x, rows, bias, ids):
      return both(x, rows, bias, ids)[0] + objective(rows_of(rows, ids))

    return both, jax.grad(value, (0, 1, 2))

  references = functions(expected_rows, expected_logits)
  expected = [jax.jit(f)(*arrays) for f in references]
  expected[1] = jax.tree.map(jnp.nan_to_num, expected[1])
  with meshes.mesh(shape) as mesh:
    x, rows, bias, ids = arrays
    split = jax.NamedSharding(mesh, BATCHES[batch])
    x, ids = jax.device_put((x, ids), split)
    labels = jax.NamedSharding(mesh, sharding.LABELS)
    rows, bias = jax.device_put((rows, bias), labels)
    args = x, rows, bias, ids
    got = [jax.jit(f)(*args) for f in functions(rows_of, logits_of)]
    logits = jax.jit(logits_of)(*args)
    assert got[0][1].sharding.is_equivalent_to(split, 3)
    for gradient, of in zip(got[1], args):
      assert gradient.sharding.is_equivalent_to(of.sharding, of.ndim)
    np.testing.assert_array_equal(
      np.isneginf(logits), np.isneginf(expected_logits(*arrays))
    )
  assert_close(got, expected)


def test_inside_shard_map_with_float64():
  with jax.enable_x64(True):
    x, rows, bias, ids = make_inputs(np.float64)
    with meshes.mesh((2, 4)) as mesh:
      split = jax.NamedSharding(mesh, sharding.BATCH)
      args = jax.device_put((x, rows, bias, ids), split)

      @jax.jit
      @jax.shard_map(out_specs=sharding.BATCH)
      def run(x, rows, bias, ids):
        return label_gather.label_logits(
          x,
          rows,
          bias,
          ids,
          fill=5.0,
          num_labels=NUM_LABELS,
          placement=shards.Placement(
            row_axes=sharding.AXES, batch_axes=sharding.AXES
          ),
        )

      got = run(*args)
    expected = expected_logits(x, rows, bias, ids, 5.0)
    np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_bfloat16_gradients_are_summed_in_float32():
  rows = jnp.zeros((3, 2), jnp.bfloat16)
  ids = np.ones((1000, 1), np.int32)

  @jax.jit
  @jax.grad
  def gradient(rows):
    found = label_gather.label_rows(rows, ids)
    return (found * jnp.asarray([0.5, 0.25], found.dtype)).sum()

  got = gradient(rows)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    np.asarray(got, np.float32), [[0, 0], [500, 250], [0, 0]]
  )


def test_duplicates_are_summed():
  ids = np.array([5, -1, 2, 5, 2**31 - 2, 5, -1], np.int32)
  values = np.arange(14, dtype=np.float32).reshape(7, 2)
  got_ids, sums = jax.jit(label_gather.sum_duplicates)(ids, values)
  np.testing.assert_array_equal(got_ids, [2, 5, 2**31 - 2, -1, -1, -1, -1])
  expected = np.zeros((7, 2))
  expected[:3] = values[2], values[[0, 3, 5]].sum(0), values[4]
  np.testing.assert_array_equal(sums, expected)


@pytest.mark.slow
def test_the_gradient_of_looked_up_rows_is_row_sparse():
  x, rows, _, ids = make_inputs()
  rows = rows[:NUM_LABELS]

  def value_of_found(found):
    return objective((x[:, None] * found).sum(2))

  found = jax.jit(label_gather.label_rows)(rows, ids)
  sparse = jax.grad(value_of_found)(found)
  flat = jnp.where(ids < NUM_LABELS, ids, -1).reshape(-1)
  summed = label_gather.sum_duplicates(flat, sparse.reshape(-1, D))
  dense = jax.jit(
    jax.grad(lambda rows: value_of_found(label_gather.label_rows(rows, ids)))
  )(rows)
  got = np.zeros_like(rows)
  for label, vector in zip(*summed):
    if label >= 0:
      got[label] = vector
  assert_close(got, dense)


@pytest.mark.parametrize("which", ["rows", "logits"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_neither_rows_move_nor_are_they_copied(dtype, which):
  n, d, p, num_rows, memory = 512, 32, 16, 2**21, 2**17
  shapes = (n, d), (num_rows, d), (num_rows,), (n, p)

  def function(x, rows, bias, ids):
    if which == "rows":
      return label_gather.label_rows(
        rows, ids, placement=shards.Placement(memory=memory)
      ).sum()
    z = label_gather.label_logits(
      x, rows, bias, ids, placement=shards.Placement(memory=memory)
    )
    return jnp.where(jnp.isfinite(z), z, 0).sum()

  with meshes.mesh((2, 4)) as mesh:
    split = jax.NamedSharding(mesh, sharding.BATCH)
    dtypes = (dtype, dtype, dtype, jnp.int32)
    abstract = [
      jax.ShapeDtypeStruct(shape, of, sharding=split)
      for shape, of in zip(shapes, dtypes)
    ]
    gradient = jax.jit(jax.grad(function, (0, 1, 2)))
    compiled = gradient.lower(*abstract).compile()
  limit = 4 * memory
  if dtype == jnp.bfloat16:
    limit += 4 * num_rows // 8  # the bias's gradient is summed in float32
    if jax.__version_info__ < (0, 12):
      limit += (
        (2 * d + 4) * num_rows // 8
      )  # see chunks.to_bits; bias in float32
  assert compiled.memory_analysis().temp_size_in_bytes <= limit
  sent = re.findall(
    r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute)\(",
    compiled.as_text(),
  )
  assert sent
  for shape in sent:
    numbers = np.prod([int(size) for size in shape.split(",") if size])
    assert numbers <= n * max(p, d)
