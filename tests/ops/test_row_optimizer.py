"""Optimizers of label rows: what they refuse, what they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import cases
from xlj.config import optim
from xlj.ops import row_optimizer

ROWS_APART = {
  "sgd": optax.sgd(0.1),
  "schedule": optax.sgd(optax.linear_schedule(0.1, 0.0, 3), momentum=0.9),
  "adamw": optax.adamw(0.1, weight_decay=0.01),
  "narrow_adam": optax.adam(0.1, mu_dtype=jnp.bfloat16),
  "adagrad": optax.adagrad(0.1),
  "rowwise_adagrad": optim.scale_by_rowwise_rss(),
  "lion": optax.lion(0.1),
  "clip_by_value": optax.chain(optax.clip(0.5), optax.sgd(0.1)),
}
GLOBAL = {
  "global_norm": optax.chain(optax.clip_by_global_norm(1e5), optax.sgd(1e-3)),
  "normalised": optax.chain(optax.normalize_by_update_norm(), optax.sgd(1.0)),
  "trust_ratio": optax.lamb(0.1),
  "factored": optax.adafactor(0.1, min_dim_size_to_factor=2),
  "noise": optax.noisy_sgd(0.1),
}


@pytest.mark.parametrize("name", ROWS_APART)
def test_optimizers_that_treat_rows_apart_are_taken(name):
  row_optimizer.RowOptimizer(ROWS_APART[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", GLOBAL)
def test_optimizers_that_need_all_rows_are_refused(name):
  with pytest.raises(ValueError, match="must treat each row by itself"):
    row_optimizer.RowOptimizer(GLOBAL[name])


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"dtype": "float16"}, "dtype is 'float16'"),
    ({"rounding": "up"}, "rounding is 'up'"),
    ({"correction": "yes"}, "correction is 'yes'"),
    ({"correction": "kahan"}, "float32 rows are not rounded"),
  ],
)
def test_unknown_settings_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    row_optimizer.RowOptimizer(optax.sgd(0.1), **fields)


@pytest.mark.parametrize(
  "name", cases.some(ROWS_APART, {"adagrad", "narrow_adam"})
)
def test_chunks_give_what_all_rows_give(name):
  rng = np.random.default_rng(0)
  optimizer = row_optimizer.RowOptimizer(ROWS_APART[name])
  params = {
    "rows": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
    "bias": jnp.asarray(rng.normal(size=6), jnp.float32),
  }
  tx = ROWS_APART[name]
  expected, tx_state = params, tx.init(params)
  state = optimizer.init(params)
  for step in range(3):
    grads = jax.tree.map(
      lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params
    )
    updates, tx_state = tx.update(grads, tx_state, expected)
    expected = optax.apply_updates(expected, updates)
    by_row, others = optimizer.split(state)
    parts, states = [], []
    for start in (0, 2):
      at = slice(start, start + 2 if start == 0 else 6)
      part_state = optimizer.join(state, [a[at] for a in by_row], others)
      part, part_state = optimizer.update(
        jnp.int32(step),
        jnp.arange(6)[at],
        {k: v[at] for k, v in params.items()},
        part_state,
        {k: v[at] for k, v in grads.items()},
      )
      parts.append(part)
      states.append(optimizer.split(part_state)[0])
    finished = optimizer.finish(params, state)
    params = {k: jnp.concatenate([p[k] for p in parts]) for k in params}
    by_row = [jnp.concatenate(pair) for pair in zip(*states)]
    state = optimizer.join(state, by_row, finished)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
    params,
    expected,
  )


def test_rowwise_adagrad_keeps_one_number_a_row():
  tx = optim.scale_by_rowwise_rss(eps=0.0)
  params = {"rows": jnp.zeros((3, 4)), "bias": jnp.zeros(3)}
  state = tx.init(params)
  assert state.sums["rows"].shape == (3,)
  grads = {
    "rows": jnp.asarray([[2.0] * 4, [0.0] * 4, [1.0, -1.0, 1.0, -1.0]]),
    "bias": jnp.asarray([3.0, 0.0, -4.0]),
  }
  updates, state = tx.update(grads, state, params)
  np.testing.assert_allclose(updates["rows"][0], 1.0, rtol=1e-6)
  np.testing.assert_array_equal(updates["rows"][1], 0.0)
  np.testing.assert_allclose(updates["bias"], [1, 0, -1], rtol=1e-6)
  updates, _ = tx.update(grads, state, params)
  np.testing.assert_allclose(updates["rows"][2], grads["rows"][2] / 2**0.5)


def test_state_of_bfloat16_is_held_as_bits():
  optimizer = row_optimizer.RowOptimizer(
    optax.sgd(0.1, 0.9, accumulator_dtype=jnp.bfloat16), dtype="bfloat16"
  )
  params = {"rows": jnp.zeros((4, 3), jnp.uint16)}
  state = optimizer.init(params)
  assert [a.dtype for a in optimizer.split(state)[0]] == [jnp.uint16]
  grads = {"rows": jnp.full((4, 3), 0.25)}
  _, state = optimizer.update(jnp.int32(0), jnp.arange(4), params, state, grads)
  (trace,) = optimizer.split(state)[0]
  np.testing.assert_array_equal(
    np.asarray(trace).view(jnp.bfloat16).astype("f4"), 0.25
  )
