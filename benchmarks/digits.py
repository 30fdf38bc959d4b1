"""The product head against the full softmax, on pairs or triples of digits.

Real images (the 8x8 digits that come with scikit-learn) stand side by side; the
label is the number that they make, one of 100 or 1,000. Images to train and to
test with are made of different digits. The same encoder is trained with

  dense             one row per label, a softmax over all of them;
  product           one softmax for each decimal digit of the label;
  product_shuffled  the same for labels in random order, where digits of a label
                    mean nothing;
  mixture_shuffled  a mixture of products for labels in that order.

Prints a table of top-1 accuracy (mean and spread over seeds), median time of a
step and parameters in the head, and last one line of JSON.

  python benchmarks/digits.py --digits=3

Legend: N images, H digits, D embedding width, L labels.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import json
import pathlib
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib
from xlj.heads.product import head as product
from xlj.losses import softmax
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib

_BATCH = 256
_STEPS_PER_EPOCH = 64
_TEST_IMAGES = 8192
_DIM = 256
_HIDDEN = 512
_LEARNING_RATE = 2e-3

Head = dense.DenseHead | product.ProductHead


class Encoder(nnx.Module):
  """Two layers from pixels to embeddings `[N, D]`."""

  def __init__(self, num_pixels: int, rngs: nnx.Rngs):
    """Random weights."""
    self.first = nnx.Linear(num_pixels, _HIDDEN, rngs=rngs)
    self.second = nnx.Linear(_HIDDEN, _DIM, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """`[N, pixels]` to `[N, D]`."""
    return nnx.relu(self.second(nnx.relu(self.first(images))))


@dataclasses.dataclass(frozen=True)
class Pool:
  """Single digits to make numbers of.

  Attributes:
    images: `[M, 64]` float32, from 0 to 1.
    values: `[M]` int, 0 to 9.
  """

  images: np.ndarray
  values: np.ndarray

  def numbers(
    self, rng: np.random.Generator, count: int, num_digits: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Images `[count, H * 64]` and labels `[count]` of random digits."""
    chosen = rng.integers(0, len(self.values), (count, num_digits))
    images = self.images[chosen].reshape(count, -1)
    powers = 10 ** np.arange(num_digits)[::-1]
    return images, self.values[chosen] @ powers


def pools() -> tuple[Pool, Pool]:
  """Digits to train with, and three in ten to test with."""
  images, values = datasets.load_digits(return_X_y=True)
  images = (images / 16).astype(np.float32)
  order = np.random.default_rng(0).permutation(len(values))
  first = len(values) * 7 // 10
  train, test = order[:first], order[first:]
  return Pool(images[train], values[train]), Pool(images[test], values[test])


def heads(
  num_digits: int, tx: optax.GradientTransformation, components: int
) -> dict[str, Head]:
  """The heads to compare, by name."""
  num_labels = 10**num_digits
  optimizer = row_optimizer.RowOptimizer(tx)
  rows = rows_lib.Rows(num_labels, _DIM, optimizer, init_scale=0.02)
  full = dense.DenseHead(rows, softmax.Softmax())
  one = product.ProductHead(num_labels, _DIM, (10,) * num_digits, tx)
  mixed = dataclasses.replace(one, components=components)
  return {
    "dense": full,
    "product": one,
    "product_shuffled": one,
    "mixture_shuffled": mixed,
  }


def train(
  head: Head,
  tx: optax.GradientTransformation,
  batches: Iterator[tuple[np.ndarray, np.ndarray]],
  test: tuple[np.ndarray, np.ndarray],
  seed: int,
) -> tuple[float, float]:
  """Trains an encoder with a head.

  Args:
    head: The head.
    tx: Optimizer of the encoder.
    batches: Images and labels to train with, in order.
    test: Those to test with.
    seed: Of the initial weights.

  Returns:
    The share of test images whose best label is right, and seconds of the
    median step.
  """
  graph, weights = nnx.split(Encoder(test[0].shape[1], nnx.Rngs(seed)))

  def encode(weights: Any, images: jax.Array) -> jax.Array:
    forward = sharding.by_compiler(lambda w, x: nnx.merge(graph, w)(x))
    return forward(weights, images)

  def step(state, number, images, targets):
    weights, opt, head_params, head_opt = state
    x, vjp = jax.vjp(lambda w: encode(w, images), weights)
    head_params, head_opt, dx, _ = head.step(
      head_params, head_opt, number, x, None, targets
    )
    updates, opt = tx.update(vjp(dx)[0], opt)
    weights = optax.apply_updates(weights, updates)
    return weights, opt, head_params, head_opt

  def best(state, images):
    return head.topk(state[2], encode(state[0], images), None, 1)[1][:, 0]

  def init():
    head_params = head.init(jax.random.key(seed))
    return head_params, head.init_optimizer(head_params)

  specs = head.specs(), head.optimizer_specs()
  shardings = sharding.named(jax.sharding.get_mesh(), specs)
  state = (
    *sharding.replicate((weights, tx.init(weights))),
    *jax.jit(init, out_shardings=shardings)(),
  )
  run = jax.jit(step, donate_argnums=0)
  seconds = []
  for number, (images, labels) in enumerate(batches):
    inputs = sharding.put_batch(
      (images, targets_lib.Targets(_column(labels), _ones(labels)))
    )
    start = time.perf_counter()
    state = run(state, jnp.int32(number), *inputs)
    jax.block_until_ready(state)
    seconds.append(time.perf_counter() - start)
  found = jax.jit(best)(state, sharding.put_batch(test[0]))
  accuracy = np.mean(np.asarray(found) == test[1])
  return float(accuracy), float(np.median(seconds))


def compare(
  num_digits: int, epochs: int, seeds: int, components: int
) -> dict[str, dict[str, Any]]:
  """Trains all heads with all seeds; results by name of the head."""
  to_train, to_test = pools()
  rate = optax.cosine_decay_schedule(_LEARNING_RATE, epochs * _STEPS_PER_EPOCH)
  tx = optax.adam(rate)
  test = to_test.numbers(np.random.default_rng(1), _TEST_IMAGES, num_digits)
  plain = np.arange(10**num_digits)
  shuffled = np.random.default_rng(2).permutation(plain)

  def batches(seed, ids):
    rng = np.random.default_rng(100 + seed)
    for _ in range(epochs * _STEPS_PER_EPOCH):
      images, labels = to_train.numbers(rng, _BATCH, num_digits)
      yield images, ids[labels]

  results = {}
  for name, head in heads(num_digits, tx, components).items():
    ids = shuffled if name.endswith("shuffled") else plain
    runs = [
      train(head, tx, batches(seed, ids), (test[0], ids[test[1]]), seed)
      for seed in range(seeds)
    ]
    accuracies, seconds = zip(*runs)
    shapes = jax.eval_shape(head.init, jax.random.key(0))
    results[name] = {
      "top1": list(accuracies),
      "mean": float(np.mean(accuracies)),
      "spread": float(np.ptp(accuracies)),
      "step_ms": 1e3 * float(np.median(seconds)),
      "head_parameters": sum(a.size for a in jax.tree.leaves(shapes)),
    }
    print(_line(name, results[name]), flush=True)
  return results


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--digits", type=int, default=2, help="side by side")
  parser.add_argument(
    "--epochs", type=int, default=40, help=f"of {_STEPS_PER_EPOCH * _BATCH:,}"
  )
  parser.add_argument("--seeds", type=int, default=3, help="runs of each head")
  parser.add_argument("--components", type=int, default=4, help="of a mixture")
  parser.add_argument("--json", type=pathlib.Path, help="file for the results")
  options = parser.parse_args()

  print(
    f"{10**options.digits:,} labels, {_TEST_IMAGES:,} test images, "
    f"{options.seeds} seeds\n"
    f"{'head':<18}{'top-1 %':>9}{'spread':>9}{'step ms':>9}{'parameters':>12}"
  )
  with jax.set_mesh(mesh_lib.make_mesh()):
    results = compare(
      options.digits, options.epochs, options.seeds, options.components
    )
  text = json.dumps(results)
  print(text)
  if options.json:
    options.json.write_text(text + "\n")


def _line(name: str, result: dict[str, Any]) -> str:
  """A row of the table."""
  return (
    f"{name:<18}{100 * result['mean']:>9.2f}{100 * result['spread']:>9.2f}"
    f"{result['step_ms']:>9.2f}{result['head_parameters']:>12,}"
  )


def _column(labels: np.ndarray) -> np.ndarray:
  return labels[:, None].astype(np.int32)


def _ones(labels: np.ndarray) -> np.ndarray:
  return np.ones(len(labels), np.float32)


if __name__ == "__main__":
  main()
