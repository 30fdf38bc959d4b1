"""Tables of token vectors: means, files, messages."""

import numpy as np
import pytest
from safetensors import numpy as safetensors

from tests.text import test_vectors
from xlj.encoders import static
from xlj.text import vectors as vectors_lib

TABLE = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float16)
IDS = np.array([[3, 4, 3, 0], [7, 0, 0, 0], [0, 0, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
MEANS = [TABLE[[3, 4, 3]].astype(float).mean(0), TABLE[7], np.zeros(5)]


@pytest.mark.parametrize("name", ["embeddings", "embedding.weight"])
def test_means_of_token_vectors(tmp_path, name):
  safetensors.save_file({name: TABLE}, tmp_path / "any.safetensors")
  table = static.load(tmp_path)
  assert table.dtype == np.float32
  found = static.encoder(table)(IDS, MASK)
  np.testing.assert_allclose(found, MEANS, atol=1e-6)
  unit = static.encoder(table, unit=True)(IDS, MASK)
  np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 1, 0], atol=1e-5)


def test_a_text_has_no_special_tokens(tmp_path):
  test_vectors.write_tokenizer(tmp_path)
  safetensors.save_file({"embeddings": TABLE}, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text('{"model_type": "model2vec"}')
  vectors = vectors_lib.Vectors.pretrained(tmp_path)
  expected = TABLE[[4, 5]].astype(float).mean(0)
  expected /= np.linalg.norm(expected)
  found = vectors(["a b", ""])
  np.testing.assert_allclose(found, [expected, 0 * expected], atol=1e-6)
  vectors.save(tmp_path / "run")
  loaded = vectors_lib.Vectors.load(tmp_path / "run")
  assert loaded.fingerprint() == vectors.fingerprint()
  np.testing.assert_array_equal(loaded(["a b"]), vectors(["a b"]))


def test_messages(tmp_path):
  with pytest.raises(ValueError, match="there must be one, found none"):
    static.load(tmp_path)
  path = tmp_path / "a.safetensors"
  path.write_bytes(b"x")
  with pytest.raises(ValueError, match="a.safetensors is not whole"):
    static.load(tmp_path)
  safetensors.save_file({"x": TABLE}, path)
  with pytest.raises(ValueError, match="there must be one, found x"):
    static.load(tmp_path)
  safetensors.save_file({"embeddings": TABLE[0]}, path)
  with pytest.raises(ValueError, match=r"embeddings is F16 of shape \[5\]"):
    static.load(tmp_path)
