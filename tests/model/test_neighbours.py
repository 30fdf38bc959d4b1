"""Training rows that predictions listen to, against plain NumPy."""

import dataclasses

import numpy as np
import pytest

from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import label_order
from xlj.model import model as model_lib
from xlj.model import neighbours

M, F, L, N, K = 40, 12, 9, 7, 5
SETTINGS = {"count": K, "weight": 0.3, "temperature": 0.05}


def make(seed=0):
  rng = np.random.default_rng(seed)
  x = rng.random((M, F)) * (rng.random((M, F)) < 0.4)
  y = rng.random((M, L)) < 0.2
  x[3], y[4] = 0, False
  rows = (csr_lib.Csr.from_scipy(_sparse(a)) for a in (x, y))
  features, labels = rows
  labels = csr_lib.Csr(labels.indptr, labels.indices, None, L)
  return neighbours.Neighbours(features, labels, **SETTINGS), x, y


def _sparse(a):
  import scipy.sparse

  return scipy.sparse.csr_array(a.astype(np.float32))


def inputs(x):
  features = csr_lib.Csr.from_scipy(_sparse(x))
  ids, values, _ = features.pad(F, fill=0)
  none = np.full((len(x), 1), -1, np.int32)
  return model_lib.Inputs(ids, values, none, np.zeros(len(x), np.float32))


def by_label(extra):
  """`[N, L]` of what labels gain, by the head's numbers."""
  ids, values = extra
  found = np.zeros((len(ids), L + 1))
  np.add.at(found, (np.arange(len(ids))[:, None], ids), values)
  assert not found[:, L].any()
  return found[:, :L]


def test_of_rows_equally_near_the_first_count():
  x = np.zeros((M, F), np.float32)
  x[:, 0], x[5, 1] = 1, 1  # all but row 5 are alike
  labels = csr_lib.Csr.from_rows([[n % L] for n in range(M)], L)
  features = csr_lib.Csr.from_scipy(_sparse(x))
  rows = neighbours.Neighbours(features, labels, **SETTINGS)
  asked = np.zeros((2, F), np.float32)
  asked[0, 0], asked[1, :] = 1, np.nan
  found = by_label(rows.extra(inputs(asked), label_order.LabelOrder.identity()))
  assert np.flatnonzero(found[0]).tolist() == list(range(K))


def test_gains_equal_brute_force():
  rows, x, y = make()
  rng = np.random.default_rng(1)
  asked = rng.random((N, F)) * (rng.random((N, F)) < 0.5)
  asked[2] = 0  # nothing is near to it
  order = label_order.LabelOrder.of(rng.permutation(L))
  found = by_label(rows.extra(inputs(asked), order))
  unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
  for n, row in enumerate(asked):
    norm = np.linalg.norm(row)
    cosines = unit @ row / max(norm, 1e-9)
    near = np.argsort(-cosines)[:K]
    shares = np.exp(cosines[near] / 0.05)
    shares = shares / shares.sum() @ y[near] * (norm > 0)
    gains = 0.3 * np.log(1 + shares / 0.01)
    np.testing.assert_allclose(found[n], gains[order.data_ids], atol=1e-5)


def test_a_row_gives_a_merged_label_once():
  rows, _, y = make()
  order = label_order.LabelOrder(
    np.arange(L - 1, dtype=np.int32), np.array([*range(L - 1), 0], np.int32)
  )
  once = dataclasses.replace(rows, labels=order.known(rows.labels))
  y[:, 0] |= y[:, L - 1]
  y[:, L - 1] = False
  wanted = csr_lib.Csr.from_rows([np.flatnonzero(a).tolist() for a in y], L)
  asked, none = inputs(np.eye(F)), label_order.LabelOrder.identity()
  found = by_label(once.extra(asked, order))
  want = by_label(dataclasses.replace(rows, labels=wanted).extra(asked, none))
  np.testing.assert_allclose(found, want, rtol=1e-6)


def test_rows_are_read_as_they_were_written(tmp_path):
  rows, _, _ = make()
  rows.save(tmp_path)
  read = neighbours.Neighbours.load(tmp_path, **SETTINGS)
  asked = inputs(np.eye(F))
  order = label_order.LabelOrder.identity()
  for a, b in zip(rows.extra(asked, order), read.extra(asked, order)):
    np.testing.assert_array_equal(a, b)
  path = tmp_path / neighbours.FILE
  whole = path.read_bytes()
  for damaged in (whole[:100], b"", whole.replace(b"x_indices", b"x_indicez")):
    path.write_bytes(damaged)
    with pytest.raises(errors.DataError, match="copy the whole directory"):
      neighbours.Neighbours.load(tmp_path, **SETTINGS)
