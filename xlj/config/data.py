"""The section `data`: where the data are, how they are read, facts of them."""

from collections.abc import Callable
import dataclasses

import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import families
from xlj.config import options
from xlj.data import checks as checks_lib
from xlj.data import user_items
from xlj.data import weighting

_MANY_ROWS = 20_000  # from which some of a network's are held out
# Not of dense features.
_OF_SPARSE = ("data.weighting", "data.l2", "data.max_features", "data.renumber")
_OF_GENERATED = (
  "data.generator.test_rows",
  "data.generator.factors",
  "data.generator.features",
  "data.generator.noise",
  "data.generator.skew",
  "data.generator.seed",
)
CHOICES = {
  "data.weighting": weighting.KINDS,
  "data.duplicates": checks_lib.DUPLICATES,
  "data.interactions.split": user_items.KINDS,
}
SWITCHES = (
  options.unless("data.dense", True, *_OF_SPARSE),
  options.unless("data.generator.rows", 0, *_OF_GENERATED),
)


@dataclasses.dataclass(frozen=True)
class Measured:
  """What is measured of features once their weighting is known.

  Attributes:
    weighting: The weighting that was chosen, one of `data.weighting`.
    l2: Whether it scales each row to length 1.
    feature_norm: Root of the mean squared norm of weighted rows.
    features_per_row: Mean number of non-zero features of a row.
    effective_features: How many features of the same value would have the
      spread that a row has: the geometric mean over rows of
      `(sum x^2)^2 / sum x^4`.
  """

  weighting: str
  l2: bool
  feature_norm: float
  features_per_row: float
  effective_features: float


Measure = Callable[[ml_collections.ConfigDict], Measured]


def fields() -> options.Fields:
  """All fields, with None for "decide from the data"."""
  auto = config_dict.placeholder
  return {
    "data.dir": "",  # directory of the files
    "data.cache_dir": "",  # of the memory maps; empty: beside the files
    # Above 0 the files are text, to predict each word from that many
    # before it; see xlj.data.tokens
    "data.context": 0,
    # NAME of a file NAME.txt of sequences, a line `user item item ...` for each
    # user; see xlj.data.sequences. Empty: it is no such set
    "data.sequences": "",
    # What is held out of interactions.csv (.tsv, .txt, .parquet): "ratio" of
    # each user's items, "time" the newest of all, "last" the newest of each
    # user; see xlj.data.user_items
    "data.interactions.split": "ratio",
    # Share of the interactions for the test split; of "last" any is one item
    "data.interactions.test": 0.2,
    # Likewise for validation, of the rest; 0 for none
    "data.interactions.validation": 0.0,
    # Whether the file has a line `user item item ...` for each user
    "data.interactions.lists": False,
    # Rows of a training split that is generated in place of files, see
    # xlj.synthetic.generated; 0 for files
    "data.generator.rows": 0,
    "data.generator.test_rows": 10_000,  # rows of the test split
    "data.generator.factors": (),  # values of the digits of a label
    "data.generator.features": 128,  # width of the dense features
    "data.generator.noise": 1.0,  # standard deviation, of features
    "data.generator.skew": 0.0,  # of the digits; 0 for uniform
    "data.generator.seed": 0,  # of what is generated
    "data.zero_based": True,  # False: the text counts features from 1
    # What becomes of ids twice in a row: "refuse", "sum" (of values) or "first"
    "data.duplicates": "refuse",
    # Column of NAME_trSplit.txt and NAME_tstSplit.txt, the first is 1
    "data.split": 1,
    "data.validation": auto(float),  # share of the training rows held out
    "data.weighting": auto(str),  # what values of sparse features become
    "data.l2": auto(bool),  # scale each row of features to length 1
    # Number ids that are large, but few, as the training split has them
    "data.renumber": False,
    "data.max_features": 0,  # most features a row keeps; 0 for all
    "data.max_labels": 0,  # most labels a training row keeps; 0 for all
    "data.propensity_a": 0.55,  # A of propensities, as in Jain et al. 2016
    "data.propensity_b": 1.5,  # B of propensities
    "data.threads": 1,  # threads that read ahead
    "data.verify": True,  # compare the memory maps with their checksums
    # Facts, filled in from the training split:
    "data.num_rows": auto(int),  # a fact: rows of the training split
    "data.num_features": auto(int),  # a fact: features
    "data.num_labels": auto(int),  # a fact: labels
    # A fact: label ids, where some have no row (see xlj.labels); 0: all have
    "data.num_ids": 0,
    # Whether labels are written as names, beside features; open: whether the
    # first one is
    "data.named_labels": auto(bool),
    "data.dense": auto(bool),  # a fact: whether features are dense
    "data.fingerprint": auto(str),  # a fact: a hash of the data
    # A fact: root of the mean squared length of a row
    "data.feature_norm": auto(float),
    "data.features_per_row": auto(float),  # a fact: their mean
    # A fact: as many of one value would spread as the features of a row do
    "data.effective_features": auto(float),
    # A fact: whether no row has more than one label
    "data.single_label": auto(bool),
  }


RANGES: checks.Ranges = {
  "data.context": checks.Range(0, 4096),
  "data.interactions.test": checks.RATE,
  "data.interactions.validation": checks.RATE,
  "data.split": checks.Range(1),
  "data.generator.rows": checks.Range(0),
  "data.generator.test_rows": checks.Range(1),
  "data.generator.factors": checks.Range(1),
  "data.generator.features": checks.Range(1, 2**20),
  "data.generator.noise": checks.Range(0, 1e6),
  "data.generator.skew": checks.Range(0, 100),
  "data.generator.seed": checks.Range(0),
  "data.validation": checks.RATE,
  "data.max_features": checks.Range(0),
  "data.max_labels": checks.Range(0),
  # In which no propensity of 32 bits is 0 or infinite.
  "data.propensity_a": checks.Range(0, 5),
  "data.propensity_b": checks.Range(0.01, 100),
  "data.threads": checks.Range(1, 1024),
  "data.num_rows": checks.Range(1, 2**62),
  "data.num_features": checks.Range(0),
  "data.num_labels": checks.Range(1, 2**62),  # see xlj.planning
  "data.num_ids": checks.Range(0, 2**62),
  "data.feature_norm": checks.Range(0, checks.LARGEST, above=True),
  "data.features_per_row": checks.Range(0),
  "data.effective_features": checks.Range(0, above=True),
}


def state_facts(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> None:
  """Writes the facts about the training split into a config."""
  names = ("num_rows", "num_features", "num_labels", "dense", "fingerprint")
  names += ("text",)
  config.data.update({name: getattr(facts, name) for name in names})
  config.data.named_labels = facts.named_labels
  config.data.single_label = facts.labels_per_row <= 1


def rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  """Values for fields that are left open, before features are measured."""
  # Of many labels most have few examples, and none to spare; linear models need
  # no rows to choose the best step by. Nor do networks whose rate falls to 0,
  # and a twentieth of few rows would not tell steps apart.
  linear = config.family == "linear"
  few = config.family == "network" and facts.num_rows < _MANY_ROWS
  own = config.data.sequences or facts.own_validation
  none = linear or few or config.family == "text" or own
  found: options.Fields = {"data.validation": 0.0 if none else 0.05}
  if linear:  # A step by a row of many times the mean norm would overshoot.
    found["data.l2"] = True
  if config.family == "network" and facts.kind == "binary":
    found["data.weighting"] = "none"
  return found


def measured(
  config: ml_collections.ConfigDict,
  facts: families.DataFacts,
  measure: Measure | None,
) -> options.Fields:
  """Values for the rest of them, from the features if they can be read."""
  if measure is None:  # Features of length 1, as they are.
    per_row = facts.features_per_row
    found = Measured("none", False, 1.0, per_row, max(per_row, 1.0))
  else:
    found = measure(config)
  return {f"data.{k}": value for k, value in vars(found).items()}


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses values that cannot be used.

  Raises:
    ConfigError: Naming the field.
  """
  data = config.data
  if data.renumber and (data.context or data.generator.rows):
    raise checks.ConfigError(
      "data.renumber is True, and neither words (data.context) nor generated"
      " rows (data.generator.rows) have ids to number; leave it out"
    )
  if data.sequences and (data.validation or data.context or data.renumber):
    raise checks.ConfigError(
      f"data.sequences is {data.sequences!r}, of which each user has an item"
      " for validation, and ids are the file's; leave out data.validation"
      f" {data.validation}, data.context {data.context} and data.renumber"
      f" {data.renumber}"
    )
  if not train_rows(config):
    raise checks.ConfigError(
      f"data.validation is {data.validation}, which leaves none of"
      f" {data.num_rows} rows to train on; set it to 0 or less than"
      f" {1 - 0.5 / data.num_rows:.3g}"
    )


def train_rows(config: ml_collections.ConfigDict) -> int:
  """How many rows there are to train on."""
  data = config.data
  return data.num_rows - round(data.validation * data.num_rows)


def has_one_label(config: ml_collections.ConfigDict) -> bool:
  """Whether each training row has one label at most."""
  return config.data.max_labels == 1 or config.data.single_label
