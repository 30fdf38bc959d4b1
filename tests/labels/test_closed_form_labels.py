"""Naive Bayes and TEEN rows against dense float64 references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from xlj import sharding
from xlj.labels import naive_bayes
from xlj.labels import teen

D = 7


def test_naive_bayes_is_the_log_ratio_of_densities():
  """Of normal ones with the pooled variance; parts of the examples add up."""
  rng = np.random.default_rng(0)
  owner = np.concatenate([np.arange(13), rng.integers(0, 13, 147)])
  x = rng.normal(size=(160, D)) * np.array([0.3, 1, 2, 0.7, 1, 1, 5])
  x += rng.normal(size=(13, D))[owner]
  means = np.stack([x[owner == label].mean(0) for label in range(13)])
  variance = ((x - means[owner]) ** 2).sum(0) / (160 - 13)
  shares = np.bincount(owner) / 160
  background = x.mean(0)
  parts = [
    naive_bayes.moments(x[part], owner[part], 13)
    for part in (slice(50), slice(50, None))
  ]
  found = naive_bayes.Moments(*(a + b for a, b in zip(*parts)))
  got = naive_bayes.weights(found, background, shares)
  q = rng.normal(size=(20, D))
  wanted = -((q[:, None] - means) ** 2 / variance).sum(2) / 2 + np.log(shares)
  wanted += ((q - background) ** 2 / variance).sum(1, keepdims=True) / 2
  np.testing.assert_allclose(q @ got.rows.T + got.bias, wanted, atol=1e-5)


@pytest.mark.parametrize("distance", [0.0, 3.0])
def test_naive_bayes_of_single_examples_uses_their_spread(distance):
  """Also far from the background, where E x^2 - m0^2 would be negative."""
  x = np.random.default_rng(1).normal(size=(5, D))
  background = np.full(D, distance)
  variance = ((x - background) ** 2).mean(0)
  found = naive_bayes.moments(x, np.arange(5), 5)
  got = naive_bayes.weights(found, background, np.full(5, 0.1))
  np.testing.assert_allclose(got.rows, (x - background) / variance, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", meshes.SHAPES)
def test_teen_equals_the_paper_without_padding(shape):
  rng = np.random.default_rng(2)
  p, w = rng.normal(size=(16, D)), rng.normal(size=(48, D))
  is_label = np.arange(48) < 43
  unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (p, w[:43])]
  weights = np.exp(16 * unit[0] @ unit[1].T)
  near = weights / weights.sum(1, keepdims=True) @ unit[1]
  near /= np.linalg.norm(near, axis=1, keepdims=True)
  with meshes.mesh(shape) as mesh:
    args = jax.device_put(
      (jnp.float32(p), jnp.float32(w), is_label),
      jax.NamedSharding(mesh, sharding.BATCH),
    )
    run = jax.jit(lambda *a: teen.calibrated(*a, share=0.3, neighbours=43))
    got = np.asarray(jax.device_get(run(*args)))
  np.testing.assert_allclose(got, 0.7 * unit[0] + 0.3 * near, atol=1e-6)
