"""What a training step needs on devices that need not exist.

Bytes are those of `xlj.planning.needs`, work is counted by the formulas of
`xlj.planning.work`, and times are what data-sheets promise for it.
"""

import dataclasses
import math
from typing import Any

import jax
import ml_collections

from xlj.heads.dense import rows as rows_lib
from xlj.model import model as model_lib
from xlj.planning import accelerators
from xlj.planning import needs as needs_lib
from xlj.planning import stated
from xlj.planning import table
from xlj.planning import work as work_lib


@dataclasses.dataclass(frozen=True)
class Plan:
  """A config on a mesh of an accelerator.

  Attributes:
    config: The resolved config.
    dim: Width D of the embeddings.
    mesh: Sizes of its two axes.
    accelerator: Name.
    needs: Bytes of a device.
    work: Of a device in a step.
    seconds: Least time of each unit for the work; None where not known.
    largest_num_labels: The most labels that fit, all else equal; 0 if none.
    checkpoint_bytes: Of a checkpoint, that of all devices.
  """

  config: ml_collections.ConfigDict
  dim: int
  mesh: tuple[int, int]
  accelerator: str
  needs: needs_lib.Needs
  work: accelerators.Work
  seconds: dict[str, float | None]
  largest_num_labels: int
  checkpoint_bytes: int

  @property
  def num_devices(self) -> int:
    """Devices of the mesh."""
    return math.prod(self.mesh)

  @property
  def usable_bytes(self) -> int:
    """Memory that a step may need."""
    return accelerators.ACCELERATORS[self.accelerator].usable

  @property
  def fits(self) -> bool:
    """Whether a step fits into a device's memory."""
    return self.needs.total_bytes <= self.usable_bytes

  @property
  def bound_by(self) -> str:
    """What takes longest if logits stay on the chip."""
    known = {k: v for k, v in self.seconds.items() if v and k != "logits"}
    return max(known, key=known.__getitem__)

  @property
  def step_seconds(self) -> float:
    """Least time if units and links work at once and logits stay on chip."""
    return self.seconds[self.bound_by] or 0.0

  @property
  def step_seconds_through_memory(self) -> float:
    """The same if logits go through memory, as they do without a kernel."""
    part = ("products", "memory", "logits")
    return max(sum(self.seconds[k] or 0.0 for k in part), self.step_seconds)

  def to_json(self) -> dict[str, Any]:
    """Plain values; bytes, flops and seconds are those of a device."""
    config, needs = self.config, self.needs
    return {
      "num_labels": config.data.num_labels,
      "dim": self.dim,
      "devices": self.num_devices,
      "mesh": list(self.mesh),
      "accelerator": self.accelerator,
      "batch_size": config.train.batch_size,
      "weight_bytes": needs.weight_bytes,
      "buffer_bytes": needs.buffer_bytes,
      "optimizer_bytes": needs.optimizer_bytes,
      "temp_bytes": needs.temp_bytes,
      "batch_bytes": needs.batch_bytes,
      "total_bytes": needs.total_bytes,
      "usable_bytes": self.usable_bytes,
      "collective_bytes": needs.collective_bytes,
      "collectives": [
        {**dataclasses.asdict(c), "sent_bytes": c.sent_bytes}
        for c in needs.collectives
      ],
      "flops": self.work.flops,
      "head_flops": self.work.head_flops,
      "encoder_flops": self.work.encoder_flops,
      "exponentials": self.work.exponentials,
      "memory_traffic_bytes": self.work.state_bytes,
      "logit_traffic_bytes": self.work.logit_bytes,
      "seconds": dict(self.seconds),
      "step_seconds": self.step_seconds,
      "step_seconds_through_memory": self.step_seconds_through_memory,
      "bound_by": self.bound_by,
      "fits": self.fits,
      "largest_num_labels": self.largest_num_labels,
      "checkpoint_bytes": self.checkpoint_bytes,
    }

  def __str__(self) -> str:
    """A table with a row for each quantity, and a line with the verdict."""
    config, needs, work = self.config, self.needs, self.work
    limit = accelerators.ACCELERATORS[self.accelerator]
    name = f"{self.accelerator} ({table.bytes_text(limit.memory)})"
    head = (
      f"{config.data.num_labels:,} labels x {self.dim},"
      f" {config.head.dtype} rows, {config.head.loss},"
      f" {config.optim.head.name}, batch {config.train.batch_size:,}\n"
      f"{self.num_devices:,} x {name}, mesh {self.mesh[0]} x {self.mesh[1]};"
      " all figures are per device"
    )

    def size(label: str, value: int, note: str = "") -> table.Row:
      exact = f"{value:>17,} B"
      return label, table.bytes_text(value), f"{exact}  {note}".rstrip()

    def time(label: str, key: str, note: str) -> table.Row:
      return label, table.seconds_text(self.seconds[key]), note

    products = table.count_text(work.head_flops, "flop")
    encoder = table.count_text(work.encoder_flops, "flop")
    exps = table.count_text(work.exponentials, "")
    rows = [
      size("weights", needs.weight_bytes),
      size("buffers", needs.buffer_bytes, "counts and ids of labels"),
      size("optimizer state", needs.optimizer_bytes),
      size("batch", needs.batch_bytes),
      size("temporaries", needs.temp_bytes, "of the CPU's program"),
      size("in all", needs.total_bytes),
      size(
        "usable memory",
        self.usable_bytes,
        f"{accelerators.USABLE:.0%} of {table.bytes_text(limit.memory)}",
      ),
      size(
        "sent to others",
        needs.collective_bytes,
        f"a step, as a ring: {table.collectives_text(needs.collectives)}",
      ),
      time("products", "products", f"head {products}, encoder {encoder}"),
      time("exponentials", "exponentials", f"{exps.strip()} of logits"),
      time(
        "weights and state",
        "memory",
        f"{table.bytes_text(work.state_bytes)} of memory traffic",
      ),
      time(
        "logits off the chip",
        "logits",
        f"{table.bytes_text(work.logit_bytes)} of memory traffic, unless a"
        " kernel keeps them on the chip",
      ),
      time(
        "collectives",
        "collectives",
        table.rate_text(limit, self.num_devices),
      ),
      (
        "step, logits on chip",
        table.seconds_text(self.step_seconds),
        f"at least, at the data-sheet's peaks; bound by {self.bound_by}",
      ),
      (
        "step, logits in memory",
        table.seconds_text(self.step_seconds_through_memory),
        "at least: products, then memory traffic",
      ),
      (
        "largest number of labels",
        f"{self.largest_num_labels:,}",
        "that fits, all else equal",
      ),
      size("checkpoint", self.checkpoint_bytes, "of all devices"),
    ]
    share = needs.total_bytes / self.usable_bytes
    verdict = "FITS" if self.fits else "DOES NOT FIT"
    hint = ""
    if self.fits and needs.total_bytes > limit.preallocated < self.usable_bytes:
      hint = (
        "; JAX takes less of a GPU unless told to: set"
        f" XLA_PYTHON_CLIENT_MEM_FRACTION={accelerators.USABLE}"
      )
    return (
      f"{head}\n\n{table.aligned(rows)}\n\n{verdict}:"
      f" {table.bytes_text(needs.total_bytes)} of"
      f" {table.bytes_text(self.usable_bytes)} usable ({share:.0%}){hint}"
    )


def make(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  accelerator: str = "h200",
) -> Plan:
  """Plans the training step of a config, without running anything.

  Args:
    config: A config (see `xlj.config.base`) that holds the facts about the data
      (`data.num_rows`, `num_features`, `num_labels`, and how many features and
      labels an example has); none is read.
    mesh: Of simulated devices; see `xlj.mesh`.
    accelerator: Name of one in `accelerators.ACCELERATORS`.

  Returns:
    The plan.

  Raises:
    ConfigError: If the config cannot be run on such a mesh.
    ValueError: If there is no such accelerator.
  """
  accelerator = accelerators.key_of(accelerator)
  limit = accelerators.ACCELERATORS[accelerator]
  config = stated.resolve(config)
  model = model_lib.Model(config)
  needs = needs_lib.of_step(model, config, mesh)
  with jax.set_mesh(mesh):
    state = model.abstract()
    found = parts(state)
  work = work_lib.of_step(
    config, model, found, mesh.size, needs.collective_bytes
  )
  largest = needs_lib.largest_num_labels(config, mesh, needs, limit.usable)
  return Plan(
    config=config,
    dim=model.head.dim,
    mesh=(mesh.shape["data"], mesh.shape["label"]),
    accelerator=accelerator,
    needs=needs,
    work=work,
    seconds=accelerators.seconds(work, limit, mesh.size),
    largest_num_labels=largest,
    checkpoint_bytes=sum(
      a.size * a.dtype.itemsize
      for a in jax.tree.leaves((state.model, state.training))
    ),
  )


def parts(state: model_lib.State) -> dict[str, int]:
  """Bytes on one device of what `work.of_step` tells apart."""
  head = state.model["head"]
  return {
    "rows": needs_lib.device_bytes(
      {k: v for k, v in head.items() if k not in rows_lib.PAIRS}
    ),
    "head": needs_lib.device_bytes(state.training["head"]),
    "encoder": needs_lib.device_bytes(state.model["encoder"]),
    "encoder_optimizer": needs_lib.device_bytes(state.training["encoder"]),
  }
