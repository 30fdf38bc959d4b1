import numpy as np
import pytest

from xlj.data import order as order_lib


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 64, 1000, 4097])
@pytest.mark.parametrize("whole", [False, True])
def test_every_row_once_per_epoch(num_rows, whole):
  order = order_lib.Order(num_rows, seed=3, whole=whole)
  for epoch in range(3):
    rows = order.rows(epoch * num_rows, (epoch + 1) * num_rows)
    np.testing.assert_array_equal(np.sort(rows), np.arange(num_rows))


@pytest.mark.parametrize("whole", [False, True])
def test_any_slice_is_the_same_as_the_whole(whole):
  order = order_lib.Order(97, seed=1, whole=whole)
  whole = order.rows(0, 500)
  for start, stop in ((0, 1), (96, 98), (100, 350), (499, 500)):
    np.testing.assert_array_equal(order.rows(start, stop), whole[start:stop])


@pytest.mark.parametrize("whole", [False, True])
def test_seed_and_epoch_change_the_order(whole):
  n = 1000
  first = order_lib.Order(n, seed=0, whole=whole).rows(0, 2 * n)
  other = order_lib.Order(n, seed=1, whole=whole).rows(0, 2 * n)
  assert (first[:n] == first[n:]).mean() < 0.02
  assert (first == other).mean() < 0.02
  # The second epoch of one seed is no epoch of the next seed.
  assert (first[n:] == other[:n]).mean() < 0.02


@pytest.mark.slow
def test_positions_are_uniform_and_uncorrelated():
  n = 2**10
  runs = np.stack([order_lib.Order(n, seed).rows(0, n) for seed in range(200)])
  # Mean row at each position: sd of the mean is n / sqrt(12 * 200) = 20.9.
  assert abs(runs.mean(axis=0) - (n - 1) / 2).max() < 5 * 20.9
  neighbours = np.corrcoef(runs[:, :-1].ravel(), runs[:, 1:].ravel())[0, 1]
  assert abs(neighbours) < 0.01


def test_a_late_step_of_a_huge_set_costs_nothing():
  rows = order_lib.Order(10**12, seed=0).rows(10**15, 10**15 + 512)
  assert rows.min() >= 0 and rows.max() < 10**12
  assert len(np.unique(rows)) == 512


@pytest.mark.parametrize("num_rows, seed", [(0, 0), (-1, 0), (5, -1)])
def test_refuses_impossible_orders(num_rows, seed):
  with pytest.raises(ValueError, match="got"):
    order_lib.Order(num_rows, seed)


def test_batches_of_about_the_same_length(monkeypatch):
  monkeypatch.setattr(order_lib, "_WINDOW", 8)
  lengths = np.random.default_rng(0).integers(1, 100, 640)
  inner = order_lib.Order(640, seed=2)
  order = order_lib.ByLength(inner, lengths, batch_size=16, seed=2)
  rows = order.rows(0, 640)
  np.testing.assert_array_equal(np.sort(rows), np.arange(640))
  windows = rows.reshape(5, 8 * 16)  # of the same rows as without
  np.testing.assert_array_equal(
    np.sort(windows), np.sort(inner.rows(0, 640).reshape(5, 8 * 16))
  )
  spread = np.ptp(lengths[rows].reshape(-1, 16), axis=1)
  assert spread.max() < 40 and spread.mean() < 16
  # Short batches do not come first, nor in the same order in each window.
  means = lengths[rows].reshape(5, 8, 16).mean(2)
  assert len({tuple(np.argsort(m)) for m in means}) == 5
  for start, stop in ((0, 16), (16, 48), (120, 300), (639, 650), (7, 7)):
    np.testing.assert_array_equal(
      order.rows(start, stop), order.rows(0, 700)[start:stop]
    )
