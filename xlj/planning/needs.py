"""Bytes of a training step on each device, by compiling it and running nothing.

The real step is compiled for simulated CPU devices on abstract arrays. Exact on
any device are the bytes of the state and of the batch. Of the CPU's program
alone, and so an approximation, are the temporaries (other compilers fuse, reuse
and pad in other ways) and the collectives (others may join or split them).
"""

import dataclasses
import math
from typing import Any

import jax
import ml_collections

from xlj.model import model as model_lib
from xlj.planning import collectives
from xlj.planning import stated

_CLOSE = 1e-4  # share of the memory that the search leaves empty


@dataclasses.dataclass(frozen=True)
class Needs:
  """Bytes of a device.

  Attributes:
    weight_bytes: Parameters of encoder and head.
    buffer_bytes: Facts about labels and features beside them.
    optimizer_bytes: Optimizer states.
    temp_bytes: Temporaries of the step, and results that replace no input.
    batch_bytes: The batch.
    collectives: What the step sends.
  """

  weight_bytes: int
  buffer_bytes: int
  optimizer_bytes: int
  temp_bytes: int
  batch_bytes: int
  collectives: tuple[collectives.Collective, ...]

  @property
  def state_bytes(self) -> int:
    """What stays in memory between steps."""
    return self.weight_bytes + self.buffer_bytes + self.optimizer_bytes

  @property
  def total_bytes(self) -> int:
    """The most that a device holds during a step."""
    return self.state_bytes + self.temp_bytes + self.batch_bytes

  @property
  def collective_bytes(self) -> int:
    """What a device sends in a step; see `xlj.collectives`."""
    return sum(c.sent_bytes for c in self.collectives)


def of_step(
  model: model_lib.Model,
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
) -> Needs:
  """Compiles the step of a model.

  Args:
    model: Of the config.
    config: Resolved by `stated.resolve`.
    mesh: Of simulated devices.

  Returns:
    What it needs.
  """
  with jax.set_mesh(mesh):
    state, inputs = model.abstract(), stated.batch(config)
    step = jax.jit(model.train_step, donate_argnums=0)
    compiled = step.lower(state, inputs).compile()
  memory: Any = compiled.memory_analysis()
  # What is returned beside the state, which replaces the state passed in.
  fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Needs(
    weight_bytes=device_bytes((state.model["encoder"], state.model["head"])),
    buffer_bytes=device_bytes((state.model["buffers"], state.step)),
    optimizer_bytes=device_bytes(state.training),
    temp_bytes=memory.temp_size_in_bytes + max(fresh, 0),
    batch_bytes=device_bytes(inputs),
    collectives=tuple(collectives.find(compiled.as_text() or "", mesh.size)),
  )


def device_bytes(tree: Any) -> int:
  """Bytes of a tree of sharded abstract arrays on one device."""
  return sum(
    math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
    for a in jax.tree.leaves(tree)
  )


def largest_num_labels(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  needs: Needs,
  usable: int,
) -> int:
  """The most labels that fit, confirmed by compiling the step for them.

  The state's bytes are a constant and a multiple of the labels, which abstract
  arrays tell; the temporaries are nearly constant, unless logits are kept.

  Args:
    config: Resolved; its labels, and whatever is derived from them, change.
    mesh: Of simulated devices.
    needs: Of its own number of labels.
    usable: Bytes of a device.

  Returns:
    A multiple of `head.blocks`, at most the ids of an int32; 0 if not even
    one of each block fits.
  """
  blocks = config.head.blocks

  def of(units: int) -> tuple[model_lib.Model, ml_collections.ConfigDict]:
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.data.num_labels = units * blocks
    return model_lib.Model(changed), changed

  more_rows = 0
  if config.head.prototypes > 1:
    more_rows = config.head.prototype_labels * (config.head.prototypes - 1)
  held = blocks + -blocks % mesh.size
  most = stated.MAX_LABELS // held - -(-more_rows // blocks)
  start = -(-config.data.num_labels // blocks)
  known = {start: needs.total_bytes}
  other = start // 2 or 2
  model, _ = of(other)
  with jax.set_mesh(mesh):
    other_bytes = device_bytes(model.abstract())
  slope = (needs.state_bytes - other_bytes) / (start - other)
  near = start
  for _ in range(8):
    guess = near + math.floor((usable - known[near]) / slope)
    guess = min(max(guess, 1), most)
    if guess in known:
      break
    known[guess] = of_step(*of(guess), mesh).total_bytes
    if 0 <= usable - known[guess] <= usable * _CLOSE:
      break
    slope = (known[guess] - known[near]) / (guess - near)
    near = guess
  return blocks * max(
    (units for units, size in known.items() if size <= usable), default=0
  )
