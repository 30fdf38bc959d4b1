"""Sums over label rows equal those of the whole matrix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from xlj import sharding
from xlj.ops import label_sums
from xlj.ops import shards

D, NUM_LABELS, NUM_ROWS = 6, 43, 48


def make_rows(dtype=np.float32):
  rows = np.random.default_rng(0).normal(size=(NUM_ROWS, D)).astype(dtype)
  rows[NUM_LABELS:] = np.nan  # padding that is read shows
  return rows


def penalty(sums):
  """Some function that all sums matter in."""
  dim = sums.gram.shape[0]
  weight = jnp.arange(dim * dim, dtype=sums.gram.dtype).reshape(dim, dim)
  value = (weight * sums.gram).sum() + (sums.total**2).sum()
  return 1e-2 * value + sums.squares


def expected_of(rows):
  rows = rows[:NUM_LABELS].astype(np.float64)
  return label_sums.RowSums(rows.T @ rows, rows.sum(0))


def assert_close(got, expected, rtol=2e-6):
  for a, b in zip(got, expected):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
  np.testing.assert_allclose(got.squares, np.trace(expected.gram), rtol=rtol)


@pytest.mark.parametrize("chunk", [None, 48, 10])
def test_one_device(chunk):
  sums = functools.partial(
    label_sums.label_statistics,
    num_labels=NUM_LABELS,
    placement=shards.Placement(chunk_size=chunk),
  )
  rows = make_rows()
  assert_close(jax.jit(sums)(rows), expected_of(rows))


@pytest.mark.parametrize("shape", meshes.SHAPES)
def test_meshes_and_gradients(shape):
  rows = make_rows()

  def expected(rows):
    rows = rows[:NUM_LABELS]
    return penalty(label_sums.RowSums(rows.T @ rows, rows.sum(0)))

  gradient = jax.grad(expected)(np.nan_to_num(rows))
  with meshes.mesh(shape) as mesh:
    put = jax.device_put(rows, jax.NamedSharding(mesh, sharding.LABELS))
    sums = functools.partial(
      label_sums.label_statistics,
      num_labels=NUM_LABELS,
      placement=shards.Placement(chunk_size=4),
    )
    got = jax.jit(sums)(put)
    assert got.gram.sharding.is_fully_replicated
    got_gradient = jax.jit(jax.grad(lambda rows: penalty(sums(rows))))(put)
    assert got_gradient.sharding.is_equivalent_to(put.sharding, 2)
  assert_close(got, expected_of(rows))
  np.testing.assert_allclose(got_gradient, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", meshes.SHAPES)
def test_changed_rows_update_the_sums(shape):
  rows, rng = make_rows(), np.random.default_rng(1)
  changed = rows.copy()
  ids = rng.permutation(NUM_LABELS)[:16]
  changed[ids] += rng.normal(size=(16, D)).astype(np.float32)
  before, after = rows[ids], changed[ids]
  with meshes.mesh(shape) as mesh:
    labels = jax.NamedSharding(mesh, sharding.LABELS)
    put, before, after = jax.device_put((rows, before, after), labels)

    @jax.jit
    def run(rows, before, after):
      sums = label_sums.label_statistics(rows, num_labels=NUM_LABELS)
      return label_sums.update_statistics(sums, before, after)

    got = run(put, before, after)
  assert_close(got, expected_of(changed), rtol=1e-5)


def test_inside_shard_map():
  rows = make_rows()
  with meshes.mesh((2, 4)) as mesh:
    put = jax.device_put(rows, jax.NamedSharding(mesh, sharding.LABELS))

    @jax.jit
    @jax.shard_map(out_specs=jax.P())
    def run(rows):
      sums = label_sums.label_statistics(
        rows,
        num_labels=NUM_LABELS,
        placement=shards.Placement(row_axes=sharding.AXES),
      )
      return label_sums.update_statistics(
        sums,
        jnp.zeros_like(rows[:2]),
        0 * rows[:2] + 1,
        placement=shards.Placement(row_axes=sharding.AXES),
      )

    rows[NUM_LABELS:] = 0
    got = run(jax.device_put(rows, put.sharding))
  expected = expected_of(rows)
  expected = label_sums.RowSums(expected.gram + 16, expected.total + 16)
  assert_close(got, expected)


def test_many_chunks_lose_nothing():
  rows = np.full((2**17, 1), 0.1, np.float32)
  sums = functools.partial(
    label_sums.label_statistics, placement=shards.Placement(chunk_size=2)
  )
  got = jax.jit(sums)(rows)
  exact = float(np.float32(0.1)) * 2**17
  np.testing.assert_allclose(got.total, [exact], rtol=1e-7)
  np.testing.assert_allclose(got.squares, exact**2 / 2**17, rtol=2e-7)


def test_bfloat16_rows_are_summed_in_float32():
  rows = jnp.asarray(make_rows(), jnp.bfloat16)
  sums = functools.partial(
    label_sums.label_statistics,
    num_labels=NUM_LABELS,
    placement=shards.Placement(chunk_size=10),
  )
  got = jax.jit(sums)(rows)
  assert got.gram.dtype == jnp.float32
  assert_close(got, expected_of(np.asarray(rows, np.float32)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("devices", [1, 8])
def test_temporaries_are_a_few_chunks(devices, dtype):
  d, num_rows, chunk = 32, 2**21, 2048
  with meshes.mesh((devices, 1)) as mesh:
    split = jax.NamedSharding(mesh, sharding.BATCH)
    rows = jax.ShapeDtypeStruct((num_rows, d), dtype, sharding=split)

    def function(rows):
      sums = label_sums.label_statistics(
        rows, placement=shards.Placement(chunk_size=chunk)
      )
      return penalty(sums)

    compiled = jax.jit(jax.grad(function)).lower(rows).compile()
  copies = dtype == jnp.bfloat16 and jax.__version_info__ < (0, 12)
  limit = 4 * 4 * chunk * d + copies * 2 * num_rows * d // devices
  assert compiled.memory_analysis().temp_size_in_bytes <= limit
