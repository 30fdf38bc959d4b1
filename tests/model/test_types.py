"""A step returns a state of the very types that it takes.

Otherwise it is compiled twice: a scalar made of a Python number has a weak type
until the first step makes it a strong one.
"""

import jax
import jax.numpy as jnp
import pytest

from tests import meshes
from xlj import config as config_lib
from xlj import sharding
from xlj.config import families
from xlj.model import model as model_lib

N, F, L = 8, 48, 40
HEADS = {
  "dense": {},
  "no_bias": {"use_bias": False},
  "bfloat16": {"dtype": "bfloat16", "correction": "kahan"},
  "float8": {"dtype": "float8"},
  "master": {"dtype": "bfloat16", "correction": "master"},
  "wide": {"wide": True},
  "prototypes": {"prototypes": 2, "cosine": True},
  "mhc": {"type": "mhc"},
  "mhs": {"type": "mhs"},
  "mhp": {"type": "mhp"},
  "spherical": {"type": "spherical", "use_bias": False},
  "oltr": {"type": "oltr"},
}


def make_model(encoder, head):
  config = config_lib.base()
  image = (4, 4, 3) if encoder != "bag" else ()
  config.encoder.type = encoder
  config.encoder.scale = 10.0
  config.encoder.input_scale = 1.0
  config.encoder.dim = 16
  config.train.batch_size = N
  config.data.feature_norm = 1.0
  config.predict.propensity_power = 0.0
  config.data.max_labels = 1
  for name, value in head.items():
    config.head[name] = value
  facts = families.DataFacts(
    99, F, L, 2.0, 30.0, bool(image), "dense" if image else "counts", "0", image
  )
  return model_lib.Model(config_lib.resolve(config, facts))


def array(shape, dtype):
  split = jax.NamedSharding(jax.sharding.get_mesh(), sharding.BATCH)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=split)


def types_of(state):
  return jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), state)


@pytest.mark.parametrize(
  "encoder, head",
  [("bag", head) for head in HEADS] + [("resnet", "dense"), ("vit", "dense")],
)
def test_a_step_does_not_change_the_types_of_the_state(encoder, head):
  with meshes.mesh((1, 1)):
    model = make_model(encoder, HEADS[head])
    sparse = encoder == "bag"
    inputs = model_lib.Inputs(
      array((N, 4), jnp.int32) if sparse else None,
      array((N, 4 if sparse else F), jnp.float32),
      array((N, 1), jnp.int32),
      array((N,), jnp.float32),
    )
    before = model.abstract()
    after, _ = jax.eval_shape(model.train_step, before, inputs)
  assert types_of(after) == types_of(before)
