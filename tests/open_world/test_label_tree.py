"""Distances on a tree equal those of all pairs; smoothing equals recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from xlj import sharding
from xlj.open_world import label_tree
from xlj.ops import layout as layout_lib

L = 60


def make_tree(roots, seed=0):
  """Parents and lengths in random order, and distances `[L, L]` by climbing."""
  rng = np.random.default_rng(seed)
  parents = np.array(
    [-1] * roots + [rng.integers(0, 1 + i // 2) for i in range(roots, L)]
  )
  lengths = rng.uniform(0.1, 2, L)
  name = rng.permutation(L)  # a parent may come after its child
  shuffled, of = np.full(L, -1), np.empty(L)
  shuffled[name] = np.where(parents < 0, -1, name[parents])
  of[name] = lengths
  above = np.zeros((L, L))  # length of the edges that are above each label
  for i in range(L):
    j = i
    while j >= 0:
      above[i, j] = of[j] if shuffled[j] >= 0 or roots > 1 else 0
      if shuffled[j] < 0 and roots > 1:
        above[i, j] = 0.5
      j = shuffled[j]
  matrix = np.abs(above[:, None] - above[None]).sum(2)
  return shuffled, of, matrix


@pytest.mark.parametrize("roots", [1, 3])
def test_expected_squares_equal_those_of_all_pairs(roots):
  parents, lengths, matrix = make_tree(roots)
  tree = label_tree.from_parents(parents, lengths, root_length=0.5)
  rng = np.random.default_rng(1)
  ids = rng.integers(-1, L, (7, 9))
  weights = rng.dirichlet(np.ones(9), 7)
  dense = np.zeros((7, L))
  for n in range(7):
    used = ids[n] >= 0
    np.add.at(dense[n], ids[n][used], weights[n][used])
  got = jax.jit(label_tree.expected_squares)(tree, ids, weights)
  np.testing.assert_allclose(got, dense @ matrix**2, rtol=2e-5, atol=1e-5)
  a, b = np.divmod(np.arange(L * L), L)
  got = label_tree.distances(tree, a, b)
  np.testing.assert_allclose(got, matrix.reshape(-1), rtol=1e-6)


def test_a_long_path():
  """As deep as there are labels; the sums are known."""
  parents = np.arange(-1, 11)
  tree = label_tree.from_parents(parents)
  got = label_tree.expected_squares(tree, jnp.array([[0]]), jnp.ones((1, 1)))
  np.testing.assert_allclose(got[0], np.arange(12.0) ** 2)
  np.testing.assert_array_equal(
    label_tree.num_below(tree), np.arange(11, -1, -1)
  )


@pytest.mark.parametrize(
  "parents, message",
  [
    ([-1, 2, 3, 1], "label 1 is among its own ancestors"),
    ([0, 0], "label 0 is among its own ancestors"),
    ([-1, 2], "parents must be labels from 0 to 1"),
    ([], "parents must be labels"),
    ([-1, 0.5], "parents are float64"),
    ([[-1, 0]], "parents are int64"),
    (None, "parents are object"),
  ],
)
def test_what_is_no_tree_is_refused(parents, message):
  with pytest.raises(ValueError, match=message):
    label_tree.from_parents(np.array(parents))


def smoothed(parents, rows):
  """By recursion, in float64."""
  children = [np.flatnonzero(parents == i) for i in range(L)]

  def visit(i):
    found = [visit(c) for c in children[i]]
    below = sum(n for _, n in found)
    row = rows[i].astype(np.float64)
    if found:
      share = 0.4 + 0.4 * np.log(2 + below) / np.log(2 + L)
      row = (1 - share) * row + share * np.mean([r for r, _ in found], 0)
    out[i] = row
    return row, below + 1

  out = np.empty_like(rows, dtype=np.float64)
  for root in np.flatnonzero(parents < 0):
    visit(root)
  return out


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_smoothing_equals_recursion(shape):
  parents, _, _ = make_tree(3)
  tree = label_tree.from_parents(parents)
  rows = np.random.default_rng(2).normal(size=(L, 5)).astype(np.float32)
  layout = layout_lib.Layout(L, 8)
  padded = np.asarray(layout.by_row(jnp.asarray(rows), 7.0))
  with meshes.mesh(shape) as mesh:
    split = jax.NamedSharding(mesh, sharding.LABELS)
    got = label_tree.smooth(tree, jax.device_put(padded, split), layout=layout)
    assert got.sharding.is_equivalent_to(split, 2)
  got = np.asarray(got)
  of_label = layout.row_of_label(np.arange(L))
  np.testing.assert_allclose(got[of_label], smoothed(parents, rows), atol=2e-6)
  assert (np.delete(got, of_label, 0) == 7).all()
