"""A small residual network for images.

Pre-activation blocks (He et al. 2016, "Identity mappings in deep residual
networks", figure 1b) with group normalisation (Wu and He 2018, "Group
normalization", groups of 16 channels): an image is normalised by itself, so
that there are no running statistics to keep, to synchronise between devices, or
to differ between training and prediction.

Legend: N images, H height, W width, C channels, D embedding width.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp

_GROUP = 16  # channels that are normalised together, at most


class ResNet(nnx.Module):
  """Stages of residual blocks, then the mean over all places."""

  def __init__(
    self,
    channels: int,
    dim: int,
    *,
    stages: int = 3,
    depth: int = 2,
    stride: int = 1,
    rngs: nnx.Rngs,
  ):
    """Creates the parameters.

    Args:
      channels: C.
      dim: D, the channels of the last stage; each stage before it has half as
        many as the one that follows.
      stages: Each halves height and width, but for the first.
      depth: Blocks of a stage.
      stride: Of the first convolution; 4, say, for large images.
      rngs: Source of random keys.

    Raises:
      ValueError: If `dim` cannot be halved for every stage.
    """
    if dim % 2 ** (stages - 1):
      raise ValueError(
        f"dim is {dim}, which {stages} stages do not divide; give a multiple of"
        f" {2 ** (stages - 1)}"
      )
    widths = [dim >> stage for stage in reversed(range(stages))]
    side = max(3, 2 * stride - 1)  # so that windows overlap
    self.first = nnx.Conv(
      channels,
      widths[0],
      (side, side),
      strides=stride,
      use_bias=False,
      rngs=rngs,
    )
    blocks = []
    before = widths[0]
    for stage, width in enumerate(widths):
      for block in range(depth):
        halve = stage > 0 and block == 0
        blocks.append(_Block(before, width, 2 if halve else 1, rngs))
        before = width
    self.blocks = nnx.List(blocks)
    self.norm = _norm(dim, rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Embeddings `[N, D]`, none below 0, of images `[N, H, W, C]`."""
    h = self.first(images)
    for block in self.blocks:
      h = block(h)
    return jnp.mean(nnx.relu(self.norm(h)), axis=(1, 2))


class _Block(nnx.Module):
  """Two convolutions beside a shortcut."""

  def __init__(self, before: int, width: int, stride: int, rngs: nnx.Rngs):
    self.norms = nnx.List([_norm(before, rngs), _norm(width, rngs)])
    self.first = nnx.Conv(
      before, width, (3, 3), strides=stride, use_bias=False, rngs=rngs
    )
    self.second = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)
    same = stride == 1 and before == width
    self.shortcut = None if same else _project(before, width, stride, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    h = nnx.relu(self.norms[0](x))
    if self.shortcut is not None:
      x = self.shortcut(h)
    h = self.first(h)
    return x + self.second(nnx.relu(self.norms[1](h)))


def _project(before: int, width: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
  return nnx.Conv(
    before, width, (1, 1), strides=stride, use_bias=False, rngs=rngs
  )


def _norm(width: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
  return nnx.GroupNorm(
    width, num_groups=None, group_size=math.gcd(width, _GROUP), rngs=rngs
  )
