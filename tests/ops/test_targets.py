"""Positives of a chunk, against a dense 0/1 matrix."""

import jax
import jax.numpy as jnp
import numpy as np

from tests import reference
from xlj.ops import targets

IDS = jnp.array([[3, -1, 7], [0, 9, -1], [-1, -1, -1], [4, 5, 6]])
L, SIZE = 10, 4
OFFSETS = (0, 4, 8)  # the last chunk goes past the last label


def test_chunks_hold_every_positive_once():
  hot = np.zeros((len(IDS), 12))
  for offset in OFFSETS:
    chunk = targets.positives_in_chunk(IDS, offset, SIZE)
    np.testing.assert_array_equal(chunk.count, [2, 2, 0, 3])
    np.testing.assert_array_equal(chunk.columns == SIZE, ~chunk.inside)
    ones = jnp.ones(IDS.shape) * chunk.inside
    hot[:, offset : offset + SIZE] += targets.add_at_columns(
      jnp.zeros((len(IDS), SIZE)), chunk, ones
    )
  np.testing.assert_array_equal(hot[:, :L], reference.multi_hot(IDS, L))
  assert not hot[:, L:].any()


def test_gathering_reads_the_positives_of_the_chunk_alone():
  z = np.random.default_rng(0).normal(size=(len(IDS), 12)).astype(np.float32)
  z[:, 11] = -np.inf  # the last column, where ids outside are clipped to
  total = np.zeros(IDS.shape, np.float32)
  for offset in OFFSETS:
    chunk = targets.positives_in_chunk(IDS, offset, SIZE)
    part = jnp.asarray(z[:, offset : offset + SIZE])
    total += targets.gather_columns(part, chunk)
  expected = np.where(
    IDS < 0, 0, np.take_along_axis(z, np.maximum(IDS, 0), axis=1)
  )
  np.testing.assert_array_equal(total, expected)


def test_values_outside_the_chunk_are_dropped():
  chunk = targets.positives_in_chunk(IDS, 4, SIZE)
  z = jnp.zeros((len(IDS), SIZE))
  got = targets.add_at_columns(z, chunk, jnp.full(IDS.shape, 2.0))
  expected = np.zeros((len(IDS), SIZE))
  expected[0, 3] = expected[3, 0] = expected[3, 1] = expected[3, 2] = 2
  np.testing.assert_array_equal(got, expected)


def test_the_offset_may_be_traced():
  find = jax.jit(targets.positives_in_chunk, static_argnums=2)
  jax.tree.map(
    np.testing.assert_array_equal,
    find(IDS, jnp.int32(4), SIZE),
    targets.positives_in_chunk(IDS, 4, SIZE),
  )
