"""Schedules at their corners; optimizers' steps against their formulas."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from xlj.config import optim

RATE = 0.1
B1, B2, EPS = 0.8, 0.95, 1e-3
WEIGHTS = np.array([[1.0, -2.0], [0.5, 0.0]])
GRADS = [
  np.array([[0.3, -0.1], [0.0, 2.0]]),
  np.array([[-0.2, 0.4], [0.0, 1.0]]),
]


def rate(step):
  """A rate that differs from step to step."""
  return RATE / (1 + step)


def make_optimizer(name, weight_decay=0.0):
  config = ml_collections.ConfigDict(
    {"name": name, "weight_decay": weight_decay, "b1": B1, "b2": B2, "eps": EPS}
  )
  return optim.make_optimizer(config, rate)


def two_steps(tx):
  weights = jnp.asarray(WEIGHTS, jnp.float32)
  state = tx.init(weights)
  for grad in GRADS:
    grad = jnp.asarray(grad, jnp.float32)
    updates, state = tx.update(grad, state, weights)
    weights = optax.apply_updates(weights, updates)
  return weights


def directions(name):
  """What each step subtracts, before the learning rate."""
  first, second = GRADS
  if name == "sgd":
    return [first, second]
  if name == "momentum":
    return [first, second + B1 * first]
  if name == "adagrad":
    sums = [first**2, first**2 + second**2]
    return [
      np.where(s > 0, g / np.sqrt(s + EPS), 0) for g, s in zip(GRADS, sums)
    ]
  m = [(1 - B1) * first, B1 * (1 - B1) * first + (1 - B1) * second]
  v = [(1 - B2) * first**2, B2 * (1 - B2) * first**2 + (1 - B2) * second**2]
  return [
    (m[i] / (1 - B1 ** (i + 1))) / (np.sqrt(v[i] / (1 - B2 ** (i + 1))) + EPS)
    for i in range(2)
  ]


@pytest.mark.parametrize("weight_decay", [0.0, 0.25])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adagrad"])
def test_two_steps_equal_the_formula(name, weight_decay):
  expected = WEIGHTS
  for step, direction in enumerate(directions(name)):
    # Decoupled: the decay is no part of the moments.
    expected = expected - rate(step) * (direction + weight_decay * expected)
  got = two_steps(make_optimizer(name, weight_decay))
  np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adagrad"])
def test_optimizers_are_element_wise(name):
  """So that they can be applied per shard."""
  tx = make_optimizer(name, 0.25)
  whole = jnp.asarray(WEIGHTS, jnp.float32)
  grad = jnp.asarray(GRADS[0], jnp.float32)
  together, _ = tx.update(grad, tx.init(whole), whole)
  for i in range(2):
    row = whole[i]
    alone, _ = tx.update(grad[i], tx.init(row), row)
    np.testing.assert_array_equal(alone, together[i])


def test_unknown_optimizers_are_refused():
  with pytest.raises(ValueError, match="optimizer name 'lamb' is not known"):
    make_optimizer("lamb")


@pytest.mark.parametrize("warmup", [0.0, 0.2])
@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_schedules_start_peak_and_end(decay, warmup):
  steps = 100
  schedule = optim.make_schedule(3.0, steps, warmup=warmup, decay=decay)
  peak = int(warmup * steps)
  last = 3.0 if decay == "constant" else 0.0
  middle = 3.0 if decay == "constant" else 1.5
  np.testing.assert_allclose(schedule(peak), 3.0, rtol=1e-6)
  np.testing.assert_allclose(schedule((peak + steps) // 2), middle, rtol=1e-6)
  np.testing.assert_allclose(schedule(steps), last, atol=1e-6)
  np.testing.assert_allclose(schedule(5 * steps), last, atol=1e-6)
  if peak:
    assert schedule(0) == 0
    np.testing.assert_allclose(schedule(peak // 2), 1.5, rtol=1e-6)
  rates = np.asarray(jax.vmap(schedule)(jnp.arange(steps)))
  assert rates.max() <= 3.0 and rates.argmax() == peak
  assert (np.diff(rates[peak:]) <= 1e-6).all()


def test_a_run_of_one_step_learns():
  for decay in ("cosine", "linear", "constant"):
    schedule = optim.make_schedule(3.0, 1, warmup=0.05, decay=decay)
    np.testing.assert_allclose(schedule(0), 3.0)


def test_unknown_decays_are_refused():
  with pytest.raises(
    ValueError, match="optim.decay is 'step'; use one of 'cosine'"
  ):
    optim.make_schedule(1.0, 10, warmup=0.0, decay="step")
