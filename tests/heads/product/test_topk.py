"""The best labels of products and mixtures equal those of brute force."""

import functools
import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests import cases
from tests import meshes
from xlj import sharding
from xlj.heads.product import distribution as product_lib
from xlj.heads.product import mixed_radix
from xlj.heads.product import search as product_search
from xlj.heads.product import topk as product_topk

# Lengths, number of labels: without ghosts, few, many, some of whole digits,
# lengths that nothing divides, one digit, digits of one value.
RADICES = [
  mixed_radix.MixedRadix(num_labels, lengths)
  for num_labels, lengths in [
    (10_000, (100, 100)),
    (9_901, (100, 100)),
    (8_191, (21, 20, 20)),
    (100, (30, 10)),
    (3_001, (7, 5, 9, 11)),
    (1_025, (2,) * 11),
    (37, (40,)),
    (5, (5, 1, 2)),
    (1, (3, 2)),
  ]
]
# Any numbers; what is compiled for is parametrised.
seeds = st.integers(0, 2**32 - 1)
spreads = st.sampled_from([0.0, 0.1, 3.0, 30.0])
few = hypothesis.settings(deadline=None, max_examples=6)


def make(radix, seed, num_products, spread=3.0, num_examples=4):
  """Logits `[N, R, S]` and `[N, R]`."""
  rng = np.random.default_rng(seed)
  shape = num_examples, num_products, sum(radix.lengths)
  logits = spread * rng.normal(size=shape)
  weights = rng.normal(size=shape[:2])
  return logits.astype(np.float32), weights.astype(np.float32)


def all_scores(logits, weight_logits, radix):
  """`[N, L]` log-probabilities of all labels, in float64."""
  digits = radix.digits(np.arange(radix.num_labels))
  starts = np.cumsum((0, *radix.lengths))
  logits = logits.astype(np.float64)
  total = scipy.special.log_softmax(weight_logits.astype(np.float64), -1)
  total = total[..., None]
  for h in range(len(radix.lengths)):
    own = logits[..., starts[h] : starts[h + 1]]
    if h == 0:  # Values that labels do not have do not count.
      own = own[..., : digits[-1, 0] + 1]
    total = total + scipy.special.log_softmax(own, -1)[..., digits[:, h]]
  return scipy.special.log_softmax(scipy.special.logsumexp(total, 1), -1)


@functools.partial(jax.jit, static_argnums=(2, 3))
def topk(logits, weight_logits, radix, k, exclude=None):
  product = product_lib.from_logits(logits, weight_logits, radix)
  return product_topk.product_topk(product, radix, k, exclude)


@functools.partial(jax.jit, static_argnums=2)
def log_probs_of_all(logits, weight_logits, radix):
  product = product_lib.from_logits(logits, weight_logits, radix)
  digits = jnp.asarray(radix.digits(np.arange(radix.num_labels)))[None]
  scores = product_lib.log_scores(product, digits)
  return scores - product.log_total[:, None]


def assert_best(found, expected, radix, exclude=None):
  """Scores, and labels, are the best of `expected [N, L]`."""
  scores, digits = (np.asarray(a) for a in found)
  labels = radix.labels(digits)
  if exclude is not None:
    expected = expected.copy()
    for n, own in enumerate(exclude):
      expected[n, own[own >= 0]] = -np.inf
  k = labels.shape[1]
  best = -np.sort(-expected, 1)[:, :k]
  missing = ((0, 0), (0, k - best.shape[1]))
  best = np.pad(best, missing, constant_values=-np.inf)
  np.testing.assert_allclose(scores, best, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(labels < 0, np.isneginf(best))
  for n, own in enumerate(labels):
    own = own[own >= 0]
    assert len(set(own.tolist())) == len(own)
    np.testing.assert_allclose(
      expected[n, own], best[n, : len(own)], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
  ("radix", "num_products", "k"),
  cases.first(
    4,
    [
      (RADICES[0], 1, 5),
      (RADICES[2], 4, 20),
      (RADICES[4], 3, 5),
      (RADICES[5], 1, 40),
      (RADICES[1], 1, 40),
      (RADICES[1], 4, 5),
      (RADICES[2], 1, 5),
      (RADICES[3], 2, 5),
      (RADICES[6], 2, 5),
    ],
  ),
)
@few
@hypothesis.given(seeds, spreads)
def test_topk_equals_brute_force(radix, num_products, k, seed, spread):
  given_ = make(radix, seed, num_products, spread)
  assert_best(topk(*given_, radix, k), all_scores(*given_, radix), radix)


@pytest.mark.parametrize(
  "radix,num_products", cases.covering([RADICES[3], RADICES[6]], [1, 3])
)
def test_more_than_all_labels(radix, num_products):
  given_ = make(radix, 0, num_products, num_examples=2)
  k = radix.num_labels + 7
  assert_best(topk(*given_, radix, k), all_scores(*given_, radix), radix)


@pytest.mark.parametrize(
  "radix,num_products", cases.covering([RADICES[2], RADICES[7]], [1, 3])
)
@few
@hypothesis.given(seeds)
def test_excluded_labels_are_left_out(radix, num_products, seed):
  given_ = make(radix, seed, num_products)
  expected = all_scores(*given_, radix)
  best = np.argsort(-expected, 1)[:, :3]
  exclude = np.pad(best, ((0, 0), (0, 4 - best.shape[1])), constant_values=-1)
  found = topk(*given_, radix, 6, radix.digits(exclude))
  assert_best(found, expected, radix, exclude)


@pytest.mark.slow
@pytest.mark.parametrize("radix", RADICES[::2])
def test_every_example_searched(radix, monkeypatch):
  """From the worst of known lists, and with nodes above the leaves."""
  monkeypatch.setattr(product_search, "_LEAF", 50)
  k = min(6, radix.num_labels)

  @jax.jit
  def run(logits, weight_logits, digits):
    product = product_lib.from_logits(logits, weight_logits, radix)
    scores = product_lib.log_scores(product, digits)
    return product_search.search(
      product,
      radix,
      jnp.zeros(4, bool),
      jnp.sort(scores, descending=True),
      digits,
    ), product.log_total[:, None]

  for spread in (0.0, 0.01, 1.0, 30.0):
    given_ = make(radix, 1, 4, spread)
    expected = all_scores(*given_, radix)
    worst = radix.digits(np.argsort(expected, 1)[:, :k])
    (scores, digits), log_total = run(*given_, worst)
    assert_best((scores - log_total, digits), expected, radix)


def test_a_list_that_is_not_certain_is_searched(monkeypatch):
  """Products that agree on nothing: the best label is nobody's favourite."""
  monkeypatch.setattr(product_topk, "_CANDIDATES", 1)
  radix = mixed_radix.MixedRadix(95, (10, 10))
  logits = np.full((1, 2, 20), -9.0, np.float32)
  logits[0, 0, [3, 14]] = 2.0  # each prefers a label of its own ...
  logits[0, 1, [5, 16]] = 2.0
  logits[0, :, [7, 18]] = 1.9  # ... to the one that both like
  given_ = logits, np.zeros((1, 2), np.float32)
  expected = all_scores(*given_, radix)
  assert expected.argmax() == 78
  assert_best(topk(*given_, radix, 1), expected, radix)


def test_labels_beyond_int32():
  radix = mixed_radix.MixedRadix(10**12 - 1, (10_000,) * 3)
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 2, 30_000)).astype(np.float32)
  logits[0, :, [9_999, 19_999, 29_999]] = 50  # the ghost
  scores, digits = topk(logits, np.zeros((2, 2), np.float32), radix, 3)
  labels = radix.labels(np.asarray(digits))
  assert labels.max() > 2**31
  # One digit differs from the ghost's.
  assert ((np.asarray(digits)[0] != 9_999).sum(1) == 1).all()
  assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("shape", meshes.SHAPES[1:])
def test_on_a_mesh(shape):
  radix = RADICES[2]
  given_ = make(radix, 3, 3, num_examples=16)
  with meshes.mesh(shape):
    batch = sharding.put_batch(given_)
    found = jax.shard_map(
      lambda *a: topk(*a, radix, 9),
      in_specs=(sharding.BATCH,) * 2,
      out_specs=(sharding.BATCH,) * 2,
    )(*batch)
  assert_best(found, all_scores(*given_, radix), radix)


@pytest.mark.parametrize(
  "radix,num_products", cases.covering(RADICES[1::2], [1, 3])
)
@hypothesis.settings(few, max_examples=5)
@hypothesis.given(seeds, spreads)
def test_probabilities_of_labels_add_up_to_one(
  radix, num_products, seed, spread
):
  given_ = make(radix, seed, num_products, spread)
  found = np.asarray(log_probs_of_all(*given_, radix), np.float64)
  np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-4)
  np.testing.assert_allclose(
    found, all_scores(*given_, radix), rtol=1e-4, atol=1e-4
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "radix,num_products", cases.covering(RADICES[2::2], [1, 3])
)
def test_gradients_equal_those_of_all_logits(radix, num_products):
  given_ = make(radix, 5, num_products)
  labels = np.random.default_rng(0).integers(0, radix.num_labels, 4)
  everything = radix.digits(np.arange(radix.num_labels))

  def own(logits, weight_logits):
    product = product_lib.from_logits(logits, weight_logits, radix)
    digits = jnp.asarray(radix.digits(labels))
    return product_lib.log_likelihood(product, digits).sum()

  def dense(logits, weight_logits):
    total = jax.nn.log_softmax(weight_logits)[..., None]
    first = 0
    for h, length in enumerate(radix.lengths):
      values = everything[-1, 0] + 1 if h == 0 else length
      z = jax.nn.log_softmax(logits[..., first : first + values])
      total = total + z[..., everything[:, h]]
      first += length
    z = jax.nn.log_softmax(jax.nn.logsumexp(total, 1))
    return z[jnp.arange(4), labels].sum()

  (value, grads), (expected, expected_grads) = (
    jax.jit(jax.value_and_grad(f, (0, 1)))(*given_) for f in (own, dense)
  )
  np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
  for got, want in zip(grads, expected_grads):
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_few_pairs_are_looked_at():
  i, _ = product_topk._pairs(1000, 1000, 1000)
  assert len(i) < 1000 * (1 + math.log(1000))
