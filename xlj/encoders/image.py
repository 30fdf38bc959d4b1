"""Images that arrive as rows of numbers: scaled, augmented, and encoded.

Legend: N examples, F numbers of an image, H height, W width, C channels, D
embedding width.
"""

from collections.abc import Callable
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from xlj.encoders import resnet
from xlj.encoders import vit
from xlj.ops import normalize

Images = Callable[[jax.Array], jax.Array]


class ImageEncoder(nnx.Module):
  """An encoder of images (see `resnet`, `vit`) for dense features.

  Rows may be bytes: they become floats here, on the device.
  """

  def __init__(
    self,
    images: Images,
    shape: tuple[int, int, int],
    *,
    input_scale: float = 1 / 255,
    shift: int = 0,
    flip: bool = False,
    embedding_dropout: float = 0.0,
    scale: float = 0.0,
  ):
    """Puts the parts together.

    Args:
      images: Module from `[N, H, W, C]` float32 to `[N, D]`.
      shape: `(H, W, C)` of an image; F is their product.
      input_scale: Factor on the numbers.
      shift: Pixels by which an image moves at most in training, each way, into
        zeros (He et al. 2016, "Deep residual learning", section 4.2).
      flip: Whether every other image is mirrored left to right in training.
      embedding_dropout: Dropout rate on the embedding that is returned.
      scale: If positive, embeddings are normalised to unit length and
        multiplied by a trained scale that starts here (cosine logits).
    """
    self.images = images
    self.shape = tuple(shape)
    self.input_scale = input_scale
    self.shift = shift
    self.flip = flip
    # The logarithm, so that Adam changes the scale by a share of itself; of a
    # strong type, or steps would be compiled again when it becomes one.
    self.log_scale = nnx.Param(jnp.log(jnp.float32(scale))) if scale else None
    self.embedding_dropout = nnx.Dropout(embedding_dropout)

  def __call__(
    self, features: jax.Array, *, rngs: nnx.Rngs | None = None
  ) -> jax.Array:
    """Encodes a batch.

    Args:
      features: `[N, F]`, integers or floats.
      rngs: Source of keys for augmentation and dropout, named `dropout`; None
        means evaluation, neither of them.

    Returns:
      `[N, D]` float32 embeddings.

    Raises:
      ValueError: If F is not the size of an image.
    """
    size = math.prod(self.shape)
    if features.shape[1] != size:
      raise ValueError(
        f"an image of {self.shape} has {size} numbers, and an example"
        f" {features.shape[1]}"
      )
    x = features.reshape(len(features), *self.shape)
    if rngs is not None and self.shift:
      x = _shift(x, self.shift, rngs.dropout())
    if rngs is not None and self.flip:
      mirrored = jax.random.bernoulli(rngs.dropout(), 0.5, (len(x), 1, 1, 1))
      x = jnp.where(mirrored, x[:, :, ::-1], x)
    h = self.images(self.input_scale * x.astype(jnp.float32))
    if self.log_scale is not None:
      h = jnp.exp(self.log_scale[...]) * normalize.unit_rows(h)
    return self.embedding_dropout(h, rngs=rngs, deterministic=rngs is None)


def make(fields: Any, rngs: nnx.Rngs) -> ImageEncoder:
  """Makes an encoder of images.

  Args:
    fields: The section `encoder` of a resolved config (see `xlj.config.base`).
    rngs: Source of random keys.

  Returns:
    The encoder.
  """
  shape = tuple(fields.image)
  if fields.type == "resnet":
    images = resnet.ResNet(
      shape[-1],
      fields.dim,
      stages=fields.stages,
      depth=fields.depth,
      stride=fields.patch,
      rngs=rngs,
    )
  else:
    images = vit.ViT(
      shape,
      fields.dim,
      patch=fields.patch,
      depth=fields.depth,
      heads=fields.heads,
      rngs=rngs,
    )
  return ImageEncoder(
    images,
    shape,
    input_scale=fields.input_scale,
    shift=fields.shift,
    flip=fields.flip,
    embedding_dropout=fields.embedding_dropout,
    scale=fields.scale,
  )


def _shift(images: jax.Array, most: int, key: jax.Array) -> jax.Array:
  """Moves each of `[N, H, W, C]` by its own number of pixels, each way."""
  corners = jax.random.randint(key, (len(images), 2), 0, 2 * most + 1)
  around = ((0, 0), (most, most), (most, most), (0, 0))

  def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
    start = (corner[0], corner[1], 0)
    return jax.lax.dynamic_slice(image, start, images.shape[1:])

  return jax.vmap(cut)(jnp.pad(images, around), corners)
