"""Threshold counts and k-th values equal sorting all scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from tests import meshes
from xlj import sharding
from xlj.ops import chunks
from xlj.ops import label_threshold
from xlj.ops import radix_select
from xlj.ops import shards as shards_lib
from xlj.ops import targets as targets_lib

N, D, NUM_LABELS, NUM_ROWS = 16, 6, 43, 48
BATCHES = {"split": sharding.BATCH, "replicated": sharding.REPLICATED}


def make_inputs(ties, dtype=np.float32):
  """Examples, rows, bias, targets; small integers give ties."""
  rng = np.random.default_rng(0)
  draw = functools.partial(rng.integers, -2, 3) if ties else None
  x, rows, bias = (
    (draw(shape) if ties else rng.normal(size=shape)).astype(dtype)
    for shape in ((N, D), (NUM_ROWS, D), (NUM_ROWS,))
  )
  bias[NUM_LABELS:] = 100  # padding would win
  ids = rng.integers(-1, NUM_LABELS, (N, 3)).astype(np.int32)
  ids[:, 1] = np.where(ids[:, 1] == ids[:, 0], -1, ids[:, 1])
  weights = np.ones(N, np.float32)
  weights[3] = 0
  return x, rows, bias, targets_lib.Targets(ids, weights)


def scores_of(x, rows, bias, targets=None):
  """`[N, L]`, -inf where there is none."""
  z = (x @ rows.T + bias)[:, :NUM_LABELS]
  if targets is not None:
    for n, ids in enumerate(targets.ids):
      z[n, ids[ids >= 0]] = -np.inf
    z[targets.weights == 0] = -np.inf
  return z


def kth_of(scores, k):
  """The k-th of a list by sorting, with counts."""
  scores = np.sort(scores[~np.isneginf(scores)])[::-1]
  if k < 1:
    return np.inf, 0, 0
  if k > len(scores):
    return -np.inf, len(scores), 0
  value = scores[k - 1]
  return value, (scores > value).sum(), (scores == value).sum()


def assert_kth(got, scores, k, exact=True):
  """All of it; or, if products may be rounded otherwise, only nearly."""
  k = np.broadcast_to(k, len(scores))
  expected = [kth_of(s, one) for s, one in zip(scores, k)]
  for a, b in zip(got, np.transpose(expected)):
    if exact:
      np.testing.assert_array_equal(a, b)
    else:
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "k,chunk",
  cases.covering([0, 1, 7, 40, 43, 44, 10**6], [None, 48, 10]),
)
def test_one_device_equals_sorting(k, chunk):
  x, rows, bias, _ = make_inputs(ties=True)
  kth = functools.partial(
    label_threshold.label_kth, k=k, num_labels=NUM_LABELS, chunk_size=chunk
  )
  assert_kth(jax.jit(kth)(x, rows, bias), scores_of(x, rows, bias), k)


@pytest.mark.parametrize("k", [1, 25, 600, 700, 43 * 16])
def test_a_batch_leaves_out_positives_and_examples_without_weight(k):
  x, rows, bias, targets = make_inputs(ties=True)
  kth = functools.partial(
    label_threshold.label_kth,
    score=label_threshold.negatives,
    batch=True,
    num_labels=NUM_LABELS,
    chunk_size=12,
  )
  got = jax.jit(kth)(x, rows, bias, k, targets)
  scores = scores_of(x, rows, bias, targets).reshape(1, -1)
  assert_kth(jax.tree.map(lambda a: a[None], got), scores, k)


@pytest.mark.parametrize(
  "together,shape,batch",
  cases.covering([False, True], meshes.SHAPES[1:], BATCHES),
)
def test_meshes_equal_sorting(together, shape, batch):
  x, rows, bias, targets = make_inputs(ties=True)
  scores = scores_of(x, rows, bias, targets)
  k = 100 if together else np.arange(N, dtype=np.int32) * 3
  threshold = 2.0 if together else np.linspace(-8, 8, N).astype(np.float32)
  with meshes.mesh(shape) as mesh:
    split = jax.NamedSharding(mesh, BATCHES[batch])
    labels = jax.NamedSharding(mesh, sharding.LABELS)
    put = jax.device_put((x, targets), split)
    put_rows = jax.device_put((rows, bias), labels)
    if not together:
      put_k, put_threshold = jax.device_put((k, threshold), split)
    else:
      put_k, put_threshold = k, threshold
    keywords = {
      "score": label_threshold.negatives,
      "batch": together,
      "num_labels": NUM_LABELS,
      "chunk_size": 4,
    }

    @jax.jit
    def run(x, targets, rows, bias, k, threshold):
      kth = label_threshold.label_kth(x, rows, bias, k, targets, **keywords)
      count = label_threshold.label_count(
        x, rows, bias, threshold, targets, **keywords
      )
      return kth, count

    kth, count = run(*put, *put_rows, put_k, put_threshold)
    if not together:
      assert kth.value.sharding.is_equivalent_to(split, 1)
      assert count.sharding.is_equivalent_to(split, 1)
  more = scores > np.reshape(threshold, (-1, 1))
  np.testing.assert_array_equal(count, more.sum(None if together else 1))
  if together:
    scores = scores.reshape(1, -1)
    kth = jax.tree.map(lambda a: a[None], kth)
  assert_kth(kth, scores, k)


def test_inside_shard_map():
  x, rows, bias, _ = make_inputs(ties=True)
  with meshes.mesh((2, 4)) as mesh:
    split = jax.NamedSharding(mesh, sharding.BATCH)
    args = jax.device_put((x, rows, bias), split)

    @jax.jit
    @jax.shard_map(out_specs=sharding.BATCH)
    def run(x, rows, bias):
      return label_threshold.label_kth(
        x,
        rows,
        bias,
        9,
        num_labels=NUM_LABELS,
        row_axes=sharding.AXES,
        batch_axes=sharding.AXES,
      )

    assert_kth(run(*args), scores_of(x, rows, bias), 9)


def test_a_score_may_read_values_per_label():
  x, rows, bias, targets = make_inputs(ties=True)
  shift = np.arange(NUM_ROWS, dtype=np.float32)

  def score(z, positives):
    return z - targets_lib.label_values(positives, "shift")

  kth = functools.partial(
    label_threshold.label_kth,
    k=5,
    score=score,
    label_values={"shift": shift},
    num_labels=NUM_LABELS,
    chunk_size=12,
  )
  got = jax.jit(kth)(x, rows, bias)
  assert_kth(got, scores_of(x, rows, bias - shift), 5)


def test_all_bits_of_any_float_are_found():
  # One feature, one example: the scores are the bias.
  rng = np.random.default_rng(1)
  bits = rng.integers(0, 2**32, 5000, dtype=np.uint32)
  values = bits.view(np.float32)
  tiny = np.abs(values) < 2.0**-120  # which CPUs may take for 0
  values = values[np.isfinite(values) & ~tiny]
  values = np.concatenate([values, [0.0, -0.0, np.inf]]).astype(np.float32)
  order = np.sort(values)[::-1]
  rows = np.zeros((len(values), 1), np.float32)
  kth = jax.jit(
    lambda k: label_threshold.label_kth(
      np.zeros((1, 1), np.float32), rows, values, k, chunk_size=999
    )
  )
  for k in [1, 2, *range(3, len(values), 311), len(values)]:
    assert_kth(kth(k), values[None], k)
  middle = int((order > 0).sum())
  value, above, equal = kth(middle + 1)
  assert (value, above, equal) == (0, middle, 2)  # -0 equals 0


def test_nan_is_the_greatest():
  z = np.array([1, np.nan, np.inf, -np.nan], np.float32)
  one = np.zeros((1, 1), np.float32)
  rows = np.zeros((4, 1), np.float32)
  kth = jax.jit(lambda k: label_threshold.label_kth(one, rows, z, k))
  assert np.isnan(kth(2).value) and kth(2).equal == 2
  assert np.isposinf(kth(3).value) and kth(3).above == 2


def test_float64_has_all_its_bits():
  with jax.enable_x64(True):
    x, rows, bias, _ = make_inputs(ties=False, dtype=np.float64)
    rows[5] = rows[4]
    rows[6] = rows[4] * (1 + 2.0**-50)  # the same in float32
    bias[4:7] = 9
    kth = jax.jit(
      lambda k: label_threshold.label_kth(
        x, rows, bias, k, num_labels=NUM_LABELS, chunk_size=10
      )
    )
    got = [kth(k) for k in (1, 2, 3, 20)]
    assert got[0].value.dtype == jnp.float64
  scores = scores_of(x, rows, bias)
  for kth, k in zip(got, (1, 2, 3, 20)):
    assert_kth(kth, scores, k, exact=False)


def test_counts_stop_at_the_greatest_int32():
  most = 2**31 - 1
  pairs = np.array([[1, 2], [most, 1], [most, most], [most - 1, 1]], np.int32)
  np.testing.assert_array_equal(
    radix_select.add(*jnp.asarray(pairs).T), [3, most, most, most]
  )
  counts = np.array([3, 2**16, 2**28 - 1, 2**28, most], np.int32)
  with meshes.mesh((8, 1)):

    @jax.jit
    @jax.shard_map(in_specs=jax.P(), out_specs=jax.P())
    def total(a):
      shards = shards_lib.Shards(sharding.AXES, (), True)
      a = chunks.vary(a, sharding.AXES)
      return label_threshold._total(a, shards)

    got = total(counts)
  np.testing.assert_array_equal(got, [24, 2**19, 8 * (2**28 - 1), most, most])


def test_wrong_k_is_refused():
  x, rows, bias, _ = make_inputs(ties=True)
  with pytest.raises(ValueError, match=r"scalar.*\(16,\)"):
    label_threshold.label_kth(x, rows, bias, np.ones(N, np.int32), batch=True)


@pytest.mark.parametrize(
  "devices,together", cases.covering([1, 8], [False, True])
)
def test_temporaries_are_a_few_chunks_and_counts(devices, together):
  n, d, num_rows, chunk = 64, 32, 2**21, 2048
  shapes = (n, d), (num_rows, d), (num_rows,)
  kth = functools.partial(
    label_threshold.label_kth, k=10**6, batch=together, chunk_size=chunk
  )
  compiled = meshes.compile_split(
    kth, (devices, 1), *((s, jnp.float32) for s in shapes)
  )
  one_chunk = 4 * chunk * (n + d)
  counts = 4 * 2048 * (1 if together else n)
  limit = 4 * (one_chunk + counts)
  assert compiled.memory_analysis().temp_size_in_bytes <= limit
