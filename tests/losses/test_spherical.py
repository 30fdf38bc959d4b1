"""Spherical losses in chunks equal the textbook, by autodiff of all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from xlj.losses import spherical
from xlj.ops import label_pass
from xlj.ops import shards
from xlj.ops import targets as targets_lib

N, D, P, NUM_LABELS = 8, 6, 3, 43


def hot_of(ids):
  return jax.nn.one_hot(ids, NUM_LABELS, dtype=np.float64).sum(1)


def mean(values, hot):
  """Of positives; 0 without any."""
  return (values * hot).sum(1) / jnp.maximum(hot.sum(1), 1)


def z_loss(z, hot):
  score = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
  return mean(jnp.log1p(jnp.exp(0.5 * (2.0 - score))) / 0.5, hot)


def spherical_softmax(z, hot):
  squares = z**2 + 0.01
  return mean(-jnp.log(squares / squares.sum(1, keepdims=True)), hot)


def taylor_softmax(z, hot):
  series = 1 + z + z**2 / 2
  return mean(-jnp.log(series / series.sum(1, keepdims=True)), hot)


def gramian(z, hot):
  return mean((z - 1) ** 2, hot) + 3.0 * (z**2).mean(1)


CASES = {
  "z_loss": (spherical.ZLoss(NUM_LABELS, 2.0, 0.5), z_loss),
  "squared_error": (
    spherical.SquaredError(),
    lambda z, hot: ((z - hot) ** 2).sum(1),
  ),
  "spherical": (
    spherical.SphericalSoftmax(NUM_LABELS, 0.01),
    spherical_softmax,
  ),
  "taylor": (spherical.TaylorSoftmax(NUM_LABELS), taylor_softmax),
  "gramian": (spherical.Gramian(NUM_LABELS, 3.0), gramian),
}


@pytest.mark.parametrize("name", cases.some(CASES, ["z_loss"]))
def test_the_label_pass_equals_the_textbook(name):
  of, reference = CASES[name]
  rng = np.random.default_rng(0)
  ids = rng.integers(0, NUM_LABELS, (N, 1)) + np.array([0, 7, 30])
  ids = np.where(
    np.arange(P) < np.arange(N)[:, None] % (P + 1), ids % NUM_LABELS, -1
  ).astype(np.int32)
  with jax.enable_x64(True):
    x, rows = (jnp.asarray(rng.normal(size=(n, D))) for n in (N, NUM_LABELS))
    targets = targets_lib.Targets(ids, jnp.asarray(rng.uniform(0.5, 1.5, N)))
    rows = jnp.pad(rows, ((0, 5), (0, 0)), constant_values=9.0)

    def own(x, rows):
      return label_pass.label_loss(
        x,
        rows,
        None,
        targets,
        spherical.Spherical(of),
        num_labels=NUM_LABELS,
        placement=shards.Placement(chunk_size=20),
      )

    def textbook(x, rows):
      losses = reference(x @ rows[:NUM_LABELS].T, hot_of(ids))
      return (losses * targets.weights).sum() / targets.weights.sum()

    found, wanted = (
      jax.jit(jax.value_and_grad(f, (0, 1)))(x, rows) for f in (own, textbook)
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, 1e-9, 1e-12), found, wanted
    )
