"""Runs that start at a ridge regression."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

from tests import runs
import xlj
from xlj import config as config_lib
from xlj.data import store
from xlj.training import closed_form
from xlj.training import train

PENALTY, POWER, LEAST_SQUARES = 0.3, 0.25, 0.7
HOW = {
  "penalty": PENALTY,
  "power": POWER,
  "least_squares": LEAST_SQUARES,
}
FIELDS = {
  "family": "embedding",
  "data__weighting": "none",
  "data__l2": True,
  "encoder__dim": 24,
  "encoder__scale": 0.0,
  "encoder__embedding_dropout": 0.0,
  "head__init": "ridge",
  "head__ridge": PENALTY,
  "head__ridge_power": POWER,
  "head__ridge_least_squares": LEAST_SQUARES,
  "head__cosine": False,
  "head__use_bias": False,
  "predict__propensity_power": 0.0,
  "train__epochs": 0.0,
}


def expected(x, y, directions, least_squares):
  """The weights `[F, L]` with an inverse that is exact in some directions."""
  left = np.maximum((x > 0).sum(0), 1.0) ** -0.5
  right = np.maximum(y.sum(0), 1.0) ** -POWER
  x = x * left
  y = y / np.sqrt(np.maximum(y.sum(1, keepdims=True), 1))
  _, s, v = np.linalg.svd(x)
  inverse = 1 / (np.pad(s**2, (0, len(v) - len(s))) + PENALTY)
  inverse[directions:] = inverse[directions - 1]
  first = v[:directions]
  fit = np.linalg.lstsq(x @ first.T, y, rcond=None)[0]
  return (v.T * inverse) @ v @ x.T @ (y * right) + (
    least_squares * left[:, None] * (first.T @ fit)
  )


def weights_of(found, x, y):
  """The weights `[F, L]` of a regression."""
  meet = x.T @ (y * found.shares[:, None])
  weights = found.left[:, None] * meet * found.right
  return weights + found.table @ found.rows.T


def test_it_is_the_regression_in_the_first_directions():
  rng = np.random.default_rng(0)
  x = rng.random((60, 40)) * (rng.random((60, 40)) < 0.2)
  y = (rng.random((60, 30)) < 0.1).astype(float)
  # The last ones are wider than the 40 directions that there are.
  for width, directions, weight in (
    *((8, 8, 0.0), (16, 8, 0.7)),
    *((45, 40, 0.0), (90, 40, 0.7)),
  ):
    found = closed_form.ridge(
      *(scipy.sparse.csr_array(a.astype(np.float32)) for a in (x, y)),
      width,
      **(HOW | {"least_squares": weight}),
    )
    np.testing.assert_allclose(
      weights_of(found, x, y), expected(x, y, directions, weight), *(1e-3, 1e-4)
    )


@pytest.mark.slow
def test_a_run_answers_as_the_regression_does(tmp_path):
  data = runs.make_data(tmp_path / "data")
  workdir = tmp_path / "run"
  config = runs.make_config(data, **FIELDS, data__validation=0.0)
  assert train.train(config, workdir)
  split = store.open_split(data, "train")
  x, y = split.features.to_scipy(), split.labels.to_scipy()
  x = x / np.maximum(scipy.sparse.linalg.norm(x, axis=1)[:, None], 1e-12)
  x = x.tocsr()
  found = closed_form.ridge(
    x, y, FIELDS["encoder__dim"], **HOW, seed=config.seed
  )
  rows = np.arange(50)
  wanted = x[rows] @ weights_of(found, x.toarray(), y.toarray())
  scores, ids = xlj.load(workdir).topk(split.features.take(rows), k=10)
  close = {"rtol": 1e-4, "atol": 1e-6}
  np.testing.assert_allclose(scores, -np.sort(-wanted)[:, :10], **close)
  np.testing.assert_allclose(
    scores, np.take_along_axis(wanted, ids, 1), **close
  )


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    (
      "encoder.activation",
      "relu",
      "encoder.activation is 'relu'; set it to ''",
    ),
    ("encoder.scale", 12.0, "encoder.scale is 12.0; set it to 0.0"),
    ("head.cosine", True, "head.cosine is True; set it to False"),
    ("encoder.dim", 25, "give an even number"),
    ("head.init", "normal", "which head.init='normal' does not read"),
  ],
)
def test_what_is_not_linear_is_refused(field, value, message):
  config = runs.make_config("unread", **FIELDS)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.resolve(config, runs.FACTS)


def test_the_config_of_sets_resolves():
  config = runs.config_file("gowalla").get_config()
  found = config_lib.resolve(config, runs.FACTS)
  assert found.head.wide
  assert not found.head.by_example
  assert found.train.num_steps == 0
