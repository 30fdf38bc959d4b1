"""What is drawn: how often, of which part of the rows, and how often twice."""

import collections
import functools

import jax
import numpy as np
import pytest

from xlj.ops import label_sample

NUM_ROWS = 48
SAMPLERS = {
  "uniform": functools.partial(label_sample.uniform_sample, num_samples=16),
  "uneven": functools.partial(label_sample.uniform_sample, num_samples=7),
  "runs": functools.partial(label_sample.uniform_sample, num_samples=12, run=3),
  "uneven_runs": functools.partial(
    label_sample.uniform_sample, num_samples=20, run=4
  ),
  "log_uniform": functools.partial(
    label_sample.log_uniform_sample, num_samples=16, distinct=False
  ),
  "distinct": functools.partial(
    label_sample.log_uniform_sample, num_samples=16
  ),
  "blocks": functools.partial(
    label_sample.log_uniform_sample, num_samples=16, blocks=8
  ),
}


def draw_many(name, times=4000):
  """Rows and log counts of many samples, `[times, S]`."""
  sampler = SAMPLERS[name]
  keys = jax.random.split(jax.random.key(3), times)
  return jax.jit(jax.vmap(lambda key: sampler(key, num_rows=NUM_ROWS)))(keys)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_rows_are_drawn_as_often_as_expected(name):
  sample = draw_many(name)
  rows, log_counts = np.asarray(sample.rows), np.asarray(sample.log_counts)
  used = rows >= 0
  assert rows.max() < NUM_ROWS
  counts = np.bincount(rows[used], minlength=NUM_ROWS)
  expected = np.zeros(NUM_ROWS)
  expected[rows[used]] = np.exp(log_counts[used])
  assert expected.all()  # each was drawn, or none could compare
  mean = counts / len(rows)
  error = np.sqrt(expected / len(rows))
  assert (np.abs(mean - expected) < 4.5 * error).all()


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"log_uniform"}))
def test_no_row_is_drawn_twice(name):
  for rows in np.asarray(draw_many(name, 100).rows):
    most = collections.Counter(rows[rows >= 0].tolist()).most_common(1)
    assert most[0][1] == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_blocks_of_a_sample_are_of_blocks_of_rows(name):
  sample = draw_many(name, 100)
  assert sample.blocks == {"uniform": 16, "runs": 4, "blocks": 8}.get(name, 1)
  parts = np.asarray(sample.rows).reshape(100, sample.blocks, -1)
  block = np.where(parts < 0, -1, parts // (NUM_ROWS // sample.blocks))
  expected = np.arange(sample.blocks)[None, :, None]
  np.testing.assert_array_equal(block, np.where(parts < 0, -1, expected))


@pytest.mark.parametrize(("num_samples", "run"), [(48, 1), (1000, 1), (96, 12)])
def test_as_many_samples_as_rows_are_all_rows(num_samples, run):
  sample = label_sample.uniform_sample(
    jax.random.key(0), num_samples, NUM_ROWS, run
  )
  rows = np.asarray(sample.rows)
  np.testing.assert_array_equal(np.sort(rows[rows >= 0]), np.arange(NUM_ROWS))
  np.testing.assert_array_equal(sample.log_counts, 0)


@pytest.mark.parametrize("size", [1, 2, 5, 127, 1000, 3_000_007, 2**31 - 2])
def test_cells_are_log_uniform(size):
  starts, widths, masses = label_sample._cells(size)
  assert starts[0] == 1 and widths.sum() == size and masses.sum() == 2**32
  np.testing.assert_array_equal(starts + widths, [*starts[1:], size + 1])
  assert (masses > 0).all() and widths.max() < 2**31
  # The most, and the least, likely row of each cell by Zipf's law.
  mean = masses / widths / 2.0**32 * np.log(size + 1)
  for row in (starts, starts + widths - 1):
    exact = np.log1p(1 / row)
    np.testing.assert_allclose(mean, exact, rtol=1 / 127)
  single = widths == 1
  exact = np.log1p(1 / starts[single])
  np.testing.assert_allclose(mean[single], exact, rtol=1e-6)


def test_rows_beyond_the_digits_of_float32_are_all_drawn():
  sample = jax.jit(
    lambda key: label_sample.log_uniform_sample(key, 2**17, 10**9)
  )(jax.random.key(1))
  rows = np.asarray(sample.rows)
  late = rows[rows > 5 * 10**8]
  assert len(late) > 1000
  digits = np.bincount(late % 64, minlength=64)
  assert digits.min() > 0.4 * digits.mean()
  first, last = (rows[np.isin(rows, r)] for r in ([0], [10**9 - 1]))
  assert len(first) == 1 and len(last) <= 1


def test_uniform_of_a_billion_rows():
  sample = jax.jit(lambda key: label_sample.uniform_sample(key, 2**14, 10**9))(
    jax.random.key(1)
  )
  rows = np.asarray(sample.rows).astype(np.int64)
  ranges = np.arange(2**14) * 10**9 / 2**14
  assert (rows >= ranges - 1).all() and (
    rows < ranges + 10**9 / 2**14 + 1
  ).all()
  assert sample.blocks == 2**9
  np.testing.assert_allclose(
    np.exp(-sample.log_counts), 10**9 / 2**14, rtol=1e-4
  )


def test_what_does_not_fit_is_refused():
  key = jax.random.key(0)
  with pytest.raises(ValueError, match="10 .* multiple of run 4"):
    label_sample.uniform_sample(key, 10, 48, run=4)
  with pytest.raises(ValueError, match="blocks 5 must divide"):
    label_sample.log_uniform_sample(key, 10, 48, blocks=5)
