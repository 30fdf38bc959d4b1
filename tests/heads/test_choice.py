"""Which labels may be chosen, of every head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from tests.heads import test_head
from xlj import heads
from xlj import ops
from xlj import sharding

N, L, K = 8, test_head.L, 6
# With all of its groups, so that all labels are scored.
ALL = test_head.ALL | {"mhc": lambda: test_head.make_cascade(16)}
NAMES = ("dense", "mhs", "prototypes", "spherical", "oltr", "mhc", "mhp")


@pytest.fixture(scope="module", params=NAMES)
def ranked(request):
  """A head, how to ask it, and its scores of all labels."""
  head = ALL[request.param]()
  x = np.random.default_rng(0).normal(size=(N, test_head.D))
  with meshes.mesh((2, 4)):
    params = jax.tree.map(  # no two scores are the same
      lambda a: (
        a + 0.1 * jax.random.normal(jax.random.key(1), a.shape, a.dtype)
        if jnp.issubdtype(a.dtype, jnp.floating)
        else a
      ),
      meshes.first_params(head),
    )
    x = sharding.put_batch(x.astype(np.float32))
    topk = jax.jit(head.topk, static_argnums=3)

    def ask(k, choice=None):
      scores, ids = topk(params, x, None, k, choice)
      return np.asarray(scores), np.asarray(ids)

    scores, ids = ask(L)
    z = np.full((N, L), -np.inf, np.float32)
    for n in range(N):
      found = ids[n] >= 0
      z[n, ids[n, found]] = scores[n, found]
    yield head, ask, z


def assert_best(found, z):
  """The best of `z` `[N, L]`, and nothing where it is -inf."""
  scores, ids = found
  expected = -np.sort(-z, 1)[:, : scores.shape[1]]
  np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(ids < 0, np.isneginf(expected))
  for n in range(N):
    own = ids[n, ids[n] >= 0]
    np.testing.assert_allclose(z[n, own], scores[n, : len(own)], atol=1e-5)


def masked(z, keep):
  return np.where(keep, z, -np.inf)


def test_labels_of_each_example(ranked):
  head, ask, z = ranked
  # Of several rows a label, as many are looked at as there may be answers.
  k = L if isinstance(head, heads.PrototypeHead) else K
  rng = np.random.default_rng(2)
  ids = np.stack([rng.permutation(L)[:9] for _ in range(N)]).astype(np.int32)
  ids[: N // 2, 4:] = -1
  named = np.zeros((N, L + 1), bool)
  named[np.arange(N)[:, None], ids] = True
  named = named[:, :L]
  placed = sharding.put_batch(ids)
  assert_best(ask(k, ops.Choice(placed)), masked(z, ~named))
  assert_best(ask(k, ops.Choice(placed, only=True)), masked(z, named))


def test_labels_that_all_examples_may_have(ranked):
  head, ask, z = ranked
  if "offset" not in head.can:
    pytest.skip("it has no rows")
  keep = np.random.default_rng(3).random(L) < 0.1
  with_rows = np.zeros(head.layout.num_rows, bool)
  with_rows[head.layout.row_of_label(np.flatnonzero(keep))] = True
  allowed = sharding.put_rows(len(with_rows), lambda rows: with_rows[rows])
  ids = sharding.put_batch(np.tile(np.flatnonzero(keep)[:2], (N, 1)))
  choice = ops.Choice(ids.astype(np.int32), allowed=allowed)
  keep[np.flatnonzero(keep)[:2]] = False
  assert_best(ask(L, choice), masked(z, keep))


def test_what_examples_add_to_scores(ranked):
  head, ask, z = ranked
  rng = np.random.default_rng(4)
  ids = np.stack([rng.permutation(L)[:5] for _ in range(N)]).astype(np.int32)
  ids[0] = -1
  values = rng.normal(size=ids.shape).astype(np.float32)
  choice = ops.Choice(extra=sharding.put_batch((ids, values)))
  if "extra" not in head.can:
    with pytest.raises(ValueError, match="set neighbours.count=0"):
      ask(K, choice)
    return
  more = np.zeros((N, L), np.float32)
  np.put_along_axis(more[1:], ids[1:], values[1:], 1)
  assert_best(ask(K, choice), z + more)
