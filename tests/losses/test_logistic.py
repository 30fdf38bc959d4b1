"""Softplus and sigmoid of all logits, also of those far from 0."""

import jax.numpy as jnp
import numpy as np
from scipy import special

from xlj.losses import logistic


def test_it_is_exact_to_the_last_digits():
  z = np.concatenate([np.linspace(-90, 90, 4001), [-1e4, 1e4, 0.0, -0.0]])
  z = z.astype(np.float32)
  found = logistic.logistic(jnp.asarray(z))
  exact = z.astype(np.float64)
  tiny = np.finfo(np.float32).tiny  # below it XLA says 0
  check = np.testing.assert_allclose
  check(found.softplus, np.logaddexp(0, exact), 5e-7, tiny)
  check(found.sigmoid, special.expit(exact), 5e-7, tiny)
  check(found.complement, special.expit(-exact), 5e-7, tiny)


def test_padding_costs_nothing_and_nan_stays():
  found = logistic.logistic(jnp.array([-jnp.inf, jnp.inf, jnp.nan]))
  np.testing.assert_array_equal(found.softplus, [0, np.inf, np.nan])
  np.testing.assert_array_equal(found.sigmoid, [0, 1, np.nan])
  np.testing.assert_array_equal(found.complement, [1, 0, np.nan])
