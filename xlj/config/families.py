"""Families of models, whose rules fill what a config leaves open.

"network" is for few labels: one wide hidden layer with strong dropout.
"linear" is for many: weights of the features and labels that meet, few passes
at a high rate; most labels are rare then, and networks overfit them.
"embedding" is for so many pairs that linear weights do not fit, and for dense
features with many labels: unit embeddings against unit label rows that start at
centroids. "image" is for encoders of images and of sequences, and brings
nothing but what the encoder does. "text" is for embeddings of texts by a
pretrained encoder: a map that starts as the identity, and unit label rows that
start at what is said of the labels, where that tells them apart.

What each says of a field stands with the field. The figures are those that
validation splits preferred on several data sets. Networks and embeddings add
the log of the inverse propensity to the logits when they predict, which serves
rare labels.
"""

import dataclasses

FAMILIES = ("network", "linear", "embedding", "image", "text")
# Of a feature and a label, that linear weights may be made for unasked: to find
# a pair takes 10 bytes, its weight 6, and as much again when it is saved, so
# these are half of what a machine of 24 GiB has.
MOST_PAIRS = 10**9
FEW_LABELS = 2048  # up to here a network is the default


@dataclasses.dataclass(frozen=True)
class DataFacts:
  """What the rules need to know about a training split.

  Attributes:
    num_rows: Training examples.
    num_features: F.
    num_labels: L.
    labels_per_row: Mean number of labels of an example.
    features_per_row: Mean number of non-zero features of an example.
    dense: Whether the features are a dense matrix.
    kind: "binary", "counts", "weighted", "normalised" or "dense".
    fingerprint: Hash of the training files.
    image: Height, width and channels where rows are images; else nothing.
    text: What is read of texts, as `data.text` says; "" without any.
    label_text: Whether what is said of labels tells which ones a text has.
    named_labels: Whether labels are written as names, beside features.
    own_validation: Whether the data say what validation reads, and hold labels
      out of each row for it, not rows.
  """

  num_rows: int
  num_features: int
  num_labels: int
  labels_per_row: float
  features_per_row: float
  dense: bool
  kind: str
  fingerprint: str
  image: tuple[int, ...] = ()
  text: str = ""
  label_text: bool = False
  named_labels: bool = False
  own_validation: bool = False


def choose(facts: DataFacts, head: str = "dense", encoder: str = "bag") -> str:
  """Name of the family that suits a data set.

  Args:
    facts: About its training split.
    head: Type of the head; only the dense one has linear weights.
    encoder: Type of the encoder.

  Returns:
    One of `FAMILIES`.
  """
  return _chosen(facts, head, encoder)[0]


def reason(
  family: str, facts: DataFacts, head: str = "dense", encoder: str = "bag"
) -> str:
  """Why a run is of a family, for who reads how it went.

  Args:
    family: Of the run.
    facts: As those of `choose`.
    head: Likewise.
    encoder: Likewise.

  Returns:
    What `choose` went by, or that it did not choose.
  """
  chosen, why = _chosen(facts, head, encoder)
  return why if chosen == family else f"which the config asks for ({why})"


def _chosen(facts: DataFacts, head: str, encoder: str) -> tuple[str, str]:
  """The family that suits, and why."""
  if facts.text == "vectors":
    return "text", "for embeddings of texts"
  if encoder == "transformer":
    return "text", f"for the encoder {encoder!r}"
  if encoder != "bag":
    return "image", f"for the encoder {encoder!r}"
  labels = f"for {facts.num_labels:,} labels, which are"
  if facts.num_labels <= FEW_LABELS:
    return "network", f"{labels} no more than {FEW_LABELS:,}"
  labels += f" more than {FEW_LABELS:,}"
  if facts.dense:
    return "embedding", f"{labels}, and dense features"
  if head != "dense":
    return "embedding", f"{labels}, and a head without linear weights, {head!r}"
  # No more than there are can meet, and each where a row has both.
  pairs = min(
    facts.num_features * facts.num_labels,
    facts.num_rows * facts.features_per_row * facts.labels_per_row,
  )
  meet = f"at most {pairs:,.0f} pairs of a feature and a label meet"
  if pairs <= MOST_PAIRS:
    return "linear", f"{labels}, and sparse features: {meet}"
  return "embedding", f"{labels}, and {meet}, too many for linear weights"
