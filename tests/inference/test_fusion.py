"""Candidates of several judges, their features, and the best of them."""

import dataclasses
import types

import numpy as np
import pytest
import scipy.sparse

from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import weighting
from xlj.inference import fusion

L, D = 6, 4
TEXTS = ["A  Dog", "cat"]


def memory():
  rng = np.random.default_rng(0)
  vectors = rng.standard_normal((5, D)).astype(np.float16)
  labels = csr_lib.Csr.from_rows([[0], [1, 2], [2], [5], [3]], L)
  said = rng.standard_normal((L, D)).astype(np.float16)
  described = np.zeros(L, np.uint64)
  described[4] = fusion.hashed("a dog")
  words = csr_lib.Csr.from_rows([[0], [1], [], [0, 2], [2], []], 3)
  words = dataclasses.replace(words, values=np.ones(words.nnz, np.float32))
  return fusion.Memory(vectors, labels, said, np.arange(L), described, words)


class Words:
  """As much of a run on words as has words."""

  weighting = weighting.Weighting("none", False)
  counts = np.array([[3.0, 0, 4], [0, 2, 0]], np.float32)


def test_candidates_are_named_once_by_text_and_label():
  named = [np.array([[3, 1], [0, -1]]), np.array([[1, 5], [0, 2]])]
  found = fusion.union(named, L)
  np.testing.assert_array_equal(found.texts, [0, 0, 0, 1, 1])
  np.testing.assert_array_equal(found.labels, [1, 3, 5, 0, 2])


def test_features_are_those_of_a_loop():
  scored = [
    (np.array([[3, 1], [0, -1]]), np.array([[2.0, 1.0], [0.5, -np.inf]])),
    (np.array([[1, 4], [0, 2]]), np.array([[7.0, 6.0], [5.0, 4.0]])),
  ]
  candidates = fusion.union([ids for ids, _ in scored], L)
  shares = [
    scipy.sparse.csr_array(
      np.array([[0, 0.4, 0, 0, 0, 0.6], [1, 0, 0, 0, 0, 0]])
    ),
    scipy.sparse.csr_array(np.zeros((2, L))),
  ]
  rng = np.random.default_rng(1)
  vectors = rng.standard_normal((2, D)).astype(np.float32)
  kept = memory()
  found = fusion.features_of(
    *(candidates, scored, shares, vectors),
    csr_lib.Csr.from_scipy(scipy.sparse.csr_array(Words.counts)),
    TEXTS,
    types.SimpleNamespace(memory=kept, words=Words()),
  )
  for row, text, label in zip(found, *candidates):
    wanted = []
    for ids, scores in scored:
      known = dict(zip(ids[text].tolist(), scores[text].tolist()))
      known.pop(-1, None)
      wanted.append(known.get(label, min(known.values())))
    wanted += [np.log(s.toarray()[text, label] + 0.01) for s in shares]
    x = vectors[text] / np.linalg.norm(vectors[text])
    wanted.append(x @ kept.label_vectors[label].astype(np.float32))
    wanted.append(np.log(1 + kept.counts[label]))
    wanted.append(float(text == 0 and label == 4))
    words = Words.counts[text] / np.linalg.norm(Words.counts[text])
    wanted.append(words @ kept.label_words.to_scipy().toarray()[label])
    np.testing.assert_allclose(row, wanted, rtol=1e-5)


def test_the_best_are_those_of_a_sort():
  rng = np.random.default_rng(2)
  named = rng.integers(-1, 50, (20, 8))
  candidates = fusion.union([named], 50)
  scores = rng.standard_normal(len(candidates.texts)).astype(np.float32)
  best, ids = fusion.topk(candidates, scores, 20, 9)
  for text in range(20):
    own = candidates.texts == text
    order = np.argsort(-scores[own])[:9]
    count = len(order)
    np.testing.assert_array_equal(
      ids[text, :count], candidates.labels[own][order]
    )
    np.testing.assert_array_equal(best[text, :count], scores[own][order])
    assert (ids[text, count:] == -1).all() and np.isneginf(
      best[text, count:]
    ).all()


def test_memory_is_kept(tmp_path):
  kept = memory()
  kept.save(tmp_path)
  found = fusion.Memory.load(tmp_path)
  np.testing.assert_array_equal(found.vectors, kept.vectors)
  np.testing.assert_array_equal(found.labels.indices, kept.labels.indices)
  np.testing.assert_array_equal(
    found.label_words.values, kept.label_words.values
  )
  path = tmp_path / fusion.MEMORY_FILE
  path.write_bytes(path.read_bytes()[:-50])
  with pytest.raises(errors.DataError, match="run its training command again"):
    fusion.Memory.load(tmp_path)
