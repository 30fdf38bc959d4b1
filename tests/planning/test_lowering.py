"""All that accelerators run lowers for them, though none is here."""

import jax
import jax.numpy as jnp
import pytest

from tests import runs
from xlj.config import heads
from xlj.model import model as model_lib
from xlj.ops import platform
from xlj.planning import lowering

script = runs.benchmark("lowering")
SOFTMAXES = ("softmax", "decoupled_softmax")


def cases():
  """Each head with each of its losses and row types once; each on a mesh."""
  found = []
  for name, fields in script.HEADS.items():
    kind = heads.HEADS[fields.get("head.type", "dense")]
    has_types = fields.get("family") != "linear" and name not in (
      *("mhp", "spherical"),
    )
    types = script.DTYPES if has_types else script.DTYPES[:1]
    losses = kind.losses
    if kind is heads.HEADS["dense"] and name != "dense":  # they go as it does
      losses = (fields["head.loss"],) if "head.loss" in fields else SOFTMAXES
    for i in range(max(len(losses), len(types))):
      more = {"head.loss": losses[i % len(losses)]}
      if i % len(types):
        more["head.dtype"] = types[i % len(types)]
      shape = lowering.MESHES[len(found) % len(lowering.MESHES)]
      found.append(pytest.param(fields | more, shape, i < len(types), id=name))
  return found


def check(traced, fields=()):
  """Refuses what an accelerator could not run by itself; returns the text."""
  text = lowering.text(traced)
  assert not lowering.faults(text)
  most = max((n for n in lowering.loops(text) if n is not None), default=0)
  # Blocks of labels; not examples, labels or features, unless asked for.
  one_by_one = "head.by_example" in fields and fields["head.by_example"]
  assert most <= (script.EXAMPLES if one_by_one else 64)
  return text


def check_step(model, config, shape, fields=()):
  """The same of a step, which has to update all of its state in place."""
  text = check(lowering.step(model, config, shape), fields)
  assert lowering.updated(text) == len(jax.tree.leaves(model.specs))


@pytest.mark.slow
@pytest.mark.parametrize("fields,shape,search", cases())
def test_every_head_lowers(fields, shape, search):
  config = script.make(fields)
  model = model_lib.Model(config)
  check_step(model, config, shape, fields)
  if search:
    check(lowering.topk(model, config, shape), fields)


@pytest.mark.slow
@pytest.mark.parametrize("name", script.ENCODERS)
def test_every_encoder_lowers(name):
  config = script.encoder_config(name)
  check_step(model_lib.Model(config), config, (8, 32))


CALL = "%0 = stablehlo.custom_call @{}(%a) : (tensor<8xf32>) -> tensor<8xf32>"
FAULTS = {
  CALL.format("xla_ffi_python_gpu_callback"): "calls xla_ffi_python_gpu",
  CALL.format("xlj_pairs_logits"): "calls xlj_pairs_logits",
  CALL.format("Sharding"): "",
  "stablehlo.add %a, %b : tensor<4xf64>": "float64",
  "stablehlo.add %a, %b : tensor<f64>": "float64",
  "stablehlo.add %a, %b : tensor<?x3xf32>": "not known beforehand",
  '"stablehlo.outfeed"(%a, %b)': "has outfeed",
}


def test_steps_by_example_are_for_cpus():
  def by_example():
    return runs.resolved(family="linear").head.by_example

  assert by_example()
  with platform.tracing_for("gpu"):
    assert not by_example()


@pytest.mark.parametrize("line", FAULTS)
def test_what_accelerators_cannot_do_is_seen(line):
  found = lowering.faults(line)
  assert len(found) == bool(FAULTS[line])
  assert not found or FAULTS[line] in found[0]


def test_loops_are_counted():
  def run(a, n):
    a = jax.lax.fori_loop(0, 1792, lambda i, a: a * 2 + i, a)
    return jax.lax.fori_loop(0, n, lambda i, a: a + 1, a)

  text = lowering.text(jax.jit(run).trace(jnp.float32(0), jnp.int32(3)))
  assert lowering.loops(text) == [1792, None]
