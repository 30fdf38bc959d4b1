"""The factored head equals the dense head with the same loss and SGD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import dense_heads
from tests import meshes
from tests import runs
from xlj import config as config_lib
from xlj import ops
from xlj import sharding
from xlj.averaging import soups
from xlj.config import heads
from xlj.config import losses
from xlj.data import store
from xlj.heads.spherical import head as spherical
from xlj.inference import predictor
from xlj.losses import spherical as spherical_losses
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib
from xlj.training import train

N, D, P, NUM_LABELS = 16, 8, 3, 83
ZLOSS = spherical_losses.ZLoss(NUM_LABELS, 2.0)


def sgd(rate, decay=0.0):
  schedule = optax.linear_schedule(rate, rate / 2, 100)
  plain = row_optimizer.Sgd(schedule, decay)
  tx = optax.chain(
    optax.add_decayed_weights(decay), optax.scale_by_learning_rate(schedule)
  )
  return row_optimizer.RowOptimizer(tx, plain=plain)


def make(of=ZLOSS, rate=1.0, decay=0.0, labels=None, **fields):
  settings = {
    "num_labels": NUM_LABELS,
    "dim": D,
    "loss": spherical_losses.Spherical(of),
    "optimizer": sgd(rate, decay),
    "use_bias": False,
    "blocks": 8,
    "init_scale": 0.5,
  }
  rows = dense_heads.make(**(settings | (labels or {})))
  return spherical.SphericalHead(rows, **({"refactor_every": 7} | fields))


def make_batch(seed):
  """Labels several times, examples without any, and one that counts nothing."""
  rng = np.random.default_rng(seed)
  first = rng.integers(0, NUM_LABELS, (N, 1))
  ids = (first + np.array([0, 7, 30])) % NUM_LABELS
  ids = np.where(np.arange(P) < rng.integers(0, P + 1, (N, 1)), ids, -1)
  ids[0], ids[1] = (5, 6, 7), (5, -1, -1)
  weights = rng.uniform(0.5, 1.5, N)
  weights[2] = 0
  x = rng.normal(size=(N, D))
  return x, targets_lib.Targets(ids.astype(np.int32), weights)


@functools.cache
def steps_of(head):
  """Steps of the dense and of the factored head, compiled once a mesh."""
  return jax.jit(head.labels.step), jax.jit(head.step, donate_argnums=0)


@pytest.mark.parametrize("shape", [(2, 4)])
def test_steps_losses_and_predictions_equal_the_dense_head(shape):
  head = make(decay=0.01)
  with meshes.mesh(shape) as mesh:
    init = jax.jit(head.init, out_shardings=sharding.named(mesh, head.specs()))
    params = init(jax.random.key(0))
    rows = {"rows": head.unfactored(params)}
    state, opt = head.init_optimizer(params), head.labels.init_optimizer(rows)
    dense_step, factored_step = steps_of(head)
    for i in range(10):
      x, targets = make_batch(i)
      targets = targets._replace(weights=targets.weights.astype(np.float32))
      x, targets = sharding.put_batch((x.astype(np.float32), targets))
      step = sharding.replicate(jnp.int32(i))
      rows, opt, wanted_dx, wanted = dense_step(
        rows, opt, step, x, None, targets
      )
      params, state, dx, metrics = factored_step(
        params, state, step, x, None, targets
      )
      assert dx.sharding.spec[0] == sharding.AXES
      np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-4)
      np.testing.assert_allclose(dx, wanted_dx, rtol=1e-3, atol=1e-6)
    own = np.asarray(head.unfactored(params))
    layout = head.layout
    labels = layout.row_of_label(np.arange(NUM_LABELS))
    np.testing.assert_allclose(
      own[labels], np.asarray(rows["rows"])[labels], atol=1e-4
    )
    np.testing.assert_allclose(
      jax.jit(head.evaluate_loss)(params, x, None, targets),
      jax.jit(head.labels.evaluate_loss)(rows, x, None, targets),
      rtol=1e-4,
    )
    exclude = ops.Choice(sharding.put_batch(np.full((N, 2), 40, np.int32)))
    offset = np.linspace(0, 1, head.num_rows, dtype=np.float32)
    offset = jax.device_put(offset, jax.NamedSharding(mesh, sharding.LABELS))
    found, wanted = (
      jax.jit(h.topk, static_argnums=3)(p, x, None, 90, exclude, offset)
      for h, p in ((head, params), (head.labels, rows))
    )
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-3)
    np.testing.assert_array_equal(found[1][:, -8:], -1)
    assert (np.asarray(found[1]) == np.asarray(wanted[1])).mean() > 0.99
    np.testing.assert_array_equal(
      np.sort(found[1][:, :82]), np.delete(np.arange(83), 40)[None].repeat(N, 0)
    )
    check_that_an_ill_conditioned_factor_is_multiplied_out(
      head, params, lambda p: factored_step(p, state, step, x, None, targets)
    )


def check_that_an_ill_conditioned_factor_is_multiplied_out(head, params, take):
  rows, u = np.asarray(params["rows"]), np.asarray(params["u"])
  found = []
  for least in (1.0, 0.1, 0.01):
    more = np.diag(np.r_[np.full(D // 2, least), np.ones(D // 2)])
    other = {"rows": rows @ np.linalg.inv(more), "u": more @ u}
    other = jax.tree.map(
      lambda a, like: jax.device_put(np.asarray(a, np.float32), like.sharding),
      dict(params) | other,
      dict(params),
    )
    other = take(other)[0]
    assert (np.asarray(other["u"]) == np.eye(D)).all() == (least == 0.01)
    found.append(np.asarray(head.unfactored(other)))
  np.testing.assert_allclose(found[1], found[0], atol=1e-5)
  np.testing.assert_allclose(found[2], found[0], atol=1e-4)


def train_factored(head, count, dtype):
  """Label rows and losses after steps on the mesh in context."""
  mesh = jax.sharding.get_mesh()
  put = sharding.named(mesh, head.specs())

  def init(key):
    return head.factored(head.labels.init(key)["rows"].astype(dtype))

  params = jax.jit(init, out_shardings=put)(jax.random.key(0))
  first = np.asarray(head.unfactored(params))
  state = head.init_optimizer(params)
  step = steps_of(head)[1]
  losses = []
  for i in range(count):
    x, targets = make_batch(i)
    targets = targets._replace(weights=targets.weights.astype(dtype))
    x, targets = sharding.put_batch((x.astype(dtype), targets))
    params, state, _, metrics = step(
      params, state, sharding.replicate(jnp.int32(i)), x, None, targets
    )
    # Many steps on their way at once would wait for each other's devices.
    losses.append(float(metrics["loss"]))
  rows = np.asarray(head.unfactored(params))
  return first, rows, np.array(losses)


def train_textbook(head, first, count, dtype):
  """The same by autodiff of all logits, on one device, rows by label."""
  labels = head.layout.row_of_label(np.arange(NUM_LABELS))

  @jax.jit
  def step(w, i, x, targets):
    def loss(w):
      z = x @ w.T
      ids = targets.ids
      logits = jnp.take_along_axis(z, jnp.maximum(ids, 0), 1)
      sums = spherical_losses.Sums(z.sum(1), (z**2).sum(1))
      losses = head.loss.losses(logits, ids >= 0, sums)
      return (losses * targets.weights).sum() / targets.weights.sum()

    value, grad = jax.value_and_grad(loss)(w)
    rate = head.sgd.learning_rate(i)
    return w - rate * (grad + head.sgd.weight_decay * w), value

  w, losses = jnp.asarray(first[labels]), []
  for i in range(count):
    x, targets = make_batch(i)
    targets = targets._replace(weights=targets.weights.astype(dtype))
    w, value = step(w, jnp.int32(i), x.astype(dtype), targets)
    losses.append(value)
  return np.asarray(w), np.array(losses), labels


def compare_with_textbook(shape, count, dtype, every):
  """Greatest difference of rows, by the greatest weight, and of losses."""
  head = make(decay=0.001, refactor_every=every)
  with meshes.mesh(shape):
    first, rows, losses = train_factored(head, count, dtype)
  w, expected, labels = train_textbook(head, first, count, dtype)
  assert np.abs(w - first[labels]).max() > 0.5  # it has learned
  assert not np.delete(rows, labels, 0).any()
  np.testing.assert_allclose(losses, expected, rtol=1e-3)
  return np.abs(rows[labels] - w).max() / np.abs(w).max()


@pytest.mark.slow
def test_two_hundred_steps_equal_sgd_in_float64(optimized):
  with jax.enable_x64(True):
    assert compare_with_textbook((8, 1), 200, np.float64, 60) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "every"), [((8, 1), 500), ((1, 1), 10**6)])
def test_two_thousand_steps_equal_sgd_in_float32(shape, every):
  assert compare_with_textbook(shape, 2000, np.float32, every) < 1e-4


def test_rows_are_changed_in_place():
  head = make(
    spherical_losses.ZLoss(100_000, 4.0),
    labels={"num_labels": 100_000, "dim": 32},
  )
  with meshes.mesh((1, 1)) as mesh:
    put = sharding.named(mesh, head.specs())
    shapes = jax.eval_shape(head.init, jax.random.key(0))
    params = jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
      shapes,
      put,
    )
    batch = jax.NamedSharding(mesh, sharding.BATCH)
    x, ids, weights = (
      jax.ShapeDtypeStruct(shape, dtype, sharding=batch)
      for shape, dtype in (
        ((N, 32), np.float32),
        ((N, P), np.int32),
        ((N,), np.float32),
      )
    )
    targets = targets_lib.Targets(ids, weights)
    step = jax.ShapeDtypeStruct((), np.int32)
    compiled = (
      jax.jit(head.step, donate_argnums=0)
      .lower(params, {}, step, x, None, targets)
      .compile()
    )
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes < 4e6  # the rows have 12.8e6
  assert memory.alias_size_in_bytes >= 4 * 100_000 * 32


@pytest.mark.parametrize(
  ("settings", "fields", "message"),
  [
    (
      {"optimizer": row_optimizer.RowOptimizer(optax.adam(0.1))},
      {},
      "must be plain SGD",
    ),
    ({"use_bias": True}, {}, "use_bias=False"),
    ({"wide_features": 10}, {}, "no wide path"),
    ({"cosine": True}, {}, "cosine=False"),
    ({}, {"refactor_every": 0}, "at least 1"),
    ({}, {"curvature_rate": 0.0}, r"in \(0, 1\]"),
  ],
)
def test_what_has_no_factored_form_is_refused(settings, fields, message):
  with pytest.raises(ValueError, match=message):
    make(labels=settings, **fields)


def test_what_it_cannot_read_is_refused():
  head = make()
  x, targets = make_batch(0)
  with pytest.raises(ValueError, match="give it an encoder"):
    head.step({}, {}, jnp.int32(0), None, None, targets)
  with pytest.raises(ValueError, match="no values"):
    head.evaluate_loss({}, x, None, targets, {"margin": np.zeros(NUM_LABELS)})


def resolved(**fields):
  own = {"head__type": "spherical"}
  return runs.resolved(**(own | fields))


def test_open_fields_of_a_config_are_decided():
  config = resolved()
  assert config.family == "embedding" and config.optim.head.name == "sgd"
  head = heads.make(config)
  assert isinstance(head.loss, spherical_losses.ZLoss)
  assert head.loss.threshold == spherical_losses.threshold_of(30_000)
  for loss in losses.SPHERICAL:
    for kind in ("spherical", "dense"):
      config = resolved(head__loss=loss, head__type=kind)
      heads.make(config)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"optim__head__name": "adam"},
      "optim.head.name is 'adam'.*to 'sgd'",
    ),
    ({"head__use_bias": True}, "head.use_bias is True"),
    ({"head__dtype": "bfloat16"}, "head.dtype is 'bfloat16'"),
    ({"head__cosine": True}, "head.cosine is True"),
    ({"head__loss": "bce"}, "head.loss is 'bce'"),
    ({"head__loss": "z_loss", "head__type": "mhc"}, "head.loss is 'z_loss'"),
    ({"head__refactor_every": 0}, "head.refactor_every is 0"),
    ({"head__curvature_rate": 2.0}, "head.curvature_rate is 2.0"),
  ],
)
def test_configs_that_do_not_go_are_refused_by_name(fields, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    resolved(**fields)


@pytest.mark.slow
def test_a_run_continues_on_other_devices(data_dir, tmp_path, use_mesh):
  config = runs.make_config(
    data_dir,
    head__type="spherical",
    head__wide=False,
    head__loss="gramian",
    head__curvature_rate=0.5,
    head__refactor_every=5,
    optim__head__name="sgd",
    optim__head__learning_rate=0.3,
    checkpoint__every=8,
  )
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  use_mesh((2, 4))
  train.train(config, whole)
  losses = runs.losses(whole)
  assert np.mean(losses[-9:]) < np.mean(losses[:9])
  runs.stop_after(9, config, parts)
  use_mesh((1, 1))
  train.train(config, parts)
  np.testing.assert_allclose(runs.losses(parts), losses, rtol=1e-4)
  split = store.open_split(data_dir, "test")
  features = split.features.slice_rows(0, 8)
  found = []
  for workdir, shape in ((whole, (1, 1)), (parts, (2, 4))):
    use_mesh(shape)
    found.append(predictor.load(workdir, which="last").topk(features, 5)[0])
  np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-3)
  with pytest.raises(config_lib.ConfigError, match="a product of two"):
    soups.make_soup([whole, parts], tmp_path / "soup")
