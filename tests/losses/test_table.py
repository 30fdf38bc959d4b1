"""Every loss equals its textbook reference: in chunks, and in the head."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from tests import reference
from tests.losses import table
from xlj.losses import decoupled_softmax
from xlj.losses import soft_targets
from xlj.losses import weighted_bce
from xlj.ops import targets as targets_lib

N, D, P = 16, 6, 4
SOME = ("softmax", "weighted_bce", "logit_adjustment")
SMALL_LOGITS = {"arcface", "cosface", "margin", "logit"}
NUM_LABELS = 43
CHUNKS = {
  "one": (0, 43),
  "uneven": (0, 1, 24, 43),
  "last_is_padding": (0, 30, 43, 50),
}


def chunks_of(z, targets, label_values, bounds):
  """Yields logits and positives of each chunk; past the end is padding."""
  extra = bounds[-1] - z.shape[1]
  z = jnp.pad(z, ((0, 0), (0, extra)), constant_values=-jnp.inf)
  values = jax.tree.map(lambda v: jnp.pad(v, (0, extra)), label_values)
  for start, stop in zip(bounds[:-1], bounds[1:]):
    part = jax.tree.map(lambda v: v[start:stop], values)  # noqa: B023
    yield (
      z[:, start:stop],
      targets_lib.positives_in_chunk(
        targets.ids, start, stop - start, targets.values, part
      ),
    )


@functools.partial(jax.jit, static_argnums=(0, 4))
def in_chunks(loss, z, targets, label_values, bounds):
  """Losses `[N]` and gradient of the logits, chunk by chunk."""
  chunks = list(chunks_of(z, targets, label_values, bounds))
  stats = loss.init(*targets.ids.shape)
  for part, positives in chunks:
    stats = loss.accumulate(stats, part, positives)
  stats = loss.merge(stats, ())
  parts = [loss.value_and_grad(stats, *chunk) for chunk in chunks]
  value = sum(value for value, _ in parts)
  grad = jnp.concatenate([grad for _, grad in parts], 1)
  return value, grad[:, : z.shape[1]], grad[:, z.shape[1] :]


@functools.partial(jax.jit, static_argnums=0)
def reference_of(case, z, hot, label_values):
  """Losses `[N]` and gradient of the logits, by autodiff."""
  value, vjp = jax.vjp(lambda z: case.reference(z, hot, label_values), z)
  return value, vjp(jnp.ones_like(value))[0]


@pytest.mark.parametrize(
  "name,bounds,dtype",
  [
    *((name, "uneven", "float64") for name in table.CASES),
    *((name, "one", "float32") for name in SOME),
    *((name, "last_is_padding", "float32") for name in SOME),
  ],
)
def test_chunks_equal_the_reference(name, bounds, dtype):
  case = table.CASES[name]
  targets = table.make_targets(case, N, NUM_LABELS, P)
  hot = table.dense_targets(targets, NUM_LABELS)
  z = np.random.default_rng(2).normal(size=(N, NUM_LABELS)) * 1.5
  with jax.enable_x64(True):
    z64 = jnp.asarray(z.astype(dtype), "float64")
    values = table.make_label_values(case, NUM_LABELS)
    values64 = jax.tree.map(lambda v: jnp.asarray(v, "float64"), values)
    expected, expected_grad = reference_of(case, z64, hot, values64)
  with jax.enable_x64(dtype == "float64"):
    targets, values = jax.tree.map(jnp.asarray, (targets, values))
    value, grad, padding = in_chunks(
      case.loss, jnp.asarray(z, dtype), targets, values, CHUNKS[bounds]
    )
    assert value.dtype == grad.dtype == dtype
  tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
  np.testing.assert_allclose(value, expected, tolerance, tolerance)
  np.testing.assert_allclose(grad, expected_grad, tolerance, tolerance)
  np.testing.assert_array_equal(padding, 0)


@pytest.mark.parametrize("name", table.CASES)
def test_large_logits_give_finite_results(name):
  case = table.CASES[name]
  targets = table.make_targets(case, N, NUM_LABELS, P)
  sign = np.random.default_rng(3).choice([-1.0, 1.0], (N, NUM_LABELS))
  size = 8.0 if "margin" in name or "face" in name else 300.0
  values = table.make_label_values(case, NUM_LABELS)
  value, grad, padding = in_chunks(
    case.loss,
    jnp.asarray(size * sign, "float32"),
    *jax.tree.map(jnp.asarray, (targets, values)),
    CHUNKS["last_is_padding"],
  )
  assert np.isfinite(value).all()
  assert np.isfinite(grad).all()
  np.testing.assert_array_equal(padding, 0)


def extreme_logits(targets):
  """Logits `[N, NUM_LABELS]` float32 that sums and differences suffer from."""
  rng = np.random.default_rng(5)
  z = rng.normal(size=(N, NUM_LABELS))
  hot = table.dense_targets(targets, NUM_LABELS) > 0
  mixed = rng.choice([-1e4, 0.0, 1e4], z.shape)
  for more in (1e4, -1e4, -z, mixed, 1e4 * hot, -1e4 * hot):
    yield (z + more).astype(np.float32)


# Adjusted logits are rounded like any of their size, and cosines are small.
@pytest.mark.parametrize(
  "name",
  [n for n in table.CASES if not set(n.split("_")) & SMALL_LOGITS],
)
def test_logits_of_any_size_lose_no_digits(name):
  case = table.CASES[name]
  targets = table.make_targets(case, N, NUM_LABELS, P)
  values = table.make_label_values(case, NUM_LABELS)
  for z in extreme_logits(targets):
    # In float64 it equals the reference, which overflows here.
    with jax.enable_x64(True):
      expected = in_chunks(
        case.loss,
        jnp.asarray(z, "float64"),
        jax.tree.map(jnp.asarray, targets),
        jax.tree.map(lambda v: jnp.asarray(v, "float64"), values),
        CHUNKS["uneven"],
      )
    got = in_chunks(
      case.loss,
      jnp.asarray(z),
      *jax.tree.map(jnp.asarray, (targets, values)),
      CHUNKS["last_is_padding"],
    )
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-5, atol=1e-6)


# What a loss needs of a mesh is merged statistics and values per label.
@pytest.mark.parametrize(
  "name,shape,label_axis",
  [
    *((name, (2, 4), 0) for name in table.CASES),
    *((name, (1, 1), 1) for name in SOME),
    *((name, (8, 1), 1) for name in SOME),
  ],
)
def test_the_head_equals_the_reference(name, shape, label_axis, monkeypatch):
  table.put_labels_on(monkeypatch, label_axis)
  case = table.CASES[name]
  head = table.make_head(
    case.loss, NUM_LABELS, D, init_scale=0.6, init_bias=-0.3
  )
  x = np.random.default_rng(4).normal(size=(N, D)).astype(np.float32)
  targets = table.make_targets(case, N, NUM_LABELS, P)
  hot = table.dense_targets(targets, NUM_LABELS)
  values = table.make_label_values(case, NUM_LABELS)
  params = table.init(head)
  row = head.layout.row_of_label(np.arange(NUM_LABELS))

  def loss_fn(x, rows, bias):
    losses = case.reference(x @ rows.T + bias, hot, values)
    return reference.weighted_mean(losses, targets.weights)

  by_label = params["rows"][row], params["bias"][row]
  expected, grads = jax.jit(jax.value_and_grad(loss_fn, (0, 1, 2)))(
    x, *by_label
  )
  by_row = jax.tree.map(lambda v: head.layout.by_row(jnp.asarray(v), 0), values)
  metrics, dx, changes = table.take_step(
    head, params, x, targets, shape, values=by_row
  )
  np.testing.assert_allclose(metrics["loss"], expected, rtol=3e-6)
  np.testing.assert_allclose(dx, grads[0], atol=2e-6)
  rows = changes["rows"]
  np.testing.assert_allclose(rows[row], grads[1], atol=2e-6)
  np.testing.assert_allclose(changes["bias"][row], grads[2], atol=2e-6)
  padding = np.setdiff1d(np.arange(head.num_rows), row)
  np.testing.assert_array_equal(rows[padding], 0)


def test_an_example_may_have_every_label():
  targets = targets_lib.Targets(jnp.arange(5)[None], jnp.ones(1))
  z = jnp.linspace(-1, 1, 5)[None]
  loss = decoupled_softmax.DecoupledSoftmax()
  value, grad, _ = in_chunks(loss, z, targets, None, (0, 2, 5))
  np.testing.assert_array_equal(value, 0)
  np.testing.assert_array_equal(grad, 0)


def test_missing_values_are_named():
  z = jnp.zeros((2, 3))
  positives = targets_lib.positives_in_chunk(jnp.zeros((2, 1), int), 0, 3)
  with pytest.raises(ValueError, match="'positive'"):
    weighted_bce.WeightedBinaryCrossEntropy().value_and_grad(None, z, positives)
  with pytest.raises(ValueError, match="Targets.values"):
    soft_targets.SoftTargets().value_and_grad(None, z, positives)


def test_class_balanced_weights_lie_between_one_and_one_over_n():
  counts = jnp.array([0, 1, 10, 1000])
  weights = weighted_bce.class_balanced_weights
  np.testing.assert_array_equal(weights(counts, 0.0), 1)
  expected = [1, 1, 0.1 / (1 - 0.9**10), 0.1]
  np.testing.assert_allclose(weights(counts, 0.9), expected, rtol=1e-6)
  nearly = weights(counts, 1 - 1e-6)
  np.testing.assert_allclose(nearly[3], 1e-3, rtol=1e-3)


def test_weights_of_1_are_sharded_as_the_counts_are():
  with meshes.mesh((2, 4)) as mesh:
    split = jax.NamedSharding(mesh, jax.P(("data", "label")))
    counts = jax.device_put(jnp.arange(8.0), split)
    weights = jax.jit(weighted_bce.class_balanced_weights, static_argnums=1)
    assert weights(counts, 0.0).sharding == split
