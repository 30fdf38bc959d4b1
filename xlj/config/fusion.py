"""The section `fusion`: what helps a run on vectors of texts to answer."""

import ml_collections
from ml_collections import config_dict

from xlj.config import checks
from xlj.config import families
from xlj.config import options

_READ = (
  "fusion.held_out",
  "fusion.candidates",
  "fusion.neighbours",
  "fusion.temperature",
)
CHOICES: dict[str, tuple[str, ...]] = {}
SWITCHES = (options.unless("fusion.with_words", False, *_READ),)


def fields() -> options.Fields:
  """All fields, with None for "decide from the data"."""
  return {
    # Whether a run on the words, training rows nearest to a text and what is
    # said of the labels help to answer; see xlj.inference.fusion
    "fusion.with_words": config_dict.placeholder(bool),
    # Share of the training rows that weights are fitted on
    "fusion.held_out": 0.1,
    "fusion.candidates": 40,  # best labels of each run
    "fusion.neighbours": 20,  # training rows nearest to a text; 0 for none
    "fusion.temperature": 0.05,  # that their cosines are divided by
  }


RANGES: checks.Ranges = {
  "fusion.held_out": checks.Range(0, 1, above=True, below=True),
  "fusion.candidates": checks.Range(1, 2**16),
  "fusion.neighbours": checks.Range(0, 2**16),
  "fusion.temperature": checks.Range(0, above=True),
}


def rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  """Values for fields that are left open.

  That it is on says a config before there is a run (see
  `xlj.training.fusing`): what is resolved alone is a run by itself.
  """
  del config, facts
  return {"fusion.with_words": False}


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses what cannot be fused.

  Raises:
    ConfigError: Naming the field.
  """
  if config.fusion.with_words and config.data.text != "vectors":
    raise checks.ConfigError(
      f"fusion.with_words is True and data.text {config.data.text!r}; words"
      " help vectors: set data.text=vectors and text.pretrained"
    )
