"""Embeddings of a batch larger than memory, with their exact gradient.

The loss of a dual encoder needs the embeddings of all examples and labels of a
batch at once, but what an encoder keeps for its gradient is many times that.
Gao et al. 2021, "Scaling deep contrastive learning batch size under memory
limited setup", embed chunk by chunk, keep the embeddings alone, and embed each
chunk again when the gradient of its embeddings is known. Here that is the
derivative of `in_chunks`: what is computed of embeddings, of one encoder or of
two, is differentiated as ever.

Legend: N examples, c chunks, D width.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

Encode = Callable[[Any, Any, jax.Array | None], jax.Array]


def in_chunks(encode: Encode, num_chunks: int) -> Encode:
  """An encoder that keeps the activations of one chunk of examples at a time.

  Chunk i has the examples i, i + c, i + 2 c, ...: if each device has its share
  of a batch, each has its share of a chunk.

  Args:
    encode: From parameters, a tree of arrays with examples leading, and a key
      of dropout, or None, to `[N, D]`. Examples do not depend on each other.
    num_chunks: c, which divides the number of examples; see `num_chunks`.

  Returns:
    A function with the same arguments. Each chunk has a key of its own, the
    same one both times.
  """
  if num_chunks == 1:
    return encode

  def run(params: Any, examples: Any, key: jax.Array | None) -> jax.Array:
    @jax.checkpoint
    def one(chunk: Any, number: jax.Array) -> jax.Array:
      own = None if key is None else jax.random.fold_in(key, number)
      return encode(params, chunk, own)

    def split(a: jax.Array) -> jax.Array:
      return a.reshape(-1, num_chunks, *a.shape[1:]).swapaxes(0, 1)

    numbers = jnp.arange(num_chunks)
    x = lax.map(lambda a: one(*a), (jax.tree.map(split, examples), numbers))
    return x.swapaxes(0, 1).reshape(-1, x.shape[-1])

  return run


def num_chunks(num_examples: int, size: int, devices: int = 1) -> int:
  """How many chunks of at most `size` examples there are, of as many each.

  Args:
    num_examples: N, a multiple of `devices`.
    size: Examples of a chunk at most; 0 for all.
    devices: That a batch is split over. If `size` is less, each of them has
      one example of a chunk.

  Returns:
    The least number c that divides the examples of each device.
  """
  share = num_examples // devices
  least = -(-share * devices // max(size, devices)) if size else 1
  return next(c for c in range(max(least, 1), share + 1) if share % c == 0)
