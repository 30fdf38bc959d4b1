"""The product head equals a dense softmax over its labels, on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import cases
from tests import meshes
from xlj import ops
from xlj import sharding
from xlj.heads.product import head as product
from xlj.ops import targets as targets_lib

N, D, P = 16, 12, 3
LENGTHS = 6, 5, 4
NUM_LABELS = 83  # ghosts from (4, 0, 3) on


def make_head(**fields):
  defaults = {
    "num_labels": NUM_LABELS,
    "dim": D,
    "lengths": LENGTHS,
    "optimizer": optax.adam(0.1),
    "init_scale": 0.5,
  }
  return product.ProductHead(**(defaults | fields))


def make_batch(seed):
  """Embeddings and targets: a second positive, padding first, none, weights."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(N, D)).astype(np.float32)
  ids = np.full((N, P), -1, np.int32)
  ids[:, 0] = rng.integers(0, NUM_LABELS, N)
  ids[1, 1] = 7
  ids[2] = -1, 5, 9
  ids[3] = -1
  ids[4, 0] = NUM_LABELS - 1
  weights = rng.uniform(0.5, 1.5, N).astype(np.float32)
  weights[5] = 0
  return x, targets_lib.Targets(ids, weights)


def first_params(head):
  return jax.tree.map(np.asarray, jax.jit(head.init)(jax.random.key(0)))


def digits_of(labels):
  return np.stack([labels // 20, labels // 4 % 5, labels % 4], -1)


def logits_of(params, x):
  return jnp.einsum("nd,rsd->nrs", x, params["rows"]) + params["bias"]


def log_probs(params, x):
  """`[N, L]` by enumeration: a softmax over the real labels."""
  digits = digits_of(np.arange(NUM_LABELS))
  total = 0
  if "mixture" in params:
    weights = x @ params["mixture"].T + params["mixture_bias"]
    total = jax.nn.log_softmax(weights)[..., None]
  parts = jnp.split(logits_of(params, x), np.cumsum(LENGTHS)[:-1], -1)
  for h, part in enumerate(parts):
    if h == 0:
      part = part[..., :5]  # the sixth is of ghosts alone
    total = total + jax.nn.log_softmax(part)[..., digits[:, h]]
  return jax.nn.log_softmax(jax.nn.logsumexp(total, 1))


def first_labels(ids):
  return np.array([next((i for i in row if i >= 0), -1) for row in ids])


def mean_by_weight(losses, targets):
  weights = targets.weights * (first_labels(targets.ids) >= 0)
  return (losses * weights).sum() / weights.sum()


def mean_nll(params, x, targets):
  labels = first_labels(targets.ids)
  return mean_by_weight(-log_probs(params, x)[np.arange(N), labels], targets)


def joint_softmax(params, x, targets):
  """The H-hot target against one softmax over everything."""
  hot = hot_of(targets)
  losses = optax.safe_softmax_cross_entropy(logits_of(params, x)[:, 0], hot)
  return mean_by_weight(losses, targets)


def bce(params, x, targets):
  losses = optax.sigmoid_binary_cross_entropy(
    logits_of(params, x)[:, 0], hot_of(targets)
  )
  return mean_by_weight(losses.mean(1), targets)


def hot_of(targets):
  digits = digits_of(np.maximum(first_labels(targets.ids), 0))
  hot = [np.eye(c)[digits[:, h]] for h, c in enumerate(LENGTHS)]
  return np.concatenate(hot, 1)


CASES = {
  "softmax": ({}, mean_nll),
  "mixture": ({"components": 3}, mean_nll),
  "joint_softmax": ({"loss": "joint_softmax"}, joint_softmax),
  "bce": ({"loss": "bce"}, bce),
}


@functools.cache
def textbook_steps(case):
  """First parameters, loss and dx of each of three steps, last parameters."""
  fields, reference = CASES[case]
  head = make_head(**fields)
  first = params = first_params(head)
  opt = head.optimizer.init(params)
  values = []
  for i in range(3):
    x, targets = make_batch(i)

    @jax.jit
    def step(params, opt, x, targets=targets):
      loss, (grads, dx) = jax.value_and_grad(reference, (0, 1))(
        params, x, targets
      )
      updates, opt = head.optimizer.update(grads, opt, params)
      return optax.apply_updates(params, updates), opt, (loss, dx)

    params, opt, value = step(params, opt, x)
    values.append(value)
  return first, values, params


@pytest.mark.parametrize("case,shape", cases.covering(CASES, meshes.SHAPES[:2]))
def test_steps_equal_the_textbook(case, shape):
  head = make_head(**CASES[case][0])
  params, values, expected = textbook_steps(case)
  opt = jax.tree.map(np.asarray, head.init_optimizer(params))
  with meshes.mesh(shape) as mesh:
    params = jax.device_put(params, sharding.named(mesh, head.specs()))
    opt = jax.device_put(opt, sharding.named(mesh, head.optimizer_specs()))
    step = jax.jit(head.step)
    for i, (loss, dx) in enumerate(values):
      x, targets = sharding.put_batch(make_batch(i))
      params, opt, own_dx, metrics = step(
        params, opt, jnp.int32(i), x, None, targets
      )
      np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
      np.testing.assert_allclose(own_dx, dx, atol=1e-6)
      assert own_dx.sharding.spec[0] == sharding.AXES
    for name, want in expected.items():
      np.testing.assert_allclose(params[name], want, atol=1e-4, err_msg=name)
      assert params[name].is_fully_replicated


@pytest.mark.slow
@pytest.mark.parametrize("case,shape", cases.covering(CASES, meshes.SHAPES[:2]))
def test_predictions_equal_the_textbook(case, shape):
  head = make_head(**CASES[case][0])
  params = first_params(head)
  x, targets = make_batch(0)
  exclude = np.pad(targets.ids[:, :1], ((0, 0), (0, 1)), constant_values=-1)
  expected = np.array(jax.jit(log_probs)(params, x))
  labels = first_labels(targets.ids)
  expected_loss = mean_by_weight(-expected[np.arange(N), labels], targets)
  for n, label in enumerate(exclude[:, 0]):
    if label >= 0:
      expected[n, label] = -np.inf
  with meshes.mesh(shape) as mesh:
    params = jax.device_put(params, sharding.named(mesh, head.specs()))
    on_mesh = sharding.put_batch((x, targets, exclude))
    loss = jax.jit(head.evaluate_loss)(params, on_mesh[0], None, on_mesh[1])
    scores, ids = jax.jit(head.topk, static_argnums=3)(
      params, on_mesh[0], None, 9, ops.Choice(on_mesh[2])
    )
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  best = np.argsort(-expected, 1)[:, :9]
  np.testing.assert_array_equal(ids, best)
  np.testing.assert_allclose(
    scores, np.take_along_axis(expected, best, 1), rtol=1e-4
  )
  assert ids.dtype == jnp.int32


def test_all_labels_and_padding():
  head = make_head(components=2)
  with meshes.mesh((2, 4)):
    params = sharding.replicate(first_params(head))
    x, _ = sharding.put_batch(make_batch(0))
    scores, ids = jax.jit(head.topk, static_argnums=3)(params, x, None, 90)
  np.testing.assert_array_equal(
    np.sort(ids[:, :NUM_LABELS]), np.tile(np.arange(NUM_LABELS), (N, 1))
  )
  assert (ids[:, NUM_LABELS:] == -1).all()
  assert np.isneginf(scores[:, NUM_LABELS:]).all()
  np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-5)


@pytest.mark.slow
def test_labels_beyond_int32_go_by_digits():
  head = make_head(num_labels=10**10, lengths=(2500, 2000, 2000))
  labels = np.array([10**10 - 1, 2**31, 0, 5] * 4)
  with meshes.mesh((2, 4)):
    params = sharding.replicate(first_params(head))
    opt = sharding.replicate(head.init_optimizer(params))
    x, digits, weights = sharding.put_batch(
      (
        np.tile(np.eye(4, D, dtype=np.float32), (4, 1)),
        head.radix.digits(labels),
        np.ones(N, np.float32),
      )
    )
    step = jax.jit(head.step_digits)
    for _ in range(10):
      params, opt, _, loss = jax.block_until_ready(
        step(params, opt, x, digits, weights)
      )
    _, found = jax.jit(head.topk_digits, static_argnums=2)(params, x, 1)
    later = jax.jit(head.evaluate_digits)(params, x, digits, weights)
    with pytest.raises(ValueError, match="do not fit int32"):
      head.topk(params, x, None, 1)
  assert later < loss
  np.testing.assert_array_equal(
    head.radix.labels(np.asarray(found))[:, 0], labels
  )


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"loss": "focal"}, "'focal' is not known"),
    ({"components": 0}, "at least 1"),
    ({"components": 2, "loss": "bce"}, "is of one product"),
    ({"components": 2, "init_scale": 0.0}, "stay, the same"),
    ({"lengths": (9, 9)}, "too few for 83 labels"),
  ],
)
def test_unfit_settings_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    make_head(**fields)


def test_what_it_cannot_use_is_refused():
  head = make_head()
  x, targets = make_batch(0)
  values = {"margin": np.zeros(NUM_LABELS)}
  with pytest.raises(ValueError, match="give it an encoder"):
    head.step({}, None, jnp.int32(0), None, None, targets)
  with pytest.raises(ValueError, match="label_values"):
    head.evaluate_loss({}, x, None, targets, values)
  with pytest.raises(ValueError, match="offset"):
    head.topk({}, x, None, 1, offset=np.zeros(NUM_LABELS))
