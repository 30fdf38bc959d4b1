"""Loops over the pairs of an example's features, compiled for CPUs.

Each is about one block of label rows and all examples of a batch, and needs no
other block: threads share out the blocks, and the result does not depend on how
many there are.

Legend: see `xlj.ops.pairs.label_pairs`.
"""

import numpy as np

from xlj import processors

_SCAN = 64  # labels whose logits are compared at a time
_LOOK = 2  # rows that are compared in the time it takes to look at a pair again
# Pairs of a feature that are passed in the time it takes to find one of them.
_SEARCH = 40


@processors.compiled
def logits(starts, columns, weights, ids, values, lengths, out):
  """Writes the logits `out [N, R]` of one block."""
  for n in range(len(ids)):
    out[n] = 0
    _add_products(
      starts, columns, weights, ids[n], values[n], lengths[n], out[n]
    )


@processors.compiled
def add_outer(starts, columns, weights, ids, values, lengths, grad, scale):
  """Adds the gradient of one block, `grad [N, R]`, to its weights."""
  for n in range(len(ids)):
    for k in range(lengths[n]):
      first, last = starts[ids[n, k]], starts[ids[n, k] + 1]
      x = scale * values[n, k]
      # Slices, as the compiler then knows that no index is negative.
      column, weight = columns[first:last], weights[first:last]
      for i in range(last - first):
        weight[i] += x * grad[n, column[i]]


@processors.compiled
def step_by_example(
  starts,
  columns,
  weights,
  bias,
  row_rates,
  ids,
  values,
  lengths,
  positives,
  first_row,
  example_weights,
  rates,
):
  """Updates weights and bias `[R]` of one block; returns the loss."""
  num_rows = len(bias)
  rate, bias_rate, threshold = rates
  z, grad = bias.copy(), np.zeros_like(bias)
  visited = np.empty(num_rows, np.int64)
  scores = np.empty_like(bias)
  # Rows whose bias alone is above the threshold, or has been in this call.
  high = np.empty(num_rows, np.int64)
  num_high = 0
  base = bias.copy()  # what `z` starts with, but for them
  for row in range(num_rows):
    if bias[row] > threshold:
      high[num_high] = row
      base[row] = -np.inf
      num_high += 1
  loss = 0.0
  for n in range(len(ids)):
    example_weight = example_weights[n]
    if example_weight <= 0:
      continue
    # `z` is the bias here.
    num_pairs = _add_products(
      starts, columns, weights, ids[n], values[n], lengths[n], z
    )
    count = 0
    for t in range(positives.shape[1]):
      row = positives[n, t] - first_row
      if 0 <= row < num_rows and grad[row] == 0:
        grad[row] = -1
        visited[count] = row
        scores[row] = z[row]
        z[row] = base[row]
        count += 1
    if (num_pairs + num_high) * _LOOK < num_rows:
      # No others can be above the threshold than those of pairs, and `high`.
      for i in range(num_high):
        row = high[i]
        if z[row] > threshold:
          visited[count] = row
          scores[row] = z[row]
          count += 1
        z[row] = -np.inf
      for k in range(lengths[n]):
        column = columns[starts[ids[n, k]] : starts[ids[n, k] + 1]]
        for i in range(len(column)):
          row = column[i]
          if z[row] > threshold:
            visited[count] = row
            scores[row] = z[row]
            count += 1
          z[row] = base[row]
      for i in range(num_high):
        z[high[i]] = bias[high[i]]
    else:
      for start in range(0, num_rows, _SCAN):
        stop = min(start + _SCAN, num_rows)
        found = False
        for row in range(start, stop):
          found |= z[row] > threshold
        if found:
          for row in range(start, stop):
            if z[row] > threshold and grad[row] == 0:
              visited[count] = row
              scores[row] = z[row]
              count += 1
      z[:] = bias
    if count == 0:
      continue
    rows = visited[:count]
    rows.sort()
    for row in rows:
      target, score = -grad[row], scores[row]
      small = np.exp(-abs(score))
      p = 1 / (1 + small) if score >= 0 else small / (1 + small)
      loss += example_weight * (
        max(score, 0) + np.log1p(small) - target * score
      )
      grad[row] = (p - target) * example_weight * row_rates[row]
      bias[row] -= bias_rate * grad[row]
      z[row] = bias[row]
      if base[row] == -np.inf:
        continue
      base[row] = bias[row]
      if bias[row] > threshold:
        high[num_high] = row
        base[row] = -np.inf
        num_high += 1
    for k in range(lengths[n]):
      first, last = starts[ids[n, k]], starts[ids[n, k] + 1]
      x = -rate * values[n, k]
      column, weight = columns[first:last], weights[first:last]
      size = last - first
      if count * _SEARCH > size:
        for i in range(size):
          weight[i] += x * grad[column[i]]
        continue
      low = 0
      for row in rows:
        low = _first_not_below(column, row, low)
        if low == size:
          break
        if column[low] == row:
          weight[low] += x * grad[row]
    for row in rows:
      grad[row] = 0
  return loss


@processors.compiled
def _add_products(starts, columns, weights, ids, values, length, z):
  """Adds the weights of an example's pairs to `z [R]`; returns their number."""
  count = 0
  for k in range(length):
    first, last = starts[ids[k]], starts[ids[k] + 1]
    column, weight, x = columns[first:last], weights[first:last], values[k]
    for i in range(last - first):
      z[column[i]] += x * weight[i]
    count += last - first
  return count


@processors.compiled
def _first_not_below(column, row, low):
  """The first place from `low` on whose column is not below a row."""
  high = len(column)
  while low < high:
    middle = (low + high) >> 1
    if column[middle] < row:
      low = middle + 1
    else:
      high = middle
  return low
