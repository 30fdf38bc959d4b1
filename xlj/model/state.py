"""What a training step reads and writes."""

from typing import Any, NamedTuple

import jax


class State(NamedTuple):
  """Everything that a training step reads and writes.

  Attributes:
    model: `encoder`, `head` (parameters) and `buffers`: `label_counts` and
      `label_ids` by row, `idf` by feature.
    training: `encoder` and `head` (optimizer states), `memory` of the examples
      if the loss needs one, and their `negatives` if a dual encoder does.
    step: Scalar int32, number of steps taken.
  """

  model: dict[str, Any]
  training: dict[str, Any]
  step: jax.Array


def skip(state: State) -> State:
  """The state after a step that is left out.

  Schedules and corrections of bias go by the number of the step, and so by the
  same in all parts of the state.

  Args:
    state: The state.

  Returns:
    The state, with the same parameters.
  """

  def count(path: tuple[Any, ...], a: jax.Array) -> jax.Array:
    # optax's name for it in all of its states.
    return a + 1 if getattr(path[-1], "name", "") == "count" else a

  training = jax.tree.map_with_path(count, state.training)
  return state._replace(training=training, step=state.step + 1)
