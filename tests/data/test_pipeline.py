"""The order, the shapes and the contents of batches."""

import itertools
import tracemalloc

import jax
import numpy as np
import pytest

from xlj.data import csr as csr_lib
from xlj.data import order as order_lib
from xlj.data import padding
from xlj.data import pipeline
from xlj.data import store


def _csr(rng, num_rows, num_columns, mean, values=True):
  lengths = np.minimum(rng.geometric(1 / mean, num_rows), num_columns)
  lengths[0] = 0
  indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
  rows = [np.sort(rng.choice(num_columns, n, replace=False)) for n in lengths]
  indices = np.concatenate(rows).astype(np.int32)
  data = rng.uniform(1, 2, len(indices)).astype(np.float32)
  return csr_lib.Csr(indptr, indices, data if values else None, num_columns)


def _split(num_rows=103, features=None):
  rng = np.random.default_rng(0)
  if features is None:
    features = _csr(rng, num_rows, 50, 12)
  labels = _csr(rng, num_rows, 20, 3, values=False)
  return store.Split(
    features=features,
    labels=labels,
    filter=None,
    name="made",
    fingerprint="0" * 8,
  )


def _take(batches, count):
  return list(itertools.islice(batches, count))


def _assert_equal(got, expected):
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def _merge(parts):
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _dense(ids, values, num_columns):
  out = np.zeros((len(ids), num_columns + 1), np.float32)
  np.add.at(out, (np.arange(len(ids))[:, None], ids), values)
  return out[:, :num_columns]


def _check_contents(split, batch):
  real = batch.rows >= 0
  np.testing.assert_array_equal(batch.weights, real.astype(np.float32))
  rows = batch.rows[real]
  assert batch.feature_ids.min() >= 0
  dense = _dense(batch.feature_ids, batch.feature_values, 50)
  np.testing.assert_array_equal(
    dense[real], split.features.to_scipy()[rows].toarray()
  )
  labels = _dense(batch.label_ids, (batch.label_ids >= 0) * 1.0, 20)
  expected = np.array(
    [
      np.isin(np.arange(20), split.labels.take(np.array([row])).indices)
      for row in rows
    ]
  )
  np.testing.assert_array_equal(labels[real] > 0, expected)
  assert not dense[~real].any() and not labels[~real].any()
  assert (batch.label_ids[~real] == -1).all()


def test_batches_hold_the_rows():
  split = _split()
  for batch in _take(
    pipeline.train_batches(split, None, batch_size=16, seed=0), 9
  ):
    assert batch.feature_ids is not None
    assert batch.feature_ids.dtype == batch.label_ids.dtype == np.int32
    assert batch.feature_values.dtype == batch.weights.dtype == np.float32
    assert batch.rows.dtype == np.int64
    _check_contents(split, batch)


def test_every_row_once_per_epoch():
  batches = pipeline.train_batches(_split(), None, batch_size=16, seed=0)
  rows = np.concatenate([b.rows for b in _take(batches, 20)])
  for epoch in range(3):
    seen = np.sort(rows[epoch * 103 : (epoch + 1) * 103])
    np.testing.assert_array_equal(seen, np.arange(103))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("evaluate", [False, True])
def test_any_number_of_processes_sees_the_same_batches(count, evaluate):
  split = _split(num_rows=400)

  def batches(index, count):
    process = pipeline.Slice(index, count)
    if evaluate:
      return list(
        pipeline.eval_batches(split, None, batch_size=8, process=process)
      )
    return _take(
      pipeline.train_batches(
        split, None, batch_size=8, seed=5, process=process
      ),
      60,
    )

  whole = batches(0, 1)
  assert len({batch.feature_values.shape for batch in whole}) > 1
  parts = [batches(index, count) for index in range(count)]
  for step, expected in enumerate(whole):
    _assert_equal(_merge([part[step] for part in parts]), expected)


@pytest.mark.parametrize("start", [1, 7, 1000])
def test_resuming_equals_the_uninterrupted_run(start):
  split = _split()
  whole = pipeline.train_batches(split, None, batch_size=16, seed=2)
  resumed = pipeline.train_batches(
    split, None, batch_size=16, seed=2, start_step=start, num_threads=2
  )
  expected = itertools.islice(whole, start, start + 5)
  for got, want in zip(resumed, expected):
    _assert_equal(got, want)


def test_threads_do_not_change_the_order():
  split = _split()
  runs = [
    _take(
      pipeline.train_batches(
        split, None, batch_size=8, seed=2, num_threads=threads
      ),
      30,
    )
    for threads in (0, 1, 4)
  ]
  for other in runs[1:]:
    for got, want in zip(other, runs[0]):
      _assert_equal(got, want)


def test_the_seed_changes_the_order():
  split = _split()
  first, second = (
    next(pipeline.train_batches(split, None, batch_size=64, seed=seed))
    for seed in (0, 1)
  )
  assert (first.rows != second.rows).any()


def test_one_evaluation_pass_in_order():
  split = _split()
  batches = list(pipeline.eval_batches(split, None, batch_size=16))
  assert len(batches) == 7
  for batch in batches:
    assert batch.rows.shape == (16,)
    _check_contents(split, batch)
  rows = np.concatenate([batch.rows for batch in batches])
  np.testing.assert_array_equal(rows[:103], np.arange(103))
  assert (rows[103:] == -1).all()


def test_subsets_are_respected():
  split = _split()
  train, valid = pipeline.holdout(103, 0.2, seed=0)
  batches = pipeline.train_batches(
    split, None, batch_size=len(train), seed=0, rows=train
  )
  np.testing.assert_array_equal(np.sort(next(batches).rows), train)
  batches = list(pipeline.eval_batches(split, None, batch_size=16, rows=valid))
  rows = np.concatenate([batch.rows for batch in batches])
  np.testing.assert_array_equal(rows[rows >= 0], valid)
  for batch in batches:
    _check_contents(split, batch)


def test_holdout_partitions_the_rows_deterministically():
  train, valid = pipeline.holdout(1000, 100, seed=4)
  again = pipeline.holdout(1000, 0.1, seed=4)
  assert len(valid) == 100
  _assert_equal((train, valid), again)
  np.testing.assert_array_equal(
    np.sort(np.concatenate([train, valid])), np.arange(1000)
  )
  assert (pipeline.holdout(1000, 100, seed=5)[1] != valid).any()
  assert len(pipeline.holdout(10, 0, seed=0)[1]) == 0


@pytest.mark.parametrize("size", [10, 11, -1, 1.0])
def test_holdout_refuses_to_leave_nothing(size):
  with pytest.raises(ValueError, match="of 10 rows"):
    pipeline.holdout(10, size, seed=0)


def test_shapes_are_few_and_nothing_is_cut():
  split = _split()
  batches = pipeline.train_batches(split, None, batch_size=4, seed=0)
  batches = _take(batches, 99)
  shapes = {(b.feature_values.shape, b.label_ids.shape) for b in batches}
  assert 1 < len(shapes) <= 4
  entries = sum((b.feature_values != 0).sum() for b in batches)
  lengths = np.diff(split.features.indptr)
  assert entries == sum(lengths[b.rows].sum() for b in batches)


def test_caps_keep_the_heaviest_and_are_counted():
  split = _split()
  widths = padding.plan(split, batch_size=16, max_features=5, max_labels=2)
  cut = padding.cuts(split, max_features=5, max_labels=2)
  lengths = np.diff(split.features.indptr)
  labels = np.diff(split.labels.indptr)
  assert cut == {
    "features_total": lengths.sum(),
    "features_cut": np.maximum(lengths - 5, 0).sum(),
    "features_rows_cut": (lengths > 5).sum(),
    "labels_total": labels.sum(),
    "labels_cut": np.maximum(labels - 2, 0).sum(),
    "labels_rows_cut": (labels > 2).sum(),
  }
  kept = 0
  for batch in pipeline.eval_batches(split, None, batch_size=16, widths=widths):
    kept += (batch.label_ids >= 0).sum()
    for row, values in zip(batch.rows, batch.feature_values):
      if row >= 0:
        expected = np.sort(split.features.take(np.array([row])).values)[-5:]
        np.testing.assert_array_equal(np.sort(values[values > 0]), expected)
  assert kept == cut["labels_total"] - cut["labels_cut"]


def test_cuts_of_a_subset():
  split = _split()
  rows = np.arange(1, 30)
  cut = padding.cuts(split, rows=rows, max_labels=1)
  labels = np.diff(split.labels.indptr)[rows]
  assert cut["labels_cut"] == np.maximum(labels - 1, 0).sum()
  assert cut["features_cut"] == 0


def test_given_widths_are_used_and_exceeded_only_when_needed():
  split = _split()
  widths = padding.plan(
    split, batch_size=16, feature_sizes=(10,), label_sizes=(64,)
  )
  for batch in pipeline.eval_batches(split, None, batch_size=16, widths=widths):
    assert batch.label_ids.shape == (16, 64)
    assert batch.feature_values.shape[1] % 8 in (0, 2)
    _check_contents(split, batch)


def test_widths_hold_the_promised_share_of_batches():
  rng = np.random.default_rng(0)
  features = _csr(rng, 5000, 400, 30)
  labels = _csr(rng, 5000, 20, 3, values=False)
  split = store.Split(
    features=features, labels=labels, filter=None, name="", fingerprint=""
  )
  small, large = padding.plan(split, batch_size=64).features.sizes
  longest = [
    np.diff(features.indptr)[rng.integers(0, 5000, 64)].max()
    for _ in range(500)
  ]
  assert np.mean(np.array(longest) <= small) >= 0.88
  assert small < large and large >= np.diff(features.indptr).max()
  # Not where the longest is hardly longer.
  for apart, sizes in (
    (large / small - 0.01, (small, large)),
    (large / small, (large,)),
    (4.0, (large,)),
  ):
    widths = padding.plan(split, batch_size=64, apart=apart)
    assert widths.features.sizes == sizes
  given = padding.plan(split, batch_size=64, feature_sizes=(30, 32), apart=4.0)
  assert given.features.sizes == (30, 32)


def test_widths_of_batches_whose_rows_are_alike():
  split = _split()
  lengths = np.diff(split.features.indptr)
  sizes = padding.plan(split, batch_size=64, alike=True).features.sizes
  assert 2 < len(sizes) <= 5
  assert sizes[-1] >= lengths.max() > sizes[-1] - padding.FEATURE_MULTIPLE
  half = np.median(lengths)
  assert min(abs(np.array(sizes) - half)) <= padding.FEATURE_MULTIPLE
  other = padding.plan(split, batch_size=64)
  assert padding.plan(split, batch_size=64, alike=True).labels == other.labels


@pytest.mark.parametrize("name", ["max_features", "max_labels"])
def test_negative_caps_are_refused(name):
  with pytest.raises(ValueError, match=f"{name} -1"):
    padding.plan(_split(), batch_size=16, **{name: -1})


def test_weighting_is_applied_to_each_row():
  split = _split()

  def double(csr):
    return csr_lib.Csr(csr.indptr, csr.indices, csr.values * 2, 50)

  plain, weighted = (
    next(pipeline.train_batches(split, f, batch_size=16, seed=0))
    for f in (None, double)
  )
  np.testing.assert_array_equal(
    weighted.feature_values, plain.feature_values * 2
  )


def test_dense_features():
  dense = np.random.default_rng(0).normal(size=(103, 7)).astype(np.float32)
  split = _split(features=dense)
  batches = list(pipeline.eval_batches(split, None, batch_size=16))
  assert batches[0].feature_ids is None
  values = np.concatenate([b.feature_values for b in batches])
  np.testing.assert_array_equal(values[:103], dense)
  assert not values[103:].any() and values.shape == (112, 7)
  batch = next(pipeline.train_batches(split, None, batch_size=8, seed=0))
  np.testing.assert_array_equal(batch.feature_values, dense[batch.rows])


def test_large_sets_are_never_read_whole(tmp_path):
  nnz_per_row, num_rows = 64, 200_000  # 100 MB of indices and values
  shape = num_rows * nnz_per_row
  indices = np.lib.format.open_memmap(
    tmp_path / "indices.npy", "w+", np.int32, (shape,)
  )
  values = np.lib.format.open_memmap(
    tmp_path / "values.npy", "w+", np.float32, (shape,)
  )
  block = np.tile(np.arange(nnz_per_row, dtype=np.int32), 1000)
  for start in range(0, shape, len(block)):
    indices[start : start + len(block)] = block
    values[start : start + len(block)] = 1
  indptr = np.arange(num_rows + 1, dtype=np.int64) * nnz_per_row
  features = csr_lib.Csr(indptr, indices, values, nnz_per_row)
  labels = csr_lib.Csr(
    np.arange(num_rows + 1), np.zeros(num_rows, np.int32), None, 3
  )
  split = store.Split(
    features=features, labels=labels, filter=None, name="", fingerprint=""
  )
  tracemalloc.start()
  try:
    batches = pipeline.train_batches(split, None, batch_size=256, seed=0)
    taken = _take(batches, 20)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert all(batch.feature_values.all() for batch in taken)
  assert peak < 20e6


def test_a_process_reads_its_own_rows_alone(monkeypatch):
  split = _split(num_rows=400)
  taken = []
  take = csr_lib.Csr.take

  def recording(self, rows):
    if self is split.features or self is split.labels:
      taken.append(np.asarray(rows))
    return take(self, rows)

  monkeypatch.setattr(csr_lib.Csr, "take", recording)
  process = pipeline.Slice(1, 4)
  batches = pipeline.train_batches(
    split, None, batch_size=16, seed=5, process=process, num_threads=0
  )
  mine = np.concatenate([batch.rows for batch in _take(batches, 10)])
  assert taken and set(np.concatenate(taken).tolist()) == set(mine.tolist())
  whole = pipeline.shuffled(split, 16, 5)
  np.testing.assert_array_equal(
    mine, np.concatenate([whole[i][process.of(16)] for i in range(10)])
  )


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_is_filled_up_for_all_devices(count):
  options = {"batch_size": 16, "seed": 5, "num_threads": 0}
  (alone,) = _take(pipeline.train_batches(_split(), None, **options), 1)
  parts = [pipeline.Slice(i, count, devices=6) for i in range(count)]
  padded = _merge(
    _take(pipeline.train_batches(_split(), None, process=p, **options), 1)[0]
    for p in parts
  )
  _assert_equal(jax.tree.map(lambda a: a[:16], padded), alone)
  assert len(padded.rows) == 18 and (padded.rows[16:] == -1).all()
  assert not padded.weights[16:].any() and (padded.label_ids[16:] < 0).all()


def test_a_late_step_costs_no_more_than_the_first(monkeypatch):
  calls = []
  shuffle = order_lib.experimental.index_shuffle

  def counting(*args):
    calls.append(args)
    return shuffle(*args)

  monkeypatch.setattr(order_lib.experimental, "index_shuffle", counting)
  counts = []
  for step in (0, 10**9):
    batches = pipeline.train_batches(
      _split(), None, batch_size=16, seed=0, start_step=step, num_threads=0
    )
    calls.clear()
    next(batches)
    counts.append(len(calls))
  assert counts[0] == counts[1] <= 2 * 16
