"""Checked configs: what a user asked for, and what the data makes of it.

A config is an `ml_collections.ConfigDict`. Fields that are None are decided
here from facts about the data set, so that a resolved config has no open
field; it is saved with the run and in every checkpoint.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import math
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import config_dict

from xlj import families

FILE = "config.json"
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

# Fields that may differ between a run and its continuation: they do not
# change what is learned.
_FREE = (
  "data.dir",
  "data.cache_dir",
  "data.threads",
  "mesh.shape",
  "head.chunk_bytes",
  "head.beam",
  "head.kernels",
  "train.log_every",
  "eval.ks",
  "eval.every",
  "checkpoint.every",
  "checkpoint.keep",
  "checkpoint.keep_every",
  "checkpoint.dir",
  "train.skip_nonfinite",
  "data.verify",
)


Config = ml_collections.ConfigDict | Mapping[str, Any]


class ConfigError(ValueError):
  """A config that cannot be run; the message names the field."""


def base() -> ml_collections.ConfigDict:
  """The default config: every field, with None for "decide from the data"."""
  # One placeholder per field: fields that share one share their value.
  auto = config_dict.placeholder

  def optimizer() -> dict[str, Any]:
    return {
      # "sgd", "momentum", "adam", "adagrad" or "rowwise_adagrad"
      "name": auto(str),
      "learning_rate": auto(float),  # peak
      "weight_decay": 0.0,  # decoupled
      "b1": 0.9,
      "b2": 0.999,
      "eps": 1e-8,
    }

  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "family": auto(str),  # whose rules fill open fields; see xlj.families
      "data": {
        "dir": "",  # where the files are
        "cache_dir": "",  # of the memory maps; empty: beside the files
        # Above 0 the files are text, to predict each word from that many
        # before it; see xlj.data.tokens.
        "context": 0,
        # Instead of files; see xlj.data.generated.
        "generator": {
          "rows": 0,  # of the training split; 0 for files
          "test_rows": 10_000,
          "factors": (),  # values of the digits of a label
          "features": 128,
          "noise": 1.0,
          "skew": 0.0,  # of the digits; 0 for uniform
          "seed": 0,
        },
        "validation": 0.05,  # share of the training rows held out
        "weighting": auto(str),  # "none", "log", "tfidf" or "log_tfidf"
        "l2": auto(bool),  # scale each row of features to length 1
        "max_features": 0,  # most features a row keeps; 0 for all
        "max_labels": 0,  # most labels a training row keeps; 0 for all
        "propensity_a": 0.55,  # Jain et al. 2016
        "propensity_b": 1.5,
        "threads": 1,  # that read ahead
        "verify": True,  # compare the memory maps with their checksums
        # Facts, filled in from the training split:
        "num_rows": auto(int),
        "num_features": auto(int),
        "num_labels": auto(int),
        # Label ids, where some have no row (see xlj.labels); 0: all have one.
        "num_ids": 0,
        "dense": auto(bool),
        "fingerprint": auto(str),
        "feature_norm": auto(float),  # root of the mean squared row norm
        "features_per_row": auto(float),
        "single_label": auto(bool),  # whether no row has more than one label
      },
      "encoder": {
        "type": "bag",  # one of ENCODERS; see xlj.encoders
        "dim": auto(int),  # width of the bag; 0 for a linear model
        "hidden": (),  # widths of the layers after it
        "activation": auto(str),  # after the bag and each layer; "" for none
        "feature_dropout": 0.0,
        "embedding_dropout": auto(float),
        "hidden_dropout": 0.0,
        "init_scale": 0.3,  # standard deviation of the bag at the start
        "input_scale": auto(float),  # of the features, for the encoder alone
        "scale": auto(float),  # > 0: unit embeddings times a trained scale
        # Of "resnet" and "vit", as wide as `dim`; 0: decided from the data.
        "image": (),  # height, width, channels; empty: as in the files
        "depth": 0,  # blocks, of a resnet those of a stage
        "stages": 3,  # of a resnet, each at half the size and twice the width
        "patch": 0,  # side of the patches of a vit; a resnet's first stride
        "heads": 4,  # of a vit
        "shift": 0,  # pixels that training images move by at most
        "flip": False,  # mirror every other training image
      },
      "head": {
        "type": "dense",  # one of HEADS; see xlj.make_head
        # How labels are numbered for the head: "frequency", "clusters",
        # "identity", "none" (identity, and nothing is kept of each label), or
        # a file with one label of the data set in each line.
        "order": auto(str),
        "loss": auto(str),  # one of LOSSES
        "wide": auto(bool),  # add linear weights from features to labels
        "cosine": auto(bool),  # label rows count by their direction alone
        "init": auto(str),  # "normal" or "centroid"
        "init_scale": auto(float),  # of the label rows
        "use_bias": True,  # whether labels have a bias
        "prior_bias": auto(bool),  # biases start at the labels' log odds
        "bias": auto(float),  # where they start otherwise
        "wide_labels": auto(int),  # only the most frequent ones; 0 for all
        "blocks": 64,  # of label rows; a multiple of the number of devices
        "dtype": "float32",  # of the label rows, or "bfloat16" or "float8"
        "rounding": "stochastic",  # of narrow rows, or "nearest"
        # Of their rounding: "kahan" keeps what it took off, "master" keeps
        # float32 rows beside them.
        "correction": "none",
        "kahan_labels": 0,  # only the most frequent ones; 0 for all
        "max_norm": 0.0,  # greatest length of a label row; 0 for none
        "chunk_bytes": 0,  # of temporaries of a step; 0 for the default
        # Chunks of labels whose gradients are all smaller are left out
        "skip_below": 0.0,
        # "auto" for kernels on CUDA devices where they apply, not yet measured
        # there; "never" for XLA alone; "interpret" to try them anywhere.
        "kernels": "never",
        "keep_logits": "",  # between the passes of a step, as "float16" say
        # Rows of each of the first labels, the most frequent ones; see
        # xlj.heads.prototypes
        "prototypes": 1,
        "prototype_labels": 0,  # how many labels; 0: a tenth of them
        # Of "mhc" and "mhs"; empty or 0: decided from the data.
        "groups": (),  # nodes of each level above the labels
        "candidates": 0,  # groups whose labels an example is trained with
        "beam": 0,  # groups whose labels prediction scores; 0: as many
        "sample_groups": 0,  # of "mhs": how many a step visits
        "hard_groups": 0,  # of them chosen as hard negatives
        # Of spherical losses; see xlj.ops.spherical_loss.
        "z_sharpness": 1.0,
        # Deviations that a positive has to reach; 0: those that 5 normal ones
        # of all labels exceed
        "z_threshold": 0.0,
        "gramian_weight": 10.0,
        # Of "spherical"; see xlj.heads.spherical.
        "refactor_every": 1000,  # steps
        "curvature_rate": 1.0,  # of its running mean; 1: of a step alone
        # Of "mhp":
        "digits": 2,  # of a label, if their lengths are not given
        "lengths": (),  # numbers of values of the digits
        "components": 1,  # products that are mixed
      },
      # Of head.type "oltr"; see xlj.heads.oltr.
      "oltr": {
        "tied": False,  # label rows are the memory
        "own_keys": True,  # that are trained; or the memory is its own key
        "attend_to": 0,  # the best so many keys; 0 for all
        "scale": 0.0,  # of cosine logits; 0: by the number of labels
        "reach": 10.0,
        "centre_weight": 0.01,
        "centre_rate": 0.01,
        "recentre_every": 0.0,  # epochs; the memory is all examples' means then
        "repel_weight": 0.01,
        "margin": 10.0,
      },
      # Labels that are missing: what an unobserved one counts for.
      "missing": {
        # "an": a negative; "wan", "lsan", "iu": see losses.assume_negative;
        # "ll_r", "ll_ct", "ll_cp": see losses.large_loss; "role": losses.role
        "method": "an",
        # Of the "ll_" ones: labels to modify in a step, grown each epoch, ...
        "per_example": 0.2,  # of each example
        "share": 0.0,  # or of all labels of a batch, if above 0
        # ... or from which loss on, if above 0, less by `decay` each epoch
        "threshold": 0.0,
        "decay": 0.0,
        "smoothing": 0.1,  # of "lsan"
        # Of "role": positives of an example on average, observed or not,
        "positives": 0.0,
        "remembered": 0,  # estimates kept of each training example; 0: all,
        "rate": 1.0,  # and their learning rate
      },
      # Labels that are wrong; see losses.remembered.
      "noisy": {
        "method": "none",  # "elr" or "ps_kd"
        "remembered": 16,  # labels of each training example
        "strength": 3.0,  # of "elr"
        "momentum": 0.7,  # of "elr"
        "last": 0.8,  # of "ps_kd"
      },
      # Labels that are rare.
      "tail": {
        # How examples are drawn: "instance", "class_aware" or "square_root"
        "sampler": "instance",
        # Of positives: "none", "propensity" or "class_balanced"
        "weights": "none",
        "beta": 0.999,  # of "class_balanced"
        "adjustment": 0.0,  # of logits, by so many times the log prior
      },
      # A term on the embeddings of a batch; see xlj.ops.range_loss.
      "range": {
        "intra": 0.0,  # weight of the widest pairs of each label
        "inter": 0.0,  # weight of the two nearest labels
        "margin": 1.0,  # squared distance of those
        "farthest": 2,  # pairs of a label
      },
      "optim": {
        "warmup": auto(float),  # share of the steps
        "decay": auto(str),  # "cosine", "linear" or "constant"
        "encoder": optimizer(),
        "head": optimizer(),
        # SGD on the features seen; a rate for the sum over the batch
        "wide": {"learning_rate": auto(float)},
      },
      "train": {
        "batch_size": auto(int),
        "epochs": auto(float),
        "num_steps": auto(int),  # given: replaces epochs
        # Added to the seed for the order of batches and dropout: another run
        # from the same start, for averages; see xlj.soups.
        "shuffle": 0,
        # Working directory of a run whose encoder (and, for "oltr", rows) to
        # start with: a first stage.
        "start_from": "",
        "log_every": 20,  # steps between lines of metrics.jsonl
        # Batches that may be left out because their loss is not finite
        "skip_nonfinite": 0,
      },
      "eval": {
        "every": auto(int),  # steps between validations
        "batch_size": 512,
        "ks": (1, 3, 5),  # cut-offs of the metrics
        "metric": "P@1",  # that the best checkpoint is chosen by
      },
      "checkpoint": {
        "every": auto(int),  # steps between checkpoints
        "keep": 2,  # newest ones kept, besides the best
        "keep_every": 0,  # steps of those that are always kept; 0 for none
        # Directory or bucket (gs://, s3://); empty: in the working directory
        "dir": "",
      },
      "predict": {
        "propensity_power": auto(
          float
        ),  # adds power * log(1 / propensity) to logits
      },
      "mesh": {"shape": ()},  # (data, label); empty: all devices
    }
  )


def parse_arg(
  arg: str | None, choices: Sequence[str], **defaults: str
) -> dict[str, str]:
  """Parses what follows the colon in `--config=file.py:NAME,key=value`.

  Args:
    arg: The text, e.g. "bibtex,objective=psp"; may be empty.
    choices: Names that may come first.
    **defaults: Keys that may follow, and their values if they do not.

  Returns:
    `defaults` with the given values, and `name`, "" if there is none.

  Raises:
    ConfigError: On an unknown name or key.
  """
  found = {"name": "", **defaults}
  for i, part in enumerate(filter(None, (arg or "").split(","))):
    key, equals, value = part.partition("=")
    if not equals and i == 0 and key in choices:
      found["name"] = key
    elif equals and key in defaults:
      found[key] = value
    else:
      raise ConfigError(
        f"{part!r} is not known here; names: {', '.join(choices)}; keys:"
        f" {', '.join(defaults) or 'none'}"
      )
  return found


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
  """Fields that differ between two configs and matter to what is learned.

  Args:
    old: One config, nested.
    new: The other.

  Returns:
    Dotted field name to the two values; a missing one is None.
  """
  flat_old, flat_new = dict(_flatten(old)), dict(_flatten(new))
  return {
    name: (flat_old.get(name), flat_new.get(name))
    for name in sorted(flat_old.keys() | flat_new.keys())
    if flat_old.get(name) != flat_new.get(name) and name not in _FREE
  }


def resolve(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> ml_collections.ConfigDict:
  """Decides the open fields from the data and checks all of them.

  Args:
    config: A config with the fields of `base()`; None where open.
    facts: About the training split.

  Returns:
    A new config without open fields.

  Raises:
    ConfigError: If a field cannot be used; the message names it.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  data, train = config.data, config.train
  data.num_rows = facts.num_rows
  data.num_features = facts.num_features
  data.num_labels = facts.num_labels
  data.dense = facts.dense
  data.fingerprint = facts.fingerprint
  data.single_label = facts.labels_per_row <= 1
  for name, value in families.encoder_rules(facts, config.encoder).items():
    if config.encoder[name] in (0, ()):
      config.encoder[name] = value
  if config.family is None:
    config.family = families.choose(
      facts, config.head.type, config.encoder.type
    )
  _check_choices(config, {"family": tuple(families.FAMILIES)})
  for name, value in families.head_rules(facts, config.head).items():
    if config.head[name] in (None, 0, ()) and config.head[name] is not False:
      config.head[name] = value
  if config.head.type == "spherical":
    if config.optim.head.name is None:
      config.optim.head.name = "sgd"  # no other goes
    if config.optim.head.learning_rate is None:
      # The gradient of the Z-loss is small where rows are large.
      rate = 30.0 if config.head.loss == "z_loss" else 1.0
      config.optim.head.learning_rate = rate
  for part, rules in families.rules(facts, config.family).items():
    section = config
    for name in part.split("."):
      section = section[name]
    for name, value in rules.items():
      if section[name] is None:
        section[name] = value
  train_rows = facts.num_rows - round(data.validation * facts.num_rows)
  if train.num_steps is None:
    train.num_steps = max(
      1, round(train.epochs * train_rows / max(train.batch_size, 1))
    )
  # Linear weights are large: saving them often would cost more than training.
  parts = 2 if config.family == "linear" else 5
  for section in (config.eval, config.checkpoint):
    if section.every is None:
      section.every = max(1, -(-train.num_steps // parts))
  check(config)
  return config


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses values that cannot be used.

  Args:
    config: A resolved config.

  Raises:
    ConfigError: Naming the field, its value and what it may be.
  """
  _check_choices(
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
  values = dict(_flatten(config))
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
  values = dict(_flatten(config))
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


def _check_choices(
  config: ml_collections.ConfigDict, choices: Mapping[str, tuple[str, ...]]
) -> None:
  values = dict(_flatten(config))
  for name, allowed in choices.items():
    if values[name] not in allowed:
      raise ConfigError(f"{name} is {values[name]!r}; use one of {allowed}")


def check_same_run(
  old: ml_collections.ConfigDict,
  new: ml_collections.ConfigDict,
  workdir: str | Path,
) -> None:
  """Refuses to continue a run with another config.

  Args:
    old: The config of the run.
    new: The config asked for, resolved.
    workdir: Directory of the run, for the message.

  Raises:
    ConfigError: Listing the fields that differ.
  """
  found = differences(old, new)
  if found:
    lines = [
      f"{name}: {a!r} there, {b!r} now" for name, (a, b) in found.items()
    ]
    raise ConfigError(
      f"{workdir} holds a run with another config ({'; '.join(lines)});"
      " use another --workdir, or the same config to continue it"
    )


def field_names(config: ml_collections.ConfigDict) -> list[str]:
  """Dotted names of all fields, those of open ones included."""
  return [name for name, _ in _flatten(config)]


def to_json(config: ml_collections.ConfigDict) -> str:
  """The config as indented JSON."""
  return json.dumps(_plain(config), indent=2) + "\n"


def load(path: str | Path) -> ml_collections.ConfigDict:
  """Reads a config written by `to_json`.

  Args:
    path: The JSON file.

  Returns:
    The config; fields that did not exist when it was written are as in `base`.

  Raises:
    ConfigError: If the file is missing or is not JSON.
  """
  try:
    saved = json.loads(Path(path).read_text())
    return ml_collections.ConfigDict(_filled(saved, base().to_dict()))
  except FileNotFoundError:
    raise ConfigError(
      f"{path} does not exist; is this the working directory of a run?"
    ) from None
  except json.JSONDecodeError as error:
    raise ConfigError(f"{path} is not a JSON config: {error}") from None


def _filled(saved: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
  """The saved fields, and the default of those that are not there."""
  filled = {**default, **saved}
  for name, value in default.items():
    if isinstance(value, dict) and isinstance(filled[name], dict):
      filled[name] = _filled(filled[name], value)
  return filled


def _plain(config: Any) -> Any:
  """ConfigDicts to dicts and tuples to lists, as JSON would."""
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  return json.loads(json.dumps(config))


def _flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in _plain(config).items():
    if isinstance(value, dict):
      yield from _flatten(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value
