"""Gradients of a batch in chunks are those of the batch, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from tests import meshes
from xlj import sharding
from xlj.ops import gradient_cache

N, F, H, D = 24, 5, 7, 3
assert_close = functools.partial(cases.assert_close, atol=1e-5, rtol=1e-5)


def encode(params, examples, key):
  """Two layers, with dropout between them where a key is given."""
  h = jnp.tanh(examples["x"] @ params["in"])
  if key is not None:
    h *= jax.random.bernoulli(key, 0.5, h.shape)
  return h @ params["out"]


def make_towers(count=N):
  """Parameters, texts of examples, texts of labels."""
  rng = np.random.default_rng(0)
  weights = {"in": (F, H), "out": (H, D)}
  params = {k: rng.normal(size=s).astype("f") for k, s in weights.items()}
  towers = [{"x": rng.normal(size=(n, F)).astype("f")} for n in (count, 48)]
  return params, *towers


def loss_of(encode, keys):
  """A loss of all pairs, as a function of the parameters and both texts."""

  def loss(params, examples, labels):
    x, y = (encode(params, t, k) for t, k in zip((examples, labels), keys))
    return -jnp.mean(jax.nn.log_softmax(x @ y.T)[:, 0] * x[:, 0])

  return loss


def value_and_grad(encode, keys=(None, None)):
  """Of the loss, compiled."""
  return jax.jit(jax.value_and_grad(loss_of(encode, keys)))


def each_by_itself(num_chunks):
  """The encoder with the same keys, all of whose activations are kept."""

  def run(params, examples, key):
    def one(i):
      part = jax.tree.map(lambda a: a[i::num_chunks], examples)
      return encode(params, part, jax.random.fold_in(key, i))

    x = jnp.stack([one(i) for i in range(num_chunks)], 1)
    return x.reshape(-1, x.shape[-1])

  return run


@pytest.mark.parametrize("num_chunks", [1, 12])
def test_gradients_are_those_of_the_whole_batch(num_chunks):
  towers = make_towers()
  chunked = gradient_cache.in_chunks(encode, num_chunks)
  got = value_and_grad(chunked)(*towers)
  expected = value_and_grad(encode)(*towers)
  assert_close(got, expected)


def test_dropout_is_the_same_both_times():
  towers = make_towers()
  keys = jax.random.key(3), jax.random.key(4)
  chunked = gradient_cache.in_chunks(encode, 4)
  got = value_and_grad(chunked, keys)(*towers)
  expected = value_and_grad(each_by_itself(4), keys)(*towers)
  assert_close(got, expected)
  # and another one for each chunk
  same = chunked(towers[0], {"x": np.ones((N, F), "f")}, keys[0])
  assert len(np.unique(np.asarray(same)[:4, 0])) > 1


@pytest.mark.parametrize("shape", [(8, 1), (1, 3)])
def test_on_a_mesh(shape):
  towers = make_towers()
  expected = value_and_grad(encode)(*towers)
  with meshes.mesh(shape) as mesh:
    split = jax.NamedSharding(mesh, sharding.BATCH)
    count = gradient_cache.num_chunks(N, 8, sharding.num_shards())
    assert count == {8: 3, 3: 4}[sharding.num_shards()]
    params, examples, _ = towers
    examples = jax.device_put(examples, split)
    labels = {"x": jax.device_put(towers[2]["x"], jax.P())}
    chunked = sharding.by_compiler(gradient_cache.in_chunks(encode, count))

    def loss(params, examples, labels):
      x = jax.reshard(chunked(params, examples, None), jax.P())
      y = encode(params, labels, None)
      return -jnp.mean(jax.nn.log_softmax(x @ y.T)[:, 0] * x[:, 0])

    run = jax.jit(jax.value_and_grad(loss))
    assert_close(run(params, examples, labels), expected)


def test_memory_is_that_of_a_chunk():
  towers = make_towers(4096)

  def temporary(encode):
    compiled = value_and_grad(encode).lower(*towers).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  def wide(params, examples, key):
    deep = [jnp.tile(examples["x"] @ params["in"], 20)]
    for _ in range(8):
      deep.append(jnp.tanh(deep[-1]))
    return sum(deep)[:, :H] @ params["out"]

  whole = temporary(wide)
  assert temporary(gradient_cache.in_chunks(wide, 16)) < whole / 2


@pytest.mark.parametrize(
  ("count", "size", "devices", "expected"),
  [(24, 0, 1, 1), (24, 5, 1, 6), (24, 8, 8, 3), (24, 1, 8, 3), (12, 99, 4, 1)],
)
def test_chunks_are_of_equal_size(count, size, devices, expected):
  assert gradient_cache.num_chunks(count, size, devices) == expected
