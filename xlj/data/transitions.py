"""How often items of sequences came after one another, as linear weights.

Let x hold the items of a sequence so far, of which the newest counts 1 and each
older one `decay` times the one after it, and y the item that comes next. With a
row for every place of the training sequences, the weight of label j for item i
is

  C_ij / (n_i + smoothing),   C = X'Y,   n_i = (X'X)_ii,

the ridge regression of what comes next on what came before, if items did not
go together: a Markov chain that looks further back than one item. Regressions
of the whole X'X are the linear models of Choi et al. 2021, "Session-aware
linear item-item models for session-based recommendation" (SLIST).

Legend: N sequences, L items.
"""

from typing import Any

import numpy as np
import scipy.sparse

from xlj.data import csr as csr_lib

_NOTHING = 1e-3  # a power of `decay` that is left out
_Matrix = Any  # a scipy.sparse.csr_array


def weights(
  before: csr_lib.Csr,
  following: csr_lib.Csr,
  *,
  decay: float,
  smoothing: float,
  longest: int,
) -> _Matrix:
  """Counts, and divides by how often there was something to come.

  Args:
    before: `[N, L]`, items of each sequence in order, oldest first.
    following: `[N, L]`, the one that is its last, after these.
    decay: In (0, 1).
    smoothing: Above 0; so many more places at which an item was the newest and
      something else came.
    longest: Pairs of items further apart are left out.

  Returns:
    `[L, L]` float32, a row for each item that came before.
  """
  size = before.num_columns
  ends = np.asarray(before.indptr[1:])
  items = np.insert(before.indices, ends, following.indices)
  of_row = np.repeat(np.arange(before.num_rows), before.row_lengths + 1)
  counts = scipy.sparse.csr_array((size, size), dtype=np.float32)
  squares, weight, distance = np.zeros(size), 1.0, 1
  while weight >= _NOTHING and distance <= longest:
    same = of_row[distance:] == of_row[:-distance]
    if not same.any():
      break
    old, new = items[:-distance][same], items[distance:][same]
    found = np.full(len(old), weight, np.float32)
    counts += scipy.sparse.csr_array((found, (old, new)), (size, size))
    squares += weight**2 * np.bincount(old, minlength=size)
    weight, distance = weight * decay, distance + 1
  scale = (1 / (squares + smoothing)).astype(np.float32)
  return scipy.sparse.diags_array(scale) @ counts
