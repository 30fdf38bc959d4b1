"""The section `encoder`, and the encoders that it makes."""

import math

from flax import nnx
import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import families
from xlj.config import options
from xlj.encoders import bag
from xlj.encoders import image

_LARGE_IMAGE = 128  # pixels of the shorter side, from which patches are large
_OF_IMAGES = ("encoder.image", "encoder.depth", "encoder.patch")
_OF_IMAGES += ("encoder.shift", "encoder.flip")


def fields() -> options.Fields:
  """All fields, with None for "decide from the data"."""
  auto = config_dict.placeholder
  return {
    "encoder.type": "bag",  # one of ENCODERS
    "encoder.dim": auto(int),  # width of the bag; 0 for a linear model
    "encoder.hidden": (),  # widths of the layers after it
    # After the bag and each layer; "" for none
    "encoder.activation": auto(str),
    "encoder.feature_dropout": 0.0,
    "encoder.embedding_dropout": auto(float),
    "encoder.hidden_dropout": 0.0,
    "encoder.init": auto(str),  # of the bag: "normal" or "identity"
    # Examples embedded at a time, of which more is kept than the embeddings, on
    # all devices; 0 for the batch. See xlj.ops.gradient_cache
    "encoder.chunk": 0,
    "encoder.init_scale": 0.3,  # standard deviation of the bag at the start
    # Of the features, for the encoder alone
    "encoder.input_scale": auto(float),
    # Above 0: unit embeddings times a scale that starts there, and is trained
    "encoder.scale": auto(float),
    "encoder.fixed_scale": auto(bool),  # or else stays
    # Of "resnet" and "vit", as wide as `dim`:
    "encoder.image": auto(tuple),  # height, width, channels
    "encoder.depth": auto(int),  # blocks, of a resnet those of a stage
    "encoder.stages": 3,  # of a resnet, each half the size and twice the width
    # Side of the patches of a vit; a resnet's first stride
    "encoder.patch": auto(int),
    "encoder.heads": 4,  # of a vit
    "encoder.shift": 0,  # pixels that training images move by at most
    "encoder.flip": False,  # mirror every other training image
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
}
CHOICES = {
  "encoder.type": tuple(ENCODERS),
  "encoder.init": ("normal", "identity"),
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
