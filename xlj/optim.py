"""Optimizers and schedules, one setting for each part of the model."""

from collections.abc import Callable

import jax
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
    config: `name` ("sgd", "momentum", "adam", "adagrad"), `weight_decay`
      (decoupled, times the learning rate), `b1`, `b2`, `eps`.
    schedule: Step to learning rate.

  Returns:
    An element-wise optax transformation.

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
  else:
    raise ValueError(
      f"optimizer name {config.name!r} is not known; use 'sgd', 'momentum',"
      " 'adam' or 'adagrad'"
    )
  parts = [scale]
  if config.weight_decay:
    parts.append(optax.add_decayed_weights(config.weight_decay))
  return optax.chain(*parts, optax.scale_by_learning_rate(schedule))
