"""Losses of pairs equal loops over them in float64, and so do gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlj.losses import contrastive

N, M, P, L = 9, 14, 3, 30


def make_batch():
  """Scores, labels of examples, the chosen ones, candidates."""
  rng = np.random.default_rng(0)
  ids = np.stack([rng.permutation(L)[:P] for _ in range(N)]).astype(np.int32)
  ids[1, 1:] = -1
  ids[2] = -1
  chosen = ids[:, 0].copy()
  candidates = np.full(M, -1, np.int32)
  found = np.unique(np.append(chosen[chosen >= 0], [ids[0, 1], ids[3, 2]]))
  candidates[1 : 1 + len(found)] = found
  return rng.uniform(-1, 1, (N, M)), ids, chosen, candidates


def softmax(z):
  return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def of_softmax(positive, negatives, others, counts=None):
  del counts
  z = np.array([positive, *negatives, *others])
  return -np.log(softmax(z)[0])


def of_decoupled(positive, negatives, others):
  del others
  return np.log1p(sum(np.exp(n - positive) for n in negatives))


def of_ngame(positive, negatives, others):
  """The code of NGAME, of one example; margin 0.3, 4 hardest."""
  del others
  hard = np.sort(negatives)[::-1][:4]
  loss = np.maximum(0, hard - positive + 0.3)
  return (softmax(hard / 0.1 * (loss > 0)) * loss).sum()


def of_prime(positive, negatives, others):
  """That of PRIME; margins from 0.1 to 0.3."""
  del others
  hard = np.sort(negatives)[::-1][:4]
  margin = np.clip(np.abs(positive - hard), 0.1, 0.3)
  loss = np.maximum(0, hard - positive + margin)
  return (softmax(np.where(loss > 0, hard, -100) / 0.1) * loss).sum()


triplet = functools.partial(
  contrastive.triplet_losses, margin=0.3, hardest=4, temperature=0.1
)
LOSSES = {
  "softmax": (contrastive.softmax_losses, of_softmax),
  "decoupled": (contrastive.decoupled_losses, of_decoupled),
  "ngame": (triplet, of_ngame),
  "prime": (functools.partial(triplet, least_margin=0.1), of_prime),
}


def by_loops(loss, scores, ids, chosen, candidates):
  """Of each example."""
  found = np.zeros(N)
  for i in range(N):
    own = set(ids[i].tolist())
    kinds = ([], [], [])
    for score, label in zip(scores[i], candidates):
      if label >= 0:
        kinds[0 if label == chosen[i] else 2 if label in own else 1].append(
          score
        )
    if kinds[0]:
      found[i] = loss(kinds[0][0], kinds[1], kinds[2])
  return found


@pytest.mark.parametrize("name", LOSSES)
def test_equal_loops_over_pairs(name):
  loss, reference = LOSSES[name]
  batch = make_batch()
  pairs = contrastive.pairs(*batch[1:])
  got = loss(jnp.asarray(batch[0]), pairs)
  expected = by_loops(reference, *batch)
  assert expected[2] == 0 < (expected > 0).sum() - 4
  np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["softmax", "decoupled", "ngame"])
def test_gradients_are_those_of_differences(name):
  loss, reference = LOSSES[name]
  scores, *rest = make_batch()
  pairs = contrastive.pairs(*rest)
  got = jax.jit(jax.grad(lambda z: loss(z, pairs).sum()))(scores)
  expected = np.zeros_like(scores)
  for place in np.ndindex(*scores.shape):
    step = np.zeros_like(scores)
    step[place] = 1e-6
    up, down = (
      by_loops(reference, z, *rest).sum()
      for z in (scores + step, scores - step)
    )
    expected[place] = (up - down) / 2e-6
  np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
  assert np.abs(expected).max() > 0.1


def test_the_dynamic_margin_is_constant():
  scores = jnp.array([[0.3, 0.5]])  # the margin is their distance
  one_of_each = ([[True, False]], [[False, True]], [[False, False]])
  pairs = contrastive.Pairs(*map(jnp.array, one_of_each))
  value, grad = jax.jit(
    jax.value_and_grad(lambda z: triplet(z, pairs, least_margin=0.1).sum())
  )(scores)
  np.testing.assert_allclose(value, 0.4, rtol=1e-6)
  np.testing.assert_allclose(grad, [[-1, 1]], rtol=1e-6)


def test_frequent_candidates_count_less():
  scores, *rest = make_batch()
  pairs = contrastive.pairs(*rest)
  counts = np.random.default_rng(1).uniform(-3, 0, M)
  got = contrastive.softmax_losses(jnp.asarray(scores), pairs, counts)
  corrected = np.where(pairs.positive, scores, scores - counts)
  expected = by_loops(of_softmax, corrected, *rest)
  np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("part", [slice(None), slice(5, 11)])
def test_from_labels_to_examples(part):
  """Each candidate has one of all its examples, wherever it is embedded."""
  _, ids, chosen, candidates = make_batch()
  every = contrastive.pairs(ids, chosen, candidates)
  some = contrastive.pairs(ids, chosen, candidates[part])
  first = part.start or 0
  for step in range(20):
    turned = some.transposed(jnp.uint32(3), jnp.uint32(step), first)
    whole = every.transposed(jnp.uint32(3), jnp.uint32(step), 0)
    jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(a, b[part]), turned, whole
    )
    own = np.asarray((every.positive | every.other).T)
    positive = np.asarray(whole.positive)
    np.testing.assert_array_equal(positive.sum(1), own.any(1))
    np.testing.assert_array_equal(positive | np.asarray(whole.other), own)
