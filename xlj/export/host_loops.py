"""Loops over the rows of an exported model, compiled for CPUs.

Weights are kept by feature, so that an example walks the lists of its features
alone. Those of 16 or 32 bits are the upper bits of float32 numbers, `shift`
bits from the lowest; those of 8 bits have a scale for each feature, and are
whole numbers, or looked up in a `table`. What there is not is None, and the
compiler leaves out what is about it.

Legend: n examples, F features, Z weights, R label rows, D width, M training
rows that are kept.
"""

import numpy as np

from xlj import processors

_SCAN = 64  # scores that are compared at a time
FINE, OVERFLOW, NO_FEATURE = range(3)
# Of keys, which have a score in one half and a row in the other.
_SIGN, _ALL, _HALF = np.uint32(2**31), np.uint32(2**31 - 1), np.uint64(32)
_ROW, _NO_KEY = np.uint64(2**32 - 1), np.uint64(2**64 - 1)


@processors.compiled
def weigh(indptr, indices, values, log, l2, idf, out, status):
  """Writes the values of sparse rows as `data.weighting` weighs them.

  Args:
    indptr: int64 [n + 1].
    indices: int32, features of the rows.
    values: float32, theirs.
    log: whether sign(v) log(1 + |v|) is taken.
    l2: whether rows get length 1.
    idf: float32 [F], what values are multiplied by.
    out: float32, gets the values.
    status: uint8 [n], gets `FINE`, `OVERFLOW` where a value is not finite, or
      `NO_FEATURE` where there is no such feature.
  """
  for row in range(len(indptr) - 1):
    first, last = indptr[row], indptr[row + 1]
    squares, status[row] = 0.0, FINE
    for e in range(first, last):
      feature, value = indices[e], values[e]
      if feature < 0 or feature >= len(idf):
        status[row] = NO_FEATURE
        break
      if log:
        value = np.copysign(np.log1p(abs(value)), value)
      out[e] = value * idf[feature]
      squares += np.float64(out[e]) * np.float64(out[e])
    if status[row] != FINE:
      continue
    if not np.isfinite(squares):
      status[row] = OVERFLOW
    elif l2 and squares > 0:
      scale = np.float32(1) / np.float32(np.sqrt(squares))
      for e in range(first, last):
        out[e] *= scale


@processors.compiled
def add_rows(ids, values, rows, shift, table, scale, out):
  """Adds the rows `[F, D]` of an example's features, times its values."""
  for k in range(len(ids)):
    x, row = values[k], rows[ids[k]]
    if scale is None:
      for d in range(len(out)):
        bits = np.uint32(np.uint32(row[d]) << shift)
        out[d] += x * bits.view(np.float32)
    elif table is None:
      x *= scale[ids[k]]
      for d in range(len(out)):
        out[d] += x * np.float32(row[d])
    else:
      x *= scale[ids[k]]
      for d in range(len(out)):
        out[d] += x * table[row[d]]


@processors.compiled
def add_bags(indptr, ids, values, rows, shift, table, scale, out):
  """Adds what `add_rows` does for each of n examples to `out [n, D]`."""
  for n in range(len(out)):
    part = slice(indptr[n], indptr[n + 1])
    add_rows(ids[part], values[part], rows, shift, table, scale, out[n])


@processors.compiled(any_order=True)
def multiply(x, rows, scale, z):
  """Writes the products of embeddings and label rows of whole numbers.

  Args:
    x: float32 [n, D].
    rows: int8 [R, D].
    scale: float32 [R], what the products with each row are multiplied by.
    z: float32 [n, R], gets them.
  """
  for n in range(len(x)):
    for i in range(len(rows)):
      total, row = np.float32(0), rows[i]
      for d in range(len(row)):
        total += x[n, d] * np.float32(row[d])
      z[n, i] = scale[i] * total


@processors.compiled
def _add_pairs(ids, values, starts, labels, weights, shift, table, scale, z):
  """Adds the weights of an example's features to the scores `z [R]`."""
  for k in range(len(ids)):
    first, last = starts[ids[k]], starts[ids[k] + 1]
    # Slices, as the compiler then knows that no index is negative.
    label, weight, x = labels[first:last], weights[first:last], values[k]
    if scale is None:
      for i in range(last - first):
        bits = np.uint32(np.uint32(weight[i]) << shift)
        z[label[i]] += x * bits.view(np.float32)
    elif table is None:
      x *= scale[ids[k]]
      for i in range(last - first):
        z[label[i]] += x * np.float32(weight[i])
    else:
      x *= scale[ids[k]]
      for i in range(last - first):
        z[label[i]] += x * table[weight[i]]


@processors.compiled
def _key(score, row):
  """A number that is the less, the better a label is; see `best`."""
  bits = np.float32(score + np.float32(0)).view(np.uint32)  # -0 becomes 0
  if not bits & _SIGN:
    bits = np.uint32(bits ^ _ALL)
  return (np.uint64(bits) << _HALF) | np.uint64(row)


@processors.compiled
def _score(key):
  """The score that a key was made of."""
  bits = np.uint32(key >> _HALF)
  if not bits & _SIGN:
    bits = np.uint32(bits ^ _ALL)
  return np.uint32(bits).view(np.float32)


@processors.compiled
def _put_first(key, heap, size):
  """Puts a key in the place of the first of a heap, which is the largest."""
  i = 0
  while 2 * i + 1 < size:
    child = 2 * i + 1
    if child + 1 < size and heap[child + 1] > heap[child]:
      child += 1
    if heap[child] <= key:
      break
    heap[i] = heap[child]
    i = child
  heap[i] = key


@processors.compiled
def best(z, among, only, scores, rows):
  """Finds the labels of the highest scores, best first.

  Of equal scores the lower row is first. Scores that are no numbers, or -inf,
  are passed over.

  Args:
    z: float32 [R].
    among: whether to look at some rows alone.
    only: int32, those rows, ascending; -1 is none.
    scores: float32 [k], gets the scores; -inf where there are no more.
    rows: int32 [k], gets the rows, -1 likewise.
  """
  count = len(rows)
  heap = np.empty(count, np.uint64)
  heap[:] = _NO_KEY
  worst = np.float32(-np.inf)
  if among:
    for row in only:
      if row >= 0 and z[row] > worst:
        _put_first(_key(z[row], row), heap, count)
        if heap[0] != _NO_KEY:
          worst = _score(heap[0])
  else:
    for start in range(0, len(z), _SCAN):
      part = z[start : start + _SCAN]
      found = False
      for i in range(len(part)):
        found |= part[i] > worst
      if found:
        for i in range(len(part)):
          if part[i] > worst:
            _put_first(_key(part[i], start + i), heap, count)
            if heap[0] != _NO_KEY:
              worst = _score(heap[0])
  for size in range(count - 1, -1, -1):
    key = heap[0]
    _put_first(heap[size], heap, size)
    scores[size], rows[size] = -np.inf, -1
    if key != _NO_KEY:
      scores[size], rows[size] = _score(key), np.int32(key & _ROW)


@processors.compiled
def answer(
  indptr,
  ids,
  values,
  starts,
  labels,
  weights,
  shift,
  table,
  scale,
  bias,
  is_first,
  z,
  denied,
  of_excluded,
  excluded,
  among,
  first,
  last,
  only,
  scores,
  rows,
):
  """Writes the best labels of examples.

  What there may be none of is empty, as each type of an argument would be
  compiled for itself.

  Args:
    indptr: int64 [n + 1].
    ids: int32, features of the examples.
    values: float32, theirs, weighted.
    starts: int64 [F + 1], where each feature begins in the next two; empty
      where there are no linear weights.
    labels: [Z] label rows.
    weights: [Z].
    shift: see above.
    table: float32 [256] or None.
    scale: float32 [F] or None.
    bias: float32 [R].
    is_first: whether scores begin with the bias, or with `z`.
    z: float32, overwritten: what to use, [1, R], or scores, [n, R].
    denied: int32, rows that are no answers; -1 is none.
    of_excluded: int64 [n + 1], where each example begins in the next one; may
      be empty.
    excluded: int32, rows that are no answers of an example; -1 is none.
    among: whether an example may have some rows alone.
    first: int64 [n], where each example begins in the last one.
    last: int64 [n], where it ends.
    only: int32, those rows, ascending in an example.
    scores: float32 [n, k], gets the scores.
    rows: int32 [n, k], gets the rows.
  """
  for n in range(len(rows)):
    of_row = z[0 if is_first else n]
    if is_first:
      of_row[:] = bias
    if len(starts):
      part = slice(indptr[n], indptr[n + 1])
      _add_pairs(
        *(ids[part], values[part], starts, labels, weights),
        *(shift, table, scale, of_row),
      )
    for row in denied:
      if row >= 0:
        of_row[row] = -np.inf
    if len(of_excluded):
      for e in range(of_excluded[n], of_excluded[n + 1]):
        if excluded[e] >= 0:
          of_row[excluded[e]] = -np.inf
    begin, end = 0, 0
    if among:
      begin, end = first[n], last[n]
    best(of_row, among, only[begin:end], scores[n], rows[n])


@processors.compiled
def add_of_neighbours(
  indptr,
  ids,
  values,
  kept,
  labels,
  count,
  temperature,
  weight,
  small,
  cosines,
  named,
  z,
):
  """Adds what the labels of near training rows gain; see `model.neighbours`.

  Args:
    indptr: int64 [n + 1].
    ids: int32, features of the examples.
    values: float32, theirs, weighted.
    kept: Training rows of length 1: int64 [F + 1], where each feature begins;
      rows; and float32, what the feature has in them.
    labels: int64 [M + 1], where each training row begins, and label rows.
    count: how many rows are near.
    temperature: of the cosines.
    weight: what is gained is multiplied by.
    small: a share that matters.
    cosines: float32 [M], to use.
    named: float32 [R] zeros, to use; zeros again when it returns.
    z: float32 [n, R] scores.
  """
  starts, columns, weights = kept
  of_row, of_rows = labels
  scores, rows = np.empty(count, np.float32), np.empty(count, np.int32)
  for n in range(len(z)):
    first, last = indptr[n], indptr[n + 1]
    squares = np.float32(0)
    for e in range(first, last):
      squares += values[e] * values[e]
    if squares == 0:
      continue
    length = np.float32(1) / np.sqrt(squares)
    cosines[:] = 0
    for e in range(first, last):
      begin, end = starts[ids[e]], starts[ids[e] + 1]
      column, unit, x = columns[begin:end], weights[begin:end], values[e]
      x *= length
      for i in range(end - begin):
        cosines[column[i]] += x * unit[i]
    best(cosines, False, rows[:0], scores, rows)
    if not scores[0] > 0:
      continue
    total = 0.0
    for i in range(count):
      total += np.exp((scores[i] - scores[0]) / temperature)
    for i in range(count):
      if rows[i] < 0:
        break
      share = np.exp((scores[i] - scores[0]) / temperature) / total
      for e in range(of_row[rows[i]], of_row[rows[i] + 1]):
        named[of_rows[e]] += share
    for i in range(count):
      if rows[i] < 0:
        break
      for e in range(of_row[rows[i]], of_row[rows[i] + 1]):
        label = of_rows[e]
        if named[label] > 0:
          z[n, label] += weight * np.log1p(named[label] / small)
          named[label] = 0
