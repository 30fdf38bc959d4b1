"""What came after an item, against all prefixes of all sequences."""

import numpy as np
import pytest

from xlj.data import csr as csr_lib
from xlj.data import sequences as sequences_lib
from xlj.data import transitions

L, DECAY, SMOOTHING = 9, 0.6, 3.0


@pytest.mark.parametrize("longest", [2, 50])
def test_weights_are_a_regression_whose_items_do_not_go_together(longest):
  rng = np.random.default_rng(0)
  sequences = [rng.integers(0, L, n).tolist() for n in (2, 5, 3, 8, 2, 12)]
  x, y = [], []
  for items in sequences:
    for place in range(1, len(items)):
      x.append(np.zeros((len(items), L)))  # an item may be there twice
      for age, item in enumerate(reversed(items[:place][-longest:])):
        x[-1][age, item] = DECAY**age
      y.append(np.eye(L)[items[place]])
  counts = sum(np.outer(rows.sum(0), to) for rows, to in zip(x, y))
  squares = sum((rows**2).sum(0) for rows in x)
  found = transitions.weights(
    sequences_lib.features([items[:-1] for items in sequences], L),
    csr_lib.Csr.from_rows([items[-1:] for items in sequences], L),
    decay=DECAY,
    smoothing=SMOOTHING,
    longest=longest,
  )
  wanted = counts / (squares + SMOOTHING)[:, None]
  np.testing.assert_allclose(found.toarray(), wanted, atol=2e-3)
