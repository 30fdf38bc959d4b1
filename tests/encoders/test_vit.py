"""The vision transformer: the textbook one, on any mesh, and it learns."""

from flax import nnx
import jax
import numpy as np
import pytest

from tests import meshes
from tests.encoders import pictures
from xlj.encoders import image
from xlj.encoders import vit


def norm(x, layer):
  """Layer normalisation."""
  mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  h = (x - mean) / np.sqrt(var + 1e-6)
  return h * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])


def linear(x, layer):
  return x @ np.asarray(layer.kernel[...], np.float64) + layer.bias[...]


def reference(network, x, patch):
  """The same network in float64 NumPy, one image and one head at a time."""
  found = []
  for picture in np.asarray(x, np.float64):
    height, width, _ = picture.shape
    kernel = np.asarray(network.patches.kernel[...], np.float64)
    h = np.stack(
      [
        np.tensordot(picture[i : i + patch, j : j + patch], kernel, 3)
        for i in range(0, height, patch)
        for j in range(0, width, patch)
      ]
    )
    h = h + network.patches.bias[...] + np.asarray(network.positions[...])
    for block in network.blocks:
      qkv = linear(norm(h, block.norms[0]), block.qkv)  # [T, 3 D]
      q, k, v = np.split(np.asarray(qkv), 3, axis=1)
      size = q.shape[1] // block.heads
      mixed = []
      for start in range(0, q.shape[1], size):
        part = slice(start, start + size)
        z = np.exp(q[:, part] @ k[:, part].T / np.sqrt(size))
        mixed.append(z / z.sum(1, keepdims=True) @ v[:, part])
      h = h + linear(np.concatenate(mixed, axis=1), block.mix)
      a = linear(norm(h, block.norms[1]), block.expand)
      a = a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
      h = h + linear(a, block.shrink)
    found.append(norm(np.asarray(h), network.norm).mean(0))
  return np.array(found)


def test_embeddings_are_the_textbook_ones():
  x = np.random.default_rng(0).normal(size=(3, 4, 6, 2)).astype(np.float32)
  network = pictures.randomised(
    lambda: vit.ViT((4, 6, 2), 12, patch=2, depth=2, heads=3, rngs=nnx.Rngs(0))
  )
  expected = reference(network, x, 2)
  assert expected.shape == (3, 12) and expected.std() > 0.1
  found = jax.jit(lambda x: network(x))(x)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="patches of 4 x 4 do not fill an image"):
    vit.ViT((8, 6, 1), 8, patch=4, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="dim is 10, which 4 heads do not"):
    vit.ViT((8, 8, 1), 10, patch=4, heads=4, rngs=nnx.Rngs(0))


def make_encoder():
  """Of digits."""
  network = vit.ViT(pictures.SHAPE, 32, patch=4, depth=2, rngs=nnx.Rngs(0))
  return image.ImageEncoder(network, pictures.SHAPE)


@pytest.mark.slow
def test_all_devices_together_do_what_one_does():
  encoder = pictures.randomised(make_encoder)
  rows = pictures.digits()[0][0][:16]
  results = []
  for shape in ((1, 1), (8, 1)):
    with meshes.mesh(shape):
      results.append(pictures.training_step(encoder, rows))
  for a, b in zip(*map(jax.tree.leaves, results)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_learns_digits():
  assert pictures.accuracy(make_encoder, 32, steps=300, rate=3e-3) > 0.92
