"""Pretrained transformers: a local directory to sizes and parameters.

The directory is as `save_pretrained` of `transformers` writes it: config.json,
and model.safetensors or model.safetensors.index.json with the files it names.

What differs between kinds and is the same for all tokens is added up here: the
embedding of the one token type goes into the positions, and the rows of
positions that the padding token shifts are left out.

Legend: V known tokens, D width.
"""

from collections.abc import Callable, Mapping
import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
import jax
import numpy as np

from xlj.encoders import transformer
from xlj.ops import feature_rows
from xlj.ops import normalize

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_POOLING_FILE = "1_Pooling/config.json"  # of sentence-transformers
# Of tasks that it was trained for: nothing here reads them.
_OTHER = ("pooler.", "cls.", "lm_head.", "vocab_", "classifier.", "qa_outputs.")
_OTHER += ("pre_classifier.", "embeddings.position_ids", "discriminator_")


class _Kind(NamedTuple):
  """How an architecture names things.

  Attributes:
    prefix: Of tensors, where there is one; also the section of a sum.
    blocks: Where the blocks are.
    parts: Names in a block, of `qkv` those of three.
    fields: In config.json, of `transformer.Sizes` from `width` to `positions`
      and `activation`.
    shift: Positions that no token has.
  """

  prefix: str
  blocks: str
  parts: Mapping[str, tuple[str, ...]]
  fields: Mapping[str, str]
  shift: int = 0


_FIELDS = {
  "num_tokens": "vocab_size",
  "width": "hidden_size",
  "depth": "num_hidden_layers",
  "heads": "num_attention_heads",
  "hidden": "intermediate_size",
  "positions": "max_position_embeddings",
  "activation": "hidden_act",
}
_AFTER = {
  "expand": ("intermediate.dense",),
  "shrink": ("output.dense",),
  "norms.1": ("output.LayerNorm",),
}
_BERT = _Kind(
  "bert.",
  "encoder.layer",
  {
    "qkv": tuple(f"attention.self.{x}" for x in ("query", "key", "value")),
    "mix": ("attention.output.dense",),
    "norms.0": ("attention.output.LayerNorm",),
    **_AFTER,
  },
  _FIELDS,
)
_ROBERTA = _BERT._replace(prefix="roberta.", shift=2)
_DISTILBERT = _Kind(
  "distilbert.",
  "transformer.layer",
  {
    "qkv": tuple(f"attention.{x}_lin" for x in "qkv"),
    "mix": ("attention.out_lin",),
    "norms.0": ("sa_layer_norm",),
    "expand": ("ffn.lin1",),
    "shrink": ("ffn.lin2",),
    "norms.1": ("output_layer_norm",),
  },
  {
    **_FIELDS,
    "width": "dim",
    "depth": "n_layers",
    "heads": "n_heads",
    "hidden": "hidden_dim",
    "activation": "activation",
  },
)
_MPNET = _Kind(
  "mpnet.",
  "encoder.layer",
  {
    "qkv": tuple(f"attention.attn.{x}" for x in "qkv"),
    "mix": ("attention.attn.o",),
    "norms.0": ("attention.LayerNorm",),
    **_AFTER,
  },
  _FIELDS,
  shift=2,
)
# By `model_type` of config.json.
KINDS = {
  "bert": _BERT,
  "distilbert": _DISTILBERT,
  "roberta": _ROBERTA,
  "xlm-roberta": _ROBERTA,
  "camembert": _ROBERTA,
  "mpnet": _MPNET,
}


def sizes(directory: str | Path) -> transformer.Sizes:
  """What a pretrained encoder is made of, from its config.json alone.

  Args:
    directory: Of the encoder.

  Returns:
    The sizes.

  Raises:
    ValueError: The file is missing or says something that is not known here.
  """
  path = Path(directory) / CONFIG_FILE
  saved = _read_json(path)
  kind = _kind(saved, path)
  found: dict[str, Any] = {}
  for name, field in kind.fields.items():
    value = saved.get(field)
    if name == "activation":
      if value not in transformer.ACTIVATIONS:
        known = ", ".join(transformer.ACTIVATIONS)
        raise ValueError(f"{path}: {field} is {value!r}; known are {known}")
    elif type(value) is not int or value < 1:
      raise ValueError(f"{path}: {field} is {value!r}; it must be a size")
    found[name] = value
  if found["width"] % found["heads"]:
    raise ValueError(
      f"{path}: {kind.fields['heads']} is {found['heads']}, which does not"
      f" divide {kind.fields['width']} {found['width']}"
    )
  relative = saved.get("position_embedding_type", "absolute")
  if relative != "absolute" or saved.get("is_decoder"):
    raise ValueError(
      f"{path}: position_embedding_type is {relative!r}, is_decoder"
      f" {saved.get('is_decoder', False)}; known are 'absolute' and False"
    )
  found["positions"] -= kind.shift
  return transformer.Sizes(
    **found,
    buckets=saved.get("relative_attention_num_buckets", 32)
    if kind is _MPNET
    else 0,
    epsilon=float(saved.get("layer_norm_eps", 1e-12)),
  )


def pooling(directory: str | Path) -> str:
  """How it makes one embedding of a text, "mean" if nothing says so."""
  path = Path(directory) / _POOLING_FILE
  if path.exists() and _read_json(path).get("pooling_mode_cls_token"):
    return "cls"
  return "mean"


def load(
  directory: str | Path,
) -> tuple[transformer.Sizes, dict[str, Any]]:
  """Reads a pretrained encoder.

  Args:
    directory: Of the encoder.

  Returns:
    Its sizes and the parameters of `transformer.Transformer`, float32 NumPy
    arrays; those of its map and scale are not among them.

  Raises:
    ValueError: A file is missing or broken, a tensor is missing, has another
      shape or is not known here.
    ImportError: `safetensors` is not installed.
  """
  directory = Path(directory)
  made = sizes(directory)
  path = directory / CONFIG_FILE
  kind = _kind(_read_json(path), path)
  with contextlib.ExitStack() as stack:
    tensors = _Tensors(_open(directory, stack), kind, directory)
    return made, _parameters(tensors, made, kind)


def encoder(
  directory: str | Path,
  *,
  pooled: str | None = None,
  dtype: str = "float32",
  unit: bool = False,
  place: jax.sharding.Sharding | None = None,
) -> Callable[..., jax.Array]:
  """A pretrained encoder as a function, which is compiled for each shape.

  Args:
    directory: Of the encoder.
    pooled: "mean" or "cls"; None for what the directory says.
    dtype: That it computes in.
    unit: Whether embeddings have length 1.
    place: Where the parameters are; by default on the first device.

  Returns:
    A function of ids `[N, T]` of tokens and a mask `[N, T]`, not 0 where there
    is one: embeddings `[N, D]`, float32.

  Raises:
    ValueError: As of `load`; the function, on T beyond its positions.
  """
  made, parameters = load(directory)
  how = pooled or pooling(directory)

  def make() -> transformer.Transformer:
    return transformer.Transformer(
      made, pooling=how, dtype=dtype, rngs=nnx.Rngs(0)
    )

  graph = nnx.graphdef(nnx.eval_shape(make))
  state = jax.tree.map(
    lambda a: nnx.Param(jax.device_put(a, place)), parameters
  )

  @jax.jit
  def encode(state: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    if ids.shape[1] > made.positions:
      raise ValueError(
        f"texts of {ids.shape[1]} tokens; {directory} reads {made.positions}"
      )
    texts = feature_rows.sparse_rows(ids, mask.astype(np.float32))
    x = nnx.merge(graph, state)(texts)
    return normalize.unit_rows(x, 1e-12) if unit else x

  return lambda ids, mask: encode(state, ids, mask)


class _Tensors:
  """The tensors of a directory by name, each taken once."""

  def __init__(
    self, files: Mapping[str, Any], kind: _Kind, directory: Path
  ) -> None:
    self._directory = directory
    # Without prefix, and with the names that LayerNorm has now.
    self._files: dict[str, tuple[str, Any]] = {}
    for name, file in files.items():
      short = name.removeprefix(kind.prefix)
      for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if short.endswith(old):
          short = short.removesuffix(old) + new
      self._files[short] = name, file

  def take(self, name: str, *shape: int | None) -> np.ndarray:
    """A tensor as float32.

    Args:
      name: Without prefix.
      *shape: That it must have; None for any size.

    Raises:
      ValueError: If it is missing, or is another.
    """
    if name not in self._files:
      raise ValueError(
        f"{self._directory}: no tensor {name} of shape {list(shape)}, which"
        f" {CONFIG_FILE} there speaks of"
      )
    full, file = self._files.pop(name)
    about = file.get_slice(full)
    found, dtype = about.get_shape(), about.get_dtype()
    fits = len(found) == len(shape)
    fits &= all(b in (None, a) for a, b in zip(found, shape))
    if not fits or dtype not in ("F16", "F32", "F64"):
      raise ValueError(
        f"{self._directory}: tensor {full} is {dtype} of shape {found};"
        f" {CONFIG_FILE} there speaks of {list(shape)}, and F16, F32 and F64"
        " are read"
      )
    return file.get_tensor(full).astype(np.float32)

  def __contains__(self, name: str) -> bool:
    return name in self._files

  def refuse_others(self) -> None:
    """Raises if there is a tensor of the encoder that nothing has taken."""
    for short, (name, file) in self._files.items():
      about = file.get_slice(name)
      if short.startswith(_OTHER) or about.get_dtype()[0] in "IUB":
        continue
      raise ValueError(
        f"{self._directory}: tensor {name} of shape {about.get_shape()} is not"
        f" one that {CONFIG_FILE} there speaks of"
      )


def _parameters(
  tensors: _Tensors, made: transformer.Sizes, kind: _Kind
) -> dict[str, Any]:
  """The parameters of `transformer.Transformer`."""
  d = made.width

  def norm(name: str) -> dict[str, np.ndarray]:
    return {
      "scale": tensors.take(f"{name}.weight", d),
      "bias": tensors.take(f"{name}.bias", d),
    }

  def linear(
    names: tuple[str, ...], inputs: int, outputs: int
  ) -> dict[str, np.ndarray]:
    outputs //= len(names)
    kernels = [tensors.take(f"{n}.weight", outputs, inputs).T for n in names]
    biases = [tensors.take(f"{n}.bias", outputs) for n in names]
    return {
      "kernel": np.concatenate(kernels, axis=1),
      "bias": np.concatenate(biases),
    }

  def part(i: int, name: str, inputs: int, outputs: int) -> dict[str, Any]:
    names = (f"{kind.blocks}.{i}.{n}" for n in kind.parts[name])
    return linear(tuple(names), inputs, outputs)

  def block(i: int) -> dict[str, Any]:
    norms = (kind.parts[f"norms.{j}"][0] for j in range(2))
    return {
      "norms": {
        j: norm(f"{kind.blocks}.{i}.{name}") for j, name in enumerate(norms)
      },
      "qkv": part(i, "qkv", d, 3 * d),
      "mix": part(i, "mix", d, d),
      "expand": part(i, "expand", d, made.hidden),
      "shrink": part(i, "shrink", made.hidden, d),
    }

  positions = tensors.take(
    "embeddings.position_embeddings.weight", made.positions + kind.shift, d
  )[kind.shift :]
  types = "embeddings.token_type_embeddings.weight"
  if types in tensors:
    positions = positions + tensors.take(types, None, d)[0]
  found = {
    "tokens": tensors.take(
      "embeddings.word_embeddings.weight", made.num_tokens, d
    ),
    "positions": positions,
    "norm": norm("embeddings.LayerNorm"),
    "blocks": {i: block(i) for i in range(made.depth)},
  }
  if made.buckets:
    found["relative"] = tensors.take(
      "encoder.relative_attention_bias.weight", made.buckets, made.heads
    )
  tensors.refuse_others()
  return found


def _open(directory: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
  """The open file of each tensor, by its whole name."""
  try:
    import safetensors
  except ImportError as error:
    raise ImportError(
      "pretrained encoders need safetensors: pip install 'xlj-jax[text]'"
    ) from error
  names = [WEIGHTS_FILE]
  index = directory / INDEX_FILE
  if index.exists():
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
      raise ValueError(f"{index}: no weight_map of tensors to files")
    names = sorted(set(names.values()))
  found: dict[str, Any] = {}
  for name in names:
    path = directory / name
    if not path.exists():
      there = ", ".join(sorted(p.name for p in directory.glob("*.bin")))
      raise ValueError(
        f"{path} does not exist"
        + (f"; {there} must be saved as safetensors first" if there else "")
      )
    try:
      file = stack.enter_context(safetensors.safe_open(path, framework="np"))
    except (safetensors.SafetensorError, OSError) as error:
      raise ValueError(f"{path} is not whole: {error}") from None
    found |= dict.fromkeys(file.keys(), file)
  return found


def _kind(saved: dict[str, Any], path: Path) -> _Kind:
  kind = saved.get("model_type")
  if kind not in KINDS:
    raise ValueError(
      f"{path}: model_type is {kind!r}; known are {', '.join(KINDS)}"
    )
  return KINDS[kind]


def _read_json(path: Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} cannot be read: {error}") from None
  if not isinstance(found, dict):
    raise ValueError(f"{path} does not hold a JSON object")
  return found
