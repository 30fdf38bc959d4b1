"""Large losses: thresholds, ties, corrections; equal to a dense reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses import table
from xlj.losses import large_loss
from xlj.ops import batch_topk

N, D, P = 16, 6, 4
NUM_LABELS = 203
ONE_A_STEP = {"steps_per_epoch": 1, "num_epochs": 9}


def reference(z, hot, weights, count, scheme, limit=None):
  """Losses `[N]`, gradient `[N, L]` and corrections by sorting all losses."""
  unobserved = (hot == 0) & (weights > 0)[:, None]
  ranked = np.sort(z[unobserved])[::-1]
  if limit is None:
    limit = np.inf
    if count > len(ranked):
      limit = -np.inf
    elif count > 0:
      limit = ranked[count - 1]
  modified = unobserved & (z >= limit)
  target = hot.astype(float)
  if scheme != "reject":
    target[modified] = 1
  values = np.logaddexp(0, z) - target * z
  slopes = 1 / (1 + np.exp(-z)) - target
  if scheme == "reject":
    values[modified] = slopes[modified] = 0
  corrections = {
    tuple(place) for place in np.argwhere(unobserved & (z > limit))
  }
  return values.sum(1), slopes, corrections


def make_head(schedule, scheme, **options):
  return table.make_head(
    large_loss.LargeLoss(schedule, NUM_LABELS, scheme),
    NUM_LABELS,
    D,
    init_scale=0.6,
    init_bias=-0.3,
    **options,
  )


def check_step(
  head, step, count, scheme, shape, whole=False, limit=None, run=None
):
  """One step of the head beside the reference."""
  case = table.CASES["bce"]
  targets = table.make_targets(case, N, NUM_LABELS, P)
  hot = table.dense_targets(targets, NUM_LABELS)
  rng = np.random.default_rng(4)
  x = rng.normal(size=(N, D)).astype(np.float32)
  params = table.init(head)
  row = head.layout.row_of_label(np.arange(NUM_LABELS))
  if whole:  # whole numbers: many ties
    x = np.round(x)
    params["rows"] = np.round(2 * params["rows"])
    params["bias"] = np.zeros_like(params["bias"])
  z = x.astype(float) @ params["rows"][row].T + params["bias"][row]
  values, slopes, corrections = reference(
    z, hot, targets.weights, count, scheme, limit
  )
  share = targets.weights / targets.weights.sum()
  slopes *= share[:, None]
  found, dx, changes = table.take_step(
    head, params, x, targets, shape, step=step, run=run
  )
  np.testing.assert_allclose(found["loss"], values @ share, rtol=1e-5)
  np.testing.assert_allclose(dx, slopes @ params["rows"][row], atol=2e-5)
  np.testing.assert_allclose(changes["rows"][row], slopes.T @ x, atol=2e-5)
  if scheme == "correct_forever":
    ids, examples = found["corrected_ids"], found["corrected_examples"]
    assert ((ids < 0) == (examples < 0)).all()
    there = ids >= 0
    said = list(zip(examples[there].tolist(), ids[there].tolist()))
    assert len(said) == len(set(said))
    assert set(said) == corrections
  else:
    assert found.keys() == {"loss"}
  return corrections


@pytest.mark.parametrize(
  "scheme,shape,label_axis",
  [
    ("reject", (1, 1), 1),
    ("reject", (2, 4), 0),
    ("correct", (8, 1), 1),
    ("correct_forever", (1, 1), 0),
    ("correct_forever", (2, 4), 1),
  ],
)
def test_a_step_equals_the_dense_reference(
  scheme, shape, label_axis, monkeypatch
):
  table.put_labels_on(monkeypatch, label_axis)
  schedule = large_loss.Schedule(
    **ONE_A_STEP, per_example=0.7, grows=scheme != "correct_forever"
  )
  head = make_head(schedule, scheme)
  counts = {0: 0, 1: 12, 5: 56 if scheme != "correct_forever" else 12}
  run = jax.jit(head.step)
  for step, count in counts.items():
    corrections = check_step(head, step, count, scheme, shape, run=run)
    assert len(corrections) == max(count - 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", large_loss.SCHEMES)
def test_ties_at_the_threshold_are_modified_but_not_corrected(scheme):
  schedule = large_loss.Schedule(
    **ONE_A_STEP, share=0.02, grows=scheme != "correct_forever"
  )
  count = -int(-N * NUM_LABELS * 0.02 // 1)
  corrections = check_step(
    make_head(schedule, scheme), 1, count, scheme, (2, 4), whole=True
  )
  assert len(corrections) < count - 1


@pytest.mark.slow
@pytest.mark.parametrize("scheme", large_loss.SCHEMES)
def test_more_corrections_than_there_are_labels(scheme):
  schedule = large_loss.Schedule(
    **ONE_A_STEP, share=1.0, grows=scheme != "correct_forever"
  )
  head = make_head(schedule, scheme, chunk_size=8)
  corrections = check_step(head, 1, N * NUM_LABELS, scheme, (2, 4))
  assert len(corrections) > (N - 1) * (NUM_LABELS - P) - 1


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_a_threshold_of_the_loss_needs_no_ranking(shape):
  schedule = large_loss.Schedule(**ONE_A_STEP, threshold=1.5, decay=0.2)
  head = make_head(schedule, "correct")
  assert head.loss.init(N, P) is None
  check_step(head, 0, 0, "correct", shape)
  run = jax.jit(head.step)
  for step in (1, 4):
    limit = np.log(np.expm1(1.5 - (step + 1) * 0.2))
    check_step(head, step, None, "correct", shape, limit=limit, run=run)


def test_the_schedule_is_that_of_the_paper():
  counts = large_loss.Schedule(10, 10, share=0.002)
  # Epochs 1, 2 and 5 of batches of 16 and 80 labels: ceil(16 80 (t - 1) .002)
  for step, expected in ((0, 0), (9, 0), (10, 3), (45, 11)):
    assert counts.count(jnp.int32(step), 16, 80) == expected
  assert counts.most(16, 80) == 24
  # 0.1 three times is 0.3, not a bit more.
  exact = large_loss.Schedule(1, 9, per_example=0.1)
  assert exact.count(jnp.int32(3), 10, 80) == 3


@pytest.mark.parametrize(
  "fields", [{}, {"share": 0.1, "threshold": 1.0}, {"per_example": -1.0}]
)
def test_a_schedule_without_one_way_is_refused(fields):
  with pytest.raises(ValueError, match="one of share, per_example and thresh"):
    large_loss.Schedule(1, **fields)


def test_unknown_schemes_are_refused():
  schedule = large_loss.Schedule(1, threshold=1.0)
  with pytest.raises(ValueError, match="'drop'"):
    large_loss.LargeLoss(schedule, 5, "drop")
  with pytest.raises(ValueError, match="needs a share"):
    large_loss.LargeLoss(schedule, 5, "correct_forever")


@pytest.mark.slow
@pytest.mark.parametrize("label_axis", [0, 1])
@pytest.mark.parametrize("k", [1, 37, 500])
def test_the_largest_scores_of_a_batch(k, label_axis):
  rng = np.random.default_rng(k)
  z = rng.normal(size=(9, 300)).astype(np.float32)
  z[rng.random(z.shape) < 0.9] = -np.inf
  best = batch_topk.none(k)
  for first, stop in ((0, 70), (70, 71), (71, 300)):
    part = z[:, first:stop]
    part = part if label_axis else part.T
    add = jax.jit(batch_topk.add, static_argnums=3)
    best = add(best, jnp.asarray(part), first, label_axis)
  scores, examples, labels = map(np.asarray, best)
  expected = np.sort(z.reshape(-1))[::-1][:k]
  np.testing.assert_array_equal(scores, expected)
  there = ~np.isneginf(scores)
  np.testing.assert_array_equal(
    z[examples[there], labels[there]], scores[there]
  )
  assert (examples[~there] == -1).all() and (labels[~there] == -1).all()
