"""Checked configs: what a user asked for, and what the data makes of it.

A config is an `ml_collections.ConfigDict`. Fields that are None are decided
here from facts about the data set, so that a resolved config has no open
field; it is saved with the run and in every checkpoint.
"""

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import config_dict

from xlj.config import check as config_check
from xlj.config import families

FILE = "config.json"
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


Config = config_check.Config
ConfigError = config_check.ConfigError


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
      "family": auto(str),  # whose rules fill open fields; see families.py
      "data": {
        "dir": "",  # where the files are
        "cache_dir": "",  # of the memory maps; empty: beside the files
        # Above 0 the files are text, to predict each word from that many
        # before it; see xlj.data.tokens.
        "context": 0,
        # Instead of files; see xlj.synthetic.generated.
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
        "type": "dense",  # one of HEADS; see xlj.config.make_head
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
        # Of spherical losses; see xlj.losses.spherical.
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
        "remembered": 0,  # estimates kept of each; 0: as many as that,
        "rate": 10.0,  # and their learning rate
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
        # Of "class_balanced": more than 1 / (1 - beta) examples weigh no less.
        "beta": 0.9,
        "adjustment": 0.0,  # of logits, by so many times the log prior
      },
      # A term on the embeddings of a batch; see xlj.losses.range_loss.
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
        # from the same start, for averages; see xlj.averaging.soups.
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


def num_ids(config: ml_collections.ConfigDict) -> int:
  """How many label ids the data of a resolved config have.

  Those of deleted and merged labels, which have no row, are among them (see
  `xlj.labels`).
  """
  return config.data.num_ids or config.data.num_labels


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
  """Fields that differ between two configs and matter to what is learned.

  Args:
    old: One config, nested.
    new: The other.

  Returns:
    Dotted field name to the two values; a missing one is None.
  """
  flat_old, flat_new = (
    dict(config_check.flatten(old)),
    dict(config_check.flatten(new)),
  )
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
  config_check.check_choices(config, {"family": tuple(families.FAMILIES)})
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
  config_check.check(config)
  return config


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
  return [name for name, _ in config_check.flatten(config)]


def to_json(config: ml_collections.ConfigDict) -> str:
  """The config as indented JSON."""
  return json.dumps(config_check.plain(config), indent=2) + "\n"


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
