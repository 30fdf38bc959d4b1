"""Files of FAISS and USearch: the same vectors, and answers with them."""

import sys

import faiss
import numpy as np
import pytest
import usearch.index

from xlj.search import exact
from xlj.search import external

L, D = 501, 8


@pytest.fixture(scope="module")
def made():
  generator = np.random.default_rng(0)
  rows = generator.normal(size=(L, D)).astype(np.float32)
  bias = generator.normal(size=L).astype(np.float32)
  return rows, bias, generator.normal(size=(40, D)).astype(np.float32)


@pytest.mark.parametrize(
  ("file", "kind"),
  [
    ("a.faiss", "flat"),
    ("a.faiss", "ivf"),
    ("a.faiss", "hnsw"),
    ("a.usearch", "hnsw"),
  ],
)
def test_answers_are_those_of_the_rows(made, tmp_path, file, kind):
  rows, bias, x = made
  path = tmp_path / file
  for stored in (exact.Rows(rows), exact.stored(rows, "int8", bias)):
    external.write(path, stored, kind)
    found = external.load(path, stored).tune(x, 0.95, k=5)
    assert found.recall >= 0.95 and found.k == 5
    exclude = exact.topk(x, stored, 3)[1]
    for options in ({}, {"exclude": exclude, "threshold": 1.5}):
      true = exact.topk(x, stored, 5, **options)
      scores, ids = found.topk(x, 5, effort=L, **options)
      assert exact.recall(ids, true[1]) > 0.95
      same = ids == true[1]
      np.testing.assert_allclose(scores[same], true[0][same], rtol=1e-5)
      assert (scores[ids == -1] == -np.inf).all()
    true = exact.topk(x, stored, 5, among=[3, 9])
    np.testing.assert_array_equal(found.topk(x, 5, among=[3, 9])[1], true[1])
    assert found.topk(x[:1], 5)[1].shape == (1, 5)
    assert found.topk(x[:0], 5)[1].shape == (0, 5)


def test_others_read_the_vectors_with_a_bias_as_one_more_number(made, tmp_path):
  rows, bias, _ = made
  wanted = np.concatenate([rows, bias[:, None]], 1)
  external.write(tmp_path / "a.faiss", exact.Rows(rows, bias=bias), "flat")
  index = faiss.read_index(str(tmp_path / "a.faiss"))
  np.testing.assert_array_equal(index.reconstruct_n(0, L), wanted)
  external.write(tmp_path / "a.usearch", exact.Rows(rows, bias=bias))
  index = usearch.index.Index.restore(str(tmp_path / "a.usearch"))
  np.testing.assert_array_equal(index.get(np.arange(L)), wanted)


def test_what_does_not_fit_is_refused(made, tmp_path):
  rows, bias, x = made
  path = tmp_path / "a.faiss"
  external.write(path, exact.Rows(rows), "flat")
  with pytest.raises(ValueError, match="has 501 vectors of width 8, and the"):
    external.load(path, exact.Rows(rows, bias=bias))
  with pytest.raises(ValueError, match="effort is 0; it must be"):
    external.load(path, exact.Rows(rows)).topk(x, 3, effort=0)
  for name in ("b.faiss", "b.usearch"):
    (tmp_path / name).write_bytes(b"no index at all, but some bytes")
    with pytest.raises(ValueError, match=f"{name}: no index can be read"):
      external.load(tmp_path / name, exact.Rows(rows))
  with pytest.raises(ValueError, match="give a file that ends with .faiss or"):
    external.write(tmp_path / "a.bin", exact.Rows(rows))
  with pytest.raises(ValueError, match="kind is 'ivf'; .*can have hnsw"):
    external.write(tmp_path / "a.usearch", exact.Rows(rows), "ivf")


def test_a_missing_library_is_named(made, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "faiss", None)
  with pytest.raises(ImportError, match=r"pip install 'xlj-jax\[faiss\]'"):
    external.write(tmp_path / "a.faiss", exact.Rows(made[0]))
