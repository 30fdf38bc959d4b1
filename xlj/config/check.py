"""What a config may say: refuses values that do not go, alone or together."""

from collections.abc import Iterator, Mapping
import json
import math
from typing import Any

import ml_collections

LOSSES = (
  "softmax",
  "bce",
  "decoupled_softmax",
  "focal",
  "asymmetric",
  "squared_hinge",
)
ENCODERS = ("bag", "resnet", "vit")
HEADS = ("dense", "mhc", "mhs", "mhp", "oltr", "spherical")
PRODUCT_LOSSES = ("softmax", "joint_softmax", "bce")
SPHERICAL_LOSSES = (
  "z_loss",
  "spherical_softmax",
  "taylor_softmax",
  "squared_error",
  "gramian",
)
_LOSSES_OF = {
  "dense": LOSSES + SPHERICAL_LOSSES,
  "mhp": PRODUCT_LOSSES,
  "spherical": SPHERICAL_LOSSES,
}
MISSING = ("an", "wan", "lsan", "iu", "ll_r", "ll_ct", "ll_cp", "role")
NOISY = ("none", "elr", "ps_kd")
OPTIMIZERS = ("sgd", "momentum", "adam", "adagrad", "rowwise_adagrad")

Config = ml_collections.ConfigDict | Mapping[str, Any]


class ConfigError(ValueError):
  """A config that cannot be run; the message names the field."""


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses values that cannot be used.

  Args:
    config: A resolved config.

  Raises:
    ConfigError: Naming the field, its value and what it may be.
  """
  check_choices(
    config,
    {
      "data.weighting": ("auto", "none", "log", "tfidf", "log_tfidf"),
      "encoder.type": ENCODERS,
      "head.type": HEADS,
      "head.loss": _LOSSES_OF.get(config.head.type, LOSSES),
      "head.init": ("normal", "centroid"),
      "optim.decay": ("cosine", "linear", "constant"),
      "optim.encoder.name": OPTIMIZERS,
      "optim.head.name": OPTIMIZERS,
      "head.dtype": ("float32", "bfloat16", "float8"),
      "head.rounding": ("stochastic", "nearest"),
      "head.correction": ("none", "kahan", "master"),
      "head.kernels": ("never", "auto", "interpret"),
      "head.keep_logits": ("", "float16", "bfloat16", "float32"),
      "missing.method": MISSING,
      "noisy.method": NOISY,
      "tail.sampler": ("instance", "class_aware", "square_root"),
      "tail.weights": ("none", "propensity", "class_balanced"),
    },
  )
  values = dict(flatten(config))
  positive = (
    "train.batch_size",
    "train.num_steps",
    "train.log_every",
    "eval.every",
    "eval.batch_size",
    "checkpoint.every",
    "checkpoint.keep",
    "head.blocks",
    "head.prototypes",
  )
  for name in positive:
    if values[name] < 1:
      raise ConfigError(f"{name} is {values[name]}; it must be at least 1")
  rates = (
    "data.validation",
    "encoder.feature_dropout",
    "encoder.embedding_dropout",
    "encoder.hidden_dropout",
    "optim.warmup",
  )
  for name in rates:
    if not 0 <= values[name] < 1:
      raise ConfigError(f"{name} is {values[name]}; it must be in [0, 1)")
  if not config.eval.ks or min(config.eval.ks) < 1:
    raise ConfigError(f"eval.ks is {config.eval.ks}; give cut-offs from 1 up")
  names = [
    f"{kind}@{k}"
    for kind in ("P", "nDCG", "PSP", "PSnDCG", "Recall", "Coverage", "MacroF1")
    for k in config.eval.ks
  ]
  if config.eval.metric not in names:
    raise ConfigError(
      f"eval.metric is {config.eval.metric!r}; use one of {', '.join(names)}"
    )
  for name in (
    "head.max_norm",
    "head.chunk_bytes",
    "head.kahan_labels",
    "head.skip_below",
  ):
    if values[name] < 0:
      raise ConfigError(f"{name} is {values[name]}; it must be at least 0")
  head, encoder = config.head, config.encoder
  if head.prior_bias and not head.use_bias:
    raise ConfigError(
      "head.prior_bias is True but head.use_bias is False; set one of them"
    )
  if head.correction != "none" and head.dtype == "float32":
    raise ConfigError(
      f"head.correction is {head.correction!r}, but head.dtype is 'float32',"
      " which is not rounded; set head.correction=none"
    )
  if not encoder.dim and not head.wide:
    raise ConfigError(
      "encoder.dim is 0 and head.wide is False: there is nothing to train;"
      " set one of them"
    )
  if head.wide and config.data.dense:
    raise ConfigError(
      "head.wide needs sparse features, and these are dense; set"
      " head.wide=False"
    )
  if head.type != "dense":
    _check_heads(config)
  if head.prototypes > 1:
    _check_prototypes(config)
  if config.range.intra or config.range.inter:
    _check_range(config)
  _check_images(config)
  _check_labels(config)
  if head.order == "none" and config.predict.propensity_power:
    raise ConfigError(
      "predict.propensity_power needs counts of labels, and head.order is"
      " 'none'; set it to 0"
    )
  if head.init == "centroid" and not encoder.dim:
    raise ConfigError(
      "head.init is 'centroid' but encoder.dim is 0; there are no embeddings"
    )


def check_divides(config: ml_collections.ConfigDict, num_devices: int) -> None:
  """Refuses what does not divide over the devices.

  Args:
    config: Resolved.
    num_devices: How many there are.

  Raises:
    ConfigError: Naming the field and a value that would do.
  """
  for name, value in (
    ("head.blocks", config.head.blocks),
    ("train.batch_size", config.train.batch_size),
    ("eval.batch_size", config.eval.batch_size),
  ):
    if value % num_devices:
      near = -(-value // num_devices) * num_devices
      raise ConfigError(
        f"{name} is {value}, which {num_devices} devices do not divide; give"
        f" --config.{name}={near}"
      )


def _check_labels(config: ml_collections.ConfigDict) -> None:
  """Refuses remedies for missing, wrong or rare labels that do not go."""
  missing, noisy, tail = config.missing, config.noisy, config.tail
  kind, loss = config.head.type, config.head.loss
  needs = (
    ("missing.method", missing.method, "an", "bce"),
    ("noisy.method", noisy.method, "none", "softmax"),
    ("tail.weights", tail.weights, "none", "bce"),
  )
  chosen = []
  for name, value, nothing, wanted in needs:
    if value == nothing:
      continue
    chosen.append(f"{name}={value}")
    if loss != wanted or kind == "mhp":
      raise ConfigError(
        f"{name} is {value!r}, but head.loss is {loss!r} and head.type is"
        f" {kind!r}; set head.loss={wanted} and another type than mhp"
      )
  if len(chosen) > 1:
    raise ConfigError(f"{' and '.join(chosen)} do not go together; set one")
  if missing.method.startswith("ll_"):
    given = [n for n in ("share", "threshold") if missing[n] > 0]
    if len(given) > 1:
      raise ConfigError("missing.share and missing.threshold: set one of them")
    if missing.method == "ll_cp" and missing.threshold > 0:
      raise ConfigError(
        "missing.threshold does not go with missing.method=ll_cp; set it to 0"
      )
    if kind != "dense" and not missing.threshold > 0:
      raise ConfigError(
        f"missing.method is {missing.method!r} and head.type is {kind!r}, which"
        " sees a part of the labels; set missing.threshold"
      )
    if not (given or missing.per_example > 0):
      raise ConfigError(
        f"missing.per_example is {missing.per_example}; it must be above 0"
      )
  if missing.method == "role":
    if kind != "dense":
      raise ConfigError(
        f"missing.method is 'role' and head.type is {kind!r}; it needs dense"
      )
    if not missing.positives > 0 or missing.remembered < 0:
      raise ConfigError(
        f"missing.positives is {missing.positives}; set it above 0: positives"
        " that an example has on average, observed or not (and"
        f" missing.remembered, {missing.remembered}, to 0 or above)"
      )
  if noisy.method != "none":
    if kind != "dense":
      raise ConfigError(
        f"noisy.method is {noisy.method!r}, which needs head.type=dense"
      )
    if noisy.remembered < 1:
      raise ConfigError(
        f"noisy.remembered is {noisy.remembered}; it must be at least 1"
      )
  if (
    tail.weights != "none" or tail.adjustment
  ) and config.head.order == "none":
    raise ConfigError(
      "tail.weights and tail.adjustment need counts of labels, and head.order"
      " is 'none'; set them to none and 0"
    )
  if (tail.weights != "none" or tail.adjustment) and kind != "dense":
    raise ConfigError(
      f"tail.weights is {tail.weights!r} and tail.adjustment {tail.adjustment},"
      " which need head.type=dense"
    )
  if not 0 <= tail.beta < 1 or not 0 <= noisy.momentum < 1:
    raise ConfigError(
      f"tail.beta is {tail.beta} and noisy.momentum {noisy.momentum}; both must"
      " be in [0, 1)"
    )


def _check_prototypes(config: ml_collections.ConfigDict) -> None:
  """Refuses what does not go with several rows of a label."""
  head, count = config.head, config.data.num_labels
  for name, value, wanted in (
    ("head.type", head.type, ("dense",)),
    ("head.loss", head.loss, ("softmax", "decoupled_softmax")),
    ("head.wide", head.wide, (False,)),
    ("noisy.method", config.noisy.method, ("none",)),
    ("tail.adjustment", config.tail.adjustment, (0.0,)),
  ):
    if value not in wanted:
      raise ConfigError(
        f"head.prototypes is {head.prototypes}, which does not go with {name}"
        f" {value!r}; use {' or '.join(map(repr, wanted))}, or"
        " head.prototypes=1"
      )
  if not 1 <= head.prototype_labels <= count:
    raise ConfigError(
      f"head.prototype_labels is {head.prototype_labels}; it must be in [1,"
      f" {count}]"
    )


def _check_heads(config: ml_collections.ConfigDict) -> None:
  """Refuses what heads other than the dense one cannot use."""
  head, kind = config.head, config.head.type
  if head.wide or not config.encoder.dim:
    raise ConfigError(
      f"head.type is {kind!r}, which needs embeddings and has no linear"
      " weights; set head.wide=False and encoder.dim, or family='embedding'"
    )
  if kind in ("mhc", "mhs"):
    if not head.groups or min(head.groups) < 1:
      raise ConfigError(f"head.groups is {tuple(head.groups)}; give numbers")
    if head.groups[-1] > config.data.num_labels:
      raise ConfigError(
        f"head.groups is {tuple(head.groups)} for {config.data.num_labels}"
        " labels; use fewer groups"
      )
  if kind == "oltr":
    _check_oltr(config)
  if kind == "spherical":
    _check_spherical(config)
  if kind == "mhp":
    if head.init == "centroid":
      raise ConfigError("head.init is 'centroid'; 'mhp' has no label rows")
    if config.predict.propensity_power:
      raise ConfigError(
        "predict.propensity_power shifts the score of each label, which 'mhp'"
        " never forms; set it to 0"
      )
    if config.data.max_labels != 1 and not config.data.single_label:
      raise ConfigError(
        "head.type is 'mhp', which is for one label per example, and some"
        " rows have more; set data.max_labels=1 to train with the first of each"
      )


def _check_spherical(config: ml_collections.ConfigDict) -> None:
  """Refuses what steps in factored form cannot have."""
  values = dict(flatten(config))
  for name, wanted in (
    ("optim.head.name", "sgd"),
    ("head.dtype", "float32"),
    ("head.use_bias", False),
    ("head.cosine", False),
    ("head.max_norm", 0.0),
    ("head.skip_below", 0.0),
  ):
    if values[name] != wanted:
      raise ConfigError(
        f"{name} is {values[name]!r}, but head.type is 'spherical', whose steps"
        f" cost nothing per label only with {name}={wanted}; set that, or"
        " head.type=dense, which has the same losses"
      )
  if config.head.refactor_every < 1:
    raise ConfigError(
      f"head.refactor_every is {config.head.refactor_every}; it must be at"
      " least 1"
    )
  if not 0 < config.head.curvature_rate <= 1:
    raise ConfigError(
      f"head.curvature_rate is {config.head.curvature_rate}; it must be in"
      " (0, 1]"
    )


def _check_range(config: ml_collections.ConfigDict) -> None:
  """Refuses a range loss of what has no embeddings, or no one label."""
  values = config.range
  for name in ("intra", "inter", "margin"):
    if values[name] < 0:
      raise ConfigError(
        f"range.{name} is {values[name]}; it must be at least 0"
      )
  if values.farthest < 1:
    raise ConfigError(
      f"range.farthest is {values.farthest}; it must be at least 1"
    )
  if not config.encoder.dim:
    raise ConfigError(
      f"range.intra is {values.intra} and range.inter {values.inter}, which"
      " need embeddings, and encoder.dim is 0; set it"
    )
  if config.data.max_labels != 1 and not config.data.single_label:
    raise ConfigError(
      f"range.intra is {values.intra} and range.inter {values.inter}, which are"
      " for one label per example, and some rows have more; set"
      " data.max_labels=1 to train with the first of each"
    )


def _check_oltr(config: ml_collections.ConfigDict) -> None:
  """Refuses what the open long-tailed head cannot use."""
  head, oltr = config.head, config.oltr
  for name, value, wanted in (
    ("loss", head.loss, "softmax"),
    ("cosine", head.cosine, True),
    ("prior_bias", head.prior_bias, False),
  ):
    if value != wanted:
      raise ConfigError(
        f"head.{name} is {value!r} and head.type is 'oltr'; set it to"
        f" {wanted!r}"
      )
  if oltr.tied and head.dtype != "float32":
    raise ConfigError(
      f"oltr.tied is True and head.dtype is {head.dtype!r}; set it to 'float32'"
    )
  if oltr.tied and oltr.recentre_every:
    raise ConfigError(
      f"oltr.recentre_every is {oltr.recentre_every}, which would replace the"
      " label rows where oltr.tied is True; set one of them"
    )
  for name in (
    "attend_to",
    "scale",
    "centre_weight",
    "recentre_every",
    "repel_weight",
    "margin",
  ):
    if oltr[name] < 0:
      raise ConfigError(f"oltr.{name} is {oltr[name]}; it must be at least 0")
  if not oltr.reach > 0 or not 0 <= oltr.centre_rate <= 1:
    raise ConfigError(
      f"oltr.reach is {oltr.reach} and oltr.centre_rate {oltr.centre_rate};"
      " give a number above 0, and one from 0 to 1"
    )


def _check_images(config: ml_collections.ConfigDict) -> None:
  """Refuses encoders of images that do not go with the data."""
  data, encoder = config.data, config.encoder
  image, kind, dim = tuple(encoder.image), encoder.type, encoder.dim
  if kind == "bag":
    if encoder.shift or encoder.flip:
      raise ConfigError(
        f"encoder.shift is {encoder.shift} and encoder.flip {encoder.flip}, but"
        " encoder.type is 'bag', which reads no images; set it to resnet or vit"
      )
    return
  if not data.dense:
    raise ConfigError(
      f"encoder.type is {kind!r}, which reads images, and these features are"
      " sparse; set encoder.type=bag"
    )
  if len(image) != 3 or min(image) < 1 or math.prod(image) != data.num_features:
    raise ConfigError(
      f"encoder.image is {image} and a row has {data.num_features} numbers;"
      " give (height, width, channels) with that product"
    )
  if not dim or encoder.hidden or encoder.hidden_dropout:
    raise ConfigError(
      f"encoder.dim is {dim}, encoder.hidden {tuple(encoder.hidden)} and"
      f" encoder.hidden_dropout {encoder.hidden_dropout}; a {kind!r} has a"
      " width and no hidden layers: set encoder.dim, and not the others"
    )
  for name in ("depth", "stages", "patch", "heads"):
    if encoder[name] < 1:
      raise ConfigError(
        f"encoder.{name} is {encoder[name]}; it must be at least 1"
      )
  if kind == "resnet" and dim % 2 ** (encoder.stages - 1):
    raise ConfigError(
      f"encoder.dim is {dim}; with encoder.stages {encoder.stages} it must be a"
      f" multiple of {2 ** (encoder.stages - 1)}"
    )
  if kind == "vit" and (image[0] % encoder.patch or image[1] % encoder.patch):
    raise ConfigError(
      f"encoder.patch is {encoder.patch}, which does not divide height and"
      f" width of encoder.image {image}"
    )
  if kind == "vit" and dim % encoder.heads:
    raise ConfigError(
      f"encoder.heads is {encoder.heads}, which does not divide encoder.dim"
      f" {dim}"
    )
  if not 0 <= encoder.shift < min(image[:2]):
    raise ConfigError(
      f"encoder.shift is {encoder.shift}; it must be at least 0 and less than"
      f" the sides of encoder.image {image}"
    )


def check_choices(
  config: ml_collections.ConfigDict, choices: Mapping[str, tuple[str, ...]]
) -> None:
  """Refuses values of fields, by dotted name, beside the given ones.

  Raises:
    ConfigError: Naming the field, its value and what it may be.
  """
  values = dict(flatten(config))
  for name, allowed in choices.items():
    if values[name] not in allowed:
      raise ConfigError(f"{name} is {values[name]!r}; use one of {allowed}")


def flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """The fields of a config with their dotted names."""
  for key, value in plain(config).items():
    if isinstance(value, dict):
      yield from flatten(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def plain(config: Any) -> Any:
  """ConfigDicts to dicts and tuples to lists, as JSON would."""
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  return json.loads(json.dumps(config))
