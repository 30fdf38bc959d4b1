"""Rows that are images: their scale, augmentation, and what is refused."""

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from tests.config import test_config
from xlj import config as config_lib
from xlj.encoders import image
from xlj.planning import work

SHAPE = (5, 6, 2)


def make(**options):
  """An encoder whose embedding is the image itself."""
  return image.ImageEncoder(
    lambda images: images.reshape(len(images), -1), SHAPE, **options
  )


@pytest.fixture(scope="module")
def rows():
  return np.random.default_rng(0).integers(1, 255, (40, 60)).astype(np.uint8)


def test_bytes_are_scaled_and_nothing_else_is_done_to_them(rows):
  found = make(input_scale=0.5, shift=2, flip=True)(jnp.asarray(rows))
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, 0.5 * rows)
  floats = make(input_scale=0.5)(jnp.asarray(rows, jnp.float32))
  np.testing.assert_array_equal(floats, found)


def test_training_images_are_shifted_into_zeros_and_mirrored(rows):
  encoder = make(input_scale=1.0, shift=1, flip=True)
  found = encoder(jnp.asarray(rows), rngs=nnx.Rngs(dropout=0))
  found = np.asarray(found).reshape(-1, *SHAPE)
  seen = set()
  for before, after in zip(rows.reshape(-1, *SHAPE), found):
    padded = np.pad(before, ((1, 1), (1, 1), (0, 0)))
    cases = {
      (i, j, step): padded[i : i + 5, j : j + 6][:, ::step]
      for i in range(3)
      for j in range(3)
      for step in (1, -1)
    }
    (case,) = [k for k, v in cases.items() if np.array_equal(v, after)]
    seen.add(case)
  assert len(seen) > 10  # of 18
  again = encoder(jnp.asarray(rows), rngs=nnx.Rngs(dropout=0))
  np.testing.assert_array_equal(again.reshape(found.shape), found)
  other = encoder(jnp.asarray(rows), rngs=nnx.Rngs(dropout=1))
  assert (np.asarray(other).reshape(found.shape) != found).any()


def test_embeddings_can_have_the_length_of_a_scale(rows):
  lengths = np.linalg.norm(make(scale=12.0)(jnp.asarray(rows)), axis=1)
  np.testing.assert_allclose(lengths, 12.0, rtol=1e-4)


def test_rows_of_another_size_are_refused():
  with pytest.raises(ValueError, match="has 60 numbers, and an example 59"):
    make()(jnp.zeros((2, 59)))


def resolved(**fields):
  config = config_lib.base()
  config.encoder.type = "resnet"
  dense = test_config.facts(
    dense=True, kind="dense", num_features=64 * 48 * 3, image=(64, 48, 3)
  )
  for name, value in fields.items():
    config.encoder[name] = value
  return config_lib.resolve(config, dense)


def test_what_is_open_is_decided_from_the_images():
  config = resolved()
  assert tuple(config.encoder.image) == (64, 48, 3)
  assert (config.family, config.head.loss) == ("image", "bce")  # several labels
  assert (config.encoder.depth, config.encoder.patch) == (2, 1)
  config = resolved(type="vit", depth=3)
  assert (config.encoder.depth, config.encoder.patch) == (3, 4)
  assert not test_config.open_fields(config)


def test_a_plan_counts_its_products():
  config = resolved(dim=16, stages=1, depth=1, input_scale=1.0)
  products = 2 * 64 * 48 * 9 * (3 * 16 + 2 * 16 * 16)
  found = work.encoder_flops(config) / config.train.batch_size
  assert found == pytest.approx(3 * products, rel=0.05)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"type": "mlp"}, "encoder.type is 'mlp'; use one of"),
    (
      {"type": "bag", "flip": True},
      "encoder.flip is True, which encoder.type='bag'",
    ),
    ({"image": (64, 48)}, r"encoder.image is \(64, 48\) and a row has 9216"),
    ({"image": (64, 48, 1)}, "encoder.image is"),
    ({"dim": 0}, "encoder.dim is 0"),
    ({"hidden": (4,)}, r"encoder.hidden is \(4,\), which encoder.type="),
    ({"dim": 30}, "encoder.dim is 30; with encoder.stages 3 it must be a mul"),
    ({"stages": -1}, "encoder.stages is -1; it must be at least 1"),
    ({"type": "vit", "patch": 5}, "encoder.patch is 5, which does not divide"),
    ({"type": "vit", "heads": 5}, "encoder.heads is 5, which does not divide"),
    ({"shift": 48}, "encoder.shift is 48; it must be"),
  ],
)
def test_bad_fields_are_refused_by_name(fields, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    resolved(**fields)


def test_sparse_features_are_no_images():
  config = config_lib.base()
  config.encoder.type = "vit"
  with pytest.raises(config_lib.ConfigError, match="'vit', which reads images"):
    config_lib.resolve(config, test_config.facts())
