"""A transformer: what it reads, what is trained of it, and as it starts."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from tests import runs
from tests.encoders import references
from xlj import config as config_lib
from xlj import sharding
from xlj.config import encoders
from xlj.config import optim
from xlj.data import csr as csr_lib
from xlj.data import padding
from xlj.encoders import block
from xlj.encoders import transformer
from xlj.ops import feature_rows

SIZES = transformer.Sizes(50, 12, 2, 3, 20, 16, buckets=8)


def make(**options):
  return transformer.Transformer(SIZES, rngs=nnx.Rngs(0), **options)


def rows(width, count=4):
  rng = np.random.default_rng(0)
  mask = np.arange(width) < np.array([1, 3, 6, 0] * (count // 4))[:, None]
  ids = np.zeros((count, width), np.int32)
  ids[:, :6] = rng.integers(1, 50, (count, 6))
  return feature_rows.sparse_rows(
    jnp.asarray(ids * mask), jnp.asarray(mask, jnp.float32)
  )


@pytest.mark.parametrize("pooling", transformer.POOLINGS)
def test_embeddings_do_not_depend_on_the_padding(pooling):
  module = make(pooling=pooling, layers=2)
  short, long, longest = (module(rows(width)) for width in (6, 16, 32))
  np.testing.assert_allclose(short, long, atol=1e-5)
  np.testing.assert_allclose(short, longest, atol=1e-5)
  assert not np.any(short[3])  # a text without tokens
  assert np.abs(short[:3]).min() > 0


def test_the_order_of_tokens_matters():
  texts = rows(6)
  turned = texts._replace(ids=texts.ids[:, ::-1], values=texts.values * 0 + 1)
  same = texts._replace(values=texts.values * 0 + 1)
  assert np.abs(make()(turned) - make()(same)).max() > 1e-3


@pytest.mark.parametrize(
  "options",
  [
    {"lora": block.Lora(2, 16.0)},
    {"dim": 12},
    {"remat": True},
    {"hidden_dropout": 0.5, "embedding_dropout": 0.5},
  ],
)
def test_it_starts_at_its_base(options):
  module = make(**options)
  base = nnx.to_pure_dict(nnx.state(make(), nnx.Param))
  own = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  nnx.update(module, encoders.laid_over(own, base))
  np.testing.assert_allclose(module(rows(6)), make()(rows(6)), atol=1e-6)


def test_narrow_numbers_are_close():
  wide, narrow = make()(rows(6)), make(dtype="bfloat16")(rows(6))
  assert narrow.dtype == np.float32
  assert 0 < np.abs(wide - narrow).max() < 0.05


def gradients(module, texts):
  graph, state = nnx.split(module)

  def loss(state, texts):
    x = nnx.merge(graph, state)(texts)
    return jnp.sum(x * jnp.arange(12.0)) / 100

  return jax.jit(jax.grad(loss))(state, texts)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [3, 8])
def test_gradients_on_meshes_are_those_of_one_device(devices):
  texts = rows(6, 24)
  expected = gradients(make(), texts)
  with meshes.mesh((devices, 1)):
    put = sharding.put_batch(jax.tree.map(np.asarray, texts))
    found = sharding.by_compiler(lambda t: make()(t))(put)
    np.testing.assert_allclose(found, make()(texts), atol=1e-5)

    def loss(params, t):
      graph = nnx.graphdef(make())
      x = sharding.by_compiler(lambda p, t: nnx.merge(graph, p)(t))(params, t)
      return jnp.sum(x * jnp.arange(12.0)) / 100

    found = jax.jit(jax.grad(loss))(sharding.replicate(nnx.state(make())), put)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def resolved(**fields):
  return runs.resolved(
    encoder__type="transformer",
    **{f"encoder__{name}": value for name, value in fields.items()},
  )


SMALL = {
  "sizes.width": 8,
  "sizes.depth": 2,
  "sizes.heads": 2,
}


def updates(**fields):
  """Names of parameters to the size of a first step."""
  config = resolved(**SMALL, **fields)
  config.data.num_features = 20
  config.optim.warmup = 0.0
  config.optim.encoder.learning_rate = 1.0
  module = encoders.make(config, nnx.Rngs(0))
  params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  tx = optim.of_encoder(config)
  state = tx.init(params)
  steps, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
  held = sum(a.size for a in jax.tree.leaves(state))
  return steps, held, sum(a.size for a in jax.tree.leaves(params))


def size(tree):
  return {round(float(abs(a).max()), 3) for a in jax.tree.leaves(tree)}


def test_rates_fall_from_block_to_block():
  steps, *_ = updates(layer_decay=0.5, projection=True)
  assert size(steps["projection"]) == size(steps["log_scale"]) == {1.0}
  assert size(steps["blocks"][1]) == {0.5}
  assert size(steps["blocks"][0]) == {0.25}
  assert size(steps["tokens"]) == size(steps["norm"]) == {0.125}


def test_what_is_frozen_does_not_move_and_has_no_state():
  steps, *_ = updates(frozen="embeddings")
  assert size(steps["tokens"]) == size(steps["positions"]) == {0.0}
  assert size(steps["blocks"]) == {1.0}
  steps, held, total = updates(frozen="all")
  assert size(steps["blocks"]) == size(steps["tokens"]) == {0.0}
  assert size(steps["log_scale"]) == {1.0} and held < 10 < total
  steps, held, total = updates(lora_rank=1)
  assert size(steps["tokens"]) == size(steps["blocks"][0]["norms"]) == {0.0}
  assert size(steps["blocks"][0]["qkv"]["kernel"]) == {0.0}
  assert size(steps["blocks"][0]["qkv"]["down"]) == {1.0}
  assert held < total


def test_a_directory_decides_sizes_and_gives_weights(tmp_path):
  references.write_directory(tmp_path, "mpnet")
  config = resolved(pretrained=str(tmp_path))
  assert dict(config.encoder.sizes) == {
    "width": 12, "depth": 2, "heads": 3, "hidden": 20, "positions": 38,
    "buckets": 32, "epsilon": 1e-12, "activation": "relu",
  }  # fmt: skip
  assert (config.encoder.dim, config.encoder.projection) == (12, False)
  assert config.data.weighting == "none" and not config.data.l2
  assert encoders.longest(config) == 38
  config.data.num_features = 40
  weights = encoders.pretrained_weights(config)
  assert weights["tokens"].shape == (40, 12)
  config.data.num_features = 51
  with pytest.raises(config_lib.ConfigError, match="has 50 tokens; the texts"):
    encoders.pretrained_weights(config)
  config.encoder.sizes.depth = 3
  with pytest.raises(config_lib.ConfigError, match="encoder.sizes say"):
    encoders.pretrained_weights(config)
  (tmp_path / "config.json").unlink()
  assert resolved(**_decided(config)).encoder.sizes.depth == 3  # not read
  with pytest.raises(config_lib.ConfigError, match="pretrained: .*config"):
    resolved(pretrained=str(tmp_path))


def _decided(config):
  sizes = {f"sizes.{k}": v for k, v in config.encoder.sizes.items()}
  return {"pretrained": config.encoder.pretrained, **sizes}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"encoder__dim": 5, "encoder__projection": False}, "encoder.dim is 5"),
    ({"encoder__sizes__heads": 3}, "heads is 3, which does not divide"),
    ({"encoder__pooled_layers": 5}, "encoder.pooled_layers is 5 and"),
    ({"data__weighting": "tfidf"}, "data.weighting is 'tfidf'"),
    ({"head__wide": True}, "head.wide is True"),
  ],
)
def test_what_does_not_go_together_is_refused(fields, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    runs.resolved(encoder__type="transformer", **fields)


def test_long_texts_keep_their_first_tokens():
  indptr, ids = np.array([0, 4]), np.array([7, 3, 7, 1], np.int32)
  tokens = csr_lib.Csr(indptr, ids, np.ones(4, np.float32), 8)
  assert padding.shorten(tokens, 3).indices.tolist() == [7, 3, 7]
  tokens.validate(in_order=True)
  with pytest.raises(ValueError, match="do not ascend"):
    tokens.validate()
