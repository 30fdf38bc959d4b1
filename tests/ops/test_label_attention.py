"""Streamed attention equals softmax times values, with all gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from tests import meshes
from xlj import sharding
from xlj.ops import label_attention
from xlj.ops import shards

N, D, E = 16, 6, 5
NUM_LABELS, NUM_ROWS = 43, 48
SCALE = 1.7
assert_close = functools.partial(cases.assert_close, atol=5e-6, rtol=1e-5)


def make_inputs():
  rng = np.random.default_rng(0)
  shapes = (N, D), (NUM_ROWS, D), (NUM_ROWS, E)
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def sum_of(attend, factors):
  """Value and gradients of a sum of the result that tells all apart."""

  def function(q, keys, values):
    out = attend(q, keys, values)
    return (factors * out).sum(), out

  grad = jax.value_and_grad(function, (0, 1, 2), has_aux=True)
  return jax.jit(grad)


def expected_of(q, keys, values, factors):
  def attend(q, keys, values):
    z = SCALE * q @ keys[:NUM_LABELS].T
    return jax.nn.softmax(z) @ values[:NUM_LABELS]

  return sum_of(attend, factors)(q, keys, values)


def test_bias_and_top_keys():
  """With a bias, over all keys and over the best; on a mesh, gradients too."""
  q, keys, values = make_inputs()
  rng = np.random.default_rng(1)
  bias = rng.normal(size=NUM_ROWS).astype(np.float32)
  bias[3] = -np.inf  # left out, and so are those at the end
  bias[NUM_LABELS:] = -np.inf

  def both(attend, best):
    def function(*args):
      every, some = attend(*args), best(*args)
      return (FACTORS * (every - 2 * some)).sum(), (every, some)

    return jax.jit(jax.value_and_grad(function, (0, 1, 2, 3), has_aux=True))

  def dense(k):
    def attend(q, keys, values, bias):
      z = SCALE * q @ keys.T + bias
      least = jax.lax.top_k(z, k)[0][:, -1:]
      return jax.nn.softmax(jnp.where(z < least, -jnp.inf, z)) @ values

    return attend

  expected = both(dense(NUM_LABELS), dense(4))(q, keys, values, bias)
  with meshes.mesh((2, 4)) as mesh:
    args = jax.device_put(
      (q, keys, values, bias), jax.NamedSharding(mesh, sharding.BATCH)
    )
    got = both(
      lambda *args: label_attention.label_attend(
        *args[:3], SCALE, bias=args[3], placement=shards.Placement(chunk_size=4)
      ),
      lambda *args: label_attention.label_attend_topk(
        *args[:3],
        SCALE,
        4,
        bias=args[3],
        placement=shards.Placement(chunk_size=4),
      ),
    )(*args)
  assert_close(got, expected)


attend = functools.partial(
  label_attention.label_attend, scale=SCALE, num_labels=NUM_LABELS
)
FACTORS = np.linspace(-1, 1, N * E, dtype=np.float32).reshape(N, E)


@pytest.mark.parametrize("chunk", [None, 48, 10])
def test_one_device_equals_the_reference(chunk):
  inputs = make_inputs()
  got = sum_of(
    functools.partial(attend, placement=shards.Placement(chunk_size=chunk)),
    FACTORS,
  )(*inputs)
  assert_close(got, expected_of(*inputs, FACTORS))


def test_large_logits():
  q, keys, values = make_inputs()
  q *= 300
  got = attend(q, keys, values, placement=shards.Placement(chunk_size=10))
  z = SCALE * (q @ keys[:NUM_LABELS].T)
  expected = jax.nn.softmax(z) @ values[:NUM_LABELS]
  np.testing.assert_allclose(got, expected, atol=2e-3)


@pytest.mark.parametrize("batch", [sharding.BATCH, sharding.REPLICATED])
@pytest.mark.parametrize("shape", meshes.SHAPES[1:])
def test_meshes_equal_the_reference(shape, batch):
  q, keys, values = make_inputs()
  expected = expected_of(q, keys, values, FACTORS)
  with meshes.mesh(shape) as mesh:
    q, factors = jax.device_put((q, FACTORS), jax.NamedSharding(mesh, batch))
    labels = jax.NamedSharding(mesh, sharding.LABELS)
    args = q, *jax.device_put((keys, values), labels)
    got = sum_of(
      functools.partial(attend, placement=shards.Placement(chunk_size=4)),
      factors,
    )(*args)
    for grad, of in zip(got[1], args):
      assert grad.sharding.is_equivalent_to(of.sharding, 2)
    assert got[0][1].sharding.is_equivalent_to(q.sharding, 2)
  assert_close(got, expected)


@pytest.mark.parametrize("devices", [1, 8])
def test_temporaries_are_a_few_chunks(devices):
  n, d, num_rows, chunk = 64, 32, 2**21, 2048

  def function(*args):
    return jax.grad(
      lambda *args: attend(
        *args, num_labels=None, placement=shards.Placement(chunk_size=chunk)
      ).sum(),
      (0, 1, 2),
    )(*args)

  shapes = (n, d), (num_rows, d), (num_rows, d)
  compiled = meshes.compile_split(
    function, (devices, 1), *((s, jnp.float32) for s in shapes)
  )
  one_chunk = 4 * chunk * (n + d)
  assert compiled.memory_analysis().temp_size_in_bytes <= 4 * one_chunk


@pytest.mark.parametrize("devices", cases.some([1, 8], [8]))
def test_gradients_of_rows_are_not_formed_for_nothing(devices):
  n, d, num_rows, chunk = 64, 32, 10**6, 2048

  def function(q, keys, values):
    def total(q):
      every = attend(
        q,
        keys,
        values,
        num_labels=None,
        placement=shards.Placement(chunk_size=chunk),
      )
      best = label_attention.label_attend_topk(
        q, keys, values, SCALE, 8, placement=shards.Placement(chunk_size=chunk)
      )
      return (every + best).sum()

    return jax.grad(total)(q)

  shapes = (n, d), (num_rows, d), (num_rows, d)
  compiled = meshes.compile_split(
    function, (devices, 1), *((s, jnp.float32) for s in shapes)
  )
  one_chunk = 4 * chunk * (n + d)
  memory = compiled.memory_analysis()
  assert memory.output_size_in_bytes + memory.temp_size_in_bytes <= (
    4 * one_chunk
  )
