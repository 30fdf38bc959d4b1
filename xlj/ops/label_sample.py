"""Rows drawn at random to stand for all, and how often each is to be expected.

The k-th of `blocks` equal parts of a sample is of the k-th of as many equal
parts of the rows. So each of any number of devices that divides `blocks` has
its part of what is drawn, which depends on the key alone and not on the mesh.

Legend: L label rows, S drawn ones.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

_CELLS = 6  # the logarithm of the number of cells of an octave


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["rows", "log_counts"],
  meta_fields=["blocks"],
)
@dataclasses.dataclass(frozen=True)
class Sample:
  """Drawn rows, the same on all devices.

  Attributes:
    rows: `[S]` int32; -1 is padding.
    log_counts: `[S]` float32 logarithm of how often the row is expected in the
      sample, or of the probability if it is there at most once. A sum over the
      sample divided by that is on average the sum over all rows.
    blocks: Number of parts of which the k-th is of the k-th part of all rows.
  """

  rows: jax.Array
  log_counts: jax.Array
  blocks: int = 1


def uniform_sample(
  key: jax.Array, num_samples: int, num_rows: int, run: int = 1
) -> Sample:
  """Draws rows, each as likely as all others, none twice.

  Rows are divided into as many ranges of equal size (or differing by one) as
  are to be drawn, and one row of each is drawn; its probability is one over the
  size. Compared with independent draws the estimates vary less, as ranges are
  represented equally, and neither a permutation nor a random number per row is
  needed. Where there are as many samples as rows, each row is drawn.

  This is the sampling of Partial FC (An et al. 2022, "Killing two birds with
  one stone") if all positives are candidates too, as in
  `xlj.ops.label_candidates`; what is drawn does not depend on the devices.

  Args:
    key: Random key.
    num_samples: S, a multiple of `run`; best a multiple of the number of
      devices times `run`, for then each has its part of the sample.
    num_rows: L.
    run: How many rows in succession are drawn at once, which are faster to
      read; ranges are that much larger.

  Returns:
    The sample; of runs cut short by the end of a range the rest is padding.

  Raises:
    ValueError: `num_samples` is not a positive multiple of `run`.
  """
  if run < 1 or num_samples < 1 or num_samples % run:
    raise ValueError(
      f"num_samples {num_samples} must be a positive multiple of run {run}"
    )
  ranges = min(num_samples // run, num_rows)
  blocks = math.gcd(ranges, num_rows)
  each = ranges // blocks
  size, larger = divmod(num_rows // blocks, each)
  place = jnp.arange(each, dtype=jnp.int32)
  sizes = size + (place < larger)
  first = place * size + jnp.minimum(place, larger)
  first += jnp.arange(blocks, dtype=jnp.int32)[:, None] * (num_rows // blocks)
  # Runs begin at multiples of their length from the beginning of the range.
  runs = -(-sizes // run)
  offset = run * jax.random.randint(key, first.shape, 0, runs, jnp.int32)
  offset = offset[..., None] + jnp.arange(run, dtype=jnp.int32)
  rows = jnp.where(offset < sizes[:, None], first[..., None] + offset, -1)
  log_counts = jnp.broadcast_to(
    -jnp.log(runs.astype(jnp.float32))[:, None], rows.shape
  )
  return Sample(rows.reshape(-1), log_counts.reshape(-1), blocks)


def log_uniform_sample(
  key: jax.Array,
  num_samples: int,
  num_rows: int,
  *,
  distinct: bool = True,
  blocks: int = 1,
) -> Sample:
  """Draws rows that are numbered by falling frequency, by Zipf's law.

  Row k has probability `p_k = log((k + 2) / (k + 1)) / log(L + 1)`, exactly for
  the first 127, and within 1 / 128 of it for others: each octave `2^e - 1 <= k
  < 2^(e + 1) - 1` is divided into 64 cells, in which rows are equally likely.
  The correction is exact for that. (Inverting the distribution in float32, as
  is common, can draw only a small part of the rows past a few million.)

  S independent draws expect row k `S p_k` times. If `distinct`, a row drawn
  more than once is kept once, and is there with probability `1 - (1 - p_k)^S`.

  Args:
    key: Random key.
    num_samples: S, a multiple of `blocks`.
    num_rows: L, a multiple of `blocks`.
    distinct: Whether to keep only one of equal rows.
    blocks: Draws S / blocks rows of each of so many blocks of rows, by their
      place in the block in place of k. Meant for labels that are dealt out to
      blocks as in `xlj.ops.layout`, whose frequency falls with the place in
      any block. With 1, every device has to compute with all S rows, as all
      might be its own.

  Returns:
    The sample; if `distinct`, repeated rows are padding.

  Raises:
    ValueError: `blocks` does not divide S and L, or S is not positive.
  """
  if num_samples < 1 or num_samples % blocks or num_rows % blocks:
    raise ValueError(
      f"blocks {blocks} must divide num_samples {num_samples}, which must be"
      f" positive, and num_rows {num_rows}"
    )
  each, size = num_samples // blocks, num_rows // blocks
  starts, widths, masses = _cells(size)
  upto = np.cumsum(masses)[:-1].astype(np.uint32)
  probability = masses / 2.0**32 / widths
  if distinct:
    count = -np.expm1(each * np.log1p(-np.minimum(probability, 1 - 1e-12)))
  else:
    count = each * probability
  log_count = jnp.asarray(np.log(count), jnp.float32)
  cell_key, place_key = jax.random.split(key)
  bits = jax.random.bits(cell_key, (blocks, each), jnp.uint32)
  cell = jnp.searchsorted(jnp.asarray(upto), bits, side="right")
  width = jnp.asarray(widths, jnp.int32)[cell]
  place = jnp.asarray(starts, jnp.int32)[cell] - 1
  place += jax.random.randint(place_key, width.shape, 0, width, jnp.int32)
  log_counts = log_count[cell]
  if distinct:
    order = jnp.argsort(place, axis=1)
    place = jnp.take_along_axis(place, order, 1)
    log_counts = jnp.take_along_axis(log_counts, order, 1)
    again = place == jnp.roll(place, 1, 1).at[:, 0].set(-1)
  else:
    again = jnp.zeros(place.shape, bool)
  rows = place + jnp.arange(blocks, dtype=jnp.int32)[:, None] * size
  rows = jnp.where(again, -1, rows)
  return Sample(rows.reshape(-1), log_counts.reshape(-1), blocks)


def _cells(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cells of the numbers 1 ... size of about log-uniform mass.

  Args:
    size: Greatest number.

  Returns:
    First numbers, widths, and masses in units of 2^-32 that add up to 1; all
    int64.
  """
  starts = []
  for octave in range(size.bit_length()):
    width = 2 ** max(octave - _CELLS, 0)
    starts += range(2**octave, min(2 ** (octave + 1), size + 1), width)
  bounds = np.array([*starts, size + 1], np.int64)
  upto = np.log(bounds) / np.log(size + 1) * 2.0**32
  return bounds[:-1], np.diff(bounds), np.diff(np.rint(upto).astype(np.int64))
