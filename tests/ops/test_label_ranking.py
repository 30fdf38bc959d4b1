"""Streamed top-k equals sorting all logits, on one device and on meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from xlj import sharding
from xlj.ops import label_ranking
from xlj.ops import shards

N, D, E = 16, 6, 3
NUM_LABELS, NUM_ROWS = 43, 48


def make_inputs():
  """Examples, rows, bias and excluded labels; small integers, so with ties."""
  rng = np.random.default_rng(0)
  x, rows, bias = (
    rng.integers(-2, 3, shape).astype(np.float32)
    for shape in ((N, D), (NUM_ROWS, D), (NUM_ROWS,))
  )
  bias[NUM_LABELS:] = 100  # padding would win
  exclude = rng.integers(-1, NUM_LABELS, (N, E)).astype(np.int32)
  return x, rows, bias, exclude


def expected_of(x, rows, bias, exclude, k):
  z = (x @ rows.T + bias)[:, :NUM_LABELS]
  for n in range(N):
    z[n, exclude[n][exclude[n] >= 0]] = -np.inf
  order = np.argsort(-z, axis=1, kind="stable")[:, :k]
  scores = np.take_along_axis(z, order, 1)
  ids = np.where(np.isneginf(scores), -1, order)
  missing = ((0, 0), (0, k - order.shape[1]))
  scores = np.pad(scores, missing, constant_values=-np.inf)
  return scores, np.pad(ids, missing, constant_values=-1)


@pytest.mark.parametrize("chunk", [None, 48, 10, 2])
@pytest.mark.parametrize("k", [1, 5, 45])
def test_one_device_equals_sorting(k, chunk):
  x, rows, bias, exclude = make_inputs()
  topk = functools.partial(
    label_ranking.label_topk,
    k=k,
    num_labels=NUM_LABELS,
    exclude=exclude,
    placement=shards.Placement(chunk_size=chunk),
  )
  got = jax.jit(topk)(x, rows, bias)
  expected = expected_of(x, rows, bias, exclude, k)
  np.testing.assert_array_equal(got[0], expected[0])
  np.testing.assert_array_equal(got[1], expected[1])


@pytest.mark.parametrize("k", [5, 45])
@pytest.mark.parametrize(
  "batch", [sharding.BATCH, sharding.REPLICATED, jax.P("data")]
)
@pytest.mark.parametrize("shape", meshes.SHAPES[1:])
def test_meshes_equal_sorting(shape, batch, k):
  x, rows, bias, exclude = make_inputs()
  expected = expected_of(x, rows, bias, exclude, k)
  with meshes.mesh(shape) as mesh:
    args = jax.device_put((x, exclude), jax.NamedSharding(mesh, batch))
    labels = jax.NamedSharding(mesh, sharding.LABELS)
    rows, bias = jax.device_put((rows, bias), labels)

    @jax.jit
    def topk(x, exclude, rows, bias):
      return label_ranking.label_topk(
        x,
        rows,
        bias,
        k,
        num_labels=NUM_LABELS,
        exclude=exclude,
        placement=shards.Placement(chunk_size=4),
      )

    scores, ids = topk(*args, rows, bias)
    assert scores.sharding.is_equivalent_to(args[0].sharding, 2)
  np.testing.assert_array_equal(scores, expected[0])
  np.testing.assert_array_equal(ids, expected[1])


def test_without_bias_and_exclusion():
  x, rows, *_ = make_inputs()
  scores, ids = label_ranking.label_topk(
    x, rows, None, 3, placement=shards.Placement(chunk_size=7)
  )
  z = x @ rows.T
  np.testing.assert_array_equal(scores, -np.sort(-z, axis=1)[:, :3])
  np.testing.assert_array_equal(ids, np.argsort(-z, 1, kind="stable")[:, :3])


@pytest.mark.parametrize("devices", [1, 8])
def test_temporaries_are_a_few_chunks(devices):
  n, d, num_rows, chunk = 64, 32, 2**21, 2048
  shapes = (n, d), (num_rows, d), (num_rows,)
  topk = functools.partial(
    label_ranking.label_topk,
    k=100,
    placement=shards.Placement(chunk_size=chunk),
  )
  compiled = meshes.compile_split(
    topk, (devices, 1), *((s, jnp.float32) for s in shapes)
  )
  one_chunk = 4 * chunk * (n + d)
  assert compiled.memory_analysis().temp_size_in_bytes <= 4 * one_chunk


@pytest.mark.parametrize("k", [0, -1, 2.0, "2", True, None])
def test_k_is_a_whole_number(k):
  with pytest.raises(ValueError, match="k must be a whole number from 1 on"):
    label_ranking.label_topk(jnp.ones((2, 3)), jnp.ones((4, 3)), None, k)
