"""Dense heads for tests, with the fields of their rows beside their own."""

import dataclasses

import numpy as np
import scipy.sparse

from xlj.data import label_pairs
from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib

_OF_ROWS = {field.name for field in dataclasses.fields(rows_lib.Rows)}


def make(**fields):
  """A dense head of the fields of `Rows` and of `DenseHead`."""
  of_rows = {name: fields.pop(name) for name in _OF_ROWS & fields.keys()}
  return dense.DenseHead(rows_lib.Rows(**of_rows), **fields)


def changed(head, **fields):
  """The head with other values of some of them."""
  of_rows = {name: fields.pop(name) for name in _OF_ROWS & fields.keys()}
  rows = dataclasses.replace(head.label_rows, **of_rows)
  return dataclasses.replace(head, label_rows=rows, **fields)


def with_wide(params, weights, blocks):
  """Parameters, as numpy, with linear weights `[F, L]` by row.

  Those that are not 0 are pairs; without a number of them in mind, what the
  block with most of them has is `len(params["wide"][0])`.
  """
  weights = np.asarray(weights, np.float32)
  shape = blocks, weights.shape[1] // blocks
  made = label_pairs.by_block(scipy.sparse.csr_array(weights), shape)
  return params | dict(zip(rows_lib.PAIRS, made))


def wide(params, num_rows):
  """The linear weights of parameters, `[F, L]` by row."""
  starts, columns, weights = (np.asarray(params[n]) for n in rows_lib.PAIRS)
  size = num_rows // len(starts)
  found = np.zeros((starts.shape[1] - 1, num_rows), np.float32)
  for b, (start, column, weight) in enumerate(zip(starts, columns, weights)):
    feature = np.repeat(np.arange(len(start) - 1), np.diff(start))
    found[feature, b * size + column[: start[-1]]] = weight[: start[-1]]
  return found
