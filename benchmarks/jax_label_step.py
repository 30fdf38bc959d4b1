"""The sides of `label_step.py` that run in JAX: xlj, plain JAX, the roofline.

Legend: N examples, D width, L labels.
"""

from collections.abc import Callable
import time
from typing import Any

import contestant
import jax
import jax.numpy as jnp
import numpy as np
import optax
import roofline

from xlj import sharding
from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib
from xlj.losses import bce
from xlj.losses import softmax
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib

LOSSES = {"softmax": softmax.Softmax(), "bce": bce.BinaryCrossEntropy()}


def main() -> None:
  contestant.serve(make)


def make(
  name: str, problem: contestant.Problem
) -> tuple[contestant.Side, contestant.Memory]:
  """The side of a name, and the memory of its device."""
  device = jax.devices()[0]
  sides = {"xlj": fused_step, "jax": plain_step, "products": Products}
  side = sides[name](problem)
  side.facts["version"] = f"jax {jax.__version__}"
  side.facts["device"] = device.device_kind
  memory = contestant.ProcessMemory()
  if problem.device != "cpu":
    memory = DeviceMemory(device)
  return side, memory


class DeviceMemory:
  """The memory of an accelerator, as its allocator counts it.

  The peak is that of the process, which was in its first step if the weights
  took no more to make.
  """

  def __init__(self, device: Any):
    """Of a device."""
    self._device = device

  def reset(self) -> None:
    """Notes what is in use."""
    self._before = self._device.memory_stats()["bytes_in_use"]

  def peak(self) -> int:
    """Bytes at the peak beyond those at the reset."""
    return self._device.memory_stats()["peak_bytes_in_use"] - self._before


class Step:
  """A compiled step `state, batch -> state, (loss, dx)`, in place."""

  def __init__(self, step: Callable[..., Any], state: Any, batch: Any):
    """Compiles it.

    Args:
      step: The step.
      state: What it changes, weights first of all.
      batch: What it reads.
    """
    self._compiled = (
      jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    )
    self._state, self._batch = state, batch
    self._result: Any = None
    temporaries = self._compiled.memory_analysis().temp_size_in_bytes
    self.facts = {
      "temp_bytes": temporaries,
      "threads": contestant.num_threads(),
    }

  def step(self) -> dict[str, float]:
    """Takes a step."""
    self._result = None
    start = time.perf_counter()
    self._state, self._result = self._compiled(self._state, self._batch)
    jax.block_until_ready((self._state, self._result))
    return {"step": time.perf_counter() - start}

  def outcome(self) -> dict[str, float]:
    """The loss, and the length of its gradient."""
    loss, dx = self._result
    length = jnp.linalg.norm(dx.astype(jnp.float32))
    return {"loss": float(loss), "dx": float(length)}


def fused_step(problem: contestant.Problem) -> Step:
  """The dense head of xlj."""
  mesh = jax.make_mesh(
    (1, 1),
    sharding.AXES,
    axis_types=(jax.sharding.AxisType.Explicit,) * 2,
    devices=jax.devices()[:1],
  )
  jax.set_mesh(mesh)  # stays
  options = problem.options
  rows = rows_lib.Rows(
    num_labels=problem.L,
    dim=problem.D,
    optimizer=row_optimizer.RowOptimizer(
      optax.sgd(problem.learning_rate),
      dtype=problem.dtype,
      rounding=options["rounding"],
    ),
    use_bias=False,
    blocks=1,
    chunk_size=options["chunk_size"],
    keep_logits=options["keep_logits"],
  )
  head = dense.DenseHead(rows, LOSSES[problem.loss])

  def step(state, batch):
    params, opt_state = state
    x, targets = batch
    params, opt_state, dx, metrics = head.step(
      params, opt_state, jnp.zeros((), jnp.int32), x, None, targets
    )
    return (params, opt_state), (metrics["loss"], dx)

  def initial(some_rows):
    params = rows.encoded(_rows(problem, some_rows))
    return params, head.init_optimizer(params)

  state = jax.jit(
    initial,
    out_shardings=sharding.named(mesh, (head.specs(), head.optimizer_specs())),
  )(problem.some_rows())
  x = problem.examples().astype(problem.dtype)
  targets = targets_lib.Targets(
    problem.ids().astype(np.int32)[:, None], np.ones(problem.N, np.float32)
  )
  batch = sharding.put_batch((x, targets))
  return Step(step, state, batch)


def plain_step(problem: contestant.Problem) -> Step:
  """All logits, their gradient and that of the rows, and optax."""
  tx = optax.sgd(problem.learning_rate)

  def losses(z, ids):
    if problem.loss == "softmax":
      return optax.softmax_cross_entropy_with_integer_labels(z, ids)
    # Faster than optax's, which takes dense targets.
    positives = jnp.take_along_axis(z, ids[:, None], 1)[:, 0]
    return jax.nn.softplus(z).sum(1) - positives

  def mean_loss(x, rows, ids):
    return losses((x @ rows.T).astype(jnp.float32), ids).mean()

  def step(state, batch):
    rows, opt_state = state
    x, ids = batch
    loss, (dx, drows) = jax.value_and_grad(mean_loss, (0, 1))(x, rows, ids)
    updates, opt_state = tx.update(drows, opt_state, rows)
    return (optax.apply_updates(rows, updates), opt_state), (loss, dx)

  x, rows = _x_and_rows(problem)
  ids = jnp.asarray(problem.ids(), jnp.int32)
  return Step(step, (rows, tx.init(rows)), (x, ids))


class Products:
  """The products of a step by themselves, and its exponentials."""

  def __init__(self, problem: contestant.Problem):
    """Makes what is multiplied."""
    self._roofline = roofline.Roofline(*_x_and_rows(problem))
    self.facts = {
      "threads": contestant.num_threads(),
      "fastest": self._roofline.facts,
    }

  def step(self) -> dict[str, float]:
    """Seconds of each, of those in faster arrangements, and of `exp`."""
    fastest = self._roofline.fastest_products()
    return {
      **self._roofline.products(),
      **{f"fastest {name}": seconds for name, seconds in fastest.items()},
      "exp": self._roofline.exponentials(),
    }

  def outcome(self) -> dict[str, float]:
    """Nothing to compare."""
    return {}


def _x_and_rows(problem: contestant.Problem) -> tuple[jax.Array, jax.Array]:
  """Examples `[N, D]` and rows `[L, D]` of the problem's type."""

  def make(x, some):
    rows = _rows(problem, some)
    return x.astype(problem.dtype), rows.astype(problem.dtype)

  return jax.jit(make)(problem.examples(), problem.some_rows())


def _rows(problem: contestant.Problem, some_rows: jax.Array) -> jax.Array:
  """All rows `[L, D]` float32."""
  return some_rows[jnp.arange(problem.L) % some_rows.shape[0]]


if __name__ == "__main__":
  main()
