"""Static embeddings: a table of token vectors, of which a text has the mean.

Tulkens and van Dongen 2024, "Model2Vec: fast state-of-the-art static
embeddings"; Miller 2024, "WordLlama"; `StaticEmbedding` of
sentence-transformers. Bags of words are older: Mikolov et al. 2013.

To train one further, a `bag.BagEncoder` with the table is the same encoder.

Legend: N texts, T tokens of a text (padded), V known tokens, D width.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from xlj.ops import normalize

_NAMES = ("embeddings", "embedding.weight")


def load(directory: str | Path) -> np.ndarray:
  """Reads the table of a directory.

  Args:
    directory: Holds one file NAME.safetensors, in it one tensor `embeddings`
      or `embedding.weight`.

  Returns:
    float32 `[V, D]`.

  Raises:
    ValueError: There is no such file or tensor, or it is none of numbers.
    ImportError: `safetensors` is not installed.
  """
  try:
    import safetensors
  except ImportError as error:
    raise ImportError(
      "static embeddings need safetensors: pip install 'xlj-jax[text]'"
    ) from error
  found = sorted(Path(directory).glob("*.safetensors"))
  if len(found) != 1:
    names = ", ".join(path.name for path in found) or "none"
    raise ValueError(
      f"{directory}: of *.safetensors there must be one, found {names}"
    )
  path = found[0]
  try:
    with safetensors.safe_open(path, framework="np") as file:
      names = list(file.keys())
      chosen = [name for name in names if name in _NAMES]
      if len(chosen) != 1:
        raise ValueError(
          f"{path}: of tensors {' and '.join(_NAMES)} there must be one, found"
          f" {', '.join(names) or 'none'}"
        )
      about = file.get_slice(chosen[0])
      shape, dtype = about.get_shape(), about.get_dtype()
      if len(shape) != 2 or dtype not in ("F16", "F32", "F64"):
        raise ValueError(
          f"{path}: {chosen[0]} is {dtype} of shape {shape}; it must be F16,"
          " F32 or F64 of shape [tokens, width]"
        )
      return file.get_tensor(chosen[0]).astype(np.float32)
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(f"{path} is not whole: {error}") from None


def encoder(
  table: np.ndarray,
  *,
  unit: bool = False,
  place: jax.sharding.Sharding | None = None,
) -> Callable[..., jax.Array]:
  """A table as a function, which is compiled for each shape.

  Args:
    table: float32 `[V, D]`.
    unit: Whether embeddings have length 1.
    place: Where the table is; by default on the first device.

  Returns:
    A function of ids `[N, T]` of tokens and a mask `[N, T]`, not 0 where there
    is one: embeddings `[N, D]`, float32; zeros of a text without tokens.
  """
  known = jax.device_put(table, place)

  @jax.jit
  def encode(known: jax.Array, ids: jax.Array, mask: jax.Array) -> jax.Array:
    used = (mask != 0).astype(jnp.float32)
    count = jnp.maximum(used.sum(1, keepdims=True), 1)
    x = jnp.einsum("nt,ntd->nd", used, known[ids]) / count
    return normalize.unit_rows(x, 1e-12) if unit else x

  return lambda ids, mask: encode(known, ids, mask)
