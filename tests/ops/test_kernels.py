"""The step as kernels: interpreted, against a textbook step; and lowered."""

import contextlib
import functools
import re

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from tests import meshes
from tests import reference
from xlj.ops import layout as layout_lib
from xlj.ops import rounding
from xlj.ops import row_format
from xlj.ops.kernels import exponentials
from xlj.ops.kernels import problem
from xlj.ops.kernels import step

P = jax.P
N = 24
LAYOUT = layout_lib.Layout(91, 5)  # 95 rows, 4 of them padding
RATE, DECAY, SEED, STEP = 0.25, 0.125, 2**32 - 3, 5
# Ragged in every way: 2 tiles of examples, 3 of rows, 2 parts.
TILE = problem.Tile(16, 32, warps=4)
TILES = problem.Tiles(TILE, TILE, TILE, positives=16, programs=4)
CASES = cases.covering(problem.LOSSES, row_format.DTYPES)


def make_inputs(dtype, dim, layout=LAYOUT, seed=0):
  """Examples that bfloat16 can hold, stored rows, bias, positives, scale."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(N, dim)).astype(jnp.bfloat16).astype(np.float32)
  rows = rng.normal(size=(layout.num_rows, dim)).astype(np.float32)
  stored = row_format.RowFormat(dtype).encode(0.5 * rows)
  bias = rng.normal(size=layout.num_rows).astype(np.float32)
  labels = [rng.permutation(layout.num_labels)[:3] for _ in range(N)]
  ids = layout.row_of_label(np.array(labels, np.int32))
  ids[3] = -1  # no positives
  ids[5, :2] = -1
  scale = rng.uniform(0.5, 1, N).astype(np.float32)
  scale[7] = 0
  return x, stored, bias, ids, scale


def textbook(loss, layout, x, rows, bias, ids, scale):
  """Losses `[N]`, and gradients of x, rows and bias, in float32."""
  hot = reference.multi_hot(jnp.asarray(ids), layout.num_rows)
  is_label = layout.is_label(np.arange(layout.num_rows))

  def total(x, rows, bias):
    z = x @ rows.T + (0 if bias is None else bias)
    # Far below all others, which a textbook can take the logarithm of.
    z = jnp.where(is_label, z, -1e9)
    if loss == "bce":
      losses = reference.bce_loss(z, hot)
    else:
      losses = reference.softmax_loss(z, hot)
    return (scale * losses).sum(), losses

  wrt = (0, 1) if bias is None else (0, 1, 2)
  grad = jax.jit(jax.value_and_grad(total, wrt, has_aux=True))
  (_, losses), grads = grad(x, rows, bias)
  return losses, *grads, *(() if bias is not None else (None,))


def run(loss, dtype, x, stored, bias, ids, scale, **kwargs):
  """The kernels, interpreted."""
  options = dict(
    learning_rate=RATE, weight_decay=DECAY, seed=SEED, step=STEP, first_row=0
  )
  options |= dict(layout=LAYOUT, tiles=TILES, interpret=True)
  function = functools.partial(
    step.fused_step, loss=loss, dtype=dtype, **(options | kwargs)
  )
  return jax.jit(function)(x, stored, bias, ids, scale)


def assert_step(got, loss, dtype, layout, x, stored, bias, ids, scale):
  """Compares with the textbook, as closely as the type allows."""
  form = row_format.RowFormat(dtype)
  rows = form.decode(stored).astype(jnp.float32)
  losses, dx, drows, dbias = textbook(loss, layout, x, rows, bias, ids, scale)
  np.testing.assert_allclose(got.losses, losses, rtol=1e-6, atol=3e-6)
  # Gradients by logits, all at most the scale, are rounded to the type.
  eps = 1e-6 if dtype == "float32" else 2**-9
  bound = eps * scale.max() * np.abs(rows).sum(0).max()
  np.testing.assert_allclose(got.dx, dx, atol=bound / 2)
  new = rows - RATE * (drows + DECAY * rows)
  bound = np.full(rows.shape, RATE * eps * np.abs(x).sum(0).max())
  if dtype != "float32":  # A grid's distance, wherever it was rounded to.
    greatest = np.abs(new).max(1, keepdims=True)
    bound += 2.0**-7 * (np.abs(new) if dtype == "bfloat16" else 16 * greatest)
  np.testing.assert_array_less(
    np.abs(form.decode(got.stored).astype(np.float32) - new), bound + 1e-6
  )
  if bias is not None:
    new = bias - RATE * (dbias + DECAY * bias)
    np.testing.assert_allclose(got.bias, new, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("loss,dtype", CASES)
def test_step_equals_the_textbook(loss, dtype):
  inputs = make_inputs(dtype, dim=20)
  got = run(loss, dtype, *inputs)
  assert_step(got, loss, dtype, LAYOUT, *inputs)


def test_nothing_to_mask_and_no_bias():
  layout = layout_lib.Layout(64)
  x, stored, _, ids, scale = make_inputs("bfloat16", 16, layout)
  inputs = x[:16], stored, None, ids[:16], scale[:16]
  got = run("softmax", "bfloat16", *inputs, layout=layout, rounding="nearest")
  assert got.bias is None
  assert_step(got, "softmax", "bfloat16", layout, *inputs)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("loss", cases.some(problem.LOSSES, ["softmax"]))
def test_gradients_of_positives_that_are_learned_survive(loss):
  x, stored, bias, ids, scale = make_inputs("bfloat16", 32)
  ids[:, 1:] = -1
  ids[:, 0] = np.arange(N)
  rows = np.zeros(stored["rows"].shape, np.float32)
  x[:] = 4 * np.eye(N, 32)
  rows[:N] = x / 1.6
  stored = row_format.RowFormat("bfloat16").encode(jnp.asarray(rows))
  rows = rounding.from_bfloat16(stored["rows"]).astype(jnp.float32)
  bias[:] = -2
  bias[:N] = np.linspace(-2, 2, N)
  got = run(loss, "bfloat16", x, stored, bias, ids, scale)
  _, dx, *_ = textbook(loss, LAYOUT, x, rows, bias, ids, scale)
  # The probabilities lack less to 1 than bfloat16 can express.
  at = np.arange(N), np.arange(N)
  assert np.median(np.abs(dx[at] / rows[at])) < 2**-9
  np.testing.assert_allclose(got.dx[at], dx[at], rtol=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_rounding_has_the_bits_of_the_row(dtype):
  x, stored, bias, ids, scale = make_inputs(dtype, 20)
  first_row = 7 * LAYOUT.num_rows
  layout = layout_lib.Layout(8 * LAYOUT.num_rows)
  got = run(
    "bce",
    dtype,
    0 * x,
    stored,
    bias,
    ids,
    scale,
    first_row=first_row,
    layout=layout,
  )
  form = row_format.RowFormat(dtype)

  @jax.jit
  def expected(stored):
    rows = form.decode(stored).astype(jnp.float32)
    numbers = first_row + jnp.arange(rows.shape[0])
    bits = rounding.hash_bits(SEED, STEP, numbers, jnp.arange(rows.shape[1]))
    return form.encode(rows - RATE * (0 + DECAY * rows), bits)

  jax.tree.map(np.testing.assert_array_equal, got.stored, expected(stored))


@pytest.mark.parametrize(
  "loss,shape", [*zip(problem.LOSSES, meshes.SHAPES[1:], strict=True)]
)
def test_meshes_equal_one_device(loss, shape):
  layout = layout_lib.Layout(91, 8)  # 96 rows
  x, stored, bias, ids, scale = make_inputs("float32", 16, layout)
  one = run(loss, "float32", x, stored, bias, ids, scale, layout=layout)
  axes = ("data", "label")

  def merge(found):
    maximum, total = found
    new = lax.pmax(maximum, axes)
    return new, lax.psum(total * jnp.exp(maximum - new), axes)

  def local(x, stored, bias, ids, scale):
    num_rows = bias.shape[0]
    got = run(
      loss,
      "float32",
      x,
      stored,
      bias,
      ids,
      scale,
      layout=layout,
      first_row=lax.axis_index(axes) * num_rows,
      merge=merge,
    )
    dx, losses = lax.psum((got.dx, got.losses), axes)
    return step.Step(got.stored, got.bias, dx, losses)

  specs = (P(), P(axes), P(axes), P(), P())
  with meshes.mesh(shape) as mesh:
    inputs = [
      jax.device_put(a, jax.NamedSharding(mesh, spec))
      for a, spec in zip((x, stored, bias, ids, scale), specs)
    ]
    got = jax.jit(
      jax.shard_map(
        local,
        in_specs=specs,
        out_specs=step.Step(P(axes), P(axes), P(), P()),
        check_vma=False,  # Interpreted kernels do not pass the check.
      )
    )(*inputs)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6),
    got,
    one,
  )


# --- what the interpreter does not show ---------------------------------------


def as_on_an_h200():
  """Tells jax what it lowers for; 0.10 supposes as much where no GPU is."""
  if jax.__version_info__ < (0, 11):
    return contextlib.nullcontext()
  device = jax.sharding.AbstractDevice("NVIDIA H200", 132, "gpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  return jax.sharding.use_abstract_mesh(mesh)


def lower(loss, dtype, num_rows, dim, bias=True, layout=None):
  """The program for CUDA, of a step with the sizes for an H200."""
  shape = jax.ShapeDtypeStruct
  function = functools.partial(
    step.fused_step,
    loss=loss,
    dtype=dtype,
    learning_rate=RATE,
    weight_decay=DECAY,
    seed=SEED,
    first_row=0,
    layout=layout or layout_lib.Layout(num_rows),
  )
  with as_on_an_h200():
    traced = jax.jit(
      lambda *args: function(*args[:-1], step=args[-1]), donate_argnums=(1, 2)
    ).trace(
      shape((1000, dim), jnp.float32),
      row_format.RowFormat(dtype).abstract(num_rows, dim),
      shape((num_rows,), jnp.float32) if bias else None,
      shape((1000, 4), jnp.int32),
      shape((1000,), jnp.float32),
      shape((), jnp.int32),
    )
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("loss,dtype", CASES)
def test_kernels_lower_for_cuda(loss, dtype):
  ragged = lower(loss, dtype, LAYOUT.num_rows, 20, layout=LAYOUT)
  even = lower(loss, dtype, 2**20, problem.MAX_DIM[dtype], bias=False)
  for text in (ragged, even):
    calls = re.findall(r"custom_call @__gpu\$xla.gpu.triton\(.*", text)
    assert len(calls) == (4 if loss == "softmax" else 3)
    # The last one updates in place: rows, exponents and bias.
    written = "operand_index" if "operand_index" in text else "alias"
    assert written in calls[-1]
    assert not any(written in call for call in calls[:-1])


def pointers_of(loss, dtype, num_rows, dim, capfd, monkeypatch):
  """Types of the offsets that kernels add to pointers to label rows."""
  call = functools.partial(pl.pallas_call, debug=True)
  monkeypatch.setattr(pl, "pallas_call", call)
  lower(loss, dtype, num_rows, dim, bias=False)
  kind = {"float32": "f32", "bfloat16": "bf16", "float8": "i8"}[dtype]
  # x has the same type as rows, but is short.
  pattern = rf"tt.addptr.*<\d+x\d+x!tt.ptr<{kind}>>, tensor<\d+x\d+x(i\d+)>"
  return set(re.findall(pattern, capfd.readouterr().out))


def test_offsets_have_64_bits_where_they_need_them(capfd, monkeypatch):
  check = functools.partial(pointers_of, capfd=capfd, monkeypatch=monkeypatch)
  assert check("softmax", "bfloat16", 10**6, 64) == {"i32"}
  assert check("softmax", "bfloat16", 10**9, 64) == {"i32", "i64"}
  assert check("bce", "float8", 2**26 + 2, 64) == {"i64"}
  assert check("bce", "float8", 2**25, 64) == {"i32"}


def test_what_they_cannot_do():
  def why(**changed):
    case = dict(platform="gpu", loss="softmax", dtype="bfloat16")
    case |= dict(num_rows=10**9, dim=64)
    return problem.refusal(**(case | changed))

  assert why() is None
  assert why(dtype="float8") is None
  assert "tpu" in why(platform="tpu")
  assert "'focal'" in why(loss="focal")
  assert "'float16'" in why(dtype="float16")
  assert "not 257" in why(dim=257)
  assert "not 129" in why(dim=129, dtype="float32")
  assert "not 2147483647" in why(num_rows=2**31 - 1)
  assert "2 and 4 GiB" in why(dtype="float8", num_rows=2**26, dim=64)
  assert why(dtype="float8", num_rows=2**25, dim=64) is None
  inputs = make_inputs("float32", 16)
  with pytest.raises(ValueError, match="no even share"):
    run("bce", "float32", *inputs, layout=layout_lib.Layout(96))
  with pytest.raises(ValueError, match="not 'hinge'"):
    run("hinge", "float32", *inputs)


OPERATIONS = {
  "mov": lambda a: a,
  "abs": np.abs,
  "ex2": np.exp2,
  "rcp": lambda a: 1 / a,
  "add": np.add,
  "mul": np.multiply,
  "max": np.maximum,
  "fma": lambda a, b, c: a * b + c,
  "setp": np.less,
  "selp": lambda a, b, p: np.where(p, a, b),
}


def execute(assembly, *args):
  """What PTX does to arguments $1, $2, ...; the result is $0."""
  values = {f"${i}": a for i, a in enumerate(args, 1)}

  def read(name):
    if name.startswith("0f"):
      return np.uint32(int(name[2:], 16)).view(np.float32)
    return values[name]

  for line in assembly.strip("{}\n").split(";"):
    opcode, *operands = line.replace(",", " ").split() or [".reg"]
    if opcode != ".reg":
      result, *operands = operands
      operation = OPERATIONS[opcode.split(".")[0]]
      values[result] = operation(*map(read, operands))
  return values["$0"]


def test_assembly_does_what_the_interpreter_does():
  z = np.linspace(-30, 30, 601, dtype=np.float32)
  z = np.append(z, np.float32(-np.inf))
  other = np.full_like(z, 0.3)
  e = np.exp(-np.abs(z))
  check = functools.partial(np.testing.assert_allclose, rtol=3e-6)
  interpreted = exponentials.exp(z, other, interpret=True)
  check(execute(exponentials.EXP, z, other), interpreted)
  check(interpreted, np.exp(z.astype(np.float64)) * 2**0.3)
  interpreted = exponentials.exp_of_minus_abs(z, interpret=True)
  check(execute(exponentials.EXP_OF_MINUS_ABS, z), interpreted)
  check(interpreted, e)
  interpreted = exponentials.sigmoid(z, e, other, interpret=True)
  check(execute(exponentials.SIGMOID, z, e, other), interpreted)
  check(interpreted, other / (1 + np.exp(-z.astype(np.float64))))
  interpreted = exponentials.softplus(z, e, interpret=True)
  check(execute(exponentials.SOFTPLUS, z, e), interpreted)
  check(interpreted, np.logaddexp(0, z.astype(np.float64)))


def test_the_loss_of_large_logits_is_as_good_as_their_sums():
  layout = layout_lib.Layout(64)
  x, stored, _, ids, scale = make_inputs("float32", 16, layout)
  x, ids, scale = x[:16], ids[:16], scale[:16]
  ids[:, 1:] = -1
  ids[:, 0] = np.arange(16)
  rows = np.zeros(stored["rows"].shape, np.float32)
  x[:] = np.eye(16)
  rows[np.arange(16), np.arange(16)] = 1e4  # the positives'
  rows[np.arange(16), (np.arange(16) + 1) % 16] = -3
  inputs = x, {"rows": jnp.asarray(rows)}, None, ids, scale
  got = run("bce", "float32", *inputs, layout=layout)
  expected, *_ = textbook("bce", layout, x, rows, None, ids, scale)
  np.testing.assert_allclose(got.losses, expected, atol=1e4 * 2e-6)
