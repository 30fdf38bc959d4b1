"""What a dual encoder reads beside the rows of a batch: texts of labels.

The candidates of a step are one label of each row, and the labels of high score
that a row lacks. These are looked for among all labels, each `dual.refresh`
steps: a pass over the training rows. They are part of the state, so that a run
goes on from a checkpoint as if it had not stopped.

What is chosen is a function of the seed, the step and the state alone: every
process makes the choice for the whole batch, and reads its part of the texts.
"""

from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from xlj import sharding
from xlj.config import dual as dual_config
from xlj.config import training
from xlj.data import csr as csr_lib
from xlj.data import padding
from xlj.data import pipeline
from xlj.data import views as views_lib
from xlj.distributed import watch
from xlj.model import batches
from xlj.model import inputs as inputs_lib
from xlj.model import model as model_lib
from xlj.training import preparation

_SIZES = 4  # how many numbers of candidates programs are compiled for


class LabelTexts:
  """The texts of labels, and which of them a step reads."""

  def __init__(
    self,
    model: model_lib.Model,
    config: ml_collections.ConfigDict,
    data: preparation.Data,
    texts: preparation.Data,
    embed: Callable[[model_lib.State], model_lib.State],
  ):
    """Notes which label has a text.

    Args:
      model: The model.
      config: Its config.
      data: Of training.
      texts: The texts of labels as if they were the training rows.
      embed: The state with rows of labels at their embedded texts.
    """
    self._config, self._data, self._texts = config, data, texts
    self._search = jax.jit(model.nearest_wrong, static_argnums=2)
    self._embed = embed
    split = texts.split
    self._row = np.full(split.num_labels, -1, np.int64)  # by label id
    known = texts.order.to_head(split.labels.indices) >= 0
    owner = np.repeat(np.arange(split.num_rows), split.labels.row_lengths)
    self._row[split.labels.indices[known]] = owner[known]
    self._ids = np.flatnonzero(self._row >= 0)
    self._wrong: np.ndarray | None = None  # by row of the training split
    self._share = None
    if config.dual.correct:
      self._share = _chances(data.split.labels.take(data.rows), self._row)
    self._views = None
    if config.dual.self_weight:
      self._views = views_lib.Views(
        split.features if isinstance(split.features, csr_lib.Csr) else None,
        config.dual.self_masks,
        config.dual.self_dropout,
        config.seed,
      )
    self._widths = padding.plan(
      split,
      batch_size=config.train.batch_size,
      max_features=config.data.max_features,
    )

  def renewed(self, state: model_lib.State) -> model_lib.State:
    """The state with label rows that fit the encoder of now, where they do not
    learn.

    Args:
      state: The state, which is donated.

    Returns:
      The state.
    """
    if dual_config.has_learned_rows(self._config):
      return state
    return self._embed(state)

  def before(self, step: int, state: model_lib.State) -> model_lib.State:
    """What a step starts with: with new negatives, when they are due.

    Args:
      step: Number of the step that is to come, from 1.
      state: The state, which is donated.

    Returns:
      The state.
    """
    if not dual_config.num_negatives(self._config):
      return state
    every = self._config.dual.refresh or training.steps_per_epoch(self._config)
    if (step - 1) % every == 0:
      watch.note(f"looking for hard negatives before step {step}")
      state = self.renewed(state)
      self._wrong = self._found(state)
      rows = state.training["negatives"].shape[0]
      missing = rows - len(self._wrong)
      padded = np.pad(self._wrong, ((0, missing), (0, 0)), constant_values=-1)
      placed = sharding.put_rows(rows, lambda numbers: padded[numbers])
      state = state._replace(training={**state.training, "negatives": placed})
    elif self._wrong is None:
      self._wrong = sharding.whole(state.training["negatives"])
    return state

  def _found(self, state: model_lib.State) -> np.ndarray:
    """Hard negatives `[rows, k]` int32 of all training rows."""
    data, count = self._data, self._config.dual.negatives
    found = np.full((data.split.num_rows, count), -1, np.int32)
    which, widths = batches.by_length(self._config, data.split, data.rows)
    for inputs in batches.of_split(
      data.split,
      data.weighting,
      data.order,
      batch_size=self._config.eval.batch_size,
      rows=which,
      widths=widths,
    ):
      inputs = sharding.put_batch(inputs)
      ids = sharding.whole(self._search(state.model, inputs, count))
      rows = sharding.whole(inputs.rows)
      found[rows[rows >= 0]] = ids[rows >= 0]
    return found

  def of_batch(self, step: int, rows: np.ndarray) -> inputs_lib.Dual:
    """The texts that a step reads.

    Args:
      step: Number of the step, from 1.
      rows: Of its batch, those of all processes.

    Returns:
      This process's part.
    """
    config, order, process = (
      self._config,
      self._data.order,
      batches.this_process(),
    )
    rng = np.random.default_rng([config.seed + config.train.shuffle, step])
    labels = self._data.split.labels.take(rows)
    chosen = _one_of_each(labels, self._row, rng)
    wanted = np.unique(chosen[chosen >= 0])
    counts = np.zeros(len(self._row), np.float32)
    if self._share is not None:
      others = self._share[wanted]
      counts[wanted] = np.log(-np.expm1((len(rows) - 1) * np.log1p(-others)))
    if self._wrong is not None:
      wrong = self._wrong[rows]
      wrong = order.to_data(wrong[wrong >= 0])
      wrong = wrong[self._row[wrong] >= 0]
      counts[wrong] = 0  # they are there without fail
      wanted = np.union1d(wanted, wrong)
    most = len(rows) * (1 + dual_config.num_negatives(config))
    unit = -(-min(most, len(self._ids)) // _SIZES)
    size = max(1, -(-len(wanted) // unit)) * unit
    views: tuple[inputs_lib.Texts, ...] = ()
    if self._views is not None:
      count = min(config.dual.self_labels or len(rows), len(self._ids))
      drawn = rng.choice(self._ids, count, replace=False)
      views = self._views_of(step, self._read(drawn, count))
    return inputs_lib.Dual(
      self._read(wanted, size),
      process.take(order.to_head(chosen), len(rows), -1).astype(np.int32),
      process.take(counts[wanted], size, 0),
      views,
    )

  def _read(self, labels: np.ndarray, size: int) -> inputs_lib.Texts:
    """This process's part of the texts of labels, filled up to a size."""
    fetch = pipeline.fetcher(
      self._texts.split,
      self._texts.weighting,
      size,
      None,
      self._widths,
      batches.this_process(),
    )
    batch = fetch(self._row[labels])
    ids = batches.this_process().take(labels, size, -1)
    return inputs_lib.Texts(
      batch.feature_ids, batch.feature_values, self._data.order.to_head(ids)
    )

  def _views_of(
    self, step: int, texts: inputs_lib.Texts
  ) -> tuple[inputs_lib.Texts, ...]:
    assert self._views is not None
    ids, values, labels = map(np.asarray, texts)
    if texts.feature_ids is None:
      ids = None
    both = self._views(step, labels, ids, values)
    return tuple(texts._replace(feature_values=values) for values in both)


def _one_of_each(
  labels: csr_lib.Csr, rows: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """One label of each row that has a text, `[N]`; -1 where there is none."""
  owner = np.repeat(np.arange(labels.num_rows), labels.row_lengths)
  ids = np.asarray(labels.indices)
  chance = np.where(rows[ids] >= 0, rng.random(len(ids)), -1)
  last = np.lexsort((chance, owner))  # the greatest chance of a row comes last
  found = np.full(labels.num_rows, -1, np.int64)
  found[owner[last]] = np.where(chance[last] >= 0, ids[last], -1)
  return found


def _chances(labels: csr_lib.Csr, rows: np.ndarray) -> np.ndarray:
  """How probably a row's choice is each label, `[labels]`."""
  owner = np.repeat(np.arange(labels.num_rows), labels.row_lengths)
  ids = np.asarray(labels.indices)
  some = rows[ids] >= 0
  among = np.bincount(owner[some], minlength=labels.num_rows)
  share = np.bincount(
    ids[some], 1 / among[owner[some]], minlength=labels.num_columns
  )
  return np.minimum(share / max(1, labels.num_rows), 1 - 1e-6)
