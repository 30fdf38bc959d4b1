"""Real images for tests, and how well an encoder learns them."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from xlj import sharding

SHAPE = (8, 8, 1)
_BATCH = 64


def digits():
  """Rows of bytes `[N, 64]` and labels, to train with and to test with."""
  pixels, labels = datasets.load_digits(return_X_y=True)
  pixels = (15 * pixels).astype(np.uint8)
  order = np.random.default_rng(0).permutation(len(labels))
  parts = order[:1400], order[1400:]
  return [(pixels[part], labels[part]) for part in parts]


def randomised(make):
  """What `make` makes, with values that no initialisation has."""
  graph, state = nnx.split(nnx.eval_shape(make))
  leaves, tree = jax.tree.flatten(state)
  rng = np.random.default_rng(1)
  leaves = [
    jnp.asarray(0.1 + 0.3 * rng.normal(size=leaf.shape), jnp.float32)
    for leaf in leaves
  ]
  return nnx.merge(graph, jax.tree.unflatten(tree, leaves))


def accuracy(make, dim, *, steps, rate):
  """Share of test digits that an encoder and a linear layer get right."""
  (images, labels), (test_images, test_labels) = digits()
  graph = nnx.graphdef(nnx.eval_shape(make))
  # In one program: each of many small ones would be compiled.
  weights = jax.jit(lambda: nnx.state(make()))()
  tx = optax.adam(optax.cosine_decay_schedule(rate, steps))
  params = weights, jnp.zeros((dim, 10))
  state = params, tx.init(params)

  def logits(params, x, rngs):
    return nnx.merge(graph, params[0])(x, rngs=rngs) @ params[1]

  @jax.jit
  def step(state, key, x, y):
    def loss(params):
      z = logits(params, x, nnx.Rngs(dropout=key))
      return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()

    params, opt = state
    updates, opt = tx.update(jax.grad(loss)(params), opt)
    return optax.apply_updates(params, updates), opt

  rng = np.random.default_rng(0)
  for number in range(steps):
    some = rng.integers(0, len(labels), _BATCH)
    state = step(state, jax.random.key(number), images[some], labels[some])
  found = jax.jit(lambda p, x: logits(p, x, None).argmax(1))(
    state[0], test_images
  )
  return float(np.mean(np.asarray(found) == test_labels))


def training_step(encoder, rows):
  """Embeddings in evaluation, and in training with the gradient of a sum.

  On the mesh in context; the examples are split over its devices.
  """
  graph, weights = nnx.split(encoder)

  def forward(weights, x, key):
    rngs = None if key is None else nnx.Rngs(dropout=key)
    return nnx.merge(graph, weights)(x, rngs=rngs)

  def both(weights, x, key):
    plain = sharding.by_compiler(lambda w, x: forward(w, x, None))(weights, x)
    run = sharding.by_compiler(forward)
    h, vjp = jax.vjp(lambda w: run(w, x, key), weights)
    return plain, h, vjp(jnp.cos(h))[0]

  arguments = sharding.replicate((weights, jax.random.key(3)))
  return jax.device_get(
    jax.jit(both)(arguments[0], sharding.put_batch(rows), arguments[1])
  )
