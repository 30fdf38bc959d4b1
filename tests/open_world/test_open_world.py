"""A run of the open long-tailed head: its memory, and OpenMax fitted to it."""

import warnings

import jax
import numpy as np
import optax
import pytest
from scipy import special
from scipy import stats

from tests import meshes
from tests import runs
from tests.open_world import test_openmax
from xlj import heads
from xlj import mesh as mesh_lib
from xlj.data import store
from xlj.inference import predictor
from xlj.open_world import openmax
from xlj.training import train

TAIL, K = 4, 5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Trained on one device, on several now."""
  directory = tmp_path_factory.mktemp("run")
  config = runs.make_config(
    runs.make_data(directory / "data"),
    family="embedding",
    head__type="oltr",
    head__wide=False,
    oltr__recentre_every=0.5,
    data__validation=0.0,
    data__max_labels=1,
    data__max_features=8,
    range__intra=0.1,
    train__epochs=1.0,
    predict__propensity_power=0.0,
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mesh_lib, "make_mesh", lambda _=None: meshes.make((1, 1)))
    with warnings.catch_warnings():
      warnings.filterwarnings("error", "Some donated buffers")
      train.train(config, directory / "run")
    patch.setattr(mesh_lib, "make_mesh", lambda _=None: meshes.make((1, 1)))
    return predictor.load(directory / "run", which="last")


@pytest.mark.slow
def test_the_range_of_labels_is_reported(run):
  rows = runs.records(run.workdir, "train")
  assert all(0 < row["range"] < row["loss"] for row in rows)


@pytest.mark.slow
def test_the_memory_is_recomputed_within_and_after_an_epoch(run):
  split = store.open_split(run.config.data.dir)
  hot = split.labels.to_scipy().astype(bool).astype(np.float64)
  counts = hot.sum(0)
  means = hot.T @ embeddings(run, split.features)
  means /= np.maximum(counts, 1)[:, None]
  rows = run.model.layout.row_of_label(run.order.to_head(np.arange(len(means))))
  memory = np.asarray(run.state["head"]["memory"])[rows]
  np.testing.assert_allclose(memory[counts > 0], means[counts > 0], atol=1e-5)


@pytest.mark.slow
def test_a_run_is_fitted_and_predicts_as_by_hand(run):
  split = store.open_split(run.config.data.dir)
  fitted = openmax.fit(run, tail=TAIL, likeliest=K)
  x, given = embeddings(run, split.features), split.labels.to_scipy()
  best = run.topk(split.features, 1)[1][:, 0]
  right = [i for i in range(len(x)) if given[[i], [best[i]]].any()]
  assert len(right) > 2 * TAIL
  means, own, pooled = {}, {}, []
  for label in {best[i] for i in right}:
    rows = np.array([x[i] for i in right if best[i] == label])
    means[label] = rows.mean(0)
    distances = [
      np.linalg.norm(rows[i] - np.delete(rows, i, 0).mean(0))
      for i in range(len(rows))
      if len(rows) > 1
    ]
    if len(distances) >= TAIL:
      own[label] = sorted(distances)[-TAIL:]
    elif distances:
      own[label] = pooled
      pooled += distances
  assert pooled and max(map(len, own.values())) >= TAIL

  test = store.open_split(run.config.data.dir, "test").features.slice_rows(0, 9)
  z, ids = run.topk(test, K)
  scores = run.topk(test, run.num_labels)[0].astype(np.float64)
  logits = np.log(run.num_labels) + z - special.logsumexp(scores, 1)[:, None]
  share = np.zeros(ids.shape)
  for (i, j), label in np.ndenumerate(ids):
    if label in own:
      shape, _, scale = stats.weibull_min.fit(own[label], floc=0)
      distance = np.linalg.norm(embeddings(run, test)[i] - means[label])
      share[i, j] = stats.weibull_min.cdf(distance, shape, scale=scale)
  assert share.max() > 0.1
  likely = [
    test_openmax.by_loops(*row, run.num_labels)[0] for row in zip(logits, share)
  ]
  found, sure = fitted.predict(test)
  np.testing.assert_allclose(sure, np.max(likely, 1), rtol=2e-3)
  first = np.argmax(likely, 1)
  np.testing.assert_array_equal(found, ids[np.arange(len(ids)), first])


def embeddings(run, features):
  """`[n, D]`, of the whole batch at once."""
  with jax.set_mesh(run.mesh):
    return np.concatenate(
      [
        np.asarray(jax.jit(run.model.embed)(run.state, inputs))[:count]
        for count, inputs in run.batches(features)
      ]
    ).astype(np.float64)


def test_what_cannot_be_fitted_is_refused(run, monkeypatch):
  run.config.predict.propensity_power = 0.5
  with pytest.raises(ValueError, match="propensity_power 0.5"):
    openmax.fit(run)
  run.config.predict.propensity_power = 0.0
  other = heads.ProductHead(9, 4, (3, 3), optax.sgd(0.1))
  monkeypatch.setattr(run.model, "head", other)
  with pytest.raises(ValueError, match="the head 'mhp' knows none"):
    openmax.fit(run)
