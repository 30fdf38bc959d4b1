"""A causal transformer: what each state knows, padding and old items."""

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from xlj.encoders import causal
from xlj.ops import feature_rows

IDS = np.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 0, 0, 0, 0]], np.int32)
VALUES = np.array([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 0, 0, 0, 0]], np.float32)


@pytest.fixture(scope="module")
def encoder():
  made = causal.CausalTransformer(
    12, 8, depth=2, heads=2, positions=10, rngs=nnx.Rngs(0)
  )
  # Tables as large as what attention adds, or nothing would be seen of it.
  made.items[...] *= 50
  for distances in made.distances:
    distances.values[...] *= 50
    distances.bias[...] += jnp.linspace(0, 3, 10)[:, None]
  return made


def sequences(ids, values):
  return feature_rows.sparse_rows(jnp.asarray(ids), jnp.asarray(values))


def every(encoder, ids, values):
  return np.asarray(encoder.every(sequences(ids, values)))


def test_a_later_item_does_not_change_an_earlier_state(encoder):
  before = every(encoder, IDS, VALUES)
  changed = IDS.copy()
  changed[0, 4] = 8
  after = every(encoder, changed, VALUES)
  np.testing.assert_array_equal(after[0, :4], before[0, :4])
  assert (np.abs(after[0, 4:] - before[0, 4:]).max(axis=1) > 1e-3).all()
  np.testing.assert_array_equal(after[1], before[1])


def test_a_sequence_is_its_last_state_however_far_it_is_padded(encoder):
  states = every(encoder, IDS, VALUES)
  x = encoder(sequences(IDS, VALUES))
  np.testing.assert_array_equal(x, np.stack([states[0, 6], states[1, 2]]))
  alone = encoder(sequences(IDS[1:, :3], VALUES[1:, :3]))
  np.testing.assert_allclose(x[1], alone[0], rtol=1e-5, atol=1e-6)


def test_only_the_newest_items_are_read():
  made = causal.CausalTransformer(
    12, 8, depth=2, heads=2, positions=4, rngs=nnx.Rngs(0)
  )
  whole = made(sequences(IDS[:1], VALUES[:1]))
  newest = made(sequences(IDS[:1, 3:], VALUES[:1, 3:]))
  np.testing.assert_allclose(whole, newest, rtol=1e-5, atol=1e-6)


def test_an_item_that_is_dropped_is_not_read(encoder):
  """Nor do places that have nothing else to read look at later ones."""
  dropped = VALUES.copy()
  dropped[0, :2] = 0
  states = every(encoder, IDS, dropped)
  others = IDS.copy()
  others[0, :2] = 8
  np.testing.assert_array_equal(every(encoder, others, dropped), states)
  others[0, 2:] = 7
  after = every(encoder, others, dropped)
  np.testing.assert_array_equal(after[0, :2], states[0, :2])
  assert np.abs(every(encoder, IDS, VALUES) - states)[0].max() > 1e-3


def test_no_items_are_zeros(encoder):
  x = encoder(sequences(np.zeros((1, 4), np.int32), np.zeros((1, 4))))
  np.testing.assert_array_equal(x, np.zeros((1, 8)))
