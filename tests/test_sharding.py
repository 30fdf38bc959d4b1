"""Trees of specs, and batches to devices and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from xlj import sharding

P = jax.P


def test_named_and_replicated_keep_the_structure():
  tree = {"a": [P("data"), P()], "b": P(None, "label")}
  with meshes.mesh((2, 4)) as mesh:
    named = sharding.named(mesh, tree)
    assert named["a"][0] == jax.NamedSharding(mesh, P("data"))
    assert named["b"].spec == P(None, "label")
  assert sharding.replicated_like({"a": [1, 2]}) == {"a": [P(), P()]}


@pytest.mark.parametrize("shape", meshes.SHAPES)
def test_a_batch_comes_back_as_it_went(shape):
  rng = np.random.default_rng(0)
  batch = {
    "ids": rng.integers(0, 9, (16, 3)).astype(np.int32),
    "weights": rng.normal(size=16).astype(np.float32),
    "none": None,
  }
  with meshes.mesh(shape) as mesh:
    placed = sharding.put_batch(batch)
    assert placed["none"] is None
    for name in ("ids", "weights"):
      array = placed[name]
      assert array.sharding == jax.NamedSharding(mesh, sharding.BATCH)
      assert array.addressable_shards[0].data.shape[0] == 16 // mesh.size
      assert array.dtype == batch[name].dtype
      np.testing.assert_array_equal(array, batch[name])
      np.testing.assert_array_equal(sharding.local_rows(array), batch[name])


def test_local_rows_of_a_replicated_array_are_not_repeated():
  rows = np.arange(6.0).reshape(3, 2)
  with meshes.mesh((2, 4)):
    np.testing.assert_array_equal(
      sharding.local_rows(sharding.replicate(rows)), rows
    )


def test_by_compiler_gives_a_batch_that_equals_one_device():
  x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)

  def centred(x):
    return x - x.mean(0), jnp.zeros(x.shape[0])

  with meshes.mesh((2, 4)) as mesh:
    got = jax.jit(sharding.by_compiler(centred))(sharding.put_batch(x))
    for array in got:
      expected = jax.NamedSharding(mesh, sharding.BATCH)
      assert array.sharding.is_equivalent_to(expected, array.ndim)
  np.testing.assert_allclose(got[0], x - x.mean(0), atol=1e-6)
