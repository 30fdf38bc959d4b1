"""Revision of logits equals the algorithm, distributions those of SciPy."""

import numpy as np
from scipy import special
from scipy import stats

from xlj.open_world import openmax
from xlj.open_world import weibull

K = 5


def test_distributions_equal_those_of_scipy():
  rng = np.random.default_rng(0)
  values = [
    scale * rng.weibull(shape, size)
    for shape, scale, size in ((1.5, 0.01, 40), (9, 30, 25), (0.6, 2, 60))
  ]
  groups = np.repeat([0, 1, 3], [len(part) for part in values])  # none of 2
  order = rng.permutation(len(groups))
  found = weibull.fit(groups[order], np.concatenate(values)[order], 4)
  for group, part in zip((0, 1, 3), values):
    shape, _, scale = stats.weibull_min.fit(part, floc=0)
    np.testing.assert_allclose(found.shape[group], shape, rtol=1e-3)
    np.testing.assert_allclose(found.scale[group], scale, rtol=1e-3)
    got = found.share_below(np.full(len(part), group), part)
    np.testing.assert_allclose(
      got, stats.weibull_min.cdf(part, shape, scale=scale), atol=1e-3
    )
  assert not found.share_below(np.array([2]), np.array([1e9])).any()


def test_equal_and_absent_distances_are_no_error():
  found = weibull.fit(np.array([0, 0, 2]), np.array([3.0, 3.0, 0.0]), 3)
  assert (
    np.isfinite(found.shape).all() and np.isfinite(found.scale[[0, 2]]).all()
  )
  below, above = found.share_below(np.array([0, 0]), np.array([2.9, 3.1]))
  assert below < 1e-6 and above > 1 - 1e-6


def by_loops(logits, share, num_labels):
  """Algorithm 2 for one example, over all the probability that is left."""
  k, unknown, revised = len(logits), 0.0, []
  for i in range(k):
    weight = 1 - (k - i) / k * share[i] if logits[i] > 0 else 1
    revised.append(logits[i] * weight)
    unknown += logits[i] * (1 - weight)
  others = num_labels * (1 - sum(np.exp(z) / num_labels for z in logits))
  total = sum(map(np.exp, revised)) + np.exp(unknown) + others
  return np.exp(revised) / total, np.exp(unknown) / total


def test_revision_equals_the_algorithm():
  rng = np.random.default_rng(0)
  num_labels = 50
  z = np.sort(3 * rng.normal(size=(20, num_labels)), 1)[:, ::-1]
  logits = np.log(num_labels * special.softmax(z, 1))[:, :K]
  share = rng.random((20, K))
  likely, unknown = openmax.revise(logits, share, num_labels)
  for row in range(20):
    expected = by_loops(logits[row], share[row], num_labels)
    np.testing.assert_allclose(likely[row], expected[0])
    np.testing.assert_allclose(unknown[row], expected[1])
  same, _ = openmax.revise(logits, 0 * share, num_labels)
  np.testing.assert_allclose(  # with one more label, as likely as uniform
    same, special.softmax(z, 1)[:, :K] * num_labels / (num_labels + 1)
  )
  _, all_far = openmax.revise(logits, 0 * share + 1, num_labels)
  assert (all_far > unknown).all()
