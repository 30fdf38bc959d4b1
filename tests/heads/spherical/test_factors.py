"""Factored steps equal plain SGD on all label rows."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from xlj.heads.spherical import factors as spherical
from xlj.losses import spherical as spherical_losses
from xlj.ops import label_gather
from xlj.ops import label_sums
from xlj.ops import layout as layout_lib

N, D, P, NUM_LABELS = 16, 12, 3, 83
LAYOUT = layout_lib.Layout(NUM_LABELS, 8)  # 5 of 88 rows are padding
LOSSES = {
  # Each with a learning rate at which rows change by several times their
  # length in 200 steps.
  "z_loss": (spherical_losses.ZLoss(NUM_LABELS, 2.0), 3.0),
  "spherical": (spherical_losses.SphericalSoftmax(NUM_LABELS), 0.1),
  "taylor": (spherical_losses.TaylorSoftmax(NUM_LABELS), 0.5),
  "squared_error": (spherical_losses.SquaredError(), 0.02),
  "gramian": (spherical_losses.Gramian(NUM_LABELS), 0.1),
}


def batches(steps, dtype):
  """Examples, positives with padding and shared labels, and shares of each."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(steps, N, D)).astype(dtype)
  first = rng.integers(0, NUM_LABELS, (steps, N))
  # Distinct positives of an example; labels come several times in a batch.
  ids = (first[..., None] + np.array([0, 7, 30])) % NUM_LABELS
  ids = np.where(np.arange(P) < rng.integers(0, P + 1, (steps, N, 1)), ids, -1)
  ids[:, 0] = 5, 6, 7
  ids[:, 1] = 5, -1, -1
  share = rng.uniform(0.5, 1.5, (steps, N)) / N
  return x, ids.astype(np.int32), share.astype(dtype)


def start(dtype):
  rng = np.random.default_rng(1)
  labels = 0.5 * rng.normal(size=(NUM_LABELS, D)).astype(dtype)
  return LAYOUT.by_row(jnp.asarray(labels), 0)


def weighted_loss(loss, w, x, ids, share):
  """The textbook: all logits of labels, row by row."""
  z = x @ w[LAYOUT.row_of_label(np.arange(NUM_LABELS))].T
  logits = jnp.take_along_axis(z, jnp.maximum(ids, 0), 1)
  sums = spherical_losses.Sums(z.sum(1), (z**2).sum(1))
  return (share * loss.losses(logits, ids >= 0, sums)).sum()


def factored_step(loss, rate, decay, every, state, step, x, ids, share):
  """One step without a mesh, as a head takes it."""
  rows, factors = state
  index = jnp.where(ids < 0, rows.shape[0], LAYOUT.row_of_label(ids))
  own = label_gather.take(rows, index.reshape(-1)).reshape(N, P, D)
  sums = spherical.sums_of_logits(factors, x)
  small, more = spherical.embedded(factors, x)
  logits = jnp.einsum("npd,nd->np", own, small) + more[:, None]
  values, by_logits, by_sums = spherical_losses.losses_and_gradients(
    loss, logits, ids >= 0, sums
  )
  by_logits *= share[:, None]
  by_sums = jax.tree.map(lambda a: a * share, by_sums)
  by_rows = jnp.einsum("np,npd->nd", by_logits, own)
  grad, dx = spherical.gradient(factors, x, ids, by_logits, by_sums, by_rows)
  factors = spherical.updated(factors, x, grad, rate, decay, NUM_LABELS)
  inverse = jnp.linalg.inv(factors.u)
  rows = spherical.add_to_rows(rows, index, by_logits, x, inverse, rate)
  due = step % every == every - 1
  state = spherical.refactored(rows, factors, due, LAYOUT, 0, 24, ())
  return state, ((share * values).sum(), dx)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def train_factored(loss, rate, decay, every, rows, batches):
  sums = label_sums.label_statistics(rows)
  state = rows, spherical.unfactored(sums)

  def body(state, batch):
    return factored_step(loss, rate, decay, every, state, *batch)

  steps = jnp.arange(batches[0].shape[0])
  return jax.lax.scan(body, state, (steps, *batches))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def train_dense(loss, rate, decay, w, batches):
  def body(w, batch):
    value, (dw, dx) = jax.value_and_grad(weighted_loss, (1, 2), False)(
      loss, w, *batch
    )
    return w - rate * (dw + decay * w), (value, dx)

  return jax.lax.scan(body, w, batches)


def distance(a, b):
  return float(jnp.abs(a - b).max() / jnp.abs(b).max())


def compare(name, steps, dtype, decay=0.0, every=10**6):
  """Relative differences of what factored and dense SGD end with."""
  loss, rate = LOSSES[name]
  data = batches(steps, dtype)
  (rows, factors), found = train_factored(
    loss, rate, decay, every, start(dtype), data
  )
  w, expected = train_dense(loss, rate, decay, start(dtype), data)
  assert float(jnp.abs(w - start(dtype)).max()) > 0.1  # it has learned
  own = rows @ factors.u + factors.offset
  labels = LAYOUT.row_of_label(np.arange(NUM_LABELS))
  own, w = own[labels], w[labels]
  differences = {
    "rows": distance(own, w),
    "losses": distance(found[0], expected[0]),
    "dx": distance(found[1], expected[1]),
    "gram": distance(factors.gram, w.T @ w),
    "total": distance(factors.total, w.sum(0)),
  }
  return differences, rows


def test_condition_by_its_definition():
  u = np.diag([2.0, 2.0, 2.0, 0.02])
  found = spherical.condition(jnp.asarray(u), jnp.linalg.inv(u))
  np.testing.assert_allclose(
    found, np.sqrt((3 * 4 + 4e-4) * (3 / 4 + 2500)) / 4, rtol=1e-5
  )
  assert float(spherical.condition(3 * jnp.eye(4), jnp.eye(4) / 3)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  "name,decay,every",
  cases.first(
    1,
    [
      ("z_loss", 0.01, 30),
      ("squared_error", 0.0, 10**6),
      ("z_loss", 0.0, 10**6),
      ("spherical", 0.01, 30),
      ("taylor", 0.01, 30),
      ("squared_error", 0.01, 30),
      ("gramian", 0.01, 30),
    ],
  ),
)
def test_two_hundred_steps_equal_dense_sgd(name, decay, every):
  with jax.enable_x64(True):
    differences, rows = compare(name, 200, np.float64, decay, every)
    assert max(differences.values()) < 1e-10, differences
    padding = np.setdiff1d(
      np.arange(88), LAYOUT.row_of_label(np.arange(NUM_LABELS))
    )
    assert not np.asarray(rows)[padding].any()


@pytest.mark.slow
@pytest.mark.parametrize("every", [10**6, 100])
def test_two_thousand_steps_in_float32(every):
  differences, _ = compare("z_loss", 2000, np.float32, 0.0, every)
  assert differences["rows"] < 1e-4, differences
  assert differences["losses"] < 1e-4, differences


def test_z_loss_does_not_see_shift_and_scale():
  loss = spherical_losses.ZLoss(NUM_LABELS, 2.0)
  with jax.enable_x64(True):
    z = np.random.default_rng(0).normal(size=(N, NUM_LABELS))

    def of(z):
      sums = spherical_losses.Sums(z.sum(1), (z**2).sum(1))
      return loss.losses(z[:, :P], np.ones((N, P), bool), sums)

    np.testing.assert_allclose(of(z), of(3 * z - 5), rtol=1e-9)


def test_threshold_is_exceeded_by_k_of_all():
  normal = statistics.NormalDist()
  for num_labels, k in ((10**6, 1), (1000, 5), (10**9, 5)):
    threshold = spherical_losses.threshold_of(num_labels, k)
    np.testing.assert_allclose(
      num_labels * normal.cdf(-threshold), k, rtol=1e-6
    )
  np.testing.assert_allclose(
    spherical_losses.threshold_of(10**6, 1), 4.75, atol=0.01
  )
  assert spherical_losses.threshold_of(2, 5) == 0
