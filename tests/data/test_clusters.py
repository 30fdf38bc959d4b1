"""Balanced groups of similar labels."""

import dataclasses

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import scipy.sparse

from xlj.data import clusters
from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.ops import layout as layout_lib


def random_vectors(num_labels, num_features, seed, density=0.2):
  generator = np.random.default_rng(seed)
  dense = generator.random((num_labels, num_features), np.float32)
  dense[generator.random(dense.shape) > density] = 0
  return csr_lib.Csr.from_scipy(scipy.sparse.csr_array(dense))


def planted(num_groups, per_group, seed):
  """Unit vectors near one of `num_groups` directions, and which; shuffled."""
  generator = np.random.default_rng(seed)
  truth = np.repeat(np.arange(num_groups), per_group)
  generator.shuffle(truth)
  noise = generator.random((len(truth), 4 * num_groups)) * 0.1
  noise[np.arange(len(truth)), 4 * truth] += 1
  return noise.astype(np.float32), truth


def split_of(rng, num_rows, num_features, num_labels):
  """Features with values, and labels of which the last has no example."""
  features = random_vectors(num_rows, num_features, rng, 0.4)
  labels = (
    random_vectors(num_rows, num_labels, rng + 1, 0.2).to_scipy().toarray()
  )
  labels[:, -1] = 0
  return (
    features,
    csr_lib.Csr.from_scipy(scipy.sparse.csr_array(labels), values=False),
  )


@pytest.mark.parametrize("dense", [False, True])
def test_centroids_are_the_mean_directions_of_the_examples(dense):
  features, labels = split_of(0, 40, 13, 17)
  matrix = features.to_scipy().toarray()
  unit = matrix / np.maximum(np.linalg.norm(matrix, axis=1), 1e-9)[:, None]
  sums = labels.to_scipy().toarray().T @ unit
  expected = sums / np.maximum(np.linalg.norm(sums, axis=1), 1e-9)[:, None]
  found = clusters.centroids(matrix if dense else features, labels)
  np.testing.assert_allclose(found.to_scipy().toarray(), expected, atol=1e-6)
  assert found.values.dtype == np.float32
  assert found.indptr[-1] == found.indptr[-2]  # no example, no entry


def test_centroids_weight_the_features_first():
  features, labels = split_of(1, 40, 13, 17)
  squared = csr_lib.Csr(
    features.indptr, features.indices, features.values**2, features.num_columns
  )
  np.testing.assert_allclose(
    clusters.centroids(features, labels, lambda block: squared).values,
    clusters.centroids(squared, labels).values,
  )


@hypothesis.given(
  st.integers(1, 60).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(0, n))
  )
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_sizes_are_exact_and_labels_without_vectors_fill_up(numbers):
  num_labels, num_groups, empty = numbers
  vectors = random_vectors(num_labels, 9, sum(numbers), 1)
  vectors = vectors.to_scipy().toarray()
  without = np.random.default_rng(empty).permutation(num_labels)[:empty]
  vectors[without] = 0
  groups = clusters.balanced(vectors, num_groups, seed=0)
  assert groups.dtype == np.int32
  expected = layout_lib.Layout(num_labels, num_groups).label_of_row(
    np.arange(-(-num_labels // num_groups) * num_groups)
  )
  expected = (expected.reshape(num_groups, -1) < num_labels).sum(axis=1)
  sizes = np.bincount(groups, minlength=num_groups)
  np.testing.assert_array_equal(sizes, expected)
  known = np.delete(groups, without)
  sizes = np.bincount(known, minlength=num_groups)
  assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(("num_groups", "per_group"), [(8, 25), (7, 30)])
def test_planted_clusters_are_recovered(num_groups, per_group):
  vectors, truth = planted(num_groups, per_group, seed=3)
  groups = clusters.balanced(vectors, num_groups, seed=1)
  together = np.zeros((num_groups, num_groups), int)
  np.add.at(together, (groups, truth), 1)
  assert together.max(axis=1).sum() > 0.85 * len(truth)
  by_chance = clusters.balanced(
    np.random.default_rng(0).permutation(vectors), num_groups, seed=1
  )
  together[:] = 0
  np.add.at(together, (by_chance, truth), 1)
  assert together.max(axis=1).sum() < 0.5 * len(truth)


def test_only_directions_count_and_leaving_out_columns_changes_nothing():
  vectors, _ = planted(4, 30, seed=5)
  scaled = vectors * np.random.default_rng(1).uniform(1, 9, (len(vectors), 1))
  wide = csr_lib.Csr.from_scipy(scipy.sparse.csr_array(vectors))
  wide = dataclasses.replace(
    wide, indices=wide.indices * 10_000, num_columns=160_000
  )
  expected = clusters.balanced(vectors, 5, seed=2)
  for same in (scaled, wide):
    np.testing.assert_array_equal(clusters.balanced(same, 5, seed=2), expected)


def test_groups_are_a_function_of_the_seed():
  vectors = random_vectors(200, 50, seed=4)
  first, again, other = (
    clusters.balanced(vectors, 12, seed) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_more_groups_than_labels_are_refused():
  with pytest.raises(ValueError, match="4 groups of 3 labels"):
    clusters.balanced(np.eye(3, dtype=np.float32), 4, seed=0)


def test_groups_become_an_order_whose_blocks_are_the_groups():
  num_labels, num_groups = 103, 8
  vectors = random_vectors(num_labels, 30, seed=6)
  groups = clusters.balanced(vectors, num_groups, seed=0)
  counts = np.random.default_rng(0).integers(0, 50, num_labels)
  order = label_order.LabelOrder.by_groups(groups, num_groups, counts)
  layout = layout_lib.Layout(num_labels, num_groups)
  rows = layout.row_of_label(order.to_head(np.arange(num_labels)))
  np.testing.assert_array_equal(rows // layout.rows_per_block, groups)
