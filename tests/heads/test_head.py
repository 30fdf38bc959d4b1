"""What all heads have, and what each refuses by its name."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import dense_heads
from tests import meshes
from xlj import heads
from xlj import sharding
from xlj.heads import head as head_lib
from xlj.losses import bce
from xlj.losses import prototype_softmax
from xlj.losses import softmax
from xlj.losses import spherical
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib

L, D, F, N, BLOCKS = 293, 4, 6, 8, 8  # nothing else is as long as L


def labels(**fields):
  settings = {
    "num_labels": L,
    "dim": D,
    "optimizer": row_optimizer.sgd(0.1),
    "loss": softmax.Softmax(),
    "blocks": BLOCKS,
    "init_scale": 0.1,
  }
  return dense_heads.make(**(settings | fields))


def make_cascade(candidates=2, **fields):
  fields["loss"] = bce.BinaryCrossEntropy()
  levels = labels(num_labels=16, **fields), labels(blocks=16, **fields)
  return heads.CascadeHead(levels, candidates)


def make_oltr(**fields):
  rows = labels(use_bias=False, cosine=True)
  return heads.OltrHead(rows, optax.sgd(0.1), 9.0, **fields)


ALL = {
  "dense": labels,
  "dense without bias": lambda: labels(use_bias=False),
  "linear": lambda: labels(dim=0, wide_features=F),
  "both": lambda: labels(wide_features=F),
  "mhs": lambda: labels(sample_blocks=4, hard_blocks=1),
  "prototypes": lambda: heads.PrototypeHead(
    labels(num_labels=L + 2 * 40, loss=prototype_softmax.PrototypeSoftmax(3)),
    L,
  ),
  "spherical": lambda: heads.SphericalHead(
    labels(loss=spherical.Spherical(spherical.SquaredError()), use_bias=False)
  ),
  "oltr": make_oltr,
  "oltr without keys": lambda: make_oltr(own_keys=False),
  "mhc": make_cascade,
  "mhc without bias": lambda: make_cascade(use_bias=False),
  "mhp": lambda: heads.ProductHead(L, D, (7, 7, 7), optax.sgd(0.1)),
}
MEMBERS = {n: a for n, a in vars(heads.Head).items() if not n.startswith("_")}
NEEDED = {  # the abilities that methods are for
  "rows": "rows",
  "at_prior": "prior",
  "zero_sums": "centroids",
  "at_centroids": "centroids",
  "with_keys": "keys",
}


@pytest.mark.parametrize("name", ALL)
def test_heads_have_all_that_is_asked_of_them(name):
  head = ALL[name]()
  for member, wanted in MEMBERS.items():
    found = inspect.getattr_static(head, member)
    if isinstance(wanted, property):
      assert getattr(head, member) is not None, member
      continue
    got = list(inspect.signature(found).parameters.values())
    expected = list(inspect.signature(wanted).parameters.values())
    assert [p.name for p in got] == [p.name for p in expected], member
    assert [p.default for p in got] == [p.default for p in expected], member
  assert head.can <= head_lib.ABILITIES.keys()
  assert head.layout.num_labels == L


def refusal(head, ability):
  return pytest.raises(
    ValueError, match=re.escape(head_lib.lack(head, ability))
  )


@pytest.mark.parametrize("name", ALL)
def test_heads_refuse_by_name_what_they_cannot_do(name):
  head = ALL[name]()
  assert repr(head.name) in head_lib.lack(head, "rows")
  for method, ability in NEEDED.items():
    if ability not in head.can:
      count = len(inspect.signature(MEMBERS[method]).parameters) - 1
      with refusal(head, ability):
        getattr(head, method)(*[None] * count)
  params, something = None, jnp.zeros(1)
  targets = targets_lib.Targets(np.zeros((N, 1), np.int32), np.ones(N))
  x = None if "linear" in head.can else jnp.zeros((N, D))
  if "features" not in head.can:
    with refusal(head, "features"):
      head.step(params, params, 0, x, something, targets)
    with refusal(head, "features"):
      head.evaluate_loss(params, x, something, targets)
    with refusal(head, "features"):
      head.topk(params, x, something, 1)
  if "label_values" not in head.can:
    with refusal(head, "label_values"):
      head.step(params, params, 0, x, None, targets, {"positive": something})
  if "offset" not in head.can:
    with refusal(head, "offset"):
      head.topk(params, x, None, 1, None, something)
  if "linear" not in head.can:
    with refusal(head, "linear"):
      head.topk(params, None, None, 1)
  with pytest.raises(ValueError, match=f"the head '{head.name}' knows"):
    head.confidence(params, x, None, "the stars")


@pytest.mark.parametrize(
  "name", [name for name in ALL if "prior" in ALL[name]().can]
)
def test_priors_are_made_of_split_counts(name):
  """No device has an array with a number for each label of all devices."""
  head = ALL[name]()
  counts = np.random.default_rng(0).integers(0, 50, L).astype(np.int32)
  found = {}
  for shape in ((1, 1), (2, 4)):
    with meshes.mesh(shape) as mesh:
      by_row = np.asarray(head.layout.by_row(jnp.asarray(counts), 0))
      by_row = sharding.put_rows(len(by_row), lambda rows, a=by_row: a[rows])
      run = jax.jit(
        lambda params, counts: head.at_prior(params, counts, 100),
        out_shardings=sharding.named(mesh, head.specs()),
      )
      compiled = run.lower(meshes.first_params(head), by_row).compile()
      if mesh.size > 1:
        sizes = f"{L}|{head.layout.num_rows}|{head.num_rows}"
        assert not re.findall(rf"\[({sizes})[,\]]", compiled.as_text())
      params = compiled(meshes.first_params(head), by_row)
      found[shape] = jax.tree.map(np.asarray, params)
  jax.tree.map(np.testing.assert_array_equal, *found.values())
  bias = found[1, 1].get("bias", found[1, 1].get("1", {}).get("bias"))
  if name != "prototypes":  # it has a test of its own
    rows = head.layout.row_of_label(np.arange(L))
    odds = (counts + 0.5) / 101
    np.testing.assert_allclose(
      bias[rows], np.log(odds / (1 - odds)), rtol=1e-5, atol=1e-5
    )
    assert not np.delete(bias, rows).any()
