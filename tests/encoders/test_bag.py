"""The bag of features: sparse equals dense, in both implementations."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlj.encoders import bag
from xlj.ops import feature_rows

N, D, F, K = 6, 5, 24, 4
DROPOUT = {"embedding_dropout": 0.5, "hidden_dropout": 0.5}


def make_features(num_features=F, seed=0):
  """Sparse examples, the first without any feature, and the same dense."""
  rng = np.random.default_rng(seed)
  ids = np.stack([rng.permutation(num_features)[:K] for _ in range(N)])
  values = rng.normal(size=(N, K)).astype(np.float32)
  unused = np.arange(K) >= rng.integers(1, K + 1, N)[:, None]
  unused[0] = True
  ids[unused], values[unused] = 0, 0
  dense = np.zeros((N, num_features), np.float32)
  np.put_along_axis(dense, ids, values, 1)
  # Padding wrote zeros at feature 0: put what belongs there.
  dense[:, 0] = np.where(ids == 0, values, 0).sum(1)
  sparse = feature_rows.sparse_rows(
    jnp.asarray(ids, jnp.int32), jnp.asarray(values)
  )
  return sparse, jnp.asarray(dense)


def make_encoder(**options):
  return bag.BagEncoder(F, D, rngs=nnx.Rngs(0), **options)


def numpy_encoder(encoder, dense, scale=None):
  """The same layers in float64 numpy; dropout off."""
  relu = encoder.bias is not None
  h = np.asarray(dense, np.float64) @ np.asarray(encoder.table[...])
  h *= encoder.input_scale
  if relu:
    h = np.maximum(h + np.asarray(encoder.bias[...]), 0)
  for layer in encoder.layers:
    h = h @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    h = np.maximum(h, 0) if relu else h
  if scale:
    h = scale * h / np.sqrt((h**2).sum(1, keepdims=True) + 1e-6)
  return h


@pytest.mark.parametrize(
  "options",
  [
    {"activation": ""},
    {"activation": "relu", "input_scale": 3.0},
    {"activation": "relu", "hidden": (7, 3)},
    {"activation": "", "hidden": (7,), "scale": 12.0},
  ],
)
def test_embeddings_are_the_textbook_ones_without_dropout(options):
  sparse, dense = make_features()
  encoder = make_encoder(**options, **DROPOUT)
  rng = np.random.default_rng(1)
  if encoder.bias is not None:
    encoder.bias[...] = jnp.asarray(rng.normal(size=D), jnp.float32)
  expected = numpy_encoder(encoder, dense, options.get("scale"))
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(encoder(sparse), expected, atol=1e-5)
  np.testing.assert_allclose(encoder(dense), expected, atol=1e-5)


@pytest.mark.parametrize("dense_within", [0, F])
def test_both_implementations_have_the_dense_gradients(
  dense_within, monkeypatch
):
  sparse, dense = make_features()
  table = jax.random.normal(jax.random.key(0), (F, D))
  cotangent = jax.random.normal(jax.random.key(1), (N, D))
  monkeypatch.setattr(bag, "_DENSE_WITHIN", dense_within)
  h, vjp = jax.vjp(
    lambda values, table: bag._bag(sparse._replace(values=values), table),
    sparse.values,
    table,
  )
  d_values, d_table = vjp(cotangent)
  d_dense = cotangent @ table.T  # [N, F]
  np.testing.assert_allclose(h, dense @ table, atol=1e-5)
  np.testing.assert_allclose(d_table, dense.T @ cotangent, atol=1e-5)
  np.testing.assert_allclose(
    d_values, np.take_along_axis(d_dense, sparse.ids, 1), atol=1e-5
  )


@pytest.mark.parametrize("many", [False, True])
def test_few_features_are_multiplied_and_many_are_read(many):
  num_features = bag._DENSE_WITHIN * K + many
  sparse, dense = make_features(num_features)
  table = jax.random.normal(jax.random.key(0), (num_features, D))
  text = str(jax.make_jaxpr(bag._bag)(sparse, table))
  assert (f"f32[{N},{K},{D}]" in text) == many  # the rows that were read
  np.testing.assert_allclose(
    bag._bag(sparse, table), dense @ table, rtol=1e-4, atol=1e-5
  )


def test_a_feature_listed_twice_counts_twice(monkeypatch):
  sparse = feature_rows.SparseRows(
    jnp.array([[3, 3]]), jnp.array([[1.0, 0.5]]), jnp.array([2])
  )
  table = jax.random.normal(jax.random.key(0), (F, D))
  for dense_within in (0, F):
    monkeypatch.setattr(bag, "_DENSE_WITHIN", dense_within)
    np.testing.assert_allclose(
      bag._bag(sparse, table)[0], 1.5 * table[3], rtol=1e-5
    )


def test_dropout_acts_in_training_alone():
  _, dense = make_features()
  encoder = make_encoder(activation="", embedding_dropout=0.5)
  plain = np.asarray(encoder(dense))
  np.testing.assert_array_equal(encoder(dense), plain)
  dropped = np.asarray(encoder(dense, rngs=nnx.Rngs(dropout=1)))
  gone = dropped == 0
  assert 0 < gone[1:].sum() < gone[1:].size
  np.testing.assert_allclose(dropped[~gone], 2 * plain[~gone], rtol=1e-6)
  other = np.asarray(encoder(dense, rngs=nnx.Rngs(dropout=2)))
  assert (other != dropped).any()


def test_hidden_dropout_acts_before_the_layer():
  _, dense = make_features()
  encoder = make_encoder(activation="", hidden=(7,), hidden_dropout=0.5)
  plain = np.asarray(encoder(dense))
  dropped = np.asarray(encoder(dense, rngs=nnx.Rngs(dropout=1)))
  assert (dropped[1:] != 0).all()
  assert np.abs(dropped - plain).max() > 0.1


def test_scaled_embeddings_have_the_length_of_the_scale():
  sparse, _ = make_features()
  encoder = make_encoder(activation="", scale=12.0)
  # A step makes strong types of weak ones: it would be compiled twice.
  assert not encoder.log_scale[...].weak_type
  length = np.linalg.norm(encoder(sparse), axis=1)
  assert length[0] == 0
  np.testing.assert_allclose(length[1:], 12.0, rtol=1e-4)


@pytest.mark.parametrize("activation", ["", "relu"])
def test_examples_without_features_have_finite_gradients(activation):
  sparse, _ = make_features()
  empty = sparse._replace(values=jnp.zeros_like(sparse.values))
  encoder = make_encoder(activation=activation, hidden=(7,), scale=12.0)
  graph, state = nnx.split(encoder)

  def total(state):
    return nnx.merge(graph, state)(empty).sum()

  value, grads = jax.value_and_grad(total)(state)
  assert value == 0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_the_initial_spread_is_the_one_asked_for():
  table = bag.BagEncoder(400, 50, std=0.25, rngs=nnx.Rngs(0)).table[...]
  assert abs(float(table.std()) - 0.25) < 0.01
  default = bag.BagEncoder(400, 50, rngs=nnx.Rngs(0)).table[...]
  assert abs(float(default.std()) - 50**-0.5) < 0.01
