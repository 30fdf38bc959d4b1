"""Geometry-aware prediction equals a search through all pairs of labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from tests import meshes
from xlj import sharding
from xlj.open_world import label_tree
from xlj.open_world import loki
from xlj.ops import label_ranking

N, D, E, L, M, K = 16, 6, 5, 24, 64, 3  # M - L labels have no row


def make_inputs():
  rng = np.random.default_rng(0)
  shapes = (N, D), (L, D), (L,), (M, E)
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def probabilities(x, rows, bias, temperature, candidates):
  """`[N, L]` in float64."""
  z = (x.astype(np.float64) @ rows.T + bias) / temperature
  if candidates:
    z[z < np.sort(z, 1)[:, -candidates, None]] = -np.inf
  p = np.exp(z - z.max(1, keepdims=True))
  return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("candidates", [0, 4])
def test_embeddings(candidates):
  x, rows, bias, embeddings = make_inputs()
  p = probabilities(x, rows, bias, 0.7, candidates)
  squares = np.square(embeddings[:, None] - embeddings[:L]).sum(2)
  expected = np.argsort(p @ squares.T, axis=1)[:, :K]

  @jax.jit
  def predict(x, rows, bias, of_rows, every):
    mean = loki.expected_embedding(
      x, rows, bias, of_rows, temperature=0.7, candidates=candidates
    )
    return loki.nearest_labels(mean, every, K)

  with meshes.mesh((2, 4)) as mesh:
    args = jax.device_put(
      (x, rows, bias, embeddings[:L], embeddings),
      jax.NamedSharding(mesh, sharding.BATCH),
    )
    got = predict(*args)
  np.testing.assert_array_equal(got, expected)
  assert (expected >= L).any()  # some of those without a row


@pytest.mark.parametrize("shape", cases.some([(1, 1), (2, 4)], [(2, 4)]))
def test_trees(shape):
  x, rows, bias, _ = make_inputs()
  rng = np.random.default_rng(1)
  parents = np.append(-1, np.arange(M - 1) // 5)
  lengths = rng.uniform(0.5, 1.5, M)  # no two labels are equally far
  tree = label_tree.from_parents(parents, lengths)
  a, b = np.divmod(np.arange(M * M), M)
  squares = label_tree.distances(tree, a, b).reshape(M, M) ** 2
  used = rng.permutation(M)[:L]  # the labels that have rows
  may_be = rng.random(M) < 0.8
  p = probabilities(x, rows, bias, 0.7, 6)
  every = np.where(may_be, p @ squares[used], np.inf)
  expected = np.argsort(every, axis=1)[:, :K]

  @functools.partial(jax.jit, static_argnames="most")
  def predict(tree, x, rows, bias, used, may_be, most):
    scores, ids = label_ranking.label_topk(x, rows, bias, most)
    ids = used.at[ids].get(out_sharding=sharding.BATCH)
    weights = loki.sharpened(scores, 0.7)
    return loki.nearest_on_tree(tree, ids, weights, K, is_label=may_be)

  with meshes.mesh(shape) as mesh:
    split = jax.device_put(
      (x, rows, bias), jax.NamedSharding(mesh, sharding.BATCH)
    )
    whole = jax.device_put((used, may_be), jax.NamedSharding(mesh, jax.P()))
    least, ids = predict(tree, *split, *whole, most=6)
  np.testing.assert_array_equal(ids, expected)
  np.testing.assert_allclose(
    least, np.take_along_axis(every, expected, 1), rtol=1e-4
  )


def test_the_memory_is_that_of_a_few_examples():
  """100,000 labels, 512 examples: nothing of the size of both."""
  num_labels, n = 100_000, 512
  parents = np.concatenate([[-1], np.arange(1, num_labels) // 400])
  tree = label_tree.from_parents(parents)
  ids = jax.ShapeDtypeStruct((n, 8), jnp.int32)
  weights = jax.ShapeDtypeStruct((n, 8), jnp.float32)
  run = jax.jit(functools.partial(loki.nearest_on_tree, k=1))
  compiled = run.lower(tree, ids, weights).compile()
  temporaries = compiled.memory_analysis().temp_size_in_bytes
  assert temporaries < 2 * num_labels * n
