"""The residual network: the textbook one, on any mesh, and it learns."""

import functools

from flax import nnx
import jax
import numpy as np
import pytest

from tests import meshes
from tests.encoders import pictures
from xlj.encoders import image
from xlj.encoders import resnet


def make(**options):
  return resnet.ResNet(2, 32, stages=2, depth=2, rngs=nnx.Rngs(0), **options)


def conv(x, kernel, stride):
  """A convolution with padding so that H becomes ceil(H / stride)."""
  side = len(kernel)
  sizes = [-(-size // stride) for size in x.shape[1:3]]
  missing = [
    max((out - 1) * stride + side - size, 0)
    for out, size in zip(sizes, x.shape[1:3])
  ]
  around = [(pad // 2, pad - pad // 2) for pad in missing]
  x = np.pad(x, ((0, 0), *around, (0, 0)))
  total = 0.0
  for i, j in np.ndindex(side, side):
    rows = slice(i, i + stride * sizes[0], stride)
    columns = slice(j, j + stride * sizes[1], stride)
    total = total + x[:, rows, columns] @ kernel[i, j]
  return total


def norm_relu(x, layer):
  """Group normalisation, then a ReLU."""
  groups = x.reshape(*x.shape[:3], layer.num_groups, -1)
  mean = groups.mean((1, 2, 4), keepdims=True)
  var = groups.var((1, 2, 4), keepdims=True)
  h = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
  scale, bias = (
    np.asarray(a[...], np.float64) for a in (layer.scale, layer.bias)
  )
  return np.maximum(h * scale + bias, 0)


def reference(network, x):
  """The same network in float64 NumPy."""

  def apply(layer, x):
    return conv(x, np.asarray(layer.kernel[...], np.float64), layer.strides)

  h = apply(network.first, np.asarray(x, np.float64))
  for block in network.blocks:
    a = norm_relu(h, block.norms[0])
    h = h if block.shortcut is None else apply(block.shortcut, a)
    h = h + apply(
      block.second, norm_relu(apply(block.first, a), block.norms[1])
    )
  return norm_relu(h, network.norm).mean((1, 2))


def test_embeddings_are_the_textbook_ones():
  x = np.random.default_rng(0).normal(size=(3, 7, 10, 2)).astype(np.float32)
  for stride in (1, 2):
    network = pictures.randomised(functools.partial(make, stride=stride))
    expected = reference(network, x)
    assert expected.shape == (3, 32) and expected.std() > 0.1
    found = jax.jit(lambda x, network=network: network(x))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_channels_double_where_the_sides_halve():
  network = nnx.eval_shape(
    lambda: resnet.ResNet(3, 64, stages=3, depth=1, rngs=nnx.Rngs(0))
  )
  kernels = [block.second.kernel.shape for block in network.blocks]
  assert kernels == [(3, 3, 16, 16), (3, 3, 32, 32), (3, 3, 64, 64)]
  assert [block.first.strides for block in network.blocks] == [1, 2, 2]
  with pytest.raises(ValueError, match="dim is 30, which 3 stages do not"):
    resnet.ResNet(3, 30, stages=3, rngs=nnx.Rngs(0))


def make_encoder(**options):
  """Of digits."""
  dim = 16 if options else 32
  network = resnet.ResNet(1, dim, stages=2, depth=1, rngs=nnx.Rngs(0))
  return image.ImageEncoder(network, pictures.SHAPE, **options)


@pytest.mark.slow
def test_all_devices_together_do_what_one_does():
  encoder = pictures.randomised(
    lambda: make_encoder(shift=2, flip=True, embedding_dropout=0.2, scale=4.0)
  )
  rows = pictures.digits()[0][0][:16]
  results = []
  for shape in ((1, 1), (8, 1)):
    with meshes.mesh(shape):
      results.append(pictures.training_step(encoder, rows))
  plain, trained, _ = results[0]
  assert np.abs(plain - trained).max() > 0.1
  for a, b in zip(*map(jax.tree.leaves, results)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_learns_digits():
  assert pictures.accuracy(make_encoder, 32, steps=150, rate=1e-2) > 0.95
