"""Rows that move are those of numpy, on any mesh."""

import jax
import numpy as np
import pytest

from tests import meshes
from xlj import sharding
from xlj.labels import label_edit
from xlj.ops import layout as layout_lib


def by_row(values, layout, fill):
  out = np.full((layout.num_rows, *values.shape[1:]), fill, values.dtype)
  out[layout.row_of_label(np.arange(len(values)))] = values
  return out


@pytest.mark.parametrize("shape", [(2, 4), (1, 3)])
@pytest.mark.parametrize("after", [30, 61])
def test_rows_move_as_in_numpy(shape, after):
  empty = -8 % (shape[0] * shape[1])
  before = layout_lib.Layout(45, 8, empty)
  values = np.arange(90, dtype=np.int32).reshape(45, 2) + 1
  if after < 45:
    sources, targets = label_edit.swaps(45, [2, 40, 29, 31, *range(3, 14)])
    assert len(set(range(45)) - {2, 40, 29, 31, *range(3, 14)}) == after
  else:
    # Labels that nothing is said of are as new: 45 to 49 were padding.
    sources, targets = np.full(11, -1), np.arange(50, 61)
  wanted = np.full((after, 2), 7, np.int32)
  wanted[: min(after, 45)] = values[:after]
  known = sources >= 0
  wanted[targets[known]] = values[sources[known]]
  layout = layout_lib.Layout(after, 8, empty)
  with meshes.mesh(shape) as mesh:
    a = by_row(values, before, 0)
    a = jax.device_put(a, jax.NamedSharding(mesh, sharding.LABELS))
    found = label_edit.moved(a, before, layout, sources, targets, fill=7)
    assert found.sharding.spec[0] == sharding.AXES
    np.testing.assert_array_equal(np.asarray(found), by_row(wanted, layout, 7))


def test_what_goes_leaves_no_gap():
  sources, targets = label_edit.swaps(10, [1, 8, 3])
  assert sources.tolist() == [7, 9] and targets.tolist() == [1, 3]
