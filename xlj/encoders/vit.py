"""A small vision transformer.

Patches with learned positions, pre-norm blocks (Dosovitskiy et al. 2021, "An
image is worth 16x16 words"), and the mean over the patches instead of a class
token (Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k").

Legend: N images, H height, W width, C channels, T patches of an image, D width.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from xlj.encoders import block as block_lib

_MLP = 4  # width of the hidden layer of a block, in D
_POSITION_STD = 0.02


class ViT(nnx.Module):
  """Blocks of attention between the patches of an image, then their mean."""

  def __init__(
    self,
    shape: tuple[int, int, int],
    dim: int,
    *,
    patch: int = 4,
    depth: int = 4,
    heads: int = 4,
    rngs: nnx.Rngs,
  ):
    """Creates the parameters.

    Args:
      shape: `(H, W, C)` of an image.
      dim: D, of the embedding and of every block.
      patch: Height and width of a patch.
      depth: Blocks.
      heads: Of the attention.
      rngs: Source of random keys.

    Raises:
      ValueError: If patches do not fill an image, or heads do not divide D.
    """
    height, width, channels = shape
    if height % patch or width % patch:
      raise ValueError(
        f"patches of {patch} x {patch} do not fill an image of {height} x"
        f" {width}"
      )
    if dim % heads:
      raise ValueError(f"dim is {dim}, which {heads} heads do not divide")
    self.patches = nnx.Conv(
      channels,
      dim,
      (patch, patch),
      strides=patch,
      padding="VALID",
      rngs=rngs,
    )
    count = (height // patch) * (width // patch)
    self.positions = nnx.Param(
      _POSITION_STD * jax.random.normal(rngs.params(), (count, dim))
    )
    self.blocks = nnx.List(
      block_lib.Block(dim, heads, _MLP * dim, rngs=rngs) for _ in range(depth)
    )
    self.norm = nnx.LayerNorm(dim, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Embeddings `[N, D]` of images `[N, H, W, C]`."""
    h = self.patches(images)
    h = h.reshape(len(h), -1, h.shape[-1])  # [N, T, D]
    h = h + self.positions[...]
    for block in self.blocks:
      h = block(h)
    return jnp.mean(self.norm(h), axis=1)
