"""The section `encoder`, and the encoders that it makes."""

from collections.abc import Callable
import math
from typing import Any

from flax import nnx
import ml_collections
from ml_collections import config_dict

from xlj.config import causal
from xlj.config import checks
from xlj.config import families
from xlj.config import options
from xlj.encoders import bag
from xlj.encoders import block
from xlj.encoders import image
from xlj.encoders import pretrained
from xlj.encoders import transformer

_LARGE_IMAGE = 128  # pixels of the shorter side, from which patches are large
_OF_IMAGES = ("encoder.image", "encoder.depth", "encoder.patch")
_OF_IMAGES += ("encoder.shift", "encoder.flip")


def fields() -> options.Fields:
  """All fields, with None for "decide from the data"."""
  auto = config_dict.placeholder
  return {
    "encoder.type": "bag",  # what makes embeddings of features
    "encoder.dim": auto(int),  # width of the bag; 0 for a linear model
    "encoder.hidden": (),  # widths of the layers after it
    # After the bag and each layer; "" for none
    "encoder.activation": auto(str),
    "encoder.feature_dropout": 0.0,  # of the features of an example
    "encoder.embedding_dropout": auto(float),  # of what the bag makes of them
    "encoder.hidden_dropout": 0.0,  # after each layer
    "encoder.init": auto(str),  # where the bag starts
    # Examples embedded at a time, of which more is kept than the embeddings, on
    # all devices; 0 for the batch. See xlj.ops.gradient_cache
    "encoder.chunk": 0,
    "encoder.init_scale": 0.3,  # standard deviation of the bag at the start
    # That features are multiplied by, for the encoder alone
    "encoder.input_scale": auto(float),
    # Above 0: unit embeddings times a scale that starts there, and is trained
    "encoder.scale": auto(float),
    "encoder.fixed_scale": auto(bool),  # that scale stays as it is
    # Of "resnet" and "vit", as wide as `dim`:
    "encoder.image": auto(tuple),  # height, width, channels
    # Blocks, also of a sequence; of a resnet those of a stage
    "encoder.depth": auto(int),
    "encoder.stages": 3,  # of a resnet: each half the size and twice the width
    # Side of the patches of a vit; a resnet's first stride
    "encoder.patch": auto(int),
    "encoder.heads": 4,  # of the attention of a vit, or a sequence
    "encoder.shift": 0,  # pixels that training images move by at most
    "encoder.flip": False,  # mirror every other training image
    # Items of a sequence are read by their label rows
    "encoder.tied": False,
    # Of "transformer":
    # Directory that its weights start from; empty: at random
    "encoder.pretrained": auto(str),
    # Decided by that directory, if there is one:
    "encoder.sizes.width": auto(int),  # of a token's vector
    "encoder.sizes.depth": auto(int),  # blocks
    "encoder.sizes.heads": auto(int),  # of the attention
    "encoder.sizes.hidden": auto(int),  # width of the layer for each token
    # Most tokens of a text, or newest items of a sequence, that are read
    "encoder.sizes.positions": auto(int),
    # Of relative positions; 0 for absolute ones alone
    "encoder.sizes.buckets": auto(int),
    "encoder.sizes.epsilon": auto(float),  # of the normalisation
    "encoder.sizes.activation": auto(str),  # of the layer for each token
    "encoder.pooling": auto(str),  # of a text's tokens to its embedding
    "encoder.pooled_layers": 1,  # the mean of so many last ones is pooled
    # A linear map after it, from `sizes.width` to `dim`
    "encoder.projection": auto(bool),
    "encoder.lora_rank": 0,  # above 0: of small matrices beside frozen weights
    "encoder.lora_alpha": 16.0,  # those count lora_alpha / lora_rank
    # What is not trained: "embeddings", or "all" but map and scale
    "encoder.frozen": "none",
    "encoder.layer_decay": 1.0,  # factor on the rate from block to block down
    "encoder.remat": False,  # compute blocks again rather than keep them
    "encoder.dtype": "float32",  # that it computes in
  }


RANGES: checks.Ranges = {
  "encoder.dim": checks.Range(0, 2**20),
  "encoder.hidden": checks.Range(1, 2**20),
  "encoder.feature_dropout": checks.RATE,
  "encoder.embedding_dropout": checks.RATE,
  "encoder.hidden_dropout": checks.RATE,
  "encoder.chunk": checks.Range(0),
  "encoder.init_scale": checks.Range(0, 1e6),
  "encoder.input_scale": checks.Range(0, checks.LARGEST, above=True),
  "encoder.scale": checks.Range(0, 1e6),
  "encoder.image": checks.Range(1),
  "encoder.depth": checks.Range(1, 1024),
  "encoder.stages": checks.Range(1, 16),
  "encoder.patch": checks.Range(1),
  "encoder.heads": checks.Range(1),
  "encoder.shift": checks.Range(0),
  "encoder.sizes.width": checks.Range(1, 2**20),
  "encoder.sizes.depth": checks.Range(1, 1024),
  "encoder.sizes.heads": checks.Range(1, 2**20),
  "encoder.sizes.hidden": checks.Range(1, 2**20),
  "encoder.sizes.positions": checks.Range(1, 2**20),
  "encoder.sizes.buckets": checks.Range(0, 2**10),
  "encoder.sizes.epsilon": checks.Range(1e-30, 1),
  "encoder.pooled_layers": checks.Range(1, 1024),
  "encoder.lora_rank": checks.Range(0, 2**20),
  "encoder.lora_alpha": checks.Range(0, 1e6),
  "encoder.layer_decay": checks.Range(0, 1, above=True),
}


def make(config: ml_collections.ConfigDict, rngs: nnx.Rngs) -> nnx.Module:
  """Builds the encoder of a config that has one.

  Args:
    config: A resolved config; `encoder.dim` is not 0.
    rngs: Source of random keys.

  Returns:
    The encoder of `encoder.type`.
  """
  return ENCODERS[config.encoder.type].make(config, rngs)


def width(config: ml_collections.ConfigDict) -> int:
  """Width D of the embeddings that reach the head."""
  encoder = config.encoder
  return encoder.hidden[-1] if encoder.hidden else encoder.dim


def reads_in_order(config: ml_collections.ConfigDict) -> bool:
  """Whether the order of features counts, which are tokens or items."""
  return config.encoder.type in ("transformer", "causal")


def longest(config: ml_collections.ConfigDict) -> int:
  """Most features of a row that are read; 0 for all."""
  encoder, most = config.encoder, config.data.max_features
  if not reads_in_order(config):
    return most
  return min(most or encoder.sizes.positions, encoder.sizes.positions)


def rates(
  config: ml_collections.ConfigDict,
) -> Callable[[tuple[Any, ...]], float] | None:
  """Factors on the learning rate of the parts of an encoder.

  Returns:
    A function from the names on the way to a parameter, 0 for those that stay
    as they are; None if all are 1.
  """
  encoder = config.encoder
  lora = encoder.lora_rank > 0
  if encoder.type != "transformer" or not (
    lora or encoder.frozen != "none" or encoder.layer_decay < 1
  ):
    return None
  return lambda path: transformer.rate(
    path,
    encoder.sizes.depth,
    decay=encoder.layer_decay,
    frozen="all" if lora else encoder.frozen,
  )


def rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  """Values for fields that are left open."""
  dim, activation, dropout, scale = {
    "network": (1024, "relu", 0.8, 0.0),
    "linear": (0, "", 0.0, 0.0),
    "embedding": (256, "", 0.3, 12.0),
    "image": (256, "", 0.0, 0.0),
    "text": (facts.num_features, "", 0.0, 20.0),
  }[config.family]
  return {
    "encoder.dim": dim,
    "encoder.activation": activation,
    "encoder.embedding_dropout": dropout,
    "encoder.scale": scale,
    "encoder.init": "identity" if config.family == "text" else "normal",
    # A scale that is trained grows beyond what held-out rows like.
    "encoder.fixed_scale": config.family == "text",
    **ENCODERS[config.encoder.type].rules(config, facts),
  }


def measured(config: ml_collections.ConfigDict) -> options.Fields:
  """Values for the rest of them, when features have been measured.

  Adam moves every weight by about the learning rate, however small the features
  are; features of norm 1 would move an embedding too slowly. They are scaled up
  to the norm that as many ones would have.
  """
  data = config.data
  scale = max(1.0, data.features_per_row) ** 0.5 / data.feature_norm
  return {"encoder.input_scale": scale}


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses values that cannot be used.

  Raises:
    ConfigError: Naming the field.
  """
  if not config.encoder.dim and not config.head.wide:
    raise checks.ConfigError(
      "encoder.dim is 0 and head.wide is False: there is nothing to train;"
      " set one of them"
    )
  ENCODERS[config.encoder.type].check(config)


def _make_bag(
  config: ml_collections.ConfigDict, rngs: nnx.Rngs
) -> bag.BagEncoder:
  encoder, data = config.encoder, config.data
  return bag.BagEncoder(
    data.num_features,
    encoder.dim,
    hidden=tuple(encoder.hidden),
    activation=encoder.activation,
    embedding_dropout=encoder.embedding_dropout,
    hidden_dropout=encoder.hidden_dropout,
    std=encoder.init_scale / (encoder.input_scale * data.feature_norm),
    identity=encoder.init == "identity",
    input_scale=encoder.input_scale,
    scale=encoder.scale,
    fixed_scale=bool(encoder.fixed_scale),
    rngs=rngs,
  )


def _check_bag(config: ml_collections.ConfigDict) -> None:
  """Refuses a start at the identity where there is none."""
  width, dim = config.data.num_features, config.encoder.dim
  if config.encoder.init == "identity" and width != dim:
    raise checks.ConfigError(
      f"encoder.init is 'identity', encoder.dim {dim} and features are {width}"
      " wide; set encoder.dim to that, or encoder.init=normal"
    )


def _make_images(
  config: ml_collections.ConfigDict, rngs: nnx.Rngs
) -> image.ImageEncoder:
  return image.make(config.encoder, rngs)


def _image_rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  shape = config.encoder.image
  shape = facts.image if shape is None else tuple(shape)
  large = len(shape) == 3 and min(shape[:2]) >= _LARGE_IMAGE
  if config.encoder.type == "resnet":
    depth, patch = 2, 4 if large else 1
  else:
    depth, patch = 6, 16 if large else 4
  return {
    "encoder.image": shape,
    "encoder.depth": depth,
    "encoder.patch": patch,
  }


def _check_images(config: ml_collections.ConfigDict) -> None:
  """Refuses encoders of images that do not go with the data."""
  data, encoder = config.data, config.encoder
  image, kind, dim = tuple(encoder.image), encoder.type, encoder.dim
  if not data.dense:
    raise checks.ConfigError(
      f"encoder.type is {kind!r}, which reads images, and these features are"
      " sparse; set encoder.type=bag"
    )
  if len(image) != 3 or math.prod(image) != data.num_features:
    raise checks.ConfigError(
      f"encoder.image is {image} and a row has {data.num_features} numbers;"
      " give (height, width, channels) with that product"
    )
  if not dim:
    raise checks.ConfigError(
      f"encoder.dim is {dim}; a {kind!r} has a width: set it"
    )
  if kind == "resnet" and dim % 2 ** (encoder.stages - 1):
    raise checks.ConfigError(
      f"encoder.dim is {dim}; with encoder.stages {encoder.stages} it must be a"
      f" multiple of {2 ** (encoder.stages - 1)}"
    )
  if kind == "vit" and (image[0] % encoder.patch or image[1] % encoder.patch):
    raise checks.ConfigError(
      f"encoder.patch is {encoder.patch}, which does not divide height and"
      f" width of encoder.image {image}"
    )
  if kind == "vit" and dim % encoder.heads:
    raise checks.ConfigError(
      f"encoder.heads is {encoder.heads}, which does not divide encoder.dim"
      f" {dim}"
    )
  if encoder.shift >= min(image[:2]):
    raise checks.ConfigError(
      f"encoder.shift is {encoder.shift}; it must be less than the"
      f" sides of encoder.image {image}"
    )


def _make_transformer(
  config: ml_collections.ConfigDict, rngs: nnx.Rngs
) -> transformer.Transformer:
  encoder, lora = config.encoder, None
  if encoder.lora_rank:
    lora = block.Lora(encoder.lora_rank, encoder.lora_alpha)
  return transformer.Transformer(
    sizes(config),
    encoder.dim if encoder.projection else None,
    pooling=encoder.pooling,
    layers=encoder.pooled_layers,
    hidden_dropout=encoder.hidden_dropout,
    embedding_dropout=encoder.embedding_dropout,
    lora=lora,
    scale=encoder.scale,
    remat=encoder.remat,
    dtype=encoder.dtype,
    rngs=rngs,
  )


def sizes(config: ml_collections.ConfigDict) -> transformer.Sizes:
  """What the parameters of the transformer of a config are made of."""
  return transformer.Sizes(config.data.num_features, **config.encoder.sizes)


def pretrained_weights(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The parameters that the directory of a resolved config has.

  Returns:
    Float32 NumPy arrays, some of the encoder's tree.

  Raises:
    ConfigError: If they are not right, or not those of the config.
  """
  where, ours = config.encoder.pretrained, sizes(config)
  try:
    theirs, found = pretrained.load(where)
  except ValueError as error:
    raise checks.ConfigError(f"encoder.pretrained: {error}") from None
  if theirs._replace(num_tokens=0) != ours._replace(num_tokens=0):
    raise checks.ConfigError(
      f"encoder.pretrained is {where}, which has {theirs}; the fields of"
      f" encoder.sizes say {ours}: leave them out"
    )
  if theirs.num_tokens < ours.num_tokens:
    raise checks.ConfigError(
      f"encoder.pretrained is {where}, which has {theirs.num_tokens} tokens;"
      f" the texts have {ours.num_tokens}: use its tokenizer.json"
    )
  found["tokens"] = found["tokens"][: ours.num_tokens]
  return found


def laid_over(tree: Any, given: Any) -> Any:
  """Parameters with the leaves that are given, a tree of some of them."""
  if not isinstance(given, dict):
    return given
  return {
    name: laid_over(value, given[name]) if name in given else value
    for name, value in tree.items()
  }


def _transformer_rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  """Its sizes, from the directory or for a start at random.

  The directory is read only if they are open: a run that goes on has them.
  """
  encoder, where = config.encoder, config.encoder.pretrained
  if where is None:
    where = config.text.pretrained if facts.text == "tokens" else ""
  width = encoder.sizes.width or 256
  made = transformer.Sizes(0, width, 4, 4, 4 * width, 512)
  pooling = "mean"
  if where and None in dict(encoder.sizes).values():
    try:
      made = pretrained.sizes(where)
      pooling = pretrained.pooling(where)
    except ValueError as error:
      raise checks.ConfigError(f"encoder.pretrained: {error}") from None
  found = {f"encoder.sizes.{k}": v for k, v in made._asdict().items()}
  found.pop("encoder.sizes.num_tokens")
  rate = 2e-5 if where and not encoder.lora_rank else 5e-4
  return {
    **found,
    "encoder.pretrained": where,
    "encoder.pooling": pooling,
    "encoder.dim": made.width,
    "encoder.projection": encoder.dim not in (None, made.width),
    "encoder.embedding_dropout": 0.0,
    # A token counts as it stands.
    "data.weighting": "none",
    "data.l2": False,
    "optim.encoder.learning_rate": rate,
    "train.by_length": True,
  }


def _check_transformer(config: ml_collections.ConfigDict) -> None:
  """Refuses transformers that do not go with the data."""
  data, encoder = config.data, config.encoder
  width, depth = encoder.sizes.width, encoder.sizes.depth
  if data.dense:
    raise checks.ConfigError(
      "encoder.type is 'transformer', which reads tokens, and these features"
      " are dense; set encoder.type=bag"
    )
  causal.check_in_order(config, "tokens")
  if not encoder.dim or (encoder.dim != width and not encoder.projection):
    raise checks.ConfigError(
      f"encoder.dim is {encoder.dim} and encoder.sizes.width {width}; set"
      " encoder.projection=True for a map between them"
    )
  if width % encoder.sizes.heads:
    raise checks.ConfigError(
      f"encoder.sizes.heads is {encoder.sizes.heads}, which does not divide"
      f" encoder.sizes.width {width}"
    )
  most = encoder.sizes.positions
  if data.text == "tokens" and config.text.max_length > most:
    raise checks.ConfigError(
      f"text.max_length is {config.text.max_length} and encoder.sizes.positions"
      f" {most}, the longest text that the encoder reads; allow no more"
    )
  if encoder.pooled_layers > depth:
    raise checks.ConfigError(
      f"encoder.pooled_layers is {encoder.pooled_layers} and"
      f" encoder.sizes.depth {depth}; there are no more"
    )


# By `encoder.type`; made of a resolved config and a source of random keys.
ENCODERS = {
  "bag": options.Option(
    _make_bag,
    reads=(
      "encoder.hidden",
      "encoder.activation",
      "encoder.hidden_dropout",
      "encoder.fixed_scale",
      "encoder.init",
      "encoder.init_scale",
    ),
    check=_check_bag,
  ),
  "resnet": options.Option(
    _make_images,
    reads=(*_OF_IMAGES, "encoder.stages"),
    rules=_image_rules,
    check=_check_images,
  ),
  "vit": options.Option(
    _make_images,
    reads=(*_OF_IMAGES, "encoder.heads"),
    rules=_image_rules,
    check=_check_images,
  ),
  "causal": causal.OPTION,
  "transformer": options.Option(
    _make_transformer,
    reads=(
      "encoder.hidden_dropout",
      "encoder.pretrained",
      *(f"encoder.sizes.{n}" for n in transformer.Sizes._fields[1:]),
      "encoder.pooling",
      "encoder.pooled_layers",
      "encoder.projection",
      "encoder.lora_rank",
      "encoder.lora_alpha",
      "encoder.frozen",
      "encoder.layer_decay",
      "encoder.remat",
      "encoder.dtype",
      "train.by_length",
    ),
    rules=_transformer_rules,
    check=_check_transformer,
  ),
}
CHOICES = {
  "encoder.type": tuple(ENCODERS),
  "encoder.init": ("normal", "identity"),
  "encoder.sizes.activation": tuple(transformer.ACTIVATIONS),
  "encoder.pooling": transformer.POOLINGS,
  "encoder.frozen": ("none", "embeddings", "all"),
  "encoder.dtype": ("float32", "bfloat16"),
  # Functions of `jax.nn` of one number; "" for none.
  "encoder.activation": (
    *("", "relu", "gelu", "silu", "swish", "tanh", "sigmoid", "elu", "selu"),
    *("celu", "leaky_relu", "relu6", "mish", "softplus", "soft_sign"),
    *("hard_tanh", "hard_sigmoid", "hard_silu", "hard_swish", "log_sigmoid"),
    *("squareplus", "identity"),
  ),
}
SWITCHES = (
  options.by_table("encoder.type", ENCODERS),
  # A linear model has no embeddings.
  options.unless(
    "encoder.dim",
    0,
    *ENCODERS["bag"].reads,
    "encoder.embedding_dropout",
    "encoder.input_scale",
    "encoder.scale",
    "encoder.chunk",
  ),
)
