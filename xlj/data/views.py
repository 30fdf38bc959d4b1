"""Two views of a text, with a part of its features each.

Yao et al. 2021, "Self-supervised learning for large-scale item
recommendations", section 3.2: features are masked in one view, all others in
the other (complementary masking), either at random, or so that features which
tell much of each other are in the same view (correlated feature masking). Then
each view loses further ones at random (dropout). Their features are few fields
that all items have; here they are words, and a text's own ones are divided: one
of its words, drawn at random, with the half of its words that have most mutual
information with it, and the others.

Legend: N texts, K features of one, F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from xlj.data import csr as csr_lib
from xlj.data import sampler


class Views:
  """Divides texts; what is drawn depends on seed, step, text and place."""

  def __init__(
    self,
    features: csr_lib.Csr | None,
    masks: str,
    dropout: float,
    seed: int,
  ):
    """Counts which features meet, if that is needed.

    Args:
      features: [N, F] of all texts; None where they are dense.
      masks: "random" or "correlated".
      dropout: share of the features that a view loses besides.
      seed: any non-negative integer.
    """
    self._dropout, self._seed = dropout, seed
    self._together: Any = None
    if masks == "correlated" and features is not None:
      present = features.to_scipy().tocsr()
      present = scipy.sparse.csr_array(
        (np.ones(present.nnz, np.float32), present.indices, present.indptr),
        shape=present.shape,
      )
      self._together = (present.T @ present).tocsr()
      self._counts = present.sum(0)
      self._number = features.num_rows

  def __call__(
    self,
    step: int,
    labels: np.ndarray,
    ids: np.ndarray | None,
    values: np.ndarray,
  ) -> tuple[np.ndarray, np.ndarray]:
    """The values of both views.

    Args:
      step: number of the step.
      labels: [N] integers, that each text is drawn for.
      ids: int [N, K] features, or None where they are dense.
      values: [N, K]; 0 for padding.

    Returns:
      Twice [N, K], the values with zeros among them.
    """
    first = self._uniform(step, 0, labels, values) < 0.5
    if self._together is not None and ids is not None:
      first = self._correlated(step, labels, ids, values)
    views = []
    for number, kept in enumerate((first, ~first)):
      if self._dropout:
        chance = self._uniform(step, 1 + number, labels, values)
        kept = kept & (chance >= self._dropout)
      views.append(np.where(kept, values, 0).astype(values.dtype))
    return views[0], views[1]

  def _correlated(
    self, step: int, labels: np.ndarray, ids: np.ndarray, values: np.ndarray
  ) -> np.ndarray:
    """Whether a feature is in the first view, [N, K]."""
    used = values != 0
    chance = np.where(used, self._uniform(step, 0, labels, values), -1)
    seeds = np.take_along_axis(ids, chance.argmax(1)[:, None], 1)
    pair = np.broadcast_arrays(seeds, ids)
    both = np.asarray(self._together[pair[0].ravel(), pair[1].ravel()])
    both = both.reshape(ids.shape)
    one, other, number = self._counts[seeds], self._counts[ids], self._number
    score = information(both, one, other, number)
    score *= np.sign(both * number - one * other)  # not those that never meet
    score = np.where(ids == seeds, np.inf, score) + 1e-9 * chance
    order = np.argsort(-np.where(used, score, -np.inf), 1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(ids.shape[1])[None], 1)
    return used & (rank < (used.sum(1, keepdims=True) + 1) // 2)

  def _uniform(
    self, step: int, stream: int, labels: np.ndarray, values: np.ndarray
  ) -> np.ndarray:
    places = np.arange(values.shape[1], dtype=np.uint64)
    numbers = labels.astype(np.uint64)[:, None] << np.uint64(32) | places
    return sampler.uniform((self._seed, step, stream), numbers)


def information(
  both: np.ndarray, a: np.ndarray, b: np.ndarray, number: int
) -> np.ndarray:
  """Mutual information of two events, in nats.

  Args:
    both: how often they happen together.
    a: how often the first one happens.
    b: how often the second one does.
    number: of how many times.

  Returns:
    The information, of the shape of all of them together.
  """
  total = np.zeros(np.broadcast_shapes(both.shape, a.shape, b.shape))
  for joint, one, other in (
    (both, a, b),
    (a - both, a, number - b),
    (b - both, number - a, b),
    (number - a - b + both, number - a, number - b),
  ):
    some = joint > 0
    ratio = np.divide(joint * number, one * other, where=some, out=total + 1)
    total = total + np.where(some, joint / number * np.log(ratio), 0)
  return total
