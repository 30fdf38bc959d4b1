"""Label rows in closed form: naive Bayes with normal features.

With one diagonal variance for all labels, the log odds of a label against
everything else are linear in the example: `w = (m - m0) / v`, and the bias
follows from the two means and the label's share. Ng and Jordan 2001, "On
discriminative vs. generative classifiers"; Zheng et al. 2023, "Revisiting
discriminative vs. generative classifiers: theory and implications", section 3.

Legend: K labels, N examples, D width.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse


class Linear(NamedTuple):
  """Weights of labels.

  Attributes:
    rows: `[K, D]`.
    bias: `[K]`.
  """

  rows: np.ndarray
  bias: np.ndarray


class Moments(NamedTuple):
  """Sums over the examples of each label; those of parts add up.

  Attributes:
    counts: `[K]`, examples.
    sums: `[K, D]`, of them.
    squares: `[D]`, of the squares of all of them.
  """

  counts: np.ndarray
  sums: np.ndarray
  squares: np.ndarray


def moments(
  x: np.ndarray | scipy.sparse.csr_array, owner: np.ndarray, num_labels: int
) -> Moments:
  """The moments of examples.

  Args:
    x: `[N, D]`.
    owner: int `[N]`, the label of each.
    num_labels: K.

  Returns:
    Float64 sums.
  """
  ones = np.ones(len(owner)), (owner, np.arange(len(owner)))
  member = scipy.sparse.csr_array(ones, shape=(num_labels, len(owner)))
  sums = member @ x
  if scipy.sparse.issparse(sums):
    sums = sums.toarray()
  counts = np.bincount(owner, minlength=num_labels)
  squares = (x * x).sum(0, dtype=np.float64)
  return Moments(counts, sums, np.asarray(squares).ravel())


def weights(
  found: Moments, background: np.ndarray, shares: np.ndarray
) -> Linear:
  """Rows and biases for logits that are log odds against the background.

  Args:
    found: Moments of the labels' examples.
    background: `[D]`, mean of all examples.
    shares: `[K]`, of all examples that each label has.

  Returns:
    `w = (m - m0) / v` and `b = log share - sum((m^2 - m0^2) / v) / 2`, v the
    variance inside labels, averaged over all of them, no less than a hundredth
    of its mean; around the background where each label has one example.
  """
  counts = np.maximum(found.counts, 1)[:, None]
  means, total = found.sums / counts, found.counts.sum()
  if total > len(means):
    inside = found.squares - (found.counts[:, None] * means**2).sum(0)
    variance = inside / (total - len(means))
  else:
    mean = found.sums.sum(0) / total
    variance = found.squares / total - 2 * mean * background + background**2
  variance = np.maximum(variance, 0.01 * variance.mean() + 1e-12)
  rows = (means - background) / variance
  bias = np.log(shares) - ((means**2 - background**2) / variance).sum(1) / 2
  return Linear(rows.astype(np.float32), bias.astype(np.float32))
