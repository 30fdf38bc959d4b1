"""The programs of a config for accelerators that are not here, as text.

They are traced and lowered on an abstract mesh, and not compiled: what stands
in the text is what the platform's compiler is given.
"""

from collections.abc import Iterator, Sequence
import contextlib
import re

import jax
from jax.sharding import AxisType
import ml_collections

from xlj import sharding
from xlj.model import model as model_lib
from xlj.ops import platform
from xlj.planning import stated

PLATFORMS = ("cuda", "tpu")
MESHES = ((1, 1), (2, 4), (8, 32))  # 1, 8 and 256 devices

_CALL = re.compile(r"custom_call @([\w.$]+)")
_ON_HOST = re.compile(
  r"callback|^xlj_|infeed|outfeed|SendToHost|RecvFromHost|annotate_device"
)
_FEEDS = re.compile(r"stablehlo\.(infeed|outfeed|send|recv)\b")
_BOUND = re.compile(r"stablehlo\.while.*?cond \{(.*?)\n\s*\} do \{", re.DOTALL)
_CONSTANT = re.compile(r"stablehlo\.constant dense<(\d+)> : tensor<[su]?i")


def step(
  model: model_lib.Model,
  config: ml_collections.ConfigDict,
  shape: tuple[int, int],
) -> jax.stages.Traced:
  """Traces the training step, with its state donated.

  Args:
    model: Of the config.
    config: A resolved config, whose `data.max_features` and `data.max_labels`
      are the widths of a batch.
    shape: Of the mesh; the devices need not exist.

  Returns:
    What `text` lowers.
  """
  with _on(shape, model):
    return jax.jit(model.train_step, donate_argnums=0).trace(
      model.abstract(), stated.batch(config)
    )


def topk(
  model: model_lib.Model,
  config: ml_collections.ConfigDict,
  shape: tuple[int, int],
) -> jax.stages.Traced:
  """Traces the search of the best labels, as many as the most of `eval.ks`.

  Args:
    model: Of the config.
    config: See `step`.
    shape: Likewise.

  Returns:
    What `text` lowers.
  """
  k = max(config.eval.ks)
  with _on(shape, model):
    return jax.jit(lambda trees, inputs: model.topk(trees, inputs, k)).trace(
      model.abstract().model, stated.batch(config)
    )


def text(
  traced: jax.stages.Traced, platforms: Sequence[str] = PLATFORMS
) -> str:
  """Lowers a program.

  Args:
    traced: The program.
    platforms: One, or several for a program that asks where it is.

  Returns:
    StableHLO.
  """
  return traced.lower(lowering_platforms=tuple(platforms)).as_text()


def calls(text: str) -> dict[str, int]:
  """Calls of what is no operation of StableHLO, and how many of each."""
  found = _CALL.findall(text)
  return {name: found.count(name) for name in sorted(set(found))}


def faults(text: str) -> list[str]:
  """What an accelerator would have to wait for, or does not have.

  Args:
    text: StableHLO.

  Returns:
    Sentences: of calls of this process, numbers of 64 bits, and shapes that are
    not known beforehand; none if all is well.
  """
  found = [f"calls {name}" for name in calls(text) if _ON_HOST.search(name)]
  found += [f"has {name}" for name in sorted(set(_FEEDS.findall(text)))]
  if re.search(r"[<x]f64>", text):
    found.append("computes in float64")
  if re.search(r"tensor<[^>]*\?", text):
    found.append("has a shape that is not known beforehand")
  return found


def loops(text: str) -> list[int | None]:
  """How often each loop runs; None where that is known to the device alone."""
  found: list[int | None] = []
  for condition in _BOUND.findall(text):
    bounds = _CONSTANT.findall(condition)
    found.append(int(bounds[0]) if len(bounds) == 1 else None)
  return found


def updated(text: str) -> int:
  """How many arguments are donated to results that take their place."""
  main = text[text.index("@main") :].split("\n", 1)[0]
  return main.count("tf.aliasing_output") + main.count("jax.buffer_donor")


@contextlib.contextmanager
def _on(shape: tuple[int, int], model: model_lib.Model) -> Iterator[None]:
  """Traces a model for accelerators on a mesh that need not be there."""
  _ = model.specs  # which are computed, and so before there is such a mesh
  mesh = jax.sharding.AbstractMesh(
    shape, sharding.AXES, axis_types=(AxisType.Explicit,) * 2
  )
  with platform.tracing_for("gpu"), jax.sharding.use_abstract_mesh(mesh):
    yield
