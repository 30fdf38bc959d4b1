"""What `accelerator.py` measures beside the other benchmarks.

  python benchmarks/accelerator_parts.py heads --json=heads.json

heads: three steps and a search of each head, on the device and on the CPU, in
float32 products, and how far apart they are. search: the exact best k of L
label rows in bfloat16. checkpoint: a matrix on the device is saved and
restored, and compared. encoder: steps of a text transformer with Adam.

Writes JSON. Legend: L labels, D width, N examples.
"""

import argparse
from collections.abc import Callable
import json
import os
import pathlib
import shutil
import statistics
import tempfile
import time
from typing import Any

# For matrices of more than the three quarters of a GPU that JAX takes.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.97")

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.heads.cascade import head as cascade
from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib
from xlj.heads.oltr import head as oltr
from xlj.heads.product import head as product
from xlj.heads.prototypes import head as prototypes
from xlj.heads.spherical import head as spherical
from xlj.losses import bce
from xlj.losses import prototype_softmax
from xlj.losses import softmax
from xlj.losses import spherical as spherical_losses
from xlj.ops import platform
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib

SMALL = 1003, 32, 64  # L, D, N of the comparison
STEPS, RATE = 3, 0.5


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("part", choices=sorted(PARTS))
  parser.add_argument("--json", type=pathlib.Path, required=True)
  parser.add_argument("--L", type=int, default=1_000_000)
  parser.add_argument("--D", type=int, default=64)
  parser.add_argument("--N", type=int, default=128)
  parser.add_argument("--k", type=int, default=100)
  parser.add_argument("--gib", type=float, default=1.0)
  parser.add_argument("--tokens", type=int, default=128)
  parser.add_argument("--width", type=int, default=768)
  parser.add_argument("--depth", type=int, default=12)
  options = parser.parse_args()
  found = PARTS[options.part](options)
  print(json.dumps(found))
  options.json.write_text(json.dumps(found) + "\n")


# --- heads beside the CPU's ---------------------------------------------------


def heads(_: argparse.Namespace) -> list[dict[str, Any]]:
  """Steps and searches of each head, on the device and on the CPU."""
  records = []
  for name, make in HEADS.items():
    with jax.default_matmul_precision("float32"):
      ours, cpus = (
        steps(make(), devices, kind)
        for devices, kind in (
          (jax.devices()[:1], jax.default_backend()),
          (jax.devices("cpu")[:1], "cpu"),
        )
      )
    apart = [
      float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9))
      for a, b in zip(ours[:2], cpus[:2])
    ]
    same = float((ours[2] == cpus[2]).mean())
    record = {"head": name, "losses": cpus[0].tolist()}
    record |= {"loss_apart": apart[0], "dx_apart": apart[1], "same_top5": same}
    print(json.dumps(record), flush=True)
    records.append(record)
  return records


def steps(head: Any, devices: list[Any], kind: str) -> list[np.ndarray]:
  """Losses, the last gradient of the examples, and the best 5 of each."""
  rng = np.random.default_rng(0)
  num_labels, dim, count = SMALL
  mesh = jax.sharding.Mesh(
    np.array(devices).reshape(1, 1),
    sharding.AXES,
    axis_types=(jax.sharding.AxisType.Explicit,) * 2,
  )
  losses, dx = [], None
  with jax.set_mesh(mesh), platform.tracing_for(kind):
    params, state = started(head)
    step = jax.jit(head.step, donate_argnums=(0, 1))
    for i in range(STEPS):
      x = rng.normal(size=(count, dim)).astype(np.float32)
      ids = rng.integers(0, num_labels, (count, 1)).astype(np.int32)
      targets = targets_lib.Targets(ids, np.ones(count, np.float32))
      x, targets = sharding.put_batch((x, targets))
      number = sharding.replicate(np.int32(i))
      params, state, dx, metrics = step(params, state, number, x, None, targets)
      losses.append(np.asarray(metrics["loss"]))
    _, ids = jax.jit(lambda params, x: head.topk(params, x, None, 5))(params, x)
    return [np.stack(losses), np.asarray(dx), np.asarray(ids)]


def started(head: Any) -> tuple[Any, Any]:
  """Parameters and state of the optimizer, on the mesh in context."""

  def init(key):
    params = head.init(key)
    return params, head.init_optimizer(params)

  specs = head.specs(), head.optimizer_specs()
  put = sharding.named(jax.sharding.get_mesh(), specs)
  return jax.jit(init, out_shardings=put)(jax.random.key(0))


def dense_head(
  loss: Any, dtype: str = "float32", kernels: str = "never", **fields: Any
) -> dense.DenseHead:
  """A dense head of the small size, with SGD."""
  num_labels, dim, _ = SMALL
  rows = {
    "num_labels": num_labels,
    "dim": dim,
    "optimizer": row_optimizer.sgd(RATE, dtype=dtype),
    "blocks": 8,
    "init_scale": 0.1,
  }
  label_rows = rows_lib.Rows(**(rows | fields))
  return dense.DenseHead(label_rows, loss, kernels=kernels)


def cascade_head() -> cascade.CascadeHead:
  loss, groups = softmax.Softmax(), 32
  levels = (
    dense_head(loss, num_labels=groups, blocks=8),
    dense_head(loss, blocks=groups),
  )
  return cascade.CascadeHead(levels, 8)


def product_head() -> product.ProductHead:
  num_labels, dim, _ = SMALL
  return product.ProductHead(
    num_labels=num_labels,
    dim=dim,
    lengths=(32, 32),
    optimizer=optax.sgd(RATE),
    init_scale=0.1,
  )


def prototype_head() -> prototypes.PrototypeHead:
  labels = SMALL[0]
  loss = prototype_softmax.PrototypeSoftmax(2, False)
  return prototypes.PrototypeHead(
    dense_head(loss, num_labels=labels + labels // 10), labels
  )


def oltr_head() -> oltr.OltrHead:
  labels = dense_head(softmax.Softmax(), use_bias=False, cosine=True)
  return oltr.OltrHead(labels, optax.sgd(RATE), 9.0)


def spherical_head() -> spherical.SphericalHead:
  labels, schedule = SMALL[0], optax.constant_schedule(RATE)
  loss = spherical_losses.ZLoss(labels, spherical_losses.threshold_of(labels))
  optimizer = row_optimizer.RowOptimizer(
    optax.sgd(schedule), plain=row_optimizer.Sgd(schedule)
  )
  return spherical.SphericalHead(
    dense_head(
      spherical_losses.Spherical(loss), optimizer=optimizer, use_bias=False
    ),
    1000,
  )


HEADS: dict[str, Callable[[], Any]] = {
  **{
    f"dense, {name}, {dtype}": lambda loss=loss, dtype=dtype: dense_head(
      loss, dtype
    )
    for name, loss in (
      ("softmax", softmax.Softmax()),
      ("bce", bce.BinaryCrossEntropy()),
    )
    for dtype in ("float32", "bfloat16", "float8")
  },
  "dense, kernels, bfloat16": lambda: dense_head(
    softmax.Softmax(), "bfloat16", "auto"
  ),
  "mhc": cascade_head,
  "mhp": product_head,
  "prototypes": prototype_head,
  "oltr": oltr_head,
  "spherical": spherical_head,
}


# --- the rest -----------------------------------------------------------------


def search(options: argparse.Namespace) -> dict[str, Any]:
  """Exact search of the best labels."""
  with jax.set_mesh(mesh_lib.make_mesh()):
    rows = rows_lib.Rows(
      num_labels=options.L,
      dim=options.D,
      optimizer=row_optimizer.sgd(0.1, dtype="bfloat16"),
      use_bias=False,
      blocks=jax.device_count(),
      init_scale=0.05,
    )
    head = dense.DenseHead(rows, softmax.Softmax())
    put = sharding.named(jax.sharding.get_mesh(), head.specs())
    params = jax.jit(head.init, out_shardings=put)(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(options.N, options.D))
    x = sharding.put_batch(x.astype(np.float32))
    run = jax.jit(lambda params, x: head.topk(params, x, None, options.k))
    seconds, (scores, ids) = timed(run, params, x)
  assert bool((scores[:, 1:] <= scores[:, :-1]).all()), "scores must fall"
  return {
    "L": options.L,
    "D": options.D,
    "N": options.N,
    "k": options.k,
    "seconds": seconds,
    "examples_per_s": options.N / seconds,
    "distinct": all(len(set(row)) == options.k for row in np.asarray(ids)),
  }


def checkpoint(options: argparse.Namespace) -> dict[str, Any]:
  """A matrix is saved from the device, restored onto it, and compared."""
  from xlj.checkpoint import checkpointer

  dim = 1024
  with tempfile.TemporaryDirectory() as folder:
    room = 0.8 * shutil.disk_usage(folder).free / 2**30
    limits = jax.devices()[0].memory_stats() or {}
    # The matrix, and the one that is restored beside it.
    memory = limits.get("bytes_limit", 2**40) / 2**30 / 2.2
    gib = min(options.gib, room, memory)
    count = max(8, int(gib * 2**30) // (2 * dim) // 8 * 8)
    with jax.set_mesh(mesh_lib.make_mesh()):
      where = jax.NamedSharding(jax.sharding.get_mesh(), sharding.LABELS)
      count *= jax.device_count()

      def make():
        row = jax.lax.broadcasted_iota(jnp.int32, (count, dim), 0)
        return (row % 251).astype(jnp.bfloat16)

      matrix = jax.jit(make, out_shardings=where)()
      with checkpointer.Checkpointer(folder) as keeper:
        began = time.monotonic()
        keeper.save(1, {"rows": matrix}, {}, {"step": 1})
        blocked = time.monotonic() - began
        keeper.wait()
        saved = time.monotonic() - began
        like = jax.ShapeDtypeStruct(matrix.shape, matrix.dtype, sharding=where)
        began = time.monotonic()
        found = keeper.restore_newest({"rows": like}, {})
        restored = time.monotonic() - began
      same = bool((found[1]["rows"] == matrix).all())
    assert same, "what is restored is not what was saved"
  size = matrix.nbytes / 2**30
  return {
    "gib": size,
    "asked_gib": options.gib,
    "save_s": saved,
    "blocked_s": blocked,
    "restore_s": restored,
    "save_gib_per_s": size / saved,
    "restore_gib_per_s": size / restored,
  }


def encoder(options: argparse.Namespace) -> dict[str, Any]:
  """Steps of a text transformer in bfloat16, by the mean of its embeddings."""
  from xlj.encoders import transformer
  from xlj.ops import feature_rows

  width, depth, tokens = options.width, options.depth, options.tokens
  sizes = transformer.Sizes(
    *(30_522, width, depth, max(1, width // 64), 4 * width, tokens)
  )
  network = transformer.Transformer(sizes, dtype="bfloat16", rngs=nnx.Rngs(0))
  graph, params = nnx.split(network, nnx.Param)
  tx = optax.adam(1e-4)
  ids = np.random.default_rng(0).integers(0, 30_522, (options.N, tokens))
  features = feature_rows.sparse_rows(
    jnp.asarray(ids, jnp.int32), jnp.ones(ids.shape, jnp.float32)
  )

  def step(carry, features):
    params, state = carry

    def loss(params):
      x = nnx.merge(graph, params)(features)
      return jnp.square(x - 1).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), value

  run = jax.jit(step, donate_argnums=0)
  carry, seconds, losses = (params, tx.init(params)), [], []
  for _ in range(6):
    began = time.perf_counter()
    carry, value = run(carry, features)
    losses.append(float(jax.block_until_ready(value)))
    seconds.append(time.perf_counter() - began)
  step_s = statistics.median(seconds[1:])
  weights = depth * 12 * width * width
  attention = depth * 2 * 2 * tokens * width
  flops = 3 * options.N * tokens * (2 * weights + attention)
  return {
    "N": options.N,
    "tokens": tokens,
    "width": width,
    "depth": depth,
    "step_s": step_s,
    "texts_per_s": options.N / step_s,
    "tflops_per_s": flops / step_s / 1e12,
    "losses": losses,
  }


def timed(run: Callable[..., Any], *args: Any) -> tuple[float, Any]:
  """Seconds of the median call after the first, and what it returned."""
  seconds, result = [], None
  for _ in range(4):
    began = time.perf_counter()
    result = jax.block_until_ready(run(*args))
    seconds.append(time.perf_counter() - began)
  return statistics.median(seconds[1:]), result


PARTS = {
  "heads": heads,
  "search": search,
  "checkpoint": checkpoint,
  "encoder": encoder,
}

if __name__ == "__main__":
  main()
