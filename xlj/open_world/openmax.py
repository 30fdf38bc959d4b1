"""OpenMax: a class of unknown examples, fitted to a trained run.

Bendale and Boult 2016, "Towards open set deep networks". An example that is far
from the mean of a label, compared with the training examples of that label that
the model gets right, loses a part of that label's logit to a class of unknown
ones. A Weibull distribution of each label's greatest distances says what is
far. Only the likeliest labels are revised, so that it works for any number of
labels; the means are split over devices like label rows.

Four things are not as in the paper. The vectors are embeddings, not logits: the
means of those would be `[L, L]`. Logits are `log(L p)`, those beside a uniform
distribution, because shares of a logit mean nothing if it may be shifted.
Distances are to the mean of the other examples: a mean of few is near to each
of them. Labels with fewer examples than a tail has share one distribution.

Legend: N examples, K labels of each, D width, L labels (padded where they are
rows), M distances.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlj import sharding
from xlj.config import splits
from xlj.data import store
from xlj.heads import head as head_lib
from xlj.heads.dense import rows as rows_lib
from xlj.heads.oltr import head as oltr
from xlj.inference import predictor
from xlj.model import batches as batches_lib
from xlj.model import model as model_lib
from xlj.open_world import weibull
from xlj.ops import label_gather


@dataclasses.dataclass(frozen=True)
class OpenMax:
  """A run that knows what is far from its labels; see `fit`.

  Attributes:
    run: The run.
    sums: `[L, D + 1]` of the embeddings of each label's examples, with their
      number, split like label rows.
    tails: Of distances to labels as the head numbers them.
    likeliest: K, how many labels are revised.
  """

  run: predictor.Predictor
  sums: jax.Array
  tails: weibull.Weibull
  likeliest: int

  def predict(
    self, features: batches_lib.Features
  ) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest label of each example after revision.

    Args:
      features: n examples, as for `Predictor.topk`.

    Returns:
      int32 label ids `[n]`, and float64 `[n]`, their probabilities beside those
      of the other labels and of being unknown: what `open_set` rejects by, at
      0.5 or more certainly all that are most probably unknown.
    """
    run, num_labels = self.run, self.run.num_labels
    best, found = [np.zeros(0, np.int32)], [np.zeros(0)]
    for count, inputs in run.batches(features):
      with jax.set_mesh(run.mesh):
        batch = _likeliest(
          run.model, self.likeliest, run.state, self.sums, inputs
        )
        top, z, ids, distances = (sharding.whole(a)[:count] for a in batch)
      likely = np.log(top.astype(np.float64))[:, None] + z - z[:, :1]
      share = self.tails.share_below(ids, distances)
      revised, _ = revise(likely + math.log(num_labels), share, num_labels)
      first = revised.argmax(1)[:, None]
      best.append(run.run.to_data(np.take_along_axis(ids, first, 1)[:, 0]))
      found.append(np.take_along_axis(revised, first, 1)[:, 0])
    return np.concatenate(best), np.concatenate(found)


def fit(
  run: predictor.Predictor,
  split: store.Split | None = None,
  *,
  tail: int = 20,
  likeliest: int = 10,
) -> OpenMax:
  """Two passes over training examples: means, and distances to them.

  Args:
    run: A run with embeddings and label rows (the heads "dense" and "oltr").
    split: The examples; None for those of the run's config.
    tail: Greatest distances of a label that its distribution is fitted to.
    likeliest: K, how many labels of an example are revised.

  Returns:
    What predicts with them. It takes the memory of label rows, and of one
    number for each example.

  Raises:
    ValueError: The run has no such head or embeddings, or favours labels.
    ConfigError: The data of the config cannot be opened.
    DataError: Likewise.
  """
  config, model = run.config, run.model
  head_lib.check_confidence(model.head, "probability")
  if not config.encoder.dim:
    raise ValueError("OpenMax needs embeddings: encoder.dim is 0")
  if config.predict.propensity_power:
    raise ValueError(
      "OpenMax needs unshifted logits, with predict.propensity_power 0, not"
      f" predict.propensity_power {config.predict.propensity_power}"
    )
  split = splits.open_split(config) if split is None else split

  def batches():
    return map(
      sharding.put_batch,
      batches_lib.of_split(
        split, run.weighting, run.order, batch_size=config.eval.batch_size
      ),
    )

  with jax.set_mesh(run.mesh):
    sums = jax.jit(
      lambda: jnp.zeros((model.head.num_rows, model.head.dim + 1)),
      out_shardings=jax.NamedSharding(run.mesh, sharding.LABELS),
    )()
    for inputs in batches():
      sums = _add(model, sums, run.state, inputs)
    labels, found = [np.zeros(0, np.int32)], [np.zeros(0)]
    for inputs in batches():
      ids, distances, counts = map(
        sharding.whole, _own(model, run.state, sums, inputs)
      )
      used = (ids >= 0) & (counts > 1)
      counts = counts[used].astype(np.float64)
      labels.append(ids[used])
      found.append(distances[used] * counts / (counts - 1))
  tails = weibull.fit_tails(
    np.concatenate(labels), np.concatenate(found), run.num_labels, tail
  )
  return OpenMax(run, sums, tails, min(likeliest, run.num_labels))


# --- on devices ---------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add(model, sums, state, inputs):
  """Sums with the embeddings of a batch, for the labels it is right in."""
  x = model.embed(state, inputs)
  x = jnp.concatenate([x, jnp.ones_like(x[:, :1])], 1)
  ids = _right(model, state, inputs)
  return _label_rows(model).add_to_rows(sums, ids, x)


@functools.partial(jax.jit, static_argnums=0)
def _own(model, state, sums, inputs):
  """Labels `[N, P]`, -1 where it is wrong, distances to their means, counts."""
  ids = _right(model, state, inputs)
  return ids, *_distances(model, state, sums, inputs, ids)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _likeliest(model, k, state, sums, inputs):
  """The largest probability `[N]`; logits, labels, distances `[N, K]`."""
  z, ids = model.topk(state, inputs, k)
  distances, _ = _distances(model, state, sums, inputs, ids)
  return model.confidence(state, inputs, "probability"), z, ids, distances


def _right(model, state, inputs):
  """The labels of a batch `[N, P]`, -1 where they are not the likeliest."""
  _, ids = model.topk(state, inputs, 1)
  return jnp.where(inputs.label_ids == ids, inputs.label_ids, -1)


def _distances(model, state, sums, inputs, ids):
  """Distances to the means of labels, and numbers of examples; `[N, K]`."""
  rows = label_gather.label_rows(sums, _label_rows(model).of_labels(ids))
  counts = rows[:, :, -1]
  means = rows[:, :, :-1] / jnp.maximum(counts, 1)[:, :, None]
  x = model.embed(state, inputs)
  return jnp.linalg.norm(x[:, None] - means, axis=2), counts


def _label_rows(model: model_lib.Model) -> rows_lib.Rows:
  """What knows where rows are."""
  head: Any = model.head
  labels = head.labels if isinstance(head, oltr.OltrHead) else head
  return labels.label_rows


# --- on the host --------------------------------------------------------------


def revise(
  logits: np.ndarray, share: np.ndarray, num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
  """Probabilities after a part of the logits went to a class of unknown ones.

  Algorithm 2 of the paper, with the sign of the authors' code: the i-th of K
  labels loses `(K - i) / K` (i from 0) times `share` of its logit.

  Args:
    logits: `[N, K]` float64 of the likeliest labels, descending: `log(L p)`.
      Those below 0 are left as they are.
    share: `[N, K]` from 0 to 1, how far the example is from the label.
    num_labels: L; what is left of the probability is that of the others.

  Returns:
    The probabilities of the labels, `[N, K]`, and of being unknown, `[N]`.
  """
  k = logits.shape[1]
  others = np.maximum(num_labels - np.exp(logits).sum(1), 0)
  taken = np.maximum(logits, 0) * share * (1 - np.arange(k) / k)
  unknown = np.exp(taken.sum(1))
  revised = np.exp(logits - taken)
  total = revised.sum(1) + unknown + others
  return revised / total[:, None], unknown / total
