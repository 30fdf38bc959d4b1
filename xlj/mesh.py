"""The device mesh: one constructor, two axes, explicit axis types."""

import jax
from jax.sharding import AxisType
import numpy as np

from xlj import sharding


def make_mesh(shape: tuple[int, int] | None = None) -> jax.sharding.Mesh:
  """Builds the mesh with axes `("data", "label")` over all devices.

  Label rows are sharded over all devices whatever the shape (see
  `sharding.LABELS`), so the shape only matters to code that treats the two
  axes differently.

  Args:
    shape: Sizes of the two axes; their product must be the number of devices.
      By default `(1, number of devices)`.

  Returns:
    A mesh with `AxisType.Explicit` axes.

  Raises:
    ValueError: If the product of `shape` is not the number of devices.
  """
  num_devices = jax.device_count()
  shape = shape or (1, num_devices)
  if shape[0] * shape[1] != num_devices:
    raise ValueError(
      f"mesh.shape {tuple(shape)} asks for {shape[0] * shape[1]} devices, but"
      f" there are {num_devices}; leave mesh.shape empty to use all of them"
    )
  # Each process reads one slice of a batch: its devices have to be neighbours.
  devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  return jax.sharding.Mesh(
    np.array(devices).reshape(shape),
    sharding.AXES,
    axis_types=(AxisType.Explicit,) * 2,
  )
