"""Several rows of a label: against textbook losses on labels' logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from tests import dense_heads
from tests import meshes
from tests import reference
from tests import runs
from xlj import config as config_lib
from xlj import ops
from xlj import sharding
from xlj.config import families
from xlj.heads.prototypes import head as prototypes
from xlj.inference import predictor
from xlj.losses import prototype_softmax
from xlj.losses import softmax
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib
from xlj.training import train

N, D, L, M, R, P, K = 16, 6, 43, 11, 3, 4, 5
RATE = 0.5


def make_head(decoupled=False, **more):
  fields = {
    "num_labels": L + M * (R - 1),
    "loss": prototype_softmax.PrototypeSoftmax(R, decoupled),
  }
  rows = dense_heads.make(
    dim=D,
    optimizer=row_optimizer.sgd(RATE),
    blocks=8,
    init_scale=1.0,
    chunk_size=5,
    **(fields | more),
  )
  return prototypes.PrototypeHead(rows, L)


def make_batch():
  rng = np.random.default_rng(0)
  ids = np.stack([rng.permutation(L)[:P] for _ in range(N)])
  ids[:, 0] = rng.integers(0, M, N)  # of several rows
  ids[rng.random(ids.shape) < 0.3] = -1
  ids[0], ids[1] = -1, (0, M, M - 1, L - 1)
  ids[2] = 5, -1, -1, -1
  ids = np.where(np.tril(ids[:, :, None] == ids[:, None], -1).any(2), -1, ids)
  weights = rng.uniform(0.5, 1.5, N).astype(np.float32)
  weights[-1] = 0
  x = rng.normal(size=(N, D)).astype(np.float32)
  return x, targets_lib.Targets(ids.astype(np.int32), weights)


def owners():
  """The label of each row label, as the module says: first rows, then more."""
  return np.concatenate([np.arange(L), *[np.arange(M)] * (R - 1)])


def label_logits(head, params, x):
  """`[N, L]` by the definition, with a sum over all rows."""
  layout = head.by_row.layout
  rows = layout.row_of_label(np.arange(layout.num_labels))
  z = x @ params["rows"][rows].T + params["bias"][rows]
  hot = jax.nn.one_hot(owners(), L)
  return jnp.log(jnp.exp(z) @ hot)


@pytest.mark.parametrize("decoupled", cases.some([False, True], [False]))
def test_a_step_is_that_of_the_loss_on_labels(decoupled):
  head = make_head(decoupled)
  x, targets = make_batch()
  textbook = (
    reference.decoupled_softmax_loss if decoupled else reference.softmax_loss
  )
  hot = reference.multi_hot(targets.ids, L)
  scale = targets.weights / targets.weights.sum()

  def loss_of(params, x):
    return (textbook(label_logits(head, params, x), hot) * scale).sum()

  with meshes.mesh((2, 4)):
    params = meshes.first_params(head)
    params["bias"] += 0.1
    state = head.init_optimizer(params)
    alone = jax.tree.map(np.asarray, params)
    batch = sharding.put_batch((x, targets))
    step = jnp.int32(0)
    found, _, dx, metrics = jax.jit(head.step)(
      params, state, step, batch[0], None, batch[1]
    )
    if not decoupled:
      again = jax.jit(head.evaluate_loss)(params, batch[0], None, batch[1])
      assert again == pytest.approx(float(metrics["loss"]), rel=1e-6)
    found, dx = jax.tree.map(np.asarray, (found, dx))
  value, (dparams, want_dx) = jax.jit(jax.value_and_grad(loss_of, (0, 1)))(
    alone, x
  )
  assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
  np.testing.assert_allclose(dx, want_dx, rtol=1e-4, atol=1e-6)
  for name, grad in dparams.items():
    np.testing.assert_allclose(
      found[name], alone[name] - RATE * grad, rtol=1e-4, atol=1e-6
    )


def test_the_best_labels_are_scored_with_all_their_rows():
  head = make_head()
  x, _ = make_batch()
  rng = np.random.default_rng(1)
  exclude = np.stack([rng.permutation(L)[:3] for _ in range(N)]).astype(
    np.int32
  )
  exclude[:8, 1:] = -1
  offset = rng.normal(size=L).astype(np.float32)
  with meshes.mesh((2, 4)):
    params = meshes.first_params(head)
    by_row = head.layout.by_row(jnp.asarray(offset), 0)
    scores, ids = jax.jit(head.topk, static_argnums=3)(
      params,
      sharding.put_batch(x),
      None,
      K,
      ops.Choice(sharding.put_batch(exclude)),
      jax.reshard(by_row, sharding.LABELS),
    )
    scores, ids, params = jax.tree.map(np.asarray, (scores, ids, params))
  layout = head.by_row.layout
  rows = layout.row_of_label(np.arange(layout.num_labels))
  z = x.astype(np.float64) @ params["rows"][rows].T + params["bias"][rows]
  z += offset[owners()]
  label = np.full((N, L), -np.inf)
  for row, owner in enumerate(owners()):
    label[:, owner] = np.logaddexp(label[:, owner], z[:, row])
  left_out = 0
  for n in range(N):
    label[n, exclude[n][exclude[n] >= 0]] = -np.inf
    z[n, np.isin(owners(), exclude[n])] = -np.inf
    found = owners()[np.argsort(-z[n])[: K * R]]
    best = sorted(set(found), key=lambda i: -label[n, i])[:K]
    np.testing.assert_array_equal(ids[n], best)
    np.testing.assert_allclose(scores[n], label[n, best], rtol=1e-5, atol=1e-5)
    missed = np.setdiff1d(np.argsort(-label[n])[:K], best)
    left_out += len(missed)
    last = np.sort(z[n])[-K * R]
    assert (label[n, missed] < last + np.log(R)).all()
  assert left_out <= 1


def test_a_prior_is_shared_and_rows_start_apart():
  head = make_head()
  x, targets = make_batch()
  counts = np.arange(L, 0, -1)
  with meshes.mesh((2, 4)):
    params = meshes.first_params(head)
    by_row = head.layout.by_row(jnp.asarray(counts), 0)
    by_row = jax.reshard(by_row, sharding.LABELS)
    prior = jax.jit(head.at_prior, static_argnums=2)(params, by_row, 100)
    zeros = jax.device_put(
      np.zeros((head.num_rows, D), np.float32),
      jax.NamedSharding(jax.sharding.get_mesh(), sharding.LABELS),
    )
    batch = sharding.put_batch((targets.ids, x))
    sums = jax.jit(head.add_to_rows)(zeros, *batch)
    sums, bias = np.asarray(sums), np.asarray(prior["bias"])
  layout = head.by_row.layout
  rows = layout.row_of_label(np.arange(layout.num_labels))
  share = np.where(owners() < M, R, 1)
  odds = (counts[owners()] / share + 0.5) / 101
  np.testing.assert_allclose(
    bias[rows], np.log(odds / (1 - odds)), rtol=1e-4, atol=1e-5
  )
  by_label = np.zeros((L, D))
  np.add.at(by_label, owners(), sums[rows])
  want = np.asarray(reference.multi_hot(targets.ids, L)).T @ x
  np.testing.assert_allclose(by_label, want, rtol=1e-4, atol=1e-5)
  assert (np.abs(sums[rows][:M] - sums[rows][L : L + M]).sum(1) > 0).any()


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="must be a PrototypeSoftmax"):
    make_head(loss=softmax.Softmax())
  with pytest.raises(ValueError, match="no wide path"):
    make_head(wide_features=3)
  with pytest.raises(ValueError, match="66 rows for 43 labels"):
    make_head(num_labels=66)


@pytest.mark.slow
@pytest.mark.parametrize(
  "fields",
  [
    {"head__dtype": "bfloat16"},
    {"family": "embedding", "head__wide": None, "head__loss": None},
  ],
  ids=["network", "embedding"],
)
def test_a_run_with_several_rows_trains_and_predicts(tmp_path, fields):
  data = runs.make_data(tmp_path / "data")
  more = {"head__wide": False, "head__prototypes": 3} | fields
  config = runs.make_config(data, train__epochs=6.0, **more)
  assert train.train(config, tmp_path / "run")
  run = predictor.load(tmp_path / "run")
  assert run.config.head.prototype_labels == 70
  losses = runs.losses(tmp_path / "run")
  assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
  assert run.model.head.by_row.layout.num_labels == 700 + 2 * 70
  scores, ids = run.topk([{3: 2.0, 40: 1.0}, {7: 1.0}], k=700)
  assert all(len(set(row)) == 700 for row in ids.tolist())
  assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"loss": "bce"}, "does not go with head.loss 'bce'; use 'softmax' or"),
    ({"wide": True}, "does not go with head.wide True"),
    ({"type": "mhc"}, "head.prototypes is 2, which head.type='mhc' does not"),
    ({"prototype_labels": 44}, r"is 44; it must be in \[1, 43\]"),
    ({"prototypes": 0}, "head.prototypes is 0; it must be at least 1"),
  ],
)
def test_what_does_not_go_with_several_rows_is_refused(fields, message):
  config = config_lib.base()
  config.family, config.head.prototypes = "network", 2
  config.head.update(fields)
  facts = families.DataFacts(99, 12, L, 2.0, 3.0, False, "counts", "0" * 8)
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.resolve(config, facts)
