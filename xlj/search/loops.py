"""Loops over label rows, compiled for CPUs.

Rows have float32 numbers, the upper halves of such (bfloat16) as uint16, or
int8. Their numbers are widened in registers: what is read of memory is what is
stored. A row's score is `scale (row . x) + bias`; arrays of no scales, or no
bias, are empty.

The best rows of an example are kept in a heap, whose first is the worst: that
of the lowest score and, of those, of the highest number.

Legend: n examples, D width, R rows, k places of a heap, P pairs of an
example and a list.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core import types
from numba.extending import intrinsic
import numpy as np

from xlj import processors

_TILE = 64  # rows whose scores are made, and compared, at a time
_FEW = 16  # examples that stay in the nearest cache beside some rows
_AHEAD = 8  # rows from the one that is read to the one that is sent for
_LINE = 64  # bytes of a line of the cache


@processors.compiled
def scan(
  x, values, scale, bias, first, numbers, floor, denied, scores, ids, sizes
):
  """Puts the best of some rows into the heaps of examples.

  Args:
    x: float32 [n, D].
    values: [R, D] numbers of the rows.
    scale: float32 [R] or empty.
    bias: float32 [R] or empty.
    first: The number of the first row.
    numbers: int64 [R] numbers of the rows, ascending; if empty, they are those
      from `first` on. None is below those in the heaps.
    floor: Rows have to have a higher score.
    denied: For each example numbers that it may not have, ascending: int64 [n],
      where they start; int64 [n], where they end; and they.
    scores: float32 [n, k], of the heaps.
    ids: int64 [n, k], of the heaps.
    sizes: int64 [n], of the heaps.
  """
  tile = np.empty((len(x), min(_TILE, len(values))), np.float32)
  for low in range(0, len(values), _TILE):
    high = min(low + _TILE, len(values))
    _products(x, values[low:high], tile)
    products = tile[:, : high - low]
    keep(
      products,
      scale[low:],
      bias[low:],
      first + low,
      numbers[low:],
      floor,
      denied,
      scores,
      ids,
      sizes,
    )


@processors.compiled
def keep(
  products, scale, bias, first, numbers, floor, denied, scores, ids, sizes
):
  """Puts the best of the rows into heaps, given the inner products.

  Args:
    products: float32 [n, R]; scores afterwards.
    scale: float32 [R] or empty.
    bias: float32 [R] or empty.
    first: As in `scan`.
    numbers: As in `scan`.
    floor: As in `scan`.
    denied: As in `scan`.
    scores: float32 [n, k], of the heaps.
    ids: int64 [n, k], of the heaps.
    sizes: int64 [n], of the heaps.
  """
  starts, stops, ban = denied
  for n in range(len(products)):
    bar = _bar(scores[n], sizes[n], floor)
    for low in range(0, products.shape[1], _TILE):
      line = products[n, low : low + _TILE]
      _finish_scores(line, scale, bias, low)
      if not _any_above(line, bar):
        continue
      for r in range(len(line)):
        if line[r] > bar:
          number = numbers[low + r] if len(numbers) else first + low + r
          if not _holds(ban, starts[n], stops[n], number):
            sizes[n] = _push(scores[n], ids[n], sizes[n], line[r], number)
            bar = _bar(scores[n], sizes[n], floor)


@processors.compiled
def probe(
  x,
  examples,
  lists,
  starts,
  codes,
  scale,
  bias,
  names,
  floor,
  denied,
  scores,
  ids,
  sizes,
):
  """Puts the best rows of some lists into the heaps of examples.

  Args:
    x: float32 [n, D].
    examples: int64 [P], who looks at a list.
    lists: int64 [P], which list that is, equal ones together; -1 is none.
    starts: int64, where each list starts, and the last one ends.
    codes: [R, D] numbers of the rows, list by list.
    scale: float32 [R] or empty.
    bias: float32 [R] or empty.
    names: int [R], the numbers of the rows.
    floor: As in `scan`.
    denied: As in `scan`.
    scores: float32 [n, k], of the heaps.
    ids: int64 [n, k], of the heaps.
    sizes: int64 [n], of the heaps.
  """
  firsts, lasts, ban = denied
  near = np.empty((min(len(x), _FEW), x.shape[1]), np.float32)
  tile = np.empty((len(near), _TILE), np.float32)
  start = 0
  while start < len(lists):
    # Those who look at the same list; the rows are read once for them.
    c, stop = lists[start], start + 1
    while stop < len(lists) and lists[stop] == c and stop - start < len(near):
      stop += 1
    some = near[: stop - start]
    for i in range(len(some)):
      some[i] = x[examples[start + i]]
    for low in range(starts[c], starts[c + 1] if c >= 0 else 0, _TILE):
      high = min(low + _TILE, starts[c + 1])
      _products(some, codes[low:high], tile)
      for i in range(len(some)):
        n, line = examples[start + i], tile[i, : high - low]
        _finish_scores(line, scale, bias, low)
        bar = _bar(scores[n], sizes[n], floor)
        if not _any_above(line, bar):
          continue
        for r in range(len(line)):
          if line[r] > bar:
            name = np.int64(names[low + r])
            if not _holds(ban, firsts[n], lasts[n], name):
              sizes[n] = _push(scores[n], ids[n], sizes[n], line[r], name)
              bar = _bar(scores[n], sizes[n], floor)
    start = stop


@processors.compiled
def rescore(x, numbers, values, scale, bias, floor, denied, scores, ids, sizes):
  """Puts some rows of each example into the heaps of examples.

  Args:
    x: float32 [n, D].
    numbers: int64 [n, S] numbers of rows, each once; -1 is none.
    values: [R, D] numbers of all rows.
    scale: float32 [R] or empty.
    bias: float32 [R] or empty.
    floor: As in `scan`.
    denied: As in `scan`.
    scores: float32 [n, k], of the heaps.
    ids: int64 [n, k], of the heaps.
    sizes: int64 [n], of the heaps.
  """
  starts, stops, ban = denied
  last = numbers.shape[1] - 1
  for n in range(len(x)):
    for i in range(last + 1):
      row, ahead = numbers[n, i], numbers[n, min(i + _AHEAD, last)]
      if ahead >= 0:
        _send_for(values, ahead)  # pyrefly: ignore
      if row < 0 or _holds(ban, starts[n], stops[n], row):
        continue
      score = _product(x[n], values[row])
      if len(scale):
        score *= scale[row]
      if len(bias):
        score += bias[row]
      if score > floor:
        sizes[n] = _push(scores[n], ids[n], sizes[n], score, row)


@processors.compiled
def search(
  x,
  centres,
  starts,
  codes,
  names,
  rows,
  probes,
  places,
  floor,
  denied,
  scores,
  ids,
  sizes,
):
  """All that an index does for one example, without Python in between.

  Args:
    x: float32 [1, D].
    centres: Values, scales and biases of the centres of lists.
    starts: int64, where each list starts, and the last one ends.
    codes: Values, scales and biases of the codes, list by list.
    names: int [R], the numbers of the rows.
    rows: Values, scales and biases of all rows.
    probes: How many lists are looked at.
    places: How many rows are scored again; 0 for none.
    floor: As in `scan`.
    denied: As in `scan`.
    scores: float32 [1, k], of the heap; sorted afterwards.
    ids: int64 [1, k], of the heap.
    sizes: int64 [1], of the heap.
  """
  none, zero = np.zeros(0, np.int64), np.zeros(1, np.int64)
  lowest = np.float32(-np.inf)
  near, lists = np.empty((1, probes), np.float32), np.full((1, probes), -1)
  count = np.zeros(1, np.int64)
  all_are_allowed = zero, zero, none
  scan(
    x,
    centres[0],
    centres[1],
    centres[2],
    0,
    none,
    lowest,
    all_are_allowed,
    near,
    lists,
    count,
  )
  sort(near, lists, count)  # the nearest first: few rows are better later
  # What is scored again is first kept apart, whatever its score.
  best, numbers, found, low = scores, ids, sizes, floor
  if places:
    best, numbers = np.empty((1, places), np.float32), np.full((1, places), -1)
    found, low = np.zeros(1, np.int64), lowest
  probe(
    x,
    np.zeros(probes, np.int64),
    lists[0],
    starts,
    codes[0],
    codes[1],
    codes[2],
    names,
    low,
    denied,
    best,
    numbers,
    found,
  )
  if places:
    rescore(
      x, numbers, rows[0], rows[1], rows[2], floor, denied, scores, ids, sizes
    )
  sort(scores, ids, sizes)


@processors.compiled
def merge(other_scores, other_ids, other_sizes, scores, ids, sizes):
  """Puts all of other heaps into those of the same examples."""
  for n in range(len(scores)):
    for i in range(other_sizes[n]):
      sizes[n] = _push(
        scores[n], ids[n], sizes[n], other_scores[n, i], other_ids[n, i]
      )


@processors.compiled
def sort(scores, ids, sizes):
  """Makes of heaps the best rows in order, with -inf and -1 behind them."""
  for n in range(len(scores)):
    score, number = scores[n], ids[n]
    score[sizes[n] :] = -np.inf
    number[sizes[n] :] = -1
    for last in range(sizes[n] - 1, 0, -1):
      a, i = score[last], number[last]
      score[last], number[last] = score[0], number[0]
      _sift_down(score, number, last, a, i)


@processors.compiled
def widen(values, scale, out):
  """Writes the numbers of rows as float32."""
  for r in range(len(values)):
    factor = scale[r] if len(scale) else np.float32(1)
    for d in range(out.shape[1]):
      out[r, d] = factor * _number(values[r, d])


@processors.compiled
def add_to_sums(rows, groups, sums, counts):
  """Adds rows `[R, D]` to the sums `[C, D]` of their groups, and counts."""
  for r in range(len(rows)):
    c = groups[r]
    counts[c] += 1
    for d in range(rows.shape[1]):
      sums[c, d] += rows[r, d]


@processors.compiled
def _number(value):
  """A stored number as float32."""
  if isinstance(value, np.uint16):
    return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
  return np.float32(value)


@intrinsic
def _send_for(context: Any, rows: Any, number: Any) -> Any:
  """Asks memory for a row, to be in the cache when it is read; waits not.

  The row may be beyond the last one: nothing is read.
  """

  def generate(context, builder, signature, arguments):
    array = context.make_array(signature.args[0])(
      context, builder, arguments[0]
    )
    stride = cgutils.unpack_tuple(builder, array.strides, 2)[0]
    zero, line = stride.type(0), stride.type(_LINE)
    start = builder.add(
      builder.ptrtoint(array.data, stride.type),
      builder.mul(arguments[1], stride),
    )
    flag, place = ir.IntType(32), ir.IntType(8).as_pointer()
    fetch = cgutils.get_or_insert_function(
      builder.module,
      ir.FunctionType(ir.VoidType(), [place, flag, flag, flag]),
      "llvm.prefetch.p0",
    )
    with cgutils.for_range_slice(builder, zero, stride, line) as (offset, _):
      address = builder.inttoptr(builder.add(start, offset), place)
      builder.call(fetch, [address, flag(0), flag(3), flag(1)])
    return context.get_dummy_value()

  return types.void(rows, types.intp), generate


@processors.compiled(any_order=True)
def _product(x, row):
  """The inner product of an example and a row."""
  total = np.float32(0)
  for d in range(len(x)):
    total += x[d] * _number(row[d])
  return total


@processors.compiled(any_order=True)
def _products(x, rows, out):
  """Writes the inner products `out [n, R]`, of up to four by four at a time.

  All rows go the same way, the last ones beside themselves: equal rows have
  equal scores.
  """
  many, last = len(x) // 4 * 4, len(rows) - 1
  zero = np.float32(0)
  for start in range(0, many, _FEW):
    for r in range(0, len(rows), 4):
      r1, r2, r3 = min(r + 1, last), min(r + 2, last), min(r + 3, last)
      a, b, c, e = rows[r], rows[r1], rows[r2], rows[r3]
      for n in range(start, min(start + _FEW, many), 4):
        x0, x1, x2, x3 = x[n], x[n + 1], x[n + 2], x[n + 3]
        # A sum for each pair, all in registers.
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
        c0 = c1 = c2 = c3 = e0 = e1 = e2 = e3 = zero
        for d in range(x.shape[1]):
          p, q, s, t = (
            _number(a[d]),
            _number(b[d]),
            _number(c[d]),
            _number(e[d]),
          )
          y = x0[d]
          a0, b0, c0, e0 = a0 + p * y, b0 + q * y, c0 + s * y, e0 + t * y
          y = x1[d]
          a1, b1, c1, e1 = a1 + p * y, b1 + q * y, c1 + s * y, e1 + t * y
          y = x2[d]
          a2, b2, c2, e2 = a2 + p * y, b2 + q * y, c2 + s * y, e2 + t * y
          y = x3[d]
          a3, b3, c3, e3 = a3 + p * y, b3 + q * y, c3 + s * y, e3 + t * y
        o0, o1, o2, o3 = out[n], out[n + 1], out[n + 2], out[n + 3]
        o0[r], o0[r1], o0[r2], o0[r3] = a0, b0, c0, e0
        o1[r], o1[r1], o1[r2], o1[r3] = a1, b1, c1, e1
        o2[r], o2[r1], o2[r2], o2[r3] = a2, b2, c2, e2
        o3[r], o3[r1], o3[r2], o3[r3] = a3, b3, c3, e3
  for n in range(many, len(x)):
    for r in range(len(rows)):
      if rows.itemsize == 1:  # of wider ones memory sends enough by itself
        _send_for(rows, r + _AHEAD)  # pyrefly: ignore
      out[n, r] = _product(x[n], rows[r])


@processors.compiled
def _finish_scores(line, scale, bias, low):
  """Makes scores of the products of the rows from `low` on."""
  if len(scale):
    for r in range(len(line)):
      line[r] *= scale[low + r]
  if len(bias):
    for r in range(len(line)):
      line[r] += bias[low + r]


@processors.compiled
def _any_above(line, bar):
  """Whether a score is above a bar."""
  found = False
  for r in range(len(line)):
    found |= line[r] > bar
  return found


@processors.compiled
def _bar(scores, size, floor):
  """What a score has to be above to get into a heap."""
  return scores[0] if size == len(scores) else floor


@processors.compiled
def _holds(sorted_numbers, start, stop, number):
  """Whether a part of ascending numbers has one."""
  while start < stop:
    middle = (start + stop) >> 1
    if sorted_numbers[middle] < number:
      start = middle + 1
    elif sorted_numbers[middle] > number:
      stop = middle
    else:
      return True
  return False


@processors.compiled
def _push(scores, ids, size, score, number):
  """Puts a row into a heap if it is better than the worst; the new size."""
  if size == len(scores):
    if _is_worse(scores[0], ids[0], score, number):
      _sift_down(scores, ids, size, score, number)
    return size
  i = size
  while i > 0:
    parent = (i - 1) >> 1
    if not _is_worse(score, number, scores[parent], ids[parent]):
      break
    scores[i], ids[i] = scores[parent], ids[parent]
    i = parent
  scores[i], ids[i] = score, number
  return size + 1


@processors.compiled
def _sift_down(scores, ids, size, score, number):
  """Puts a row in the place of a heap's first, and restores the heap."""
  i = 0
  while True:
    child = 2 * i + 1
    if child >= size:
      break
    other = child + 1
    if other < size and _is_worse(
      scores[other], ids[other], scores[child], ids[child]
    ):
      child = other
    if not _is_worse(scores[child], ids[child], score, number):
      break
    scores[i], ids[i] = scores[child], ids[child]
    i = child
  scores[i], ids[i] = score, number


@processors.compiled
def _is_worse(score, number, other_score, other_number):
  """Whether a row comes behind another."""
  if score != other_score:
    return score < other_score
  return number > other_number
