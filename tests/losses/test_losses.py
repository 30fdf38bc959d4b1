"""Losses as a sharded head calls them: chunks in any order, with padding.

The head's padding rows are at the end of every block of labels, and a shard
may hold nothing else.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from xlj.losses import bce
from xlj.losses import softmax
from xlj.ops import targets as targets_lib

L, BLOCK = 17, 5  # rows in blocks of five, of which only some are labels
ROWS = np.array([0, 1, 2, 3, 4, 10, 11, 12, 13, 15, 16, 17, 20, 21, 25, 26, 29])
NUM_ROWS = 35  # the second and the last block are padding
LOSSES = {
  "softmax": (softmax.Softmax(), reference.softmax_loss),
  "bce": (bce.BinaryCrossEntropy(), reference.bce_loss),
}
# Label ids: none, one, one in the middle, some, as many as fit, the last.
IDS = np.array(
  [[-1, -1, -1], [4, -1, -1], [-1, 9, -1], [0, 5, -1], [1, 2, 3], [16, -1, 6]],
)
ORDERS = {
  "in order": range(7),
  "padding first": [1, 6, 0, 2, 3, 4, 5],
  "padding between": [5, 6, 3, 1, 0, 4, 2],
}


def make_logits():
  """Large and small ones, `[N, L]`."""
  z = np.random.default_rng(0).normal(size=(len(IDS), L)) * 3
  z[0] += 90
  z[1] -= 90
  z[2, 4], z[3, 0] = 80, -80
  return z


def by_chunk(loss, z, order, dtype):
  """Sums of the losses and the gradient by row, chunks in the given order."""
  rows = np.full((len(IDS), NUM_ROWS), -np.inf)
  rows[:, ROWS] = z
  rows = jnp.asarray(rows, dtype)
  ids = jnp.asarray(np.where(IDS < 0, -1, ROWS[IDS]), jnp.int32)
  chunks = {
    i: (
      rows[:, i * BLOCK : (i + 1) * BLOCK],
      targets_lib.positives_in_chunk(ids, i * BLOCK, BLOCK),
    )
    for i in order
  }
  stats = loss.init(*IDS.shape)
  for part, positives in chunks.values():
    stats = loss.accumulate(stats, part, positives)
  value, grads = 0, {}
  for i, chunk in chunks.items():
    part, grads[i] = loss.value_and_grad(stats, *chunk)
    value += part
  return value, np.hstack([grads[i] for i in sorted(grads)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", LOSSES)
def test_chunks_equal_the_textbook(name, order, dtype):
  loss, textbook = LOSSES[name]
  z = make_logits()
  with jax.enable_x64(True):
    hot = reference.multi_hot(jnp.asarray(IDS), L).astype("float64")
    expected = textbook(jnp.asarray(z), hot)
    expected_grad = jax.grad(lambda z: textbook(z, hot).sum())(jnp.asarray(z))
  with jax.enable_x64(dtype == "float64"):
    value, grad = by_chunk(loss, z, ORDERS[order], dtype)
    value = np.asarray(value)
  assert value.dtype == grad.dtype == dtype
  tolerance = {"float32": 2e-5, "float64": 1e-12}[dtype]
  np.testing.assert_allclose(value, expected, tolerance, tolerance)
  np.testing.assert_allclose(grad[:, ROWS], expected_grad, tolerance, tolerance)
  padding = np.setdiff1d(np.arange(NUM_ROWS), ROWS)
  np.testing.assert_array_equal(grad[:, padding], 0)
  if name == "softmax":
    assert value[0] == 0 and not grad[0].any()  # no positives, no cost
