"""The train step: its memory, compiled from shapes alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from tests import runs
from xlj import config as config_lib
from xlj import sharding
from xlj.config import families
from xlj.model import model as model_lib
from xlj.model import state as state_lib

# 256 MB of linear weights, a sixteenth in each block; none is ever allocated.
F, L, BATCH, FEATURES, POSITIVES = 4_000, 16_000, 64, 32, 8
PAIRS = 2**22


def make_config(by_example):
  config = config_lib.base()
  config.family = "linear"
  config.head.by_example = by_example
  config.head.blocks = 16
  config.head.wide_pairs = PAIRS
  facts = families.DataFacts(99, F, L, 2.0, 30.0, False, "counts", "0" * 8)
  return config_lib.resolve(config, facts)


def compile_step(config):
  """The compiled step of the mesh in context, the state donated."""
  model = model_lib.Model(config)
  batch = jax.NamedSharding(jax.sharding.get_mesh(), sharding.BATCH)

  def array(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch)

  inputs = model_lib.Inputs(
    array((BATCH, FEATURES), jnp.int32),
    array((BATCH, FEATURES), jnp.float32),
    array((BATCH, POSITIVES), jnp.int32),
    array((BATCH,), jnp.float32),
  )
  step = jax.jit(model.train_step, donate_argnums=0)
  return step.lower(model.abstract(), inputs).compile()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
@pytest.mark.parametrize("by_example", [False, True])
def test_linear_weights_are_updated_in_place(shape, by_example):
  with meshes.mesh(shape) as mesh:
    memory = compile_step(make_config(by_example)).memory_analysis()
    weights = 4 * 16 * PAIRS // mesh.size  # bytes of one device
  # Columns take half as many, and are left alone.
  assert memory.alias_size_in_bytes >= 1.5 * weights
  assert memory.output_size_in_bytes < 1.6 * weights
  # Logits and their gradient, `[N, l]`, are all that is large.
  assert memory.temp_size_in_bytes < weights / 8


@pytest.mark.parametrize(
  "fields",
  [
    {"optim__encoder__name": "sgd", "optim__head__name": "momentum"},
    {"optim__encoder__name": "adam", "optim__head__name": "adam"},
    {"head__type": "mhc", "head__groups": (16,)},
    {"head__type": "mhp", "data__max_labels": 1},
    {"head__type": "oltr", "data__max_labels": 1},
  ],
  ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_a_step_that_is_left_out_counts_for_schedules(fields):
  config = runs.resolved(
    family="embedding",
    data__feature_norm=1.0,
    encoder__input_scale=1.0,
    predict__propensity_power=0.0,
    **fields,
  )
  with meshes.mesh((1, 1)):
    model = model_lib.Model(config)
    state = jax.tree.map(
      lambda a: jnp.zeros(a.shape, a.dtype), model.abstract()
    )
    found = state_lib.skip(state)
  leaves = jax.tree.leaves(found.training)
  counts = [a for a in leaves if not a.shape and a.dtype == jnp.int32]
  assert counts and all(count == 1 for count in counts)
  assert found.step == 1
  jax.tree.map(np.testing.assert_array_equal, found.model, state.model)
