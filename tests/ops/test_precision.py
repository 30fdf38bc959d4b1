"""Products are as exact as promised, and what fewer digits would do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import dense_heads
from tests import meshes
from tests import runs
from xlj import ops
from xlj import sharding
from xlj.losses import softmax
from xlj.model import model as model_lib
from xlj.ops import chunks
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib
from xlj.planning import lowering

script = runs.benchmark("lowering")
L, D, N = 2000, 32, 256
PRODUCT = re.compile(
  r"stablehlo\.dot_general .*?(?:precision = \[(\w+), (\w+)\])?"
  r" : \(tensor<[\dx]*(\w+)>, tensor<[\dx]*(\w+)>\) -> tensor<[\dx]*(\w+)>"
)


def products(text):
  """(precision, type of factors, type of the sum) of each product."""
  return {(p or "DEFAULT", a, c) for p, _, a, _, c in PRODUCT.findall(text)}


@pytest.mark.parametrize("kind", ["dense", "mhc", "mhp", "oltr", "spherical"])
def test_searches_multiply_all_of_float32(kind):
  config = script.make(script.HEADS[kind] | {"train.precision": "bfloat16"})
  model = model_lib.Model(config)
  search = products(lowering.text(lowering.topk(model, config, (2, 4))))
  assert search == {("HIGHEST", "f32", "f32")}


@pytest.mark.slow
@pytest.mark.parametrize(
  "name,precision",
  [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "DEFAULT")],
)
def test_steps_multiply_as_the_config_says(name, precision):
  fields = {"train.precision": name, "encoder.hidden": (16,)}
  config = script.make(fields | {"head.dtype": "bfloat16"})
  step = lowering.step(model_lib.Model(config), config, (1, 1))
  found = products(lowering.text(step))
  # Those of the encoder, and of the head: all are summed in float32.
  assert found == {(precision, "f32", "f32"), (precision, "bf16", "f32")}


def tf32(a):
  """Numbers with 10 bits of mantissa, rounded to the nearest."""
  bits = jax.lax.bitcast_convert_type(a.astype(jnp.float32), jnp.uint32)
  bits += 0xFFF + ((bits >> 13) & 1)
  kept = bits & jnp.uint32(0xFFFFE000)
  return jax.lax.bitcast_convert_type(kept, jnp.float32)


@pytest.fixture
def as_tf32(monkeypatch):
  """From now on, products are those of a GPU that may use TF32."""

  def begin():
    exact = chunks.matmul
    monkeypatch.setattr(chunks, "matmul", lambda a, b: exact(tf32(a), tf32(b)))

  return begin


def test_tf32_is_simulated():
  a = jnp.array([1 + 2.0**-10, 1 + 2.0**-11, 1 + 3 * 2.0**-12, -3.1e-5])
  expected = [1 + 2.0**-10, 1, 1 + 2.0**-10, tf32(a)[3]]
  np.testing.assert_array_equal(tf32(a), expected)
  np.testing.assert_allclose(tf32(a), a, rtol=2.0**-11)


def examples(rng, rows):
  """Vectors near the rows of their labels, and the labels."""
  labels = rng.integers(L, size=N)
  x = rows[labels] + 0.8 * rng.normal(size=(N, D))
  return x.astype(np.float32), labels


def test_what_tf32_does_to_a_search(as_tf32):
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(L, D)).astype(np.float32)
  x, labels = examples(rng, rows)
  _, exact = ops.label_topk(*map(jnp.asarray, (x, rows)), None, 20)
  as_tf32()
  scores, rounded = ops.label_topk(*map(jnp.asarray, (x, rows)), None, 20)
  true = np.sort(x.astype(float) @ rows.T.astype(float))[:, ::-1][:, :20]
  apart = np.abs(scores - true).max() / np.abs(true).max()
  assert 1e-5 < apart < 2.0**-10
  # Whose order is right changes, and in which row: not which label is first.
  assert 0.05 < (np.asarray(exact) != np.asarray(rounded)).any(1).mean()
  exact, rounded = (
    100 * (np.asarray(ids)[:, 0] == labels).mean() for ids in (exact, rounded)
  )
  assert exact > 80 and abs(exact - rounded) < 1


def trained(rows, rng):
  """P@1 of a dense head after steps of softmax on noisy examples."""
  optimizer = row_optimizer.RowOptimizer(optax.sgd(16.0))
  head = dense_heads.make(
    num_labels=L,
    dim=D,
    loss=softmax.Softmax(),
    optimizer=optimizer,
    blocks=8,
    init_scale=0.05,
  )
  with meshes.mesh((1, 1)):
    params, state = meshes.start(head)
    step = jax.jit(head.step, donate_argnums=(0, 1))
    for i in range(60):
      x, labels = examples(rng, rows)
      targets = targets_lib.Targets(
        labels[:, None].astype(np.int32), np.ones(N, np.float32)
      )
      x, targets = sharding.put_batch((x, targets))
      params, state, *_ = step(params, state, jnp.int32(i), x, None, targets)
    x, labels = examples(rng, rows)
    _, ids = jax.jit(head.topk, static_argnums=3)(
      params, sharding.put_batch(x), None, 1
    )
  return 100 * (np.asarray(ids)[:, 0] == labels).mean()


@pytest.mark.slow
def test_what_tf32_does_to_a_trained_head(as_tf32):
  rows = np.random.default_rng(1).normal(size=(L, D))
  exact = trained(rows, np.random.default_rng(2))
  as_tf32()
  rounded = trained(rows, np.random.default_rng(2))
  assert exact > 60 and abs(exact - rounded) <= 2, (exact, rounded)
