"""What every head has, and how it refuses what it cannot do.

A head is the parameters of labels with their loss and optimizer. There is no
base class: `Head` says what a model, the trainer, label tools and plans ask of
one, and each head says as plain data what it can do. What it cannot, it refuses
by its name, with the words of this file.

Legend: N examples of the batch, D embedding width, L label rows (padded),
P positives, k best labels.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NoReturn, Protocol, TypeVar

import jax

from xlj.ops import choice as choice_lib
from xlj.ops import feature_rows
from xlj.ops import layout as layout_lib
from xlj.ops import targets as targets_lib

# What a head may be able to do: what one that cannot lacks, and what to do.
ABILITIES: Mapping[str, tuple[str, str]] = {
  "linear": (
    "logits without embeddings (x)",
    "give it an encoder: set encoder.dim",
  ),
  "features": ("wide path of sparse features", "set head.wide=False"),
  "label_values": (
    "values by label (label_values)",
    "set tail.weights='none' and tail.adjustment=0",
  ),
  "offset": (
    "label rows whose logits could have an offset",
    "set predict.propensity_power=0",
  ),
  "extra": (
    "scores of labels that single examples could add to",
    "set neighbours.count=0",
  ),
  "prior": ("bias of each label to start with", "set head.prior_bias=False"),
  "centroids": (
    "label rows that could start at centroids",
    "set head.init='normal'",
  ),
  "memory": ("memory of centroids", "use head.type='oltr'"),
  "keys": ("keys of its own", "set oltr.own_keys with head.type='oltr'"),
  "rows": (
    "matrix with one row for each label",
    "use head.type='dense' with head.prototypes=1",
  ),
  "tied": (
    "label rows that an encoder could read as well",
    "set encoder.tied=False",
  ),
  "mean": (
    "label rows that are a mean if its parameters are: they are a product of"
    " two matrices",
    "use head.type='dense'",
  ),
  "plan": (
    "cost that is free of the data, which plans are made of",
    "use head.type='dense'",
  ),
}
_Method = TypeVar("_Method", bound=Callable[..., Any])


class Head(Protocol):
  """Parameters of labels, with their loss and optimizer.

  Parameters and optimizer states are trees of arrays on the mesh in context,
  split as `specs` and `optimizer_specs` say. A head holds no arrays.
  """

  @property
  def name(self) -> str:
    """What users call it, the `head.type` of a config."""
    ...

  @property
  def can(self) -> frozenset[str]:
    """Which of `ABILITIES` it has."""
    ...

  @property
  def confidences(self) -> tuple[str, ...]:
    """What `confidence` can go by."""
    ...

  @property
  def is_likelihood(self) -> bool:
    """Whether `evaluate_loss` is a negative log-likelihood of the positives."""
    ...

  @property
  def dim(self) -> int:
    """Width D of the embeddings; 0 without."""
    ...

  @property
  def layout(self) -> layout_lib.Layout:
    """Where what is kept of each label is, by row if labels have rows."""
    ...

  @property
  def num_rows(self) -> int:
    """Number of label rows L including padding; 0 without any."""
    ...

  def init(self, key: jax.Array) -> Any:
    """Initial parameters, which do not depend on the mesh.

    Args:
      key: Random key.

    Returns:
      The parameters.
    """
    ...

  def init_optimizer(self, params: Any) -> Any:
    """The optimizer state for `params`."""
    ...

  def specs(self) -> Any:
    """`PartitionSpec` of each parameter."""
    ...

  def optimizer_specs(self) -> Any:
    """`PartitionSpec` of each leaf of the optimizer state."""
    ...

  def step(
    self,
    params: Any,
    opt_state: Any,
    step: jax.Array,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> tuple[Any, Any, jax.Array | None, dict[str, jax.Array]]:
    """One training step of the head.

    Args:
      params: Parameters.
      opt_state: Optimizer state.
      step: Scalar int32, number of steps taken.
      x: `[N, D]` embeddings sharded over examples; None if `dim` is 0.
      features: Sparse features for a wide path; None without one.
      targets: Positives and example weights, sharded over examples.
      label_values: Vectors by row of `layout`, sharded like rows, that the
        loss needs, by name; None if it needs none.

    Returns:
      New parameters, new optimizer state, `dx [N, D]` sharded over examples
      (None without embeddings), and "loss", the weighted mean over the batch,
      with what the loss reports (see `xlj.ops.loss.Reporting`).

    Raises:
      ValueError: It is given what it cannot use, or not what it needs.
    """
    ...

  def tied_step(
    self,
    params: Any,
    opt_state: Any,
    step: jax.Array,
    embed: Callable[[Any, jax.Array], jax.Array],
    encoder: Any,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> tuple[Any, Any, Any, dict[str, jax.Array]]:
    """A step whose embeddings are made of label rows too; needs "tied".

    Args:
      params: Parameters.
      opt_state: Optimizer state.
      step: Scalar int32, number of steps taken.
      embed: From the encoder's parameters and the label rows `[L, D]` float32,
        row by row of `layout`, to embeddings `[N, D]` sharded over examples.
      encoder: The encoder's parameters.
      targets: Positives and example weights, sharded over examples.
      label_values: As for `step`.

    Returns:
      New parameters, new optimizer state, the gradient of `encoder`, and
      "loss", the weighted mean over the batch.

    Raises:
      ValueError: An encoder cannot read its rows.
    """
    ...

  def evaluate_loss(
    self,
    params: Any,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    targets: targets_lib.Targets,
    label_values: targets_lib.LabelValues | None = None,
  ) -> jax.Array:
    """The loss of a batch, a scalar, without an update; see `step`."""
    ...

  def topk(
    self,
    params: Any,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    k: int,
    choice: choice_lib.Choice | None = None,
    offset: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """The k labels of highest score for each example.

    Args:
      params: Parameters.
      x: `[N, D]` embeddings sharded over examples; None if `dim` is 0.
      features: Sparse features for a wide path; None without one.
      k: How many labels.
      choice: The label ids that may be returned; by default all.
      offset: Added to the scores before ranking, by row of `layout`, sharded
        like rows; None for nothing.

    Returns:
      Scores `[N, k]`, descending, and int32 ids `[N, k]`, sharded over
      examples; id -1 and score -inf where there are fewer than k labels.

    Raises:
      ValueError: It is given what it cannot use, or not what it needs.
    """
    ...

  def confidence(
    self,
    params: Any,
    x: jax.Array | None,
    features: feature_rows.SparseRows | None,
    by: str = "probability",
  ) -> jax.Array:
    """How sure it is that an example is of any label at all.

    Args:
      params: Parameters.
      x: `[N, D]` embeddings sharded over examples; None if `dim` is 0.
      features: Sparse features for a wide path; None without one.
      by: One of `confidences`.

    Returns:
      `[N]`, sharded over examples; `xlj.open_world.open_set` has thresholds.

    Raises:
      ValueError: It does not know it by that.
    """
    ...

  def rows(self, params: Any) -> jax.Array:
    """Label rows `[L, D]` as float32, by row of `layout`; of a head of "rows".

    Args:
      params: Parameters.

    Returns:
      The rows, split as they are stored.

    Raises:
      ValueError: Labels have no such rows.
    """
    ...

  def at_prior(self, params: Any, counts: jax.Array, num_examples: int) -> Any:
    """Parameters with the log odds of the labels as bias; needs "prior".

    Args:
      params: Parameters.
      counts: Examples of each label, by row of `layout`, sharded like rows.
      num_examples: Of how many.

    Returns:
      New parameters.

    Raises:
      ValueError: Labels have no bias.
    """
    ...

  def zero_sums(self) -> jax.Array:
    """What `add_to_rows` starts with: zeros by row; needs "centroids".

    Returns:
      `[L, D]`, or with further columns, to be split like the label rows.

    Raises:
      ValueError: There are no label rows to start at centroids.
    """
    ...

  def add_to_rows(
    self, rows: jax.Array, ids: targets_lib.Array, x: jax.Array
  ) -> jax.Array:
    """Adds each example's vector to the rows of its labels.

    Args:
      rows: As of `zero_sums`, sharded like the label rows.
      ids: `[N, P]` int32 label ids, -1 for padding, sharded over examples.
      x: `[N, D]` sharded over examples.

    Returns:
      New rows.

    Raises:
      ValueError: There are no label rows to start at centroids.
    """
    ...

  def at_centroids(self, params: Any, sums: jax.Array, length: float) -> Any:
    """Parameters with label rows in the direction of their examples.

    Args:
      params: Parameters.
      sums: Those of `add_to_rows` over all examples; the rows of labels without
        examples stay.
      length: Of the new rows. 0 leaves them, for a head with a "memory" of
        centroids beside its rows.

    Returns:
      New parameters.

    Raises:
      ValueError: There are no label rows to start at centroids.
    """
    ...

  def with_pairs(self, params: Any, *arrays: jax.Array) -> Any:
    """Parameters with a wide path for pairs that meet; needs "features".

    Args:
      params: Parameters.
      *arrays: Starts `[B, F + 1]` and columns `[B, Z]` by block of labels,
        split like label rows, and weights `[B, Z]` if they are not those of
        before; see `xlj.ops.pairs.label_pairs`.

    Returns:
      New parameters.

    Raises:
      ValueError: There is no wide path.
    """
    ...

  def with_keys(
    self, params: Any, rows: jax.Array, bias: jax.Array | None
  ) -> Any:
    """Parameters with the label rows of a first stage as "keys".

    Args:
      params: Parameters.
      rows: `[L, D]` split like label rows.
      bias: `[L]`, or None for zeros.

    Returns:
      New parameters.

    Raises:
      ValueError: Labels have no keys.
    """
    ...


def lack(head: Head, ability: str) -> str:
  """What a head lacks that has not some ability; half a sentence."""
  return f"the head {head.name!r} has no {ABILITIES[ability][0]}"


def refusal(head: Head, ability: str) -> str:
  """What a head lacks that has not some ability, and what to do."""
  return f"{lack(head, ability)}; {ABILITIES[ability][1]}"


def need(head: Head, ability: str) -> None:
  """Refuses what a head cannot do.

  Args:
    head: The head.
    ability: What is asked of it, one of ABILITIES.

  Raises:
    ValueError: It has not that ability; with its name, and what to do.
  """
  if ability not in head.can:
    raise ValueError(refusal(head, ability))


def check(head: Head, x: jax.Array | None, **given: Any) -> None:
  """Refuses inputs that a head cannot use.

  Args:
    head: The head.
    x: `[N, D]` embeddings, or None.
    **given: By the name of the ability that it takes; None is nothing.

  Raises:
    ValueError: There is what it cannot use, or there are no embeddings.
  """
  for ability, value in given.items():
    if value is not None:
      need(head, ability)
  if x is None:
    need(head, "linear")


def embeddings(head: Head, x: jax.Array | None, **given: Any) -> jax.Array:
  """The embeddings, where there have to be some; for the rest see `check`."""
  check(head, x, **given)
  assert x is not None  # The head is not "linear".
  return x


def check_confidence(head: Head, by: str) -> None:
  """Refuses a confidence that a head does not know.

  Args:
    head: The head.
    by: What it is to go by.

  Raises:
    ValueError: It does not know it by that.
  """
  if by not in head.confidences:
    raise ValueError(
      f"confidence by {by!r}: the head {head.name!r} knows"
      f" {head.confidences or 'none'}"
    )


def refused(method: _Method, ability: str) -> _Method:
  """A method of a head that cannot do what it is for.

  Args:
    method: That of `Head`.
    ability: That of ABILITIES which the head has not.

  Returns:
    A method with the same arguments that refuses.
  """

  @functools.wraps(method)
  def run(self: Head, *args: Any, **kwargs: Any) -> NoReturn:
    del args, kwargs
    need(self, ability)
    raise AssertionError(f"{self.name} has no {method.__name__}")

  return run  # pyrefly: ignore[bad-return]


def without_confidence(
  self: Head,
  params: Any,
  x: jax.Array | None,
  features: feature_rows.SparseRows | None,
  by: str = "probability",
) -> NoReturn:
  """`Head.confidence` of a head that has none; it refuses."""
  del params, x, features
  check_confidence(self, by)
  raise AssertionError(f"{self.name} has a confidence by {by!r}")
