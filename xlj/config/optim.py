"""The section `optim`: optimizers and schedules of the parts of a model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_dict
import optax

from xlj.config import checks
from xlj.config import encoders
from xlj.config import families
from xlj.config import options

_PARTS = ("encoder", "head")
Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]


def fields() -> options.Fields:
  """All fields, with None for "decide from the data"."""
  auto = config_dict.placeholder
  found: options.Fields = {
    "optim.warmup": auto(float),  # share of the steps in which rates rise
    "optim.decay": auto(str),  # how rates fall then
    "optim.decay_to": auto(float),  # share of the peak that they end at
    # Step that the schedule begins at: where a longer run goes on
    "optim.from_step": auto(int),
    # Of the SGD of linear weights; a rate for the sum over the batch
    "optim.wide.learning_rate": auto(float),
    # With head.by_example the rates of a label are those times
    # max(count, 2)**-count_power, of its training examples
    "optim.wide.count_power": auto(float),
  }
  for part in _PARTS:
    found |= {
      f"optim.{part}.name": auto(str),  # the optimizer
      f"optim.{part}.learning_rate": auto(float),  # its peak
      f"optim.{part}.weight_decay": 0.0,  # decoupled, as in AdamW
      f"optim.{part}.b1": 0.9,  # decay of the first moment, or of momentum
      f"optim.{part}.b2": 0.999,  # decay of the second moment
      f"optim.{part}.eps": 1e-8,  # added where it divides by a root
    }
  return found


RANGES: checks.Ranges = {
  "optim.warmup": checks.RATE,
  "optim.decay_to": checks.SHARE,
  "optim.from_step": checks.Range(0),
  "optim.wide.learning_rate": checks.Range(0),
  "optim.wide.count_power": checks.Range(0, 2),
}
for _part in _PARTS:
  RANGES |= {
    f"optim.{_part}.learning_rate": checks.Range(0),
    f"optim.{_part}.weight_decay": checks.Range(0, 1e6),
    f"optim.{_part}.b1": checks.RATE,
    f"optim.{_part}.b2": checks.RATE,
    # Not 0 as a float32: it is divided by.
    f"optim.{_part}.eps": checks.Range(1e-30, 1),
  }


def rules(
  config: ml_collections.ConfigDict, facts: families.DataFacts
) -> options.Fields:
  """Values for fields that are left open, before features are measured."""
  # Held-out rows of bibtex (2 labels a row) preferred slow label rows, those of
  # delicious (19) did not; the bound between them is not measured.
  few = facts.labels_per_row < 5
  name, encoder, head, warmup, decay = {
    "network": ("adam", 5e-3, 1e-3 if few else 5e-3, 0.05, "cosine"),
    "linear": ("sgd", 0.0, 0.0, 0.0, "linear"),
    "embedding": ("adam", 2e-3, 2e-3, 0.05, "cosine"),
    "image": ("adam", 3e-3, 1e-2, 0.05, "cosine"),
    "text": ("adam", 1e-3, 1e-3, 0.0, "linear"),
  }[config.family]
  found: options.Fields = {
    "optim.warmup": warmup,
    "optim.decay": decay,
    "optim.decay_to": 0.2 if config.head.by_example else 0.0,
    "optim.from_step": 0,
    "optim.encoder.name": name,
    "optim.encoder.learning_rate": encoder,
    "optim.head.name": name,
    "optim.wide.count_power": 0.25,
  }
  if not config.head.by_example:
    found |= {
      "optim.head.learning_rate": head,
      "optim.wide.learning_rate": 8.0 if few else 4.0,
    }
  return found


def measured(config: ml_collections.ConfigDict) -> options.Fields:
  """Values for the rest of them, when features have been measured.

  Of steps by example. The more features carry a row, the less of them do two
  rows share, and the further a step may go.
  """
  data = config.data
  rate = min(max(4.4 * data.effective_features**0.3, 5.0), 14.0)
  return {
    "optim.wide.learning_rate": rate / data.feature_norm**2,
    "optim.head.learning_rate": 0.03 * rate,
  }


def schedule_of(
  config: ml_collections.ConfigDict, part: ml_collections.ConfigDict
) -> Schedule:
  """The learning rate of a part of the model, a section of `optim`."""
  start = config.optim.from_step
  schedule = make_schedule(
    part.learning_rate,
    config.train.num_steps - start,
    warmup=config.optim.warmup,
    decay=config.optim.decay,
    decay_to=config.optim.decay_to or 0.0,
  )
  return (lambda step: schedule(step - start)) if start else schedule


def transformation(
  config: ml_collections.ConfigDict, part: ml_collections.ConfigDict
) -> optax.GradientTransformation:
  """The optimizer of a part of the model, a section of `optim`."""
  return make_optimizer(part, schedule_of(config, part))


def of_encoder(
  config: ml_collections.ConfigDict,
) -> optax.GradientTransformation:
  """The optimizer of the encoder, whose parts may have rates of their own."""
  made = transformation(config, config.optim.encoder)
  rate = encoders.rates(config)
  return made if rate is None else _with_rates(made, rate)


def _with_rates(
  made: optax.GradientTransformation,
  rate: Callable[[tuple[Any, ...]], float],
) -> optax.GradientTransformation:
  """An optimizer whose updates have factors, without state for those of 0.

  Args:
    made: The optimizer.
    rate: The factor from the names on the way to a parameter.

  Returns:
    The optimizer.
  """

  def factors(tree: Any) -> Any:
    return jax.tree.map_with_path(
      lambda path, _: rate(tuple(key.key for key in path)), tree
    )

  def kinds(tree: Any) -> Any:
    return jax.tree.map(lambda f: "trained" if f else "frozen", factors(tree))

  def scale(updates: optax.Updates, _: Any) -> optax.Updates:
    return jax.tree.map(lambda u, f: f * u, updates, factors(updates))

  return optax.chain(
    optax.partition({"trained": made, "frozen": optax.set_to_zero()}, kinds),
    optax.stateless(scale),
  )


def make_schedule(
  peak: float,
  num_steps: int,
  *,
  warmup: float,
  decay: str,
  decay_to: float = 0.0,
) -> Schedule:
  """Linear warm-up from 0 to `peak`, then a decay until `num_steps`.

  Args:
    peak: Largest learning rate.
    num_steps: Length of the run.
    warmup: Share of the run spent warming up, in [0, 1).
    decay: One of `DECAYS`.
    decay_to: Share of the peak that it ends at.

  Returns:
    Function from step to learning rate.

  Raises:
    ValueError: On an unknown decay.
  """
  warmup_steps = int(warmup * num_steps)
  rest = max(num_steps - warmup_steps, 1)
  if decay not in DECAYS:
    raise ValueError(
      f"optim.decay is {decay!r}; use one of {', '.join(map(repr, DECAYS))}"
    )
  after = DECAYS[decay](peak, rest, decay_to)
  if not warmup_steps:
    return after
  ramp = optax.linear_schedule(0.0, peak, warmup_steps)
  return optax.join_schedules([ramp, after], [warmup_steps])


def make_optimizer(
  config: ml_collections.ConfigDict, schedule: Schedule
) -> optax.GradientTransformation:
  """Builds the optimizer of one part of the model.

  Args:
    config: A section of `optim`: `name` (one of `OPTIMIZERS`), `weight_decay`
      (decoupled, times the learning rate), and what that optimizer reads.
    schedule: Step to learning rate.

  Returns:
    An optax transformation that treats rows apart.

  Raises:
    ValueError: On an unknown name.
  """
  if config.name not in OPTIMIZERS:
    raise ValueError(
      f"optimizer name {config.name!r} is not known; use one of"
      f" {', '.join(map(repr, OPTIMIZERS))}"
    )
  parts = [OPTIMIZERS[config.name].make(config)]
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


DECAYS: dict[str, Callable[[float, int, float], Schedule]] = {
  "cosine": optax.cosine_decay_schedule,
  "linear": lambda peak, steps, to: optax.linear_schedule(
    peak, to * peak, steps
  ),
  "constant": lambda peak, *_: optax.constant_schedule(peak),
}
# How each scales a gradient, made of a section of `optim`, and the fields of
# the section that it reads.
OPTIMIZERS = {
  "sgd": options.Option(lambda _: optax.identity()),
  "momentum": options.Option(lambda c: optax.trace(c.b1), reads=("b1",)),
  "adam": options.Option(
    lambda c: optax.scale_by_adam(c.b1, c.b2, c.eps), reads=("b1", "b2", "eps")
  ),
  "adagrad": options.Option(
    lambda c: optax.scale_by_rss(initial_accumulator_value=0.0, eps=c.eps),
    reads=("eps",),
  ),
  "rowwise_adagrad": options.Option(
    lambda c: scale_by_rowwise_rss(c.eps), reads=("eps",)
  ),
}
CHOICES = {
  "optim.decay": tuple(DECAYS),
  **{f"optim.{part}.name": tuple(OPTIMIZERS) for part in _PARTS},
}
_OF_OPTIMIZERS = tuple(
  options.by_name(
    f"optim.{part}.name",
    {
      name: [f"optim.{part}.{field}" for field in option.reads]
      for name, option in OPTIMIZERS.items()
    },
  )
  for part in _PARTS
)
SWITCHES = (
  options.unless("optim.decay", "constant", "optim.decay_to"),
  *_OF_OPTIMIZERS,
)
