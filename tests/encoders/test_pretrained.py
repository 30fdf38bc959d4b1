"""Pretrained transformers: equal to `transformers`, or refused by name."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as safetensors

from tests.encoders import references
from xlj.encoders import pretrained

_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture
def bert(tmp_path):
  references.write_directory(tmp_path, "bert")
  return tmp_path


@pytest.mark.parametrize("kind", references.CONFIGS)
@pytest.mark.parametrize("pooled", ["mean", "cls"])
def test_embeddings_are_those_of_transformers(tmp_path, kind, pooled):
  references.write_directory(tmp_path, kind)
  ids, mask = references.texts(50, 0)
  states = references.expected()[f"{kind}.states"]
  expected = states[:, 0]
  if pooled == "mean":
    expected = states.sum(1) / mask.sum(1, keepdims=True)
  found = pretrained.encoder(tmp_path, pooled=pooled)(ids, mask)
  assert found.dtype == np.float32 and expected.std() > 0.1
  np.testing.assert_allclose(found, expected, atol=1e-4)


def weights() -> Path:
  """The directory of MiniLM, or why there is none."""
  here = Path(__file__).parents[2] / "weights" / "all-MiniLM-L6-v2"
  directory = Path(os.environ.get("XLJ_WEIGHTS") or here)
  file = directory / pretrained.WEIGHTS_FILE
  if not file.exists():
    pytest.skip(f"no {file}: run `make weights`, or set XLJ_WEIGHTS")
  assert hashlib.sha256(file.read_bytes()).hexdigest() == _SHA256
  return directory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_minilm_is_that_of_transformers(dtype):
  directory = weights()
  assert pretrained.pooling(directory) == "mean"
  ids, mask = references.texts(30522, 0)
  encode = pretrained.encoder(directory, dtype=dtype)
  found = np.asarray(encode(ids, mask))
  expected = references.expected()["minilm.means"]
  if dtype == "float32":
    np.testing.assert_allclose(found, expected, atol=1e-4)
  cosines = (found * expected).sum(1)
  cosines /= np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
  assert cosines.min() > 0.9998


def rewrite(directory: Path, change) -> None:
  """Changes the dict of tensors by name."""
  path = directory / pretrained.WEIGHTS_FILE
  tensors = safetensors.load_file(path)
  change(tensors)
  safetensors.save_file(tensors, path)


def equal(a, b) -> bool:
  return all(np.array_equal(x, y) for x, y in zip(_leaves(a), _leaves(b)))


def _leaves(tree):
  if not isinstance(tree, dict):
    return [tree]
  return [leaf for key in sorted(tree) for leaf in _leaves(tree[key])]


def test_prefixes_old_names_and_heads_do_not_matter(bert):
  _, expected = pretrained.load(bert)

  def change(tensors):
    for name in list(tensors):
      new = name.replace("LayerNorm.weight", "LayerNorm.gamma")
      new = new.replace("LayerNorm.bias", "LayerNorm.beta")
      tensors["bert." + new] = tensors.pop(name)
    tensors["cls.predictions.bias"] = np.zeros(50, np.float32)

  rewrite(bert, change)
  assert equal(pretrained.load(bert)[1], expected)


def test_weights_may_be_in_several_files(bert):
  _, expected = pretrained.load(bert)
  path = bert / pretrained.WEIGHTS_FILE
  tensors = safetensors.load_file(path)
  path.unlink()
  names = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
  for part in set(names.values()):
    some = {n: tensors[n] for n in tensors if names[n] == part}
    safetensors.save_file(some, bert / part)
  index = bert / pretrained.INDEX_FILE
  index.write_text(json.dumps({"weight_map": names}))
  assert equal(pretrained.load(bert)[1], expected)
  (bert / "part-1.safetensors").unlink()
  with pytest.raises(ValueError, match=r"part-1.safetensors does not exist"):
    pretrained.load(bert)


_QUERY = "encoder.layer.1.attention.self.query.weight"


def _cut(tensors):
  tensors[_QUERY] = tensors[_QUERY][:6]


def _whole(tensors):
  tensors[_QUERY] = np.zeros((12, 12), np.int8)


def _more(tensors):
  tensors[_QUERY.replace("1", "2")] = tensors[_QUERY]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop(_QUERY), rf"no tensor {_QUERY} of shape \[12, 12\]"),
    (_cut, rf"{_QUERY} is F32 of shape \[6, 12\]; config.json .* \[12, 12\]"),
    (
      _whole,
      rf"{_QUERY} is I8 of shape .* F16, F32 and F64 are read",
    ),
    (_more, r"encoder.layer.2.* of shape \[12, 12\] is not one that config"),
  ],
)
def test_tensors_that_do_not_fit_are_refused(bert, change, message):
  rewrite(bert, change)
  with pytest.raises(ValueError, match=message):
    pretrained.load(bert)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model_type": "gpt2"}, "model_type is 'gpt2'; known are bert, distilb"),
    ({"hidden_size": "12"}, "hidden_size is '12'; it must be a size"),
    ({"num_attention_heads": 5}, "heads is 5, which does not divide hidden"),
    ({"hidden_act": "silu"}, "hidden_act is 'silu'; known are gelu"),
    ({"position_embedding_type": "relative_key"}, "type is 'relative_key'"),
  ],
)
def test_configs_that_are_not_known_are_refused(bert, fields, message):
  path = bert / pretrained.CONFIG_FILE
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))
  with pytest.raises(ValueError, match=f"config.json: .*{message}"):
    pretrained.sizes(bert)


def test_files_that_are_not_there_or_not_whole_are_refused(bert):
  path = bert / pretrained.WEIGHTS_FILE
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match="model.safetensors is not whole"):
    pretrained.load(bert)
  path.rename(bert / "pytorch_model.bin")
  with pytest.raises(ValueError, match="pytorch_model.bin must be saved as"):
    pretrained.load(bert)
  (bert / pretrained.CONFIG_FILE).write_text("[")
  with pytest.raises(ValueError, match="config.json cannot be read"):
    pretrained.load(bert)
