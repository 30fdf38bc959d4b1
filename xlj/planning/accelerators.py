"""Accelerators by name, and how long the walls of a step keep one busy.

The figures are the vendors': "NVIDIA A100 Tensor Core GPU", "H100 Tensor Core
GPU" and "H200 Tensor Core GPU" data-sheets (SXM parts, without sparsity), the
"NVIDIA HGX B200" and "DGX B200" data-sheets, and the pages "TPU v5e", "TPU v5p"
and "TPU v6e" of Cloud TPU's documentation. Links are counted in one direction.
No step reaches all of a peak: an H200 multiplies bfloat16 matrices at about
0.8 of it.
"""

import dataclasses

GIB = 2**30
# What the runtime, its libraries and holes between arrays leave of the memory:
# what XLA_PYTHON_CLIENT_MEM_FRACTION can be set to on GPUs.
USABLE = 0.97


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One device.

  Attributes:
    memory: Bytes that programs can have, a little less than what is built in.
    flops: bfloat16 products, flop/s.
    float32_flops: Products of float32 arrays as JAX does them by default: in
      TF32 on GPUs, in bfloat16 on TPUs.
    bandwidth: Of the memory, byte/s.
    exponentials: Per second: 16 a clock and multiprocessor (CUDA programming
      guide, table of instruction throughput) at the boost clock; None where
      the vendor does not say.
    links: To the devices of the same domain, byte/s in one direction.
    domain: Number of devices that those links connect.
    network: Between domains, byte/s in one direction and device.
  """

  memory: float
  flops: float
  float32_flops: float
  bandwidth: float
  exponentials: float | None
  links: float
  domain: int
  network: float

  @property
  def is_gpu(self) -> bool:
    """Whether it is a GPU, and not a TPU."""
    return self.exponentials is not None

  @property
  def preallocated(self) -> int:
    """Bytes that JAX takes of it if not told otherwise."""
    return int((0.75 if self.is_gpu else USABLE) * self.memory)

  @property
  def usable(self) -> int:
    """Bytes that a step may need."""
    return int(USABLE * self.memory)

  def link_bandwidth(self, num_devices: int) -> float:
    """Bytes per second that a device sends in a ring of so many."""
    return self.links if num_devices <= self.domain else self.network


ACCELERATORS = {
  "a100": Accelerator(
    79 * GIB, 312e12, 156e12, 2.039e12, 16 * 108 * 1.41e9, 300e9, 8, 25e9
  ),
  "h100": Accelerator(
    79 * GIB, 989e12, 494e12, 3.35e12, 16 * 132 * 1.83e9, 450e9, 8, 50e9
  ),
  "h200": Accelerator(
    139 * GIB, 989e12, 494e12, 4.8e12, 16 * 132 * 1.83e9, 450e9, 8, 50e9
  ),
  "b200": Accelerator(
    178 * GIB, 2250e12, 1100e12, 8e12, 16 * 148 * 1.85e9, 900e9, 8, 50e9
  ),
  "v5e": Accelerator(
    15.75 * GIB, 197e12, 197e12, 0.819e12, None, 200e9, 256, 3.125e9
  ),
  "v5p": Accelerator(
    95 * GIB, 459e12, 459e12, 2.765e12, None, 600e9, 6144, 6.25e9
  ),
  "v6e": Accelerator(
    31.25 * GIB, 918e12, 918e12, 1.638e12, None, 400e9, 256, 12.5e9
  ),
}


def key_of(name: str) -> str:
  """The key of an accelerator.

  Args:
    name: Of the accelerator; case, and "tpu" before it, do not matter.

  Returns:
    A key of `ACCELERATORS`.

  Raises:
    ValueError: If there is none; lists those that there are.
  """
  key = name.lower().removeprefix("tpu").strip(" -_")
  if key not in ACCELERATORS:
    raise ValueError(
      f"there is no accelerator {name!r} in the table; use one of"
      f" {', '.join(ACCELERATORS)}"
    )
  return key


@dataclasses.dataclass(frozen=True)
class Work:
  """What one device does in a step.

  Attributes:
    head_flops: In the head's products.
    encoder_flops: In the encoder's products, of float32 arrays.
    narrow_head: Whether the head multiplies bfloat16 arrays, not float32.
    exponentials: Exponentials and logarithms of logits.
    state_bytes: Weights and optimizer state read and written.
    logit_bytes: Logits and their gradient read and written, if they do not
      stay on the chip.
    sent_bytes: Sent to other devices.
  """

  head_flops: float
  encoder_flops: float
  narrow_head: bool
  exponentials: float
  state_bytes: float
  logit_bytes: float
  sent_bytes: float

  @property
  def flops(self) -> float:
    """In all products."""
    return self.head_flops + self.encoder_flops


def seconds(
  work: Work, accelerator: Accelerator, num_devices: int
) -> dict[str, float | None]:
  """The least time that each unit of the accelerator needs.

  Args:
    work: Of a device in a step.
    accelerator: The device.
    num_devices: How many there are.

  Returns:
    Seconds by name: `products`, `exponentials` (None if unknown), `memory`,
    `logits` (the memory's, for logits that leave the chip) and `collectives`.
  """
  a = accelerator
  rate = a.flops if work.narrow_head else a.float32_flops
  return {
    "products": work.head_flops / rate + work.encoder_flops / a.float32_flops,
    "exponentials": work.exponentials / a.exponentials
    if a.exponentials
    else None,
    "memory": work.state_bytes / a.bandwidth,
    "logits": work.logit_bytes / a.bandwidth,
    "collectives": work.sent_bytes / a.link_bandwidth(num_devices),
  }
