"""Embeddings that tell people apart: a margin loss over sampled identities.

python examples/faces.py            # 2,000 generated people, 10 pictures each
python examples/faces.py FILE.npz   # `features` [N, F] and `labels` [N]

The model is one's own, in Flax NNX; the label layer is xlj's. The loss is that
of CosFace (Wang et al. 2018): an angle to one's own row that is smaller by a
margin than that to others. A step looks at a tenth of the people, as in Partial
FC (An et al. 2022). People whom training has not seen are then verified: are
two pictures of the same person?
"""

import sys

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from xlj import losses
from xlj import ops

DIM, SCALE = 64, 32.0
STEPS, BATCH = 400, 256


def generate() -> tuple[np.ndarray, np.ndarray]:
  """Pictures `[N, F]` of people `[N]`: who it is, and more of how they look."""
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(2000), 10)
  people, views = (rng.normal(size=(n, 32)) for n in (2000, len(labels)))
  mix = rng.normal(size=(64, 128)) / 20
  features = np.concatenate([people[labels], 2 * views], axis=1) @ mix
  return np.tanh(features).astype(np.float32), labels


def unit(x: jax.Array) -> jax.Array:
  """Rows of length 1."""
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Model(nnx.Module):
  """An encoder, and a row for each person."""

  def __init__(self, num_features: int, num_people: int, rngs: nnx.Rngs):
    """Starts with random weights."""
    self.hidden = nnx.Linear(num_features, 512, rngs=rngs)
    self.out = nnx.Linear(512, DIM, rngs=rngs)
    self.rows = nnx.Param(jax.random.normal(rngs.params(), (num_people, DIM)))

  def __call__(self, features: jax.Array) -> jax.Array:
    """Unit embeddings `[N, DIM]`."""
    return unit(self.out(nnx.relu(self.hidden(features))))


def loss_fn(
  model: Model, features: jax.Array, labels: jax.Array, key: jax.Array
) -> jax.Array:
  """The loss of a batch, over its people and a tenth of all others."""
  rows = unit(model.rows[...])
  sample = ops.uniform_sample(key, len(rows) // 10, len(rows))
  targets = ops.Targets(labels[:, None], jnp.ones(len(labels)))
  margin = losses.Margin(scale=SCALE, cosine=0.2)
  x = SCALE * model(features)
  return losses.sampled_loss(x, rows, None, targets, sample, margin)


@nnx.jit
def train_step(
  model: Model, optimizer: nnx.Optimizer, batch: tuple, key: jax.Array
) -> jax.Array:
  """Takes a step; returns the loss."""
  loss, grads = nnx.value_and_grad(loss_fn)(model, *batch, key)
  optimizer.update(model, grads)
  return loss


def verified(x: np.ndarray, labels: np.ndarray) -> float:
  """Share of pairs, half of one person, on the right side of a threshold."""
  rng = np.random.default_rng(0)
  a = rng.permutation(len(x) - 1)
  a = a[labels[a] == labels[a + 1]]
  same = np.sum(x[a] * x[a + 1], axis=1)
  b = rng.permutation(a)
  other = np.sum(x[a] * x[b], axis=1)[labels[a] != labels[b]]
  thresholds = np.linspace(-1, 1, 201)[:, None]
  right = np.mean(same > thresholds, 1) + np.mean(other <= thresholds, 1)
  return right.max() / 2


def main() -> None:
  """Trains on nine tenths of the people, and verifies the others."""
  if len(sys.argv) > 1:
    with np.load(sys.argv[1]) as file:
      features, labels = file["features"], file["labels"]
  else:
    features, labels = generate()
  order = np.argsort(labels, kind="stable")
  features, labels = features[order], labels[order]
  num_people = int(0.9 * (labels.max() + 1))
  known = labels < num_people

  model = Model(features.shape[1], num_people, nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.adam(5e-3), wrt=nnx.Param)
  rng = np.random.default_rng(0)
  for step in range(STEPS):
    rows = rng.choice(np.flatnonzero(known), BATCH)
    batch = features[rows], labels[rows].astype(np.int32)
    loss = train_step(model, optimizer, batch, jax.random.key(step))
    if step % 100 == 0:
      print(f"step {step}: loss {loss:.2f}")

  new, who = features[~known], labels[~known]
  for name, x in ("features", unit(new)), ("embeddings", model(new)):
    print(f"verified by {name}: {verified(np.asarray(x), who):.3f}")


if __name__ == "__main__":
  main()
