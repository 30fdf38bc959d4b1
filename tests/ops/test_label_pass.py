"""Losses over all labels as functions: values, gradients, memory."""

import functools

import jax
from jax.experimental import checkify
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import cases
from tests import meshes
from tests import reference
from tests.losses import table
from xlj import sharding
from xlj.losses import bce
from xlj.losses import decoupled_softmax
from xlj.losses import softmax
from xlj.ops import chunks
from xlj.ops import label_pass
from xlj.ops import shards
from xlj.ops import targets as targets_lib

N, D, P = 16, 6, 4
NUM_LABELS = 43
BATCHES = {"split": sharding.BATCH, "replicated": sharding.REPLICATED}
ON_MESHES = ["softmax", "decoupled", "weighted_bce", "soft_targets"]
assert_close = functools.partial(cases.assert_close, atol=3e-6, rtol=1e-5)


def make_inputs(case, num_rows, seed=0):
  """Numpy examples, rows and bias, targets and values per label."""
  rng = np.random.default_rng(seed)
  x, rows, bias = (
    rng.normal(size=shape).astype(np.float32) * 0.8
    for shape in ((N, D), (num_rows, D), (num_rows,))
  )
  targets = table.make_targets(case, N, NUM_LABELS, P)
  values = table.make_label_values(case, NUM_LABELS)
  return x, rows, bias, targets, values


def expected_of(case, x, rows, bias, targets, values, factors=None):
  """Value and gradients by autodiff; of the weighted mean or sum."""
  hot = table.dense_targets(targets, NUM_LABELS)

  def function(x, rows, bias, weights):
    z = x @ rows[:NUM_LABELS].T
    if bias is not None:
      z += bias[:NUM_LABELS]
    losses = case.reference(z, hot, values)
    if factors is None:
      return reference.weighted_mean(losses, weights), losses
    return (factors * losses).sum(), losses

  grad = jax.value_and_grad(function, (0, 1, 2, 3), has_aux=True)
  return jax.jit(grad)(x, rows, bias, jnp.asarray(targets.weights))


def got_of(loss_fn, x, rows, bias, targets):
  """Value and gradients of `loss_fn(x, rows, bias, targets)`."""

  def function(x, rows, bias, weights):
    return loss_fn(x, rows, bias, targets._replace(weights=weights))

  grad = jax.value_and_grad(function, (0, 1, 2, 3))
  return jax.jit(grad)(x, rows, bias, targets.weights)


def put(mesh, tree, spec):
  return jax.device_put(tree, jax.NamedSharding(mesh, spec))


@pytest.mark.slow
@pytest.mark.parametrize("name,chunk", cases.covering(table.CASES, [16, 1000]))
def test_one_device_equals_the_reference(name, chunk):
  case = table.CASES[name]
  *arrays, targets, values = make_inputs(case, NUM_LABELS)
  (value, _), grads = expected_of(case, *arrays, targets, values)
  loss = functools.partial(
    label_pass.label_loss,
    loss=case.loss,
    label_values=values,
    placement=shards.Placement(chunk_size=chunk),
  )
  assert_close(got_of(loss, *arrays, targets), (value, grads))


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_MESHES)
def test_losses_of_examples_have_their_own_gradients(name):
  case = table.CASES[name]
  *arrays, targets, values = make_inputs(case, NUM_LABELS)
  factors = np.random.default_rng(9).normal(size=N)
  (value, losses), grads = expected_of(case, *arrays, targets, values, factors)
  loss = functools.partial(
    label_pass.label_loss,
    loss=case.loss,
    label_values=values,
    placement=shards.Placement(chunk_size=10),
    reduce=False,
  )
  got = jax.jit(loss)(*arrays, targets)
  np.testing.assert_allclose(got, losses, rtol=2e-6)
  got = got_of(lambda *args: (factors * loss(*args)).sum(), *arrays, targets)
  assert_close(got, (value, grads))


@pytest.mark.parametrize(
  "name,shape,batch,reduce",
  cases.covering(ON_MESHES, meshes.SHAPES[1:], BATCHES, [True, False]),
)
def test_meshes_equal_the_reference(name, shape, batch, reduce):
  case = table.CASES[name]
  *arrays, targets, values = make_inputs(case, 48)  # 43 labels, 5 of padding
  factors = None if reduce else np.linspace(-1, 1, N, dtype=np.float32)
  expected = expected_of(case, *arrays, targets, values, factors)
  values = jax.tree.map(lambda v: np.pad(v, (0, 5)), values)
  with meshes.mesh(shape) as mesh:
    x, targets = put(mesh, (arrays[0], targets), BATCHES[batch])
    rows, bias, values = put(mesh, (*arrays[1:], values), sharding.LABELS)

    def loss(*args):
      out = label_pass.label_loss(
        *args,
        loss=case.loss,
        num_labels=NUM_LABELS,
        label_values=values,
        placement=shards.Placement(chunk_size=4),
        reduce=reduce,
      )
      return out if reduce else (put(mesh, factors, BATCHES[batch]) * out).sum()

    value, grads = got_of(loss, x, rows, bias, targets)
    for grad, of in zip(grads, (x, rows, bias, targets.weights)):
      assert grad.sharding.is_equivalent_to(of.sharding, of.ndim)
  assert_close((value, grads), (expected[0][0], expected[1]))


@pytest.mark.parametrize("batch", BATCHES)
def test_inside_shard_map(batch):
  case = table.CASES["softmax"]
  *arrays, targets, _ = make_inputs(case, 48)
  (value, _), grads = expected_of(case, *arrays, targets, None)
  with meshes.mesh((2, 4)) as mesh:
    x, targets = put(mesh, (arrays[0], targets), BATCHES[batch])
    rows, bias = put(mesh, arrays[1:], sharding.LABELS)

    @jax.shard_map(
      in_specs=(
        BATCHES[batch],
        sharding.LABELS,
        sharding.LABELS,
        BATCHES[batch],
      ),
      out_specs=sharding.REPLICATED,
    )
    def loss(x, rows, bias, targets):
      return label_pass.label_loss(
        x,
        rows,
        bias,
        targets,
        case.loss,
        num_labels=NUM_LABELS,
        placement=shards.Placement(
          chunk_size=4,
          row_axes=sharding.AXES,
          batch_axes=sharding.AXES if batch == "split" else (),
        ),
      )

    got = got_of(loss, x, rows, bias, targets)
  assert_close(got, (value, grads))


def test_inside_shard_map_axes_must_be_said():
  case = table.CASES["softmax"]
  *arrays, targets, _ = make_inputs(case, 48)
  with meshes.mesh((2, 4)) as mesh:
    args = put(mesh, (*arrays, targets), sharding.BATCH)

    @jax.shard_map(
      in_specs=(
        sharding.BATCH,
        sharding.LABELS,
        sharding.LABELS,
        sharding.BATCH,
      ),
      out_specs=sharding.REPLICATED,
    )
    def loss(x, rows, bias, targets):
      return label_pass.label_loss(x, rows, bias, targets, case.loss)

    with pytest.raises(ValueError, match="row_axes"):
      loss(*args)


def test_a_mesh_with_automatic_axes():
  case = table.CASES["softmax"]
  *arrays, targets, _ = make_inputs(case, 48)
  (value, _), grads = expected_of(case, *arrays, targets, None)
  loss = functools.partial(
    label_pass.label_loss,
    loss=case.loss,
    num_labels=NUM_LABELS,
    placement=shards.Placement(chunk_size=4, row_axes=sharding.AXES),
  )
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((2, 4), sharding.AXES, axis_types=auto)
  with jax.set_mesh(mesh):
    rows, bias = put(mesh, arrays[1:], sharding.LABELS)
    got = got_of(loss, arrays[0], rows, bias, targets)
  assert_close(got, (value, grads))


def test_shapes_are_checked():
  x, targets = (
    jnp.zeros((2, 3)),
    targets_lib.Targets(jnp.zeros((2, 1), int), jnp.ones(2)),
  )
  loss = softmax.Softmax()
  with pytest.raises(ValueError, match=r"rows \(4, 5\)"):
    label_pass.label_loss(x, jnp.zeros((4, 5)), None, targets, loss)
  with pytest.raises(ValueError, match=r"bias .* \(5,\)"):
    label_pass.label_loss(x, jnp.zeros((4, 3)), jnp.zeros(5), targets, loss)
  with pytest.raises(ValueError, match=r"targets.ids .* \(2, 1\)"):
    label_pass.label_loss(x[:1], jnp.zeros((4, 3)), None, targets, loss)


def test_a_loss_over_a_vocabulary_without_bias():
  rng = np.random.default_rng(5)
  x = rng.normal(size=(N, D)).astype(np.float32)
  rows = rng.normal(size=(50, D)).astype(np.float32)
  tokens = rng.integers(0, 50, N).astype(np.int32)

  def expected(x, rows):
    return optax.softmax_cross_entropy_with_integer_labels(
      x @ rows.T, tokens
    ).mean()

  def got(x, rows):
    targets = targets_lib.Targets(tokens[:, None], jnp.ones(N))
    loss = softmax.Softmax()
    return label_pass.label_loss(
      x, rows, None, targets, loss, placement=shards.Placement(chunk_size=16)
    )

  args = x, rows
  assert_close(
    jax.jit(jax.value_and_grad(got, (0, 1)))(*args),
    jax.jit(jax.value_and_grad(expected, (0, 1)))(*args),
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.some(table.CASES, ON_MESHES))
def test_bfloat16_inputs_are_summed_in_float32(name):
  case = table.CASES[name]
  *arrays, targets, values = make_inputs(case, NUM_LABELS)
  narrow = [jnp.asarray(a, jnp.bfloat16) for a in arrays]
  rounded = [np.asarray(a, np.float32) for a in narrow]
  (value, _), grads = expected_of(case, *rounded, targets, values)
  loss = functools.partial(
    label_pass.label_loss,
    loss=case.loss,
    label_values=values,
    placement=shards.Placement(chunk_size=10),
  )
  got_value, got_grads = got_of(loss, *narrow, targets)
  assert got_value.dtype == jnp.float32
  np.testing.assert_allclose(got_value, value, rtol=1e-5)
  for got, expected, of in zip(got_grads, grads, narrow):
    assert got.dtype == of.dtype == jnp.bfloat16
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
      np.asarray(got, np.float32), expected, atol=0.01 * scale
    )


def test_all_weights_zero_is_zero_with_zero_gradients():
  case = table.CASES["softmax"]
  *arrays, targets, _ = make_inputs(case, NUM_LABELS)
  targets = targets._replace(weights=np.zeros(N, np.float32))
  loss = functools.partial(label_pass.label_loss, loss=case.loss)
  value, grads = got_of(loss, *arrays, targets)
  np.testing.assert_array_equal(value, 0)
  for grad in grads[:3]:
    np.testing.assert_array_equal(grad, 0)


MEMORY_LOSSES = {
  "softmax": softmax.Softmax(),
  "bce": bce.BinaryCrossEntropy(),
  "decoupled": decoupled_softmax.DecoupledSoftmax(),
}


def compile_gradients(loss, devices, dtype=jnp.float32, reduce=True):
  """Compiles a gradient for 2^21 labels; also gives the bytes of a chunk."""
  n, d, num_labels, chunk = 64, 32, 2**21, 2048

  def function(x, rows, bias, ids, weights):
    def of(x, rows, bias):
      return label_pass.label_loss(
        x,
        rows,
        bias,
        targets_lib.Targets(ids, weights),
        MEMORY_LOSSES[loss],
        placement=shards.Placement(chunk_size=chunk),
        reduce=reduce,
      ).sum()

    return jax.value_and_grad(of, (0, 1, 2))(x, rows, bias)

  shapes = ((n, d), (num_labels, d), (num_labels,), (n, 4), (n,))
  dtypes = (dtype, dtype, dtype, jnp.int32, jnp.float32)
  shape = (1, 1) if devices == 1 else (2, devices // 2)
  compiled = meshes.compile_split(function, shape, *zip(shapes, dtypes))
  return compiled, 4 * chunk * (n + d)


@pytest.mark.parametrize(
  "loss,devices,reduce",
  cases.covering(MEMORY_LOSSES, [1, 8], [True, False]),
)
def test_temporaries_are_a_few_chunks(loss, devices, reduce):
  compiled, chunk = compile_gradients(loss, devices, reduce=reduce)
  assert compiled.memory_analysis().temp_size_in_bytes <= 4 * chunk


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_temporaries_of_bfloat16_are_never_float32_rows(loss):
  compiled, chunk = compile_gradients(loss, 1, jnp.bfloat16)
  copies = 1 if jax.__version_info__ < (0, 12) else 0  # see chunks.to_bits
  limit = copies * 2 * 2**21 * (32 + 1) + 4 * chunk
  assert compiled.memory_analysis().temp_size_in_bytes <= limit


def test_what_is_sent_does_not_depend_on_the_number_of_labels():
  compiled, _ = compile_gradients("softmax", 8)
  assert meshes.sent(compiled) == meshes.SENT_BY_A_STEP


def test_chunk_size_follows_memory():
  size = chunks.chunk_size(2**20, 10**6, 64, 32)
  assert size % 128 == 0
  assert 4 * size * (3 * 64 + 2 * 32) <= 2**20
  assert chunks.chunk_size(2**40, 1000, 64, 32) == 1000
  assert chunks.chunk_size(1, 1000, 64, 32) == 128


def checked_inputs():
  x, rows = np.ones((3, 2), np.float32), np.ones((5, 2), np.float32)
  return x, rows, np.array([[0, 4], [2, -1], [-1, -1]]), np.ones(3, np.float32)


@pytest.mark.parametrize(
  "change,message",
  [
    (dict(ids=[[0, 5], [2, -1], [1, 3]]), r"ids\[0, 1\] is 5: .* from 0 to 4"),
    (dict(ids=[[0, 1], [2, -2], [1, 3]]), r"ids\[1, 1\] is -2"),
    (dict(ids=[[0, 1], [2, 2], [1, 3]]), r"ids\[1\] has label 2 twice"),
    (dict(ids=np.ones((3, 1))), r"must be integers \[N, P\]: got float64 \(3,"),
    (dict(ids=np.ones((4, 1), int)), r"ids must be \[N, ...\]: got \(4, 1\)"),
    (dict(weights=np.ones((3, 1))), r"weights must be \[N\]: got \(3, 1\)"),
    (dict(x=[[1.0, 2.0]]), "x must be an array of jax or numpy: got a list"),
    (dict(rows=np.ones((5, 2), int)), "rows must be floating: got int64"),
    (dict(num_labels=6), "num_labels is 6: there are 5 rows"),
    (dict(label_values={"a": np.ones(4)}), r"\['a'\] must be \[L, ...\]: .*4,"),
  ],
)
def test_what_cannot_be_meant_is_refused(change, message):
  x, rows, ids, weights = checked_inputs()
  given = dict(x=x, rows=rows, ids=ids, weights=weights) | change
  ids, weights = np.asarray(given.pop("ids")), given.pop("weights")
  t = targets_lib.Targets(ids, weights)
  with pytest.raises(ValueError, match=message):
    label_pass.label_loss(bias=None, targets=t, loss=softmax.Softmax(), **given)


def test_ids_beyond_the_labels_are_padding_inside_of_jit():
  x, rows, ids, weights = checked_inputs()
  rows[:] = np.arange(5)[:, None]

  @jax.jit
  def loss_of(ids):
    t = targets_lib.Targets(ids, weights)
    return label_pass.label_loss(x, rows, None, t, softmax.Softmax())

  beyond = np.where(ids < 0, 5, ids)
  np.testing.assert_allclose(loss_of(beyond), loss_of(ids))


@pytest.mark.parametrize(
  "ids,message",
  [
    ([[0, 4], [2, -1], [-1, -1]], None),
    ([[0, 5], [2, -1], [-1, -1]], "are from -1 to 5: give ids from 0 to 4"),
    ([[0, 4], [2, 2], [-1, -1]], "a label twice in an example"),
  ],
)
def test_ids_are_checked_inside_of_jit_on_request(ids, message):
  x, rows, _, weights = checked_inputs()

  def checked(x, rows, t):
    targets_lib.check_ids(t.ids, rows.shape[0])
    return label_pass.label_loss(x, rows, None, t, softmax.Softmax())

  run = jax.jit(checkify.checkify(jax.grad(checked, 1)))
  error, grad = run(x, rows, targets_lib.Targets(np.asarray(ids), weights))
  assert grad.shape == rows.shape
  assert message in error.get() if message else error.get() is None
