"""Code in the README does what the text says."""

from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np

from xlj.ops import label_pass
from xlj.ops import shards
from xlj.ops import targets as targets_lib

README = Path(__file__).parents[1] / "README.md"


def code_with(text):
  """The Python block of the README that contains the text."""
  blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
  (found,) = [block for block in blocks if text in block]
  return found


def test_the_added_loss_is_exact():
  names = {"__name__": "readme"}
  exec(compile(code_with("class Poly"), str(README), "exec"), names)
  loss = names["Poly"](0.7)
  rng = np.random.default_rng(0)
  x, rows = (rng.normal(size=s).astype(np.float32) for s in ((6, 4), (37, 4)))
  ids = np.array([[0, 3], [36, -1], [5, 6], [-1, -1], [9, 1], [2, 30]], "i4")
  targets = targets_lib.Targets(ids, np.ones(6, np.float32))
  hot = np.zeros((6, 37), np.float32)
  for n, label in zip(*np.nonzero(ids >= 0)):
    hot[n, ids[n, label]] = 1

  def expected(x, rows):
    z = x @ rows.T
    signed = jnp.where(hot, z, -z)
    each = jax.nn.softplus(-signed) + 0.7 * jax.nn.sigmoid(-signed)
    return each.sum(1).mean()

  def got(x, rows):
    return label_pass.label_loss(
      x, rows, None, targets, loss, placement=shards.Placement(chunk_size=10)
    )

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    jax.value_and_grad(got, (0, 1))(x, rows),
    jax.value_and_grad(expected, (0, 1))(x, rows),
  )
