"""Scores a split: batches through the model's top-k into ranking metrics."""

from collections.abc import Iterator, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from xlj import sharding
from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.data import padding
from xlj.data import store
from xlj.data import weighting as weighting_lib
from xlj.distributed import watch
from xlj.evaluation import metrics
from xlj.evaluation import pairs
from xlj.model import batches
from xlj.model import label_choice
from xlj.model import model as model_lib
from xlj.model import neighbours as neighbours_lib

_BLOCK = 4096  # rows that the popularity baseline scores at a time


class Ranked(NamedTuple):
  """Predictions for some rows of a split.

  Attributes:
    rows: int32 `[n]` rows of the split.
    scores: float32 `[n, k]`, descending.
    ids: int32 `[n, k]` label ids; -1 where there is none.
  """

  rows: np.ndarray
  scores: np.ndarray
  ids: np.ndarray


class Judged(NamedTuple):
  """Predictions, and whether they are right.

  Attributes:
    scores: float32 `[n, k]`, descending.
    ids: int32 `[n, k]` label ids; -1 where there is none.
    hits: bool `[n, k]`.
  """

  scores: np.ndarray
  ids: np.ndarray
  hits: np.ndarray


class Evaluator:
  """Evaluates a model on (some rows of) a split, again and again."""

  def __init__(
    self,
    model: model_lib.Model,
    split: store.Split,
    weighting: weighting_lib.Weighting | None,
    order: label_order.LabelOrder,
    *,
    batch_size: int,
    num_labels: int,
    ks: Sequence[int],
    rows: np.ndarray | None = None,
    widths: padding.Widths | None = None,
    propensities: np.ndarray | None = None,
    deciles: np.ndarray | None = None,
    label_counts: np.ndarray | None = None,
    per_label: bool = True,
    figures: str = "classification",
    choice: label_choice.LabelChoice = label_choice.ALL,
    neighbours: neighbours_lib.Neighbours | None = None,
  ):
    """Prepares widths and the compiled top-k.

    Args:
      model: The model.
      split: The data to score. Label ids beyond the model's are positives that
        nothing finds.
      weighting: Feature weighting fitted on the training split.
      order: The head's numbers of the labels.
      batch_size: Examples scored at a time, over all devices.
      num_labels: L: how many label ids the model has, or the split, if more.
      ks: Cut-offs of the metrics.
      rows: Rows of the split to score; by default all.
      widths: Of batches; by default what `padding.plan` finds.
      propensities: `[L]` for PSP; None leaves it out.
      deciles: `[L]` frequency decile of each label; None leaves them out.
      label_counts: `[L]` training examples of each label.
      per_label: False keeps nothing by label; see `metrics.Ranking`.
      figures: Which metrics, as `eval.figures` says.
      choice: Labels that may be answers; others are no positives either. Those
        that the split's reciprocal filter forbids may not in any case.
      neighbours: Training rows whose labels gain, if any.
    """
    self._neighbours = neighbours
    self._wanted = choice
    self._wanted.check_rows(split.num_rows)
    forbidden = split.filter
    if forbidden is not None:
      forbidden = order.known(forbidden)
    self._choice = self._wanted.without(forbidden)
    each = "offset" not in model.head.can
    self._named = {"each": each, "width": self._choice.most_named(each)}
    self._allowed = None if each else self._choice.by_row(model, order)
    self._model = model
    ids = order.head_ids
    self._num_ids = model.layout.num_labels if ids is None else len(ids)
    self._labels = split.labels
    if split.num_labels > self._num_ids:
      known = split.labels.below(self._num_ids)
      split = dataclasses.replace(split, labels=known)
    self._split = split
    self._weighting = weighting
    self._order = order
    self._rows = rows
    self._batch_size = batch_size
    self._ranking = lambda: metrics.Ranking(
      num_labels=num_labels,
      ks=ks,
      propensities=propensities,
      deciles=deciles,
      label_counts=label_counts,
      per_label=per_label,
      figures=figures,
    )
    self._widths = widths or padding.plan(
      split, batch_size=batch_size, rows=rows
    )
    self._topk = jax.jit(model.topk, static_argnums=2)
    self._summed = jax.jit(self._loss_of)

  def run(
    self, state: dict[str, Any], kept: list[Judged] | None = None
  ) -> metrics.Ranking:
    """Scores every row once.

    Args:
      state: The `model` part of a state.
      kept: Gets the predictions for this process's rows, batch by batch.

    Returns:
      The metrics' sums over the rows.
    """
    ranking = self._ranking()
    k = min(ranking.width, self._num_ids)
    for ranked in self.rank(state, k):
      labels = self._labels.take(ranked.rows)
      labels = self._wanted.kept(self._order.known(labels), ranked.rows)
      fill = (0, 0), (0, ranking.width - k)
      ids = np.pad(ranked.ids, fill, constant_values=-1)
      ranking.update(ids, labels)
      if kept is not None:
        kept.append(judged(ranked.scores, ranked.ids, labels))
    return self._of_all_processes(ranking)

  def loss(self, state: dict[str, Any]) -> dict[str, float]:
    """The mean loss over the rows, where it is a negative log-likelihood.

    Args:
      state: The `model` part of a state.

    Returns:
      `loss`, in nats, and `perplexity`, its exponential; nothing for a head
      whose loss is not a likelihood.
    """
    if not self._model.head.is_likelihood:
      return {}
    total = count = 0.0
    for inputs in self._batches():
      loss, weight = self._summed(state, sharding.put_batch(inputs))
      total, count = total + float(loss), count + float(weight)
    mean = total / count
    # Beyond, a float overflows; a model so far off has no perplexity to tell.
    return {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}

  def rank(self, state: dict[str, Any], k: int) -> Iterator[Ranked]:
    """Yields the top-k of every row, batch by batch.

    Args:
      state: The `model` part of a state.
      k: Labels per row.

    Yields:
      Predictions for the real rows of each batch of this process.
    """
    for number, inputs in enumerate(self._batches()):
      watch.note(f"scoring batch {number}")
      rows = np.asarray(inputs.rows)
      choice = self._choice.of_rows(rows, self._order, **self._named)
      choice = neighbours_lib.with_neighbours(
        choice, self._neighbours, inputs, self._order
      )
      inputs, choice = sharding.put_batch((inputs, choice))
      choice = dataclasses.replace(choice, allowed=self._allowed)
      scores, ids = self._topk(state, inputs, k, choice)
      real = rows >= 0
      yield Ranked(
        rows[real],
        sharding.local_rows(scores)[real],
        self._order.to_data(sharding.local_rows(ids)[real]),
      )

  def _batches(self) -> Iterator[model_lib.Inputs]:
    """One pass over this process's part of the rows."""
    return batches.of_split(
      self._split,
      self._weighting,
      self._order,
      batch_size=self._batch_size,
      rows=self._rows,
      widths=self._widths,
    )

  def _loss_of(
    self, state: dict[str, Any], inputs: model_lib.Inputs
  ) -> tuple[jax.Array, jax.Array]:
    """Sums over a batch of the loss and of the weights."""
    weight = jnp.sum(inputs.weights)
    return self._model.loss(state, inputs) * weight, weight

  def _of_all_processes(self, ranking: metrics.Ranking) -> metrics.Ranking:
    """Adds up the sums of all processes; the same on each of them."""
    if jax.process_count() == 1:
      return ranking
    # As bytes: on the devices, numbers of 64 bits would lose half of them.
    states = {
      name: multihost_utils.process_allgather(np.frombuffer(sums, np.uint8))
      for name, sums in ranking.state.items()
    }
    total = self._ranking()
    for process in range(jax.process_count()):
      total.add_state(
        {
          name: states[name][process].view(sums.dtype).reshape(sums.shape)
          for name, sums in ranking.state.items()
        }
      )
    return total


def judged(scores: np.ndarray, ids: np.ndarray, labels: csr_lib.Csr) -> Judged:
  """Predictions `[n, k]` for rows with labels `[n, L]`."""
  return Judged(scores, ids, pairs.contains(labels, ids, labels.num_columns))


def of_all_processes(kept: Sequence[Judged]) -> Judged:
  """The predictions for all rows, the same on each process."""
  whole = Judged(*map(np.concatenate, zip(*kept)))
  if jax.process_count() == 1:
    return whole
  counts = multihost_utils.process_allgather(np.int32(len(whole.ids)))
  most = int(counts.max()) - len(whole.ids)
  padded = [np.pad(array, ((0, most), (0, 0))) for array in whole]
  gathered = multihost_utils.process_allgather(tuple(padded))
  return Judged(
    *(
      np.concatenate([part[:count] for part, count in zip(array, counts)])
      for array in gathered
    )
  )


def popularity(
  split: store.Split, label_counts: np.ndarray, ranking: metrics.Ranking
) -> metrics.Ranking:
  """Adds to `ranking` the answer that never looks at the input.

  Args:
    split: The data to score.
    label_counts: `[L]` training examples of each label.
    ranking: Empty metrics.

  Returns:
    `ranking`, with the most frequent labels predicted for every row, but for
    those that the split's filter forbids.
  """
  depth = ranking.width
  if split.filter is not None:
    depth += int(split.filter.row_lengths.max(initial=0))
  best = np.argsort(-label_counts, kind="stable")[:depth]
  for start in range(0, split.num_rows, _BLOCK):
    labels = split.labels.slice_rows(start, start + _BLOCK)
    ids = np.tile(best, (labels.num_rows, 1))
    if split.filter is not None:
      forbidden = split.filter.slice_rows(start, start + _BLOCK)
      drop = pairs.contains(forbidden, ids, len(label_counts))
      kept = np.argsort(drop, axis=1, kind="stable")[:, : ranking.width]
      ids = np.take_along_axis(ids, kept, axis=1)
    # Of few labels, with others in the split that training has not.
    fill = (0, 0), (0, max(0, ranking.width - ids.shape[1]))
    ranking.update(np.pad(ids, fill, constant_values=-1), labels)
  return ranking
