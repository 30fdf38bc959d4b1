"""Optimizers and schedules, one setting for each part of the model."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]


def make_schedule(
  peak: float, num_steps: int, *, warmup: float, decay: str
) -> Schedule:
  """Linear warm-up from 0 to `peak`, then a decay to 0 at `num_steps`.

  Args:
    peak: Largest learning rate.
    num_steps: Length of the run.
    warmup: Share of the run spent warming up, in [0, 1).
    decay: "cosine", "linear" or "constant".

  Returns:
    Function from step to learning rate.

  Raises:
    ValueError: On an unknown decay.
  """
  warmup_steps = int(warmup * num_steps)
  rest = max(num_steps - warmup_steps, 1)
  if decay == "cosine":
    after = optax.cosine_decay_schedule(peak, rest)
  elif decay == "linear":
    after = optax.linear_schedule(peak, 0.0, rest)
  elif decay == "constant":
    after = optax.constant_schedule(peak)
  else:
    raise ValueError(
      f"optim.decay is {decay!r}; use 'cosine', 'linear' or 'constant'"
    )
  if not warmup_steps:
    return after
  ramp = optax.linear_schedule(0.0, peak, warmup_steps)
  return optax.join_schedules([ramp, after], [warmup_steps])


def make_optimizer(
  config: ml_collections.ConfigDict, schedule: Schedule
) -> optax.GradientTransformation:
  """Builds the optimizer of one part of the model.

  Args:
    config: `name` ("sgd", "momentum", "adam", "adagrad", "rowwise_adagrad"),
      `weight_decay` (decoupled, times the learning rate), `b1`, `b2`, `eps`.
    schedule: Step to learning rate.

  Returns:
    An optax transformation that treats rows apart.

  Raises:
    ValueError: On an unknown name.
  """
  if config.name == "sgd":
    scale = optax.identity()
  elif config.name == "momentum":
    scale = optax.trace(config.b1)
  elif config.name == "adam":
    scale = optax.scale_by_adam(config.b1, config.b2, config.eps)
  elif config.name == "adagrad":
    scale = optax.scale_by_rss(initial_accumulator_value=0.0, eps=config.eps)
  elif config.name == "rowwise_adagrad":
    scale = scale_by_rowwise_rss(config.eps)
  else:
    raise ValueError(
      f"optimizer name {config.name!r} is not known; use 'sgd', 'momentum',"
      " 'adam', 'adagrad' or 'rowwise_adagrad'"
    )
  parts = [scale]
  if config.weight_decay:
    parts.append(optax.add_decayed_weights(config.weight_decay))
  return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


class RowwiseRssState(NamedTuple):
  """Sums of mean squared gradients, one per row."""

  sums: optax.Updates


def scale_by_rowwise_rss(eps: float = 1e-8) -> optax.GradientTransformation:
  """AdaGrad with one step size per row: 4 bytes of state a row.

  `g / sqrt(eps + sum over steps of mean over columns of g^2)`; for vectors this
  is AdaGrad. Source: Mudigere et al. 2022, "Software-hardware co-design for
  fast and scalable training of deep learning recommendation models", section
  4.1.4; AdaGrad: Duchi et al. 2011.

  Args:
    eps: Added below the root.

  Returns:
    The transformation.
  """

  def init(params: optax.Params) -> RowwiseRssState:
    return RowwiseRssState(
      jax.tree.map(lambda p: jnp.zeros_like(_of_rows(p)), params)
    )

  def update(
    updates: optax.Updates,
    state: optax.OptState,
    params: optax.Params | None = None,
  ) -> tuple[optax.Updates, RowwiseRssState]:
    del params
    assert isinstance(state, RowwiseRssState)
    sums = jax.tree.map(lambda s, g: s + _of_rows(g * g), state.sums, updates)

    def scale(g: jax.Array, s: jax.Array) -> jax.Array:
      inverse = jnp.where(s > 0, jax.lax.rsqrt(s + eps), 0)
      return g * inverse.reshape(s.shape + (1,) * (g.ndim - s.ndim))

    return jax.tree.map(scale, updates, sums), RowwiseRssState(sums)

  return optax.GradientTransformation(init, update)


def _of_rows(a: jax.Array) -> jax.Array:
  """Means over all axes but the first."""
  return a.mean(tuple(range(1, a.ndim)))
